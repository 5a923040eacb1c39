"""Knowledge about Lightning's Trainer: its counters, its limits, its data and its log."""

from __future__ import annotations

import copy
import csv
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import Metric

from trainenv.integrations.attach.checkpoint_folders import LEFT_BEHIND
from trainenv.integrations.attach.data import LoaderSource, source_of
from trainenv.integrations.attach.held_out import some_of
from trainenv.integrations.attach.parts import AttributesPart, Part, StatefulPart
from trainenv.tools import rng
from trainenv.tools.packing import pack, unpack
from trainenv.types import UserError

_OF_LOG = (
    "_first_loop_iter",
    "_current_fx",
    "_logged_metrics",
    "_callback_metrics",
    "_progress_bar_metrics",
)
_OF_CHECKPOINTS = (
    "_last_global_step_saved",
    "_last_checkpoint_saved",
    "best_k_models",
    "best_model_path",
    "best_model_score",
    "current_score",
    "kth_best_model_path",
    "kth_value",
    "last_model_path",
)
_THEIRS = (
    "model",
    "optimizer",
    "scaler",
    "epochs",
    "batches",
    "schedulings",
    "steps",
    "logged steps",
)
_OF_METRIC = ("_update_count", "_computed", "_forward_cache", "has_reset", "value")


def check(trainer: Any, *, steers: bool) -> None:
    """Check that a training of Lightning can be watched or steered.

    Raises:
        UserError: It cannot; the sentence says why.
    """
    if not trainer.lightning_module.automatic_optimization:
        raise UserError(
            "the module must let Lightning take the steps of its optimizer, found "
            "automatic_optimization=False; set it to True, or take trainenv.steer for a loop of "
            "your own"
        )
    if type(trainer.strategy).__name__ in ("DeepSpeedStrategy", "FSDPStrategy"):
        raise UserError(
            "the weights must be whole in one process, to be captured and restored, found "
            f"{type(trainer.strategy).__name__}; train without it"
        )
    if not steers:
        return
    if trainer.world_size > 1:
        raise UserError(
            f"steering needs a single process, found {trainer.world_size}; set devices=1, or use "
            "mode='watch'"
        )
    if trainer.reload_dataloaders_every_n_epochs:
        raise UserError(
            "the data must stay the same, to go back to earlier batches, found "
            "reload_dataloaders_every_n_epochs="
            f"{trainer.reload_dataloaders_every_n_epochs}; set it to 0, or use mode='watch'"
        )
    if isinstance(trainer.fit_loop._data_fetcher, _DataLoaderIterDataFetcher):
        raise UserError(
            "the loop must hand the batches to training_step, to hand them out again, found one "
            "that takes dataloader_iter; let it take a batch, or use mode='watch'"
        )


def steps_of(trainer: Any) -> int:
    """Return the number of steps at which a training ends.

    Raises:
        UserError: It is not known.
    """
    steps = trainer.estimated_stepping_batches
    if steps == float("inf") or steps < 1:
        raise UserError(
            "the number of steps must be known, for the budget, found a training without end; "
            "give the Trainer max_steps"
        )
    return int(steps)


def loader_of(trainer: Any) -> DataLoader[Any]:
    """Return the loader of a training, whose batches have positions.

    Raises:
        UserError: There are several, or their batches have none.
    """
    loaders = trainer.fit_loop._combined_loader.flattened
    if len(loaders) != 1:
        raise UserError(
            f"steering needs one training loader, found {len(loaders)}; join their data in one, "
            "or use mode='watch'"
        )
    loader = loaders[0]
    if not isinstance(loader, DataLoader):
        raise UserError(
            "the data must have positions, to be trained on again after a rewind, found "
            f"{type(loader).__name__}; give a DataLoader, or use mode='watch'"
        )
    source_of(loader)  # its sentences
    if trainer.num_training_batches == float("inf"):
        raise UserError(
            "the loader must have a length, so that no batch is fetched ahead, found one without; "
            "give a data set and a sampler with lengths, or use mode='watch'"
        )
    return loader


class OrderedSource(LoaderSource):
    """The loader of a training of Lightning.

    Lightning begins to iterate where we can't see it, and so draws the seed of the workers then.

    Args:
        loader: Loader.
        length: Number of batches of an epoch, which Lightning may limit.
    """

    def __init__(self, loader: DataLoader[Any], length: int) -> None:
        super().__init__(loader)
        self._length = length

    def __len__(self) -> int:
        return self._length

    def begin(self, epoch: int) -> Iterator[Any]:
        """See `trainenv.integrations.attach.data.Source`."""
        _set_sampler_epoch(self._loader, epoch)
        sampler: Any = self._loader.batch_sampler or self._loader.sampler
        return iter(sampler)


class Fetcher(_DataFetcher):
    """The fetcher that Lightning's loop sees. Each epoch begins as with its own one.

    Args:
        theirs: Fetcher that it would have had.
        batch: Function that returns the next batch.
    """

    def __init__(self, theirs: _DataFetcher, batch: Callable[[], Any]) -> None:
        super().__init__()
        self.setup(theirs.combined_loader)
        self.reset()
        self.iterator = theirs.iterator
        self._batch = batch

    def __next__(self) -> Any:
        return self._batch(), 0, 0


class FreshPart(AttributesPart):
    """Attributes that others may share tensors with, so that they get tensors of their own.

    Args:
        thing: Object.
        names: Names of its attributes; those that it does not have are left out.
        device: Device of the tensors.
    """

    def __init__(self, thing: Any, names: Any, device: torch.device) -> None:
        super().__init__(thing, names)
        self._device = device

    def load(self, state: Any) -> None:
        """See `Part`."""
        for name, value in move_data_to_device(unpack(state), self._device).items():
            setattr(self._thing, name, value)

    def _attributes(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in super()._attributes().items()
            if not isinstance(value, Metric)
        }


def _metric_part(metric: Metric, device: torch.device) -> FreshPart:
    return FreshPart(metric, {*metric._defaults, *_OF_METRIC}, device)


def _metrics_of(trainer: Any) -> list[Metric]:
    return [one for one in trainer.lightning_module.modules() if isinstance(one, Metric)]


class ResultsPart:
    """Values that modules log, and what their means over an epoch are made of so far.

    Args:
        loop: Loop of an epoch, which holds them.
        device: Device of the tensors.
    """

    def __init__(self, loop: Any, device: torch.device) -> None:
        self._loop = loop
        self._device = device

    def state(self) -> Any:
        """See `Part`."""
        parts = {name: _metric_part(one, self._device) for name, one in self._results.items()}
        return pack({name: part.state() for name, part in parts.items()})

    def load(self, state: Any) -> None:
        """See `Part`."""
        saved = unpack(state)
        results = self._results
        for name in list(results):
            if name in saved:
                _metric_part(results[name], self._device).load(saved[name])
            else:
                del results[name]

    @property
    def _results(self) -> dict[str, Any]:
        results: dict[str, Any] = self._loop._results
        return results


def parts_of(trainer: Any, ours: Callback) -> dict[str, Part]:
    """Return what a training of Lightning changes, but for its model, optimizer and data.

    Args:
        trainer: Trainer.
        ours: Callback of our own, which is left out.
    """
    fit = trainer.fit_loop
    loop = fit.epoch_loop
    device = trainer.strategy.root_device
    found: dict[str, Part] = {}
    for place, config in enumerate(trainer.lr_scheduler_configs):
        found[f"scheduler {place}"] = StatefulPart("a scheduler", config.scheduler)
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None:
        found["scaler"] = StatefulPart("the scaler", scaler)
    progress = {
        "epochs": fit.epoch_progress,
        "batches": loop.batch_progress,
        "schedulings": loop.scheduler_progress,
        "steps": loop.automatic_optimization.optim_progress,
    }
    found |= {name: StatefulPart("the progress", one) for name, one in progress.items()}
    found["logged steps"] = AttributesPart(loop, ("_batches_that_stepped",))
    found["results"] = ResultsPart(loop, device)
    found["log"] = FreshPart(trainer._logger_connector, _OF_LOG, device)
    for place, metric in enumerate(_metrics_of(trainer)):
        found[f"metric {place}"] = _metric_part(metric, device)
    for place, callback in enumerate(trainer.callbacks):
        if isinstance(callback, ModelCheckpoint):
            found[f"callback {place}"] = FreshPart(callback, _OF_CHECKPOINTS, device)
        elif callback is not ours and type(callback).state_dict is not Callback.state_dict:
            found[f"callback {place}"] = StatefulPart("a callback", callback)
    return found


def is_theirs(name: str) -> bool:
    """Tell if Lightning saves a part in its own checkpoints."""
    return name in _THEIRS or name.startswith(("scheduler ", "callback "))


@contextmanager
def unseen(trainer: Any, ours: Callback) -> Iterator[None]:
    """Keep callbacks and loggers from what is trained inside the block."""
    connector = trainer._logger_connector
    callbacks = trainer.callbacks
    trainer.callbacks = [ours]
    connector.log_metrics = lambda *arguments, **more: None
    try:
        yield
    finally:
        trainer.callbacks = callbacks
        del connector.log_metrics


def held_out_batches(trainer: Any, given: Any) -> list[Any]:
    """Return held-out batches: the given ones, or those of the first validation loader."""
    if given is not None:
        return some_of(given)
    if trainer.enable_validation and trainer.val_dataloaders is None:
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        trainer.training = True
    loaders = trainer.val_dataloaders
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, list | tuple) and loaders and isinstance(loaders[0], DataLoader):
        loaders = loaders[0]
    with rng.unchanged(trainer.strategy.root_device):
        return some_of(loaders)


def loss_of_batch(trainer: Any) -> Callable[[Any, Any], Tensor]:
    """Return the function that computes the loss of `training_step` on a held-out batch."""
    loop = trainer.fit_loop.epoch_loop
    connector = trainer._logger_connector
    device = trainer.strategy.root_device

    def loss(model: Any, batch: Any) -> Tensor:
        log = {name: copy.copy(getattr(connector, name)) for name in _OF_LOG}
        results = loop._results
        loop._results = _ResultCollection(training=True)
        metrics = [_metric_part(one, device) for one in _metrics_of(trainer)]
        counted = copy.deepcopy([part.state() for part in metrics])
        try:
            batch = trainer.precision_plugin.convert_input(batch)
            batch = call._call_strategy_hook(trainer, "batch_to_device", batch, dataloader_idx=0)
            connector.on_batch_start(batch)
            arguments = loop._build_kwargs(OrderedDict(), batch, 0)
            found = call._call_strategy_hook(trainer, "training_step", *arguments.values())
        finally:
            loop._results = results
            for part, state in zip(metrics, counted):
                part.load(state)
            for name, value in log.items():
                setattr(connector, name, value)
        if isinstance(found, Mapping):
            found = found["loss"]
        return torch.as_tensor(found).detach()

    return loss


def leave_behind(trainer: Any, paths: Sequence[str]) -> None:
    """Mark what was saved and logged since the step that the run has gone back to.

    Checkpoints are renamed, and rows of Lightning's own log files (`CSVLogger`) are dropped.

    Args:
        trainer: Trainer, at the step that the run has gone back to.
        paths: Paths of the checkpoints saved since.
    """
    for path in map(Path, paths):
        if path.exists():
            path.rename(path.with_name(LEFT_BEHIND + path.name))
    for callback in trainer.callbacks:
        if isinstance(callback, ModelCheckpoint):
            best = callback.best_k_models
            callback.best_k_models = {path: best[path] for path in best if Path(path).exists()}
    logged = trainer.fit_loop.epoch_loop._batches_that_stepped
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            logger.save()
            log = Path(logger.experiment.metrics_file_path)
            if log.is_file():
                _drop_rows(log, logged)


def _drop_rows(log: Path, step: int) -> None:
    """Drop the rows of a log from a step on."""
    with log.open(newline="") as file:
        reader = csv.DictReader(file)
        names = reader.fieldnames or ()
        rows = [row for row in reader if int(row["step"]) < step]
    with log.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
