"""Layout of the arrays in a checkpoint file: tensors as they are, or their codes and scales."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from trainenv.checkpoints import quantiser
from trainenv.tools.tensor_file import compression
from trainenv.tools.tensor_file.layout import Part, Specs, plain_part


def lay_out(specs: Specs, rounded: Mapping[str, quantiser.Kind]) -> list[Part]:
    """List the arrays of a file in their order."""
    parts = []
    for name, (dtype, shape) in specs.items():
        count = math.prod(shape)
        if name in rounded:
            parts.append(Part(f"{name}/codes", count, 1))
            parts.append(Part(f"{name}/scales", quantiser.scale_count(count), 4))
        else:
            parts.append(plain_part(name, dtype, shape))
    return parts


def memory_bytes(specs: Specs, layout: Sequence[Part]) -> int:
    """Return the bytes that loading allocates: all tensors, and the codes and scales of rounded."""
    whole = sum(
        math.prod(shape) * compression.DTYPES[dtype].itemsize for dtype, shape in specs.values()
    )
    return whole + sum(part.words * part.word_size for part in layout if part.name not in specs)
