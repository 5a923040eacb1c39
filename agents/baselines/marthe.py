"""MARTHE: the learning rate follows an online hypergradient of the validation loss.

Donini et al. 2020 (arXiv:1910.08525), with AdamW as the inner optimizer. Forward-mode
differentiation carries the slope of the weights and moments in the learning rate from step to step,
and forgets it at the rate μ:

    Z_{t+1} = μ A_t Z_t + B_t              A_t, B_t: slopes of step t in its state and in its rate
    η_{t+1} = η_t − β ⟨∇E(w_{t+1}), Z_{t+1}⟩         E: validation loss

μ = 0 is hypergradient descent on the validation loss, μ = 1 real-time hyperparameter estimation
(RTHO, Franceschi et al. 2017). A_t needs a product of the Hessian and a vector at each step.

The computation is charged: 3 gradients for each Hessian product, one for each validation gradient.
With the default settings and batches of 8 it takes 0.48 steps a step, so a third of the run's steps
pays for it. That share is taken off the budget at the start, so that the schedule anneals as
configured.

Deviations from the paper:

- The rule moves ln of the factor on the configured schedule; in the paper it replaces the schedule.
- The Hessian product is taken on the first `sequences` sequences of the batch, not on all: on all
  of them, three quarters of the steps would pay for it.
- η moves every `every` steps, by a micro-batch of `validation_sequences` validation sequences.
- A move changes ln η by 0.2 at most.
- Z restarts from 0 once it is larger than the weights. Where the rate is too high, it grows without
  bound, to 1e30 in 150 steps.
- The scale of a clipped gradient counts as a constant.
- μ is fixed; the paper also has a rule for it. β follows its own hypergradient,
  β ← max(β + α d_t d_{t−1}, 0) with d_t the slope of E in ln η at move t. The paper's values of α
  and β depend on the scale of η. Those here were chosen among three pairs, on runs whose rates were
  a third of, equal to, and ten times the suited one.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainenv.agents.baselines.rate_factor import change_rate
from trainenv.agents.waste_budget import ComputeDebt
from trainenv.checkpoints.store import CheckpointStore
from trainenv.loop import Callback, CallbackResult
from trainenv.monitor.probe import evaluating
from trainenv.records.run_folder import RunFolder
from trainenv.tools.checks import number, whole
from trainenv.training import numerics
from trainenv.training.backward import as_loss, mean_of
from trainenv.training.micro_batches import as_batch, placed
from trainenv.types import Run, Telemetry, UserError

_HESSIAN_PRODUCT = 3  # gradients that cost as much
_TINY = 1e-30  # keeps a gradient of 0 from being divided by
_LARGEST = 0.2  # largest change of ln η in a move

Vector = list[Tensor]
"""A value for each trained parameter, shaped like it."""


@dataclass
class Tangent:
    """Slopes in ln η of weights and moments, each shaped like the parameters."""

    weights: Vector
    first: Vector
    second: Vector

    @classmethod
    def zeros(cls, parameters: Sequence[Tensor]) -> Tangent:
        """Return slopes of 0."""
        return cls(*([torch.zeros_like(p) for p in parameters] for _ in range(3)))


@dataclass(kw_only=True)
class Marthe(Callback):
    """Callback that moves the learning rate by MARTHE.

    Args:
        mu: Share of the slopes that is kept in a step, 0 to 1.
        beta: Change of ln η for a slope of the validation loss of 1 nat, at least 0.
        alpha: Step length of the rule for β; 0 keeps β.
        every: Steps between two moves of the learning rate.
        sequences: Sequences of each batch on which the Hessian product is taken.
        validation_sequences: Validation sequences of each move, of one micro-batch at most.

    Raises:
        UserError: A number is out of range. At the start of a run: its optimizer is not Adam, it
            has no validation set, or its steps have several micro-batches.
    """

    mu: float = 0.97
    beta: float = 0.1
    alpha: float = 1.0
    every: int = 10
    sequences: int = 1
    validation_sequences: int = 8
    _debt: ComputeDebt = field(default_factory=ComputeDebt, init=False, repr=False)
    _beta: float = field(default=0.0, init=False, repr=False)
    _slope: float = field(default=0.0, init=False, repr=False)  # of the last move
    _tangent: Tangent | None = field(default=None, init=False, repr=False)
    # Gradient and Hessian product of the step to come.
    _ahead: tuple[Vector, Vector] | None = field(default=None, init=False, repr=False)
    _loaded: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _run: Run | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.mu = number("mu", self.mu, least=0, most=1)
        self.beta = number("beta", self.beta, least=0)
        self.alpha = number("alpha", self.alpha, least=0)
        for name in ("every", "sequences", "validation_sequences"):
            setattr(self, name, whole(name, getattr(self, name), least=1))
        self._beta = self.beta

    def on_train_begin(self, run: Run, folder: RunFolder, store: CheckpointStore, /) -> None:
        """Take the whole cost of a new run off its budget. See `Callback`."""
        if self._run is run and not self._loaded:  # trained on in the same process
            return
        self._check(run)
        self._run = run
        parameters = _parameters(run)
        self._tangent = Tangent.zeros(parameters)
        self._debt = ComputeDebt()
        self._beta = self.beta
        self._slope = 0.0
        if self._loaded:  # the cost of the coming step is known, and was charged
            self._resume(parameters)
            self._look_ahead(run)
            return
        steps = round(
            (run.horizon.end - run.step) * (1 - 1 / (1 + self._cost(run, moves=1 / self.every)))
        )
        self._debt.owed = -steps * run.flops_ahead
        run.spend(steps)
        self._look_ahead(run)
        self._charge(run, self._cost(run))

    def next_block(self, run: Run, /) -> int:
        """Return 1, since slopes are carried from step to step. See `Callback`."""
        return 1

    def on_block_end(self, run: Run, window: Sequence[Telemetry], /) -> CallbackResult:
        """Carry the slopes over the step, and move the learning rate if due. See `Callback`."""
        assert self._tangent is not None
        if run.done or run.diverged:
            return CallbackResult()
        newest = window[-1]
        if self._ahead is None or len(window) != 1 or not math.isfinite(newest.loss):
            self._tangent = Tangent.zeros(_parameters(run))
        else:
            scale = newest.grad_norm_clipped / max(newest.grad_norm, _TINY)
            self._carry(run, self._tangent, scale)
        events = []
        moves = int(run.step % self.every == 0)
        if moves:
            events = change_rate(run, run.lr_scale * math.exp(self._move(run, self._tangent)))
        self._look_ahead(run)
        self._charge(run, self._cost(run, moves=moves))
        return CallbackResult(events=events)

    def state_dict(self) -> dict[str, Any]:
        """Return the slopes, β and the compute owed. See `Callback`."""
        if self._tangent is None:
            return self._loaded
        parts = {name: _packed(vector) for name, vector in vars(self._tangent).items()}
        return {
            "owed": self._debt.owed,
            "beta": self._beta,
            "slope": self._slope,
            "tangent": parts,
        }

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Keep a state that `on_train_begin` takes on. See `Callback`."""
        if state and "tangent" not in state:
            raise KeyError("tangent")
        self._loaded = state
        self._tangent = None
        self._run = None

    # ── one step ──────────────────────────────────────────────────────────────────────────────────

    def _carry(self, run: Run, tangent: Tangent, scale: float) -> None:
        """Carry the slopes over the step that AdamW has just taken.

        Args:
            run: Run after the step.
            tangent: Slopes before the step, changed in place.
            scale: Factor of the clip policy on the gradient of the step.
        """
        assert self._ahead is not None
        gradients, products = self._ahead
        place = 0
        for group in run.optimizer.param_groups:
            beta1, beta2 = group["betas"]
            for p in _trained(group):
                state = run.optimizer.state[p]
                g = scale * gradients[place]
                h = scale * products[place]
                count = float(state["step"])
                c1 = 1 - beta1**count
                c2 = 1 - beta2**count
                bottom = (state["exp_avg_sq"] / c2).sqrt() + group["eps"]
                update = state["exp_avg"] / c1 / bottom
                first = self.mu * (beta1 * tangent.first[place] + (1 - beta1) * h)
                second = self.mu * (beta2 * tangent.second[place] + 2 * (1 - beta2) * g * h)
                slope = first / c1 / bottom - update * second / (2 * c2 * bottom**2)
                lr = group["lr"]
                decay = group["weight_decay"]
                kept = self.mu * (1 - lr * decay) * tangent.weights[place]
                direct = update + decay * p.detach()
                tangent.weights[place] = kept - lr * (slope + direct)
                tangent.first[place] = first
                tangent.second[place] = second
                place += 1
        if not _norm(tangent.weights) <= _norm(_parameters(run)):  # NaN restarts too
            self._tangent = Tangent.zeros(_parameters(run))

    def _move(self, run: Run, tangent: Tangent) -> float:
        """Return the change of ln η, and adapt β."""
        sets = run._validation  # type: ignore[attr-defined]  # micro-batches of a `TrainingRun`
        micro = sets[run.step // self.every % len(sets)]
        (gradients, _) = _gradients(run, micro[: self.validation_sequences], None)
        slope = sum(float((g * z).sum()) for g, z in zip(gradients, tangent.weights))
        if not math.isfinite(slope):
            return 0.0
        self._beta = max(0.0, self._beta + self.alpha * slope * self._slope)
        self._slope = slope
        return min(max(-self._beta * slope, -_LARGEST), _LARGEST)

    def _look_ahead(self, run: Run) -> None:
        """Compute gradient and Hessian product of the coming step, on a part of its batch."""
        assert self._tangent is not None
        (index,) = run.upcoming(1)
        batch = as_batch(run.batches(index), index, run.config.accumulation, bare=True)
        self._ahead = _gradients(run, batch.micro[0][: self.sequences], self._tangent.weights)

    def _cost(self, run: Run, *, moves: float = 0.0) -> float:
        """Return the compute of looking one step ahead, and of moves, in steps of the run."""
        batch = int(run.config.batch_size)
        product = _HESSIAN_PRODUCT * min(self.sequences, batch)
        return float(product + moves * min(self.validation_sequences, batch)) / batch

    def _charge(self, run: Run, steps: float) -> None:
        """Charge compute in steps of the run, and take what is not yet paid off the budget."""
        flops = steps * run.flops_ahead
        run.ledger.charge("plan", flops)
        run.spend(self._debt.settle(run, flops))

    def _resume(self, parameters: Sequence[Tensor]) -> None:
        saved = self._loaded
        self._loaded = {}
        self._debt.owed = float(saved["owed"])
        self._beta = float(saved["beta"])
        self._slope = float(saved["slope"])
        parts = {name: _unpacked(text, parameters) for name, text in saved["tangent"].items()}
        self._tangent = Tangent(**parts)

    def _check(self, run: Run) -> None:
        known = all("betas" in group and "eps" in group for group in run.optimizer.param_groups)
        if not known:
            raise UserError(
                f"MARTHE differentiates the steps of Adam, found {type(run.optimizer).__name__}; "
                "take torch.optim.AdamW"
            )
        if not getattr(run, "_validation", ()):
            raise UserError(
                "MARTHE follows the validation loss, found a run without a validation set; "
                "set validation.sequences"
            )
        if run.config.accumulation != 1:
            raise UserError(
                "MARTHE takes steps of one micro-batch, found accumulation "
                f"{run.config.accumulation}; set accumulation to 1"
            )


def _gradients(run: Run, micro: Any, direction: Vector | None) -> tuple[Vector, Vector]:
    """Return the gradient of the loss, and its Hessian times a direction, if there is one."""
    parameters = _parameters(run)
    objective = run.objective  # type: ignore[attr-defined]  # of a `TrainingRun`
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        evaluating(run.model),
        numerics.settings(run.config),
        sdpa_kernel(SDPBackend.MATH),  # the only one that can be differentiated twice
    ):
        loss = mean_of(as_loss(objective(run.model, placed(micro, run.device))))
        gradients = torch.autograd.grad(
            loss,
            parameters,
            create_graph=direction is not None,
            allow_unused=True,
            materialize_grads=True,
        )
        products: Sequence[Tensor] = ()
        if direction is not None:
            product = sum((g * z).sum() for g, z in zip(gradients, direction))
            assert isinstance(product, Tensor)
            products = torch.autograd.grad(
                product, parameters, allow_unused=True, materialize_grads=True
            )
    return [g.detach() for g in gradients], [h.detach() for h in products]


def _parameters(run: Run) -> Vector:
    """Return the trained parameters in the order of the optimizer's groups."""
    return [p for group in run.optimizer.param_groups for p in _trained(group)]


def _trained(group: dict[str, Any]) -> Vector:
    return [p for p in group["params"] if p.requires_grad]


def _norm(vector: Sequence[Tensor]) -> float:
    return float(torch.stack(torch._foreach_norm([one.detach() for one in vector])).norm())


def _packed(vector: Vector) -> str:
    """Return the numbers of a vector as text."""
    flat = torch.cat([one.reshape(-1) for one in vector]).float().cpu().numpy()
    return base64.b64encode(flat.tobytes()).decode("ascii")


def _unpacked(text: str, like: Sequence[Tensor]) -> Vector:
    flat = torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype=np.float32).copy())
    pieces = flat.split([p.numel() for p in like])
    return [piece.view_as(p).to(p) for piece, p in zip(pieces, like, strict=True)]
