"""Folding: K tiny runs trained as one model, with one forward and backward pass for all.

A step of a tiny model is mostly the overhead of about a hundred small kernels. Folded runs share
each kernel:

    folded = Folded([run.fork() for _ in range(8)])
    folded.runs[3].apply(Intervention(lr_scale=0.5))        # each run is steered alone
    telemetry = folded.advance(50)                          # [8][50]
    losses = folded.evaluate()                              # [8]

Folding makes every weight, gradient and moment of a run a view into one row of a matrix [K, P],
where P is the number of elements in an optimizer group. Forward and backward pass are over all rows
at once. Clipping, the optimizer, the monitor and the data order are the run's own code, applied to
its flat row.

A folded run stays a `TrainingRun`. Steering, evaluating, saving and restoring it alone work as
before. Its own snapshots fit runs that are folded in the same way; `Folded.snapshot` makes one that
fits runs which are not folded. Its own `advance` and `fork` are refused.

Deviation from a run that is not folded: sums are in another order, so bits differ, and losses drift
apart as after a change of one unit in the last place. Equal bits need equal folding: the same
number of runs, and the same number of them in each call.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from trainenv.clipping import PER_TENSOR
from trainenv.models.spec import spec_of
from trainenv.objectives import NextToken
from trainenv.training import numerics, snapshots
from trainenv.training.backward import Pass
from trainenv.training.micro_batches import token_count
from trainenv.types import Snapshot, Telemetry, UserError

if TYPE_CHECKING:
    from trainenv.run import TrainingRun

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Folded:
    """Runs of GPT-2s of one shape, trained in lockstep: a `trainenv.types.RunGroup`.

    The runs are changed in place, and are trained by this object from now on.

    Args:
        runs: Forks of one run, or runs built in the same way: GPT-2s of one shape on one device,
            trained by next-token prediction with AdamW in fp32, one micro-batch each step, no
            dropout. Each run keeps its own state, data order and interventions. The number of
            threads, deterministic kernels and the block length of telemetry are those of the first
            run.

    Attributes:
        runs: The runs, in the order given.

    Raises:
        UserError: There is no run, or one that can't be folded with the first. No run was changed.
    """

    def __init__(self, runs: Sequence[TrainingRun]) -> None:
        self.runs = tuple(runs)
        if not self.runs:
            raise UserError("expected runs to fold, found none")
        if len({id(run) for run in self.runs}) < len(self.runs):
            raise UserError("expected each run once, found one twice; fold a fork of it")
        first = self.runs[0]
        for run in self.runs:
            _check(run, first)
        shape = spec_of(first.model).shape(first.model)
        self._heads = int(shape.heads or 1)
        self._layers = int(shape.layers or 0)
        self._layout = _layout(first)
        self._rows: list[Tensor] = []  # leaf [K, P] of each optimizer group
        grouped = [[group["params"] for group in run.optimizer.param_groups] for run in self.runs]
        for place in range(len(self._layout)):
            flat = torch.stack([_flat(groups[place]) for groups in grouped])
            self._rows.append(flat.requires_grad_())
        for number, run in enumerate(self.runs):
            self._fold(number, run)

    def advance(self, steps: int, among: Sequence[int] | None = None) -> list[list[Telemetry]]:
        """Train runs for `steps` steps, as `TrainingRun.advance` does.

        Args:
            steps: Number of optimizer steps.
            among: Numbers of the runs that take part; all if left out.

        Returns:
            Telemetry of each step, for each run in the order of `among`.

        Raises:
            UserError: The steps are below 0, a number is not that of a run, or a batch has more
                than one micro-batch.
        """
        if steps < 0:
            raise UserError(f"steps must be 0 or more, found {steps}")
        numbers = self._numbers(among)
        runs = [self.runs[number] for number in numbers]
        measured: list[list[Telemetry]] = [[] for _ in runs]
        block = self.runs[0].config.monitor.block
        try:
            with numerics.settings(self.runs[0].config):
                for count in range(1, steps + 1):
                    self._step(numbers)
                    if count % block == 0 or count == steps:
                        for run, telemetry in zip(runs, measured):
                            telemetry += run._read_block()
        except BaseException:
            for run in runs:
                run._drop_unfinished()
            raise
        return measured

    def evaluate(self, among: Sequence[int] | None = None) -> list[float]:
        """Return the validation loss of runs, in nats per token, in the order of `among`.

        Args:
            among: Numbers of the runs to evaluate; all if left out.

        Raises:
            UserError: There is no validation set, or a number is not that of a run.
        """
        numbers = self._numbers(among)
        runs = [self.runs[number] for number in numbers]
        if not runs:
            return []
        if not runs[0]._validation:
            raise UserError(
                "expected runs with a validation set, found no validation set; "
                "pass validation=[micro_batch, …] to TrainingRun"
            )
        sets = zip(*(run._validation for run in runs), strict=True)
        with torch.no_grad(), numerics.settings(self.runs[0].config):
            losses = [self._losses(numbers, self._together(micro)) for micro in sets]  # [M][K]
        return [run._validated(list(row)) for run, row in zip(runs, torch.stack(losses, dim=1))]

    def snapshot(self, number: int) -> Snapshot:
        """Return the whole state of one run, in the form of a run that is not folded."""
        (number,) = self._numbers([number])
        run = self.runs[number]
        return snapshots.capture(run.step, run._state() | {"optimizer": self._unfolded(run)})

    def _unfolded(self, run: TrainingRun) -> dict[str, Any]:
        """Return the optimizer state of a run, with the moments of each parameter apart."""
        folded = run.optimizer.state_dict()
        groups = []
        states = dict[int, Any]()
        first = 0
        for row, (layout, group) in enumerate(zip(self._layout, folded["param_groups"])):
            places = range(first, first + len(layout))
            known = folded["state"].get(row)
            groups.append({**group, "params": list(places)})
            first += len(layout)
            if known is None:  # no step was taken yet
                continue
            pieces = {
                name: known[name].split([shape.numel() for _, shape in layout]) for name in _MOMENTS
            }
            for place, (_, shape), *moments in zip(places, layout, *pieces.values()):
                named = {name: moment.view(shape) for name, moment in zip(_MOMENTS, moments)}
                # Each parameter has its own step counter: a tensor that is shared in a snapshot is
                # shared after restoring, and would count the steps of all parameters.
                states[place] = {"step": known["step"].clone(), **named}
        return {"kind": type(run.optimizer).__name__, "state": states, "param_groups": groups}

    def _step(self, numbers: Sequence[int]) -> None:
        """Take one optimizer step of each run."""
        batches = {number: self.runs[number]._coming_batch() for number in numbers}
        # By the shape of the batch: runs whose data were reordered meet long sequences at other
        # steps.
        by_shape = defaultdict(list)
        for number, batch in batches.items():
            if len(batch.micro) != 1:
                raise UserError(
                    f"to be folded, a run needs one micro-batch a step, found {len(batch.micro)}; "
                    "train it by itself"
                )
            by_shape[batch.micro[0].shape].append(number)
        for members in by_shape.values():
            losses = self._losses(
                members, self._together([batches[number].micro[0] for number in members])
            )
            gradients = torch.autograd.grad(losses.sum(), self._rows)
            for number, loss in zip(members, losses.detach()):
                run = self.runs[number]
                for row, gradient in zip(run._parameters, gradients):
                    row.grad = gradient[number]
                tokens = token_count(batches[number].micro[0])
                run._update(batches[number], Pass(loss, tokens))

    def _losses(self, numbers: Sequence[int], tokens: Tensor) -> Tensor:
        """Return the mean loss of each run, nats per token, [K], on its `tokens` [K, B, T + 1]."""
        whole = list(numbers) == list(range(len(self.runs)))
        weights: dict[str, Tensor] = {}
        for layout, rows in zip(self._layout, self._rows):
            chosen = rows
            if not whole:
                chosen = rows[torch.tensor(numbers, device=rows.device)]
            pieces = chosen.split([shape.numel() for _, shape in layout], dim=1)
            weights |= {
                name: piece.unflatten(1, shape) for (name, shape), piece in zip(layout, pieces)
            }
        logits = forward(
            weights, tokens[..., :-1], heads=self._heads, layers=self._layers
        )  # (K, B·T, V)
        targets = tokens[..., 1:].reshape(-1)
        return (
            F.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
            .view(len(numbers), -1)
            .mean(1)
        )

    def _fold(self, number: int, run: TrainingRun) -> None:
        """Make the weights, the optimizer and the moments of a run views into row `number`."""
        groups: list[dict[str, Any]] = []
        states = []
        for rows, group in zip(self._rows, run.optimizer.param_groups):
            parameters = group["params"]
            row = nn.Parameter(rows.detach()[number])
            for parameter, piece in zip(
                parameters, row.detach().split([p.numel() for p in parameters])
            ):
                parameter.data = piece.view(parameter.shape)
            groups.append({**group, "params": [row]})
            states.append(
                (row, [run.optimizer.state[p] for p in parameters if p in run.optimizer.state])
            )
        optimizer = AdamW(groups, fused=True)
        for row, known in states:
            if known:  # a step was taken already
                moments = {
                    name: torch.cat([state[name].reshape(-1) for state in known])
                    for name in _MOMENTS
                }
                optimizer.state[row] = {"step": known[0]["step"].clone(), **moments}
        run.optimizer = optimizer
        run._parameters = [row for row, _ in states]
        run.folded = True

    def _together(self, micro: Sequence[Tensor]) -> Tensor:
        """Return micro-batches [B, T + 1] of K runs as one tensor [K, B, T + 1]."""
        return torch.stack(list(micro)).to(self._rows[0].device)

    def _numbers(self, among: Sequence[int] | None) -> list[int]:
        """Return checked numbers of runs; all for None."""
        every = list(range(len(self.runs)))
        if among is None:
            return every
        numbers = list(among)
        if len(set(numbers)) < len(numbers) or not set(numbers) <= set(every):
            raise UserError(
                f"among must be different numbers of runs, from 0 to {every[-1]}, found {numbers}"
            )
        return numbers


def forward(weights: dict[str, Tensor], tokens: Tensor, *, heads: int, layers: int) -> Tensor:
    """Return the logits of K GPT-2s at once, [K, B·T, V].

    Args:
        weights: Weights of `GPT2LMHeadModel` by name, [K, …] each.
        tokens: Tokens of each model, int64 [K, B, T].
        heads: Number of attention heads of each block.
        layers: Number of blocks.
    """
    count, batch, length = tokens.shape
    embedding = weights["transformer.wte.weight"]  # (K, V, W)
    width = embedding.shape[-1]
    which = torch.arange(count, device=tokens.device)[:, None]
    hidden = embedding[which, tokens.flatten(1)]  # (K, B·T, W)
    hidden = hidden + weights["transformer.wpe.weight"][:, :length].repeat(1, batch, 1)
    for layer in range(layers):
        name = f"transformer.h.{layer}"
        fused = _linear(
            _norm(hidden, weights, f"{name}.ln_1"), weights, f"{name}.attn.c_attn"
        )  # (K, B·T, 3W)
        queries, keys, values = fused.view(count * batch, length, 3, heads, width // heads).permute(
            2, 0, 3, 1, 4
        )
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, is_causal=True
        )  # (K·B, H, T, D)
        mixed = mixed.transpose(1, 2).reshape(count, batch * length, width)
        hidden = hidden + _linear(mixed, weights, f"{name}.attn.c_proj")
        inner = _linear(_norm(hidden, weights, f"{name}.ln_2"), weights, f"{name}.mlp.c_fc")
        hidden = hidden + _linear(F.gelu(inner, approximate="tanh"), weights, f"{name}.mlp.c_proj")
    return torch.bmm(_norm(hidden, weights, "transformer.ln_f"), embedding.transpose(1, 2))


def _linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return torch.baddbmm(weights[f"{name}.bias"][:, None], x, weights[f"{name}.weight"])


def _norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return torch.addcmul(
        weights[f"{name}.bias"][:, None],
        F.layer_norm(x, x.shape[-1:]),
        weights[f"{name}.weight"][:, None],
    )


def _flat(parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in parameters])


def _layout(run: TrainingRun) -> list[list[tuple[str, torch.Size]]]:
    """Return the names and shapes of the parameters of each optimizer group, in order."""
    names = {id(p): name for name, p in run.model.named_parameters()}
    return [
        [(names.get(id(p), ""), p.shape) for p in group["params"]]
        for group in run.optimizer.param_groups
    ]


_AS_IN_FORWARD = {
    "activation_function": ("gelu_pytorch_tanh", "gelu_new"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "tie_word_embeddings": (True,),
}
"""Settings of a GPT-2, with the values that `forward` computes."""


def check_foldable(run: TrainingRun) -> None:
    """Check that forks of a run can be folded; changes nothing.

    Raises:
        UserError: They cannot; the error gives the reason.
    """
    _check(run, run)


def _check(run: TrainingRun, first: TrainingRun) -> None:
    """Refuse a run that `forward` computes differently, or that does not fit the first run.

    Raises:
        UserError: The run can't be folded; the error gives the difference.
    """
    model: Any = run.model

    def expect(holds: bool, what: str, found: Any) -> None:
        if not holds:
            raise UserError(f"to be folded, a run needs {what}, found {found}; train it by itself")

    if run.folded:
        raise UserError(
            "expected runs that are not folded yet, found one that is; fold a fork taken before"
        )
    expect(not run.in_place, "tensors of its own", "a fork in place")
    kind = type(model).__name__
    objective = type(run.objective)
    optimizer = type(run.optimizer)
    expect(kind == "GPT2", "a GPT-2 of ours", kind)
    expect(optimizer is AdamW, "AdamW", optimizer.__name__)
    expect(
        not any(group["amsgrad"] for group in run.optimizer.param_groups),
        "AdamW without amsgrad",
        "amsgrad",
    )
    expect(run.config.precision == "fp32", "precision fp32", run.config.precision)
    expect(run.config.accumulation == 1, "one micro-batch a step", run.config.accumulation)
    expect(objective is NextToken, "next-token prediction", objective.__name__)
    expect(run.clip not in PER_TENSOR, "clipping of the gradient as a whole", run.clip)
    _check_model(model, expect)
    trained = {name for group in _layout(run) for name, _ in group}
    left = sorted(
        {name for name, p in model.named_parameters() if name not in trained or not p.requires_grad}
    )
    expect(not left, "an optimizer of all its weights", f"left out: {', '.join(left)}")
    ours, theirs = (
        [part for group in _layout(one) for part in [*group, None]] for one in (run, first)
    )
    odd = next((one or two for one, two in zip_longest(ours, theirs) if one != two), None)
    expect(
        odd is None,
        "the shape and the optimizer groups of the first run",
        f"another {odd and odd[0]}",
    )
    heads = spec_of(run.model).shape(run.model).heads
    same = heads == spec_of(first.model).shape(first.model).heads
    expect(same, "the heads of the first run", heads)
    expect(run.device == first.device, f"the device of the first run ({first.device})", run.device)
    shapes, fitting = ([tuple(micro.shape) for micro in one._validation] for one in (run, first))
    expect(shapes == fitting, "a validation set shaped as the first run's", shapes)


def _check_model(model: Any, expect: Callable[[bool, str, Any], None]) -> None:
    """Refuse a model that `forward` computes differently."""
    config = model.config
    dropout = max(config.resid_pdrop, config.embd_pdrop, config.attn_pdrop)
    expect(dropout == 0, "no dropout", dropout)
    embedding = type(model.transformer.wte)
    expect(embedding is nn.Embedding, "GPT-2's own initialisation", embedding.__name__)
    for name, values in _AS_IN_FORWARD.items():
        found = getattr(config, name)
        expect(found in values, f"{name} {values[0]}", found)
    dtypes = {str(p.dtype).removeprefix("torch.") for p in model.parameters()}
    expect(dtypes == {"float32"}, "float32 weights", ", ".join(sorted(dtypes)))
