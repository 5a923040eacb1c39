"""Equal compute: how many FLOPs a method may spend on a run, in total."""

from __future__ import annotations

from trainenv.config.schema import RunConfig

_VOCABULARIES = {"bytes": 256, "gpt2": 50257}  # a BPE has as many tokens as it is asked for


def allowance(config: RunConfig) -> float:
    """FLOPs that the run spends when it is left alone: its steps, its validations and its monitor's looks.

    As the ledger counts them (`trainenv.models.spec`): a forward pass is a
    third of a step's, token for token.
    """
    from trainenv.models.build import parameter_count, positions
    from trainenv.models.spec import transformer_flops

    model = config.model
    every = config.validation.every
    monitor = config.monitor
    vocabulary = _VOCABULARIES.get(config.corpus.tokenizer, config.corpus.vocab_size)
    parameters = parameter_count(config, vocabulary) - positions(config) * model.width
    per_token = transformer_flops(
        parameters, layers=model.layers, width=model.width, context=model.context
    )
    validations = 2 + (
        (config.steps - 1) // every if every else 0
    )  # before the first step, on the way, after the last
    looks = (
        -(-config.steps // monitor.probe_every) if monitor.enabled and monitor.probe_every else 0
    )
    forward = validations * config.validation.sequences + looks * monitor.probe_sequences
    return model.context * per_token * (config.steps * config.batch_size + forward / 3)
