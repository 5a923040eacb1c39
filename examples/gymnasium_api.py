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

from trainenv import (
    Intervention,  # importing trainenv registers the environments
    agents,
    planners,
    worldmodel,
)
from trainenv.envs.observation import FEATURES
from trainenv.interventions import PARTS
from trainenv.wrappers import SpeculativeVerification

# %% [markdown] ## Make it Any key of the configuration goes by its dotted name. This is the tiny
# GPT-2, narrower still, for 200 steps, with no clipping. A decision is `environment.decision_steps`
# optimizer steps: 20 here.

# %%
SMALL = {
    "steps": 200,
    "environment.decision_steps": 20,
    "model.width": 32,
    "clip.policy": "none",
    "schedule.warmup": 10,
    "validation.sequences": 16,
    "branching": {
        "every": 40,
        "rewind": 40,
        "horizon": 24,
        "verify_steps": 5,
        "refractory_steps": 20,
    },  # a look ahead of 12 % of the run
}
env = gym.make("trainenv/GPT2-Tiny-v0", overrides=SMALL)
observation, info = env.reset(seed=0)
print(
    f"{env.action_space}, {len(observation)} features; {info['validation_loss']:.3f} nats at the "
    "start"
)

# %% [markdown] ## Observe and act An action changes six parts of training; all zeros does nothing.
# The reward is the fall in ln(validation loss), less charges. What a mask forbids is left out, and
# named in `info["masked"]`: here, the clip policy that is in force already.

# %%
training = env.unwrapped  # wrappers hand on no attributes
NOTHING, ZCLIP = (
    training.codec.encode(Intervention()),
    training.codec.encode(Intervention(clip="zclip")),
)
HIGHER, LOWER = (training.codec.encode(Intervention(lr_scale=scale)) for scale in (1.1, 0.9))
print("ZClip is", ZCLIP.tolist(), "and 10 % more learning rate", HIGHER.tolist())
for name, action in {"ZClip": ZCLIP, "ZClip again": ZCLIP, "learning rate +10 %": HIGHER}.items():
    observation, reward, terminated, truncated, info = env.step(action)
    print(
        f"step {info['step']}: {name}, {info['validation_loss']:.3f} nats, reward {reward:+.3f}, "
        f"masked {info['masked']}"
    )
masks = np.split(
    training.action_masks(), np.cumsum(training.codec.sizes)[:-1]
)  # flat, as sb3-contrib's MaskablePPO takes them
print("legal now:", {part: np.flatnonzero(mask).tolist() for part, mask in zip(PARTS, masks)})

# %% [markdown] ## Snapshot and fork A fork is another future of the same run, on the same batches.
# A snapshot brings back the past, to the bit.

# %%
snapshot, fork = training.snapshot(), training.fork()
here, there = env.step(NOTHING)[-1], fork.step(LOWER)[-1]
print(
    f"left alone {here['validation_loss']:.4f}, the fork at a lower learning rate "
    f"{there['validation_loss']:.4f}"
)
env.reset(options={"snapshot": snapshot})
print(f"and once more from the snapshot {env.step(NOTHING)[-1]['validation_loss']:.4f}")

# %% [markdown] ## An agent of your own Anything with `act(observation, info)`. This one looks at
# the cosine of the gradient with the update before it: above 0, a larger update would have helped.


# %%
class Eager:
    """10 % more learning rate where larger updates would have helped."""

    def act(self, observation: NDArray[np.float32], info: Mapping[str, Any]) -> NDArray[np.int64]:
        return HIGHER if observation[FEATURES.index("hypergradient")] > 0 else NOTHING


for agent in (agents.DoNothing(), Eager()):
    episode = agents.play(env, agent, seed=0)
    print(
        f"{type(agent).__name__}: {episode.info['validation_loss']:.3f} nats, reward "
        f"{episode.reward:.3f}"
    )

# %% [markdown] ## Try it for real first Within `SpeculativeVerification` an action is trained
# beside doing nothing for a few steps, and put in force if it holds up.

# %%
verified = SpeculativeVerification(env, top_k=3, verify_steps=5)
verified.reset(seed=0)
for name, action in {"ZClip": ZCLIP, "nothing": NOTHING, "10 % less learning rate": LOWER}.items():
    info = verified.step(action)[-1]
    print(f"step {info['step']}: {name}: {info['verdict'] or 'needs no verification'}")

# %% [markdown] ## The whole loop Monitor, trigger, rewind, draft, verify, collapse. A planner
# drafts with the pretrained world model; all that it costs comes off the same budget of 200 steps.
# `report` shows itself in a notebook; `report.html(path)` is a page in one file.

# %%
verified.reset(seed=0)
with TemporaryDirectory() as folder:
    loop = agents.BranchingAgent(
        verified, planner=planners.make("grid"), model=worldmodel.load_pretrained()
    )
    report = loop.run(200, out=Path(folder) / "steered")
    print(report.tree())
    page = report.html(Path(folder) / "report.html")
    print(
        f"{page.name}: {page.stat().st_size // 1000} kB, for the browser; give `out` a folder that "
        "stays to look at it again"
    )
