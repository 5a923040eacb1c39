"""Tree search in a learned model, for many roots at once, in NumPy alone.

    root = Root(value=value, logits=logits, latent=latent)                       # B roots
    found = search(root, model, rule=Gumbel(), simulations=50, generator=generator)
    found.action, found.policy, found.q                                          # [B], [B, A] each
    found = search(root, model, …, below=subtree(found.tree, found.action))      # continue below

`model` is any callable: (latent [B, …], actions [B]) → (reward [B], value [B], logits [B, A],
latent [B, …]).
"""

from trainenv.planners.search.contract import Recurrent, Root, SearchResult, Tree
from trainenv.planners.search.gumbel import Gumbel
from trainenv.planners.search.puct import PUCT
from trainenv.planners.search.search import search
from trainenv.planners.search.subtree import subtree

__all__ = ["PUCT", "Gumbel", "Recurrent", "Root", "SearchResult", "Tree", "search", "subtree"]
