"""Models: GPT-2, its reversible form and T5, and what training needs to know of any architecture.

from trainenv.models import ModelSpec          # facts about an architecture of your own
from trainenv.models import add_heads          # heads that predict further tokens
from trainenv.models.build import build        # the model of a configuration
"""

from trainenv.models.future_heads import FutureHeads, add_heads
from trainenv.models.spec import ModelSpec, Shape, spec_of, transformer_flops

__all__ = [
    "FutureHeads",
    "ModelSpec",
    "Shape",
    "add_heads",
    "spec_of",
    "transformer_flops",
]
