"""Wrappers around the training environment.

`SpeculativeVerification` tries each change for a few real steps before it takes effect, next to an
unchanged copy of the run. `Verification` has its settings, for use without an environment.

    env = SpeculativeVerification(gym.make("trainenv/GPT2-Tiny-v0"), top_k=6, verify_steps=50)
    observation, reward, terminated, truncated, info = env.step(action)
    info["verdict"]                                # accepted or not, and why
"""

from trainenv.verification.verify import Verification
from trainenv.wrappers.speculative import SpeculativeVerification

__all__ = ["SpeculativeVerification", "Verification"]
