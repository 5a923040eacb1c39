# %% [markdown]
# # A training run as a Gymnasium environment
# Open this in an editor that knows `# %%` cells, or run it whole: python examples/gymnasium_api.py

# %%
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import agents
import planners
import trainenv  # registers the environments
import worldmodel
from trainenv.interventions import PARTS
from trainenv.wrappers import SpeculativeVerification

# %% [markdown]
# ## Make it
# Any key of the configuration goes by its dotted name. This is the tiny GPT-2, smaller still: 300 steps, a learning rate that is
# four times too high, and no clipping. A decision is `environment.decision_steps` optimizer steps, 25 here.

# %%
SMALL = {
    "steps": 300,
    "model.width": 32,
    "optimizer.lr": 1.2e-2,
    "clip.policy": "none",
    "schedule.warmup": 10,
    "validation.sequences": 32,
    "branching": {"every": 50, "rewind": 50, "horizon": 36, "verify_steps": 5, "quiet": 25},  # a look ahead of 12 % of the run
}
env = gym.make("trainenv/GPT2-Tiny-v0", overrides=SMALL)
observation, info = env.reset(seed=0)
print(f"{env.action_space}, {len(observation)} features; {info['validation_loss']:.3f} nats at the start")

# %% [markdown]
# ## Observe and act
# An action changes six parts of training; all zeros does nothing. The reward is the fall in ln(validation loss), less charges.
# What a mask forbids is left out, and named in `info["masked"]`: here, the clip policy that is in force already.

# %%
ZCLIP, LOWER, NOTHING = np.array([0, 0, 2, 0, 0, 0]), np.array([1, 0, 0, 0, 0, 0]), np.zeros(6, dtype=np.int64)
for name, action in {"ZClip": ZCLIP, "ZClip again": ZCLIP, "learning rate −20 %": LOWER}.items():
    observation, reward, terminated, truncated, info = env.step(action)
    print(f"step {info['step']}: {name}, {info['validation_loss']:.3f} nats, reward {reward:+.3f}, masked {info['masked']}")
masks = np.split(env.unwrapped.action_masks(), np.cumsum(env.unwrapped.codec.sizes)[:-1])  # flat, as MaskablePPO takes them
print("legal now:", {part: np.flatnonzero(mask).tolist() for part, mask in zip(PARTS, masks)})

# %% [markdown]
# ## Snapshot and fork
# A fork is another future of the same run, on the same batches. A snapshot brings back the past, to the bit.

# %%
snapshot, fork = env.unwrapped.snapshot(), env.unwrapped.fork()
here, there = env.step(NOTHING)[-1], fork.step(LOWER)[-1]
print(f"left alone {here['validation_loss']:.4f}, the fork at a lower rate {there['validation_loss']:.4f}")
env.reset(options={"snapshot": snapshot})
print(f"and once more from the snapshot {env.step(NOTHING)[-1]['validation_loss']:.4f}")


# %% [markdown]
# ## An agent of your own
# Anything with `act(observation, info)`. This one clips from the start, and lowers the learning rate where the loss rises.


# %%
class Careful:
    """20 % less learning rate whenever the validation loss has gone up since the last decision."""

    def act(self, observation: NDArray[np.float32], info: Mapping[str, Any]) -> NDArray[np.int64]:
        names = trainenv.envs.observation.FEATURES
        return LOWER if observation[names.index("validation_fall")] < 0 else ZCLIP


episode = agents.play(env, Careful(), seed=0)
changed = [[int(part) for part in action] for action in episode.actions]
print(f"careful: reward {episode.reward:.3f}, {episode.info['validation_loss']:.3f} nats, {changed.count(LOWER.tolist())} cuts")

# %% [markdown]
# ## Try it for real first
# Within `SpeculativeVerification` an action is trained beside doing nothing for a few steps, and put in force if it holds up.

# %%
verified = SpeculativeVerification(env, top_k=2, verify_steps=5)
verified.reset(seed=0)
for action in (ZCLIP, LOWER, LOWER):
    info = verified.step(action)[-1]
    print(f"step {info['step']}: {info['verdict'] or 'nothing to verify'}; learning rate × {env.unwrapped.run.lr_scale:g}")

# %% [markdown]
# ## The whole loop
# Monitor, trigger, rewind, draft, verify, collapse. A planner drafts with the pretrained world model; all that it costs comes off
# the same budget of 300 steps. `report` shows itself in a notebook; `report.html(path)` is a page in one file.

# %%
verified.reset(seed=0)
with TemporaryDirectory() as folder:
    agent = agents.BranchingAgent(verified, planner=planners.make("grid"), model=worldmodel.load_pretrained())
    report = agent.run(300, out=Path(folder) / "steered")
    print(report.tree())
    page = report.html(Path(folder) / "report.html")
    print(f"{page.name}: {page.stat().st_size // 1000} kB, to be opened in a browser; keep the folder to look at it again")
