"""Equal compute: the FLOPs that a method may spend on a run, in total."""

from __future__ import annotations

from math import ceil

from trainenv.config.schema import RunConfig

_VOCABULARIES = {"bytes": 256, "gpt2": 50257}  # a BPE has the configured number of tokens


def allowance(config: RunConfig) -> float:
    """Return the FLOPs of a run without interventions: steps, validations and monitor probes.

    The test at the end of a run is not among them, because it is not charged.

    They are counted as in the ledger (`trainenv.models.spec`): a forward pass costs a third of a
    training step, for each token.
    """
    from trainenv.models.build import sequence_flops

    vocabulary = _VOCABULARIES.get(config.corpus.tokenizer, config.corpus.vocab_size)
    forward = _validations(config) * config.validation.sequences
    if config.validation.full_every:
        forward += _full_validations(config)
    forward += _probes(config) * config.monitor.probe_sequences
    sequences = config.steps * config.batch_size + forward / 3
    return sequence_flops(config, vocabulary) * sequences


def _validations(config: RunConfig) -> int:
    """The number of validations: before the first step, every few steps, after the last step."""
    if not config.validation.every:
        return 2
    return 2 + (config.steps - 1) // config.validation.every


def _full_validations(config: RunConfig) -> int:
    """The number of sequences that the evaluations of the whole validation part take in all."""
    from trainenv import data
    from trainenv.models.build import text_length

    whole = len(data.load(config.corpus).validation.starts(text_length(config)))
    return whole * (1 + (config.steps - 1) // config.validation.full_every)


def _probes(config: RunConfig) -> int:
    """The number of times that the monitor evaluates its probe."""
    monitor = config.monitor
    if not (monitor.enabled and monitor.probe_every):
        return 0
    return ceil(config.steps / monitor.probe_every)
