"""Knowledge about transformers' Trainer: its counters, its limits and its data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import Trainer
from transformers.trainer_callback import ExportableState

from trainenv.integrations.attach.data import Data
from trainenv.integrations.attach.held_out import some_of
from trainenv.integrations.attach.parts import AttributesPart, LengthPart, Part
from trainenv.integrations.attach.streams import saves_place
from trainenv.tools import rng
from trainenv.types import UserError

# Trainers whose data the model makes: a batch cannot be had a second time.
_ON_POLICY = (
    "GRPOTrainer",
    "RLOOTrainer",
    "OnlineDPOTrainer",
    "NashMDTrainer",
    "XPOTrainer",
    "PPOTrainer",
)
ENDLESS = 10**9  # epochs and steps of the Trainer's own loop, which the run ends before
_OF_TRAINER = (
    "_tr_loss",
    "_total_loss_scalar",
    "_globalstep_last_logged",
    "_initial_global_step",
    "_initial_num_input_tokens_seen",
    "current_flos",
    "_metrics",  # of TRL
    "_total_train_tokens",
)
_OF_STATE = (
    "global_step",
    "epoch",
    "num_input_tokens_seen",
    "total_flos",
    "best_metric",
    "best_global_step",
    "best_model_checkpoint",
)


def check(trainer: Any, mode: str) -> None:
    """Check that a Trainer can be watched or steered.

    Raises:
        UserError: It cannot; the sentence says why.
    """
    if not isinstance(trainer, Trainer):
        raise UserError(
            "expected a Trainer of transformers or of TRL, found "
            f"{type(trainer).__name__}; for a loop of your own take trainenv.steer"
        )
    if getattr(trainer.train, "__func__", None) is not type(trainer).train:
        raise UserError("the Trainer is attached already; attach it once")
    args: Any = trainer.args
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise UserError(
            "the weights must be whole in one process, to be captured and restored, found "
            "DeepSpeed or FSDP; train without it"
        )
    if mode == "watch":
        return
    kinds = [kind.__name__ for kind in type(trainer).__mro__]
    if found := [name for name in kinds if name in _ON_POLICY]:
        raise UserError(
            "the data must not depend on the model, to be trained on again after a rewind, found "
            f"{found[0]}, whose model writes them; use mode='watch'"
        )
    if not hasattr(trainer, "set_initial_training_values"):
        raise UserError(
            "steering needs transformers 4.57 or later, found an earlier one; "
            "pip install 'transformers>=4.57', or use mode='watch'"
        )
    if args.world_size > 1:
        raise UserError(
            f"steering needs a single process, found {args.world_size}; start one, or use "
            "mode='watch'"
        )
    if args.auto_find_batch_size:
        raise UserError(
            "the batch size must be fixed, to go back to earlier batches, found "
            "auto_find_batch_size=True; set per_device_train_batch_size"
        )
    data = trainer.train_dataset
    unsized = isinstance(data, IterableDataset) or not hasattr(data, "__len__")
    if unsized and not saves_place(data):
        raise UserError(
            "the data must have positions, to be trained on again after a rewind, found a stream "
            f"({type(data).__name__}) without state_dict and load_state_dict; give a data set with "
            "a length or a stream that saves its place, or use mode='watch'"
        )
    if args.dataloader_num_workers:
        raise UserError(
            "the loader must not fetch ahead in worker processes, so that it can go back, found "
            f"dataloader_num_workers={args.dataloader_num_workers}; set it to 0, or use "
            "mode='watch'"
        )
    if trainer.eval_dataset is None:
        raise UserError(
            "held-out data are needed to tell which change helps, found no eval_dataset; give "
            "one to the Trainer, or use mode='watch'"
        )


class EpochLength(int):
    """Micro-batches of an epoch, which also equal a count that ends with the last short step.

    The Trainer updates the weights where its count of micro-batches equals the length of the
    epoch. Its count also has those of branches, so it must be compared with where the data are.
    A step more is always to come: the data end the epoch.
    """

    _data: Data
    _step: Callable[[], Any]

    @classmethod
    def of(cls, value: int, data: Data, step: Callable[[], Any]) -> Self:
        """Return the length of an epoch.

        Args:
            value: Number that it is otherwise; 0 for the length.
            data: Data.
            step: Function that returns the step under way.
        """
        made = cls(value or data.length)
        made._data = data
        made._step = step
        return made

    def __eq__(self, count: object) -> bool:
        if not isinstance(count, int):
            return False
        window = len(self._data.window(self._step().index))
        return count % self._data.accumulation == window % self._data.accumulation

    __hash__ = int.__hash__

    def __floordiv__(self, accumulation: int) -> int:
        return ENDLESS

    def __mod__(self, accumulation: int) -> int:
        return 0


class Loader:
    """The loader that the Trainer sees; it takes the batches elsewhere.

    Args:
        prepared: Loader that it would have had.
    """

    batch_sampler = None

    def __init__(self, prepared: Any) -> None:
        self._prepared = prepared

    def __len__(self) -> int:
        return len(self._prepared)

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the data count their epochs."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prepared, name)


def counters_of(trainer: Any) -> dict[str, Part]:
    """Return what a Trainer counts and logs, as parts of its run."""
    found: dict[str, Part] = {
        "trainer": AttributesPart(trainer, _OF_TRAINER),
        "state": AttributesPart(trainer.state, _OF_STATE),
        "log": LengthPart(trainer.state, "log_history"),
    }
    for place, callback in enumerate(trainer.callback_handler.callbacks):
        if isinstance(callback, ExportableState):
            names = tuple(callback.state()["attributes"])
            found[f"callback {place}"] = AttributesPart(callback, names)
    return found


def held_out_batches(trainer: Any) -> list[Any]:
    """Return a bounded share of the Trainer's evaluation data, in batches."""
    data = trainer.eval_dataset
    if data is None:
        return []
    if isinstance(data, Mapping):
        data = next(iter(data.values()))
    with rng.unchanged(trainer.args.device):
        return some_of(trainer.get_eval_dataloader(data))


def loss_of_batch(trainer: Any) -> Callable[[Any, Any], Tensor]:
    """Return the function that computes the Trainer's own loss on a held-out batch."""
    metrics = AttributesPart(trainer, ("_metrics", "_total_train_tokens"))

    def loss(model: Any, batch: Any) -> Tensor:
        kept = copy.deepcopy(metrics.state())
        inputs = trainer._prepare_inputs(copy.copy(batch))
        with trainer.compute_loss_context_manager():
            found: Tensor = trainer.compute_loss(model, inputs)
        metrics.load(kept)
        return found.detach()

    return loss
