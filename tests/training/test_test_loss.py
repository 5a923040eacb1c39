"""The test loss: of text that nothing else sees, in evaluation mode, free, and without a trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.bigram import Bigram, tokens
from trainenv import data
from trainenv.config.schema import TrainingConfig
from trainenv.run import TrainingRun
from trainenv.training.backward import mean_loss
from trainenv.types import UserError

SMALL: dict[str, Any] = {
    "steps": 30,
    "batch_size": 4,
    "model.width": 16,
    "model.context": 16,
    "model.dropout": 0.2,
    "schedule.warmup": 3,
    "validation.sequences": 4,
    "monitor.probe_every": 0,
}


def made(**more: Any) -> TrainingRun:
    return TrainingRun.from_config("tiny", SMALL | {"validation.test_sequences": 30} | more)


def own(**more: Any) -> TrainingRun:
    model = Bigram()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return TrainingRun(model, optimizer, tokens, TrainingConfig(steps=5), **more)


def test_it_is_of_the_test_part_without_dropout_and_leaves_no_trace() -> None:
    run = made()
    run.advance(5)
    before = (run.fingerprint(), run.ledger.as_dict(), run.model.training)
    loss = run.test_loss()
    assert (run.fingerprint(), run.ledger.as_dict(), run.model.training) == before
    assert loss == run.test_loss()
    config = run.config
    sequences = torch.from_numpy(data.load(config.corpus).test_sequences(16, 30))  # type: ignore[attr-defined]
    run.model.eval()
    with torch.no_grad():
        whole = run.objective(run.model, sequences)
    assert loss == pytest.approx(mean_loss([whole], [sequences]), rel=1e-5)


def test_training_is_the_same_with_and_without_it() -> None:
    measured, straight = made(), made(**{"validation.test_sequences": 0})
    for _ in range(3):
        measured.advance(4)
        measured.test_loss()
    straight.advance(12)
    assert measured.fingerprint() == straight.fingerprint()


def test_only_a_micro_batch_is_in_the_model_at_a_time() -> None:
    run = made(accumulation=2)
    seen = []
    run.model.register_forward_pre_hook(
        lambda module, arguments, keywords: seen.append(
            next(iter([*arguments, *keywords.values()])).shape[0]
        ),
        with_kwargs=True,
    )
    run.test_loss()
    assert seen == [2] * 15


def test_a_number_above_what_there_is_means_all_of_the_test_part() -> None:
    run = made(**{"validation.test_sequences": 10**9, "model.context": 256})
    corpus = data.load(run.config.corpus)  # type: ignore[attr-defined]
    assert sum(len(micro) for micro in run._test) == len(corpus.test.starts(256))


def test_a_fork_has_the_test_set_of_its_run() -> None:
    run = made()
    run.advance(3)
    assert run.fork().test_loss() == run.test_loss()


def test_it_weighs_an_average_of_weights_as_evaluate_does() -> None:
    """An optimizer with `eval()` is tested on the weights that it evaluates."""

    class Halving(torch.optim.SGD):
        def eval(self) -> None:
            self._scale(0.5)

        def train(self) -> None:
            self._scale(2.0)

        def _scale(self, factor: float) -> None:
            if getattr(self, "_mode", 2.0) != factor:
                self._mode = factor
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter.data.mul_(factor)

    model = Bigram()
    torch.nn.init.normal_(model.table.weight)
    run = TrainingRun(
        model,
        Halving(model.parameters(), lr=0.1),
        tokens,
        TrainingConfig(steps=5),
        validation=[tokens(10**6)],
        test=[tokens(10**6)],
    )
    run.advance(2)
    assert run.test_loss() == run.evaluate()


def test_parts_of_a_users_own_may_have_a_test_set() -> None:
    run = own(test=[tokens(7), tokens(8)])
    assert run.has_test_set
    assert run.test_loss() == pytest.approx(own(validation=[tokens(7), tokens(8)]).evaluate())
    assert own(test=tokens(7)).test_loss() == own(validation=tokens(7)).evaluate()


def test_without_a_test_set_there_is_a_sentence() -> None:
    run = own(validation=[tokens(7)])
    assert not run.has_test_set
    with pytest.raises(
        UserError,
        match=r"this run has no test set; pass test=\[micro_batch, …\] to TrainingRun, or set "
        r"validation.test_sequences",
    ):
        run.test_loss()
    with pytest.raises(UserError, match="test must be a list of micro-batches, found the text"):
        own(test="held out")
    model = Bigram()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = {"steps": 5, "validation": {"test_sequences": 9}}
    with pytest.raises(UserError, match=r"expected a test set, as validation.test_sequences is 9"):
        TrainingRun(model, optimizer, tokens, config)


def test_the_whole_validation_part_is_all_of_it_and_is_charged() -> None:
    run = made(**{"validation.full_every": 10, "model.context": 256, "validation.sequences": 8})
    corpus = data.load(run.config.corpus)  # type: ignore[attr-defined]
    before = run.fingerprint()
    loss = run.evaluate_fully()
    assert run.fingerprint() == before
    there = len(corpus.validation.starts(256))
    assert run.ledger["evaluate"] == pytest.approx(run.flops_per_evaluation * there / 8)
    assert loss != run.evaluate()
    assert loss == pytest.approx(
        made(**{"model.context": 256, "validation.sequences": there}).evaluate()
    )


def test_without_a_whole_part_it_is_the_validation_set() -> None:
    run = own(validation=[tokens(7)])
    assert run.evaluate_fully() == run.evaluate()
    with pytest.raises(UserError, match="this run has no validation set; pass validation="):
        own().evaluate_fully()
