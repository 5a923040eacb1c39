"""Tree search in a learned model, for many roots at once, in NumPy alone.

    found = search(Root(value=value, logits=logits, latent=latent), model, rule=Gumbel(),
    simulations=50, generator=generator) found.action, found.policy, found.visits        # [B], [B,
    A], [B, A] below = subtree(found.tree, found.action)       # to go on from after these actions:
    search(…, below=below)

`model` is any callable: (latent [B, …], actions [B]) → (reward [B], value [B], logits [B, A],
latent [B, …]).
"""

from trainenv.planners.search.gumbel import Gumbel
from trainenv.planners.search.puct import PUCT
from trainenv.planners.search.rules import Recurrent, Root, Searched, Tree
from trainenv.planners.search.search import search
from trainenv.planners.search.subtree import subtree

__all__ = ["PUCT", "Gumbel", "Recurrent", "Root", "Searched", "Tree", "search", "subtree"]
