"""Policies that Stable-Baselines3 trains, in a world model or in real runs.

    trained = train_in_model(worldmodel.load_pretrained(), histories, config, PPO(decisions=20_000))
    train(run, folder, callback=agents.AgentCallback(agent=trained.policy))

`ppo_model`, `dqn_model` and `ppo_real` are whole methods for a comparison. Each name is imported
when it is first used; Stable-Baselines3 is an optional package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainenv.tools.lazy import lazy

if TYPE_CHECKING:
    from trainenv.agents.rl.learners import DQN, MOVING, PPO, USEFUL, MaskablePPO
    from trainenv.agents.rl.policy import Policy, Trained, train_in_model, train_in_run
    from trainenv.agents.rl.rl_methods import dqn_model, maskable_ppo_model, ppo_model, ppo_real

__all__ = [
    "DQN",
    "MOVING",
    "PPO",
    "USEFUL",
    "MaskablePPO",
    "Policy",
    "Trained",
    "dqn_model",
    "maskable_ppo_model",
    "ppo_model",
    "ppo_real",
    "train_in_model",
    "train_in_run",
]

__getattr__ = lazy(
    __name__,
    {
        "DQN": "trainenv.agents.rl.learners",
        "MOVING": "trainenv.agents.rl.learners",
        "MaskablePPO": "trainenv.agents.rl.learners",
        "PPO": "trainenv.agents.rl.learners",
        "USEFUL": "trainenv.agents.rl.learners",
        "Policy": "trainenv.agents.rl.policy",
        "Trained": "trainenv.agents.rl.policy",
        "train_in_model": "trainenv.agents.rl.policy",
        "train_in_run": "trainenv.agents.rl.policy",
        "dqn_model": "trainenv.agents.rl.rl_methods",
        "maskable_ppo_model": "trainenv.agents.rl.rl_methods",
        "ppo_model": "trainenv.agents.rl.rl_methods",
        "ppo_real": "trainenv.agents.rl.rl_methods",
    },
)
