"""The processes of a configured run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from trainenv.distributed.processes import ALONE, Processes, check_divisible

if TYPE_CHECKING:
    from collections.abc import Mapping

# Settings that may differ: paths on each machine.
_OWN = ("corpus.path", "corpus.tokenizer_path", "corpus.cache")


def processes_of(config: Any, device: torch.device) -> Processes:
    """Return the processes that train the run of a configuration; joins them if there are several.

    Args:
        config: Whole configuration, a `trainenv.config.RunConfig`.
        device: Device of the run.

    Raises:
        UserError: No launcher has started the processes, their number does not divide the batch, or
            their configurations differ.
    """
    if config.distributed == "none":
        return ALONE
    from trainenv.distributed.ddp import Replicas
    from trainenv.distributed.group import check_same, join

    group = join(config.distributed, device)
    values = dict(_flat(config.model_dump(mode="json")))
    check_same(group, {key: value for key, value in values.items() if key not in _OWN})
    check_divisible(config.distributed, config.batch_size, config.accumulation, group.size)
    if config.distributed == "ddp":
        return Replicas(group)
    from trainenv.distributed.fsdp import Shards

    return Shards(group, device)


def _flat(values: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Return the values of nested mappings by dotted key."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _flat(value, f"{above}{key}.")
        else:
            found.append((f"{above}{key}", value))
    return found
