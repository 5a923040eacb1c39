"""The optimizer: AdamW as we make it, and what any optimizer must let us do: set its rates, reset it, load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from trainenv.config import OptimizerConfig

Rates = Sequence[tuple[float, float]]  # learning rate and weight decay of each parameter group
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")


def adamw(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Fused AdamW (Loshchilov & Hutter 2019); matrices decay; biases, norms and position embeddings don't."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if p.dim() >= 2 and "wpe" not in name]
    kept = [p for name, p in named if p.dim() < 2 or "wpe" in name]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def base_rates(optimizer: Optimizer) -> Rates:
    """The rates that an optimizer holds now."""
    return [(float(group["lr"]), float(group.get("weight_decay", 0.0))) for group in optimizer.param_groups]


def set_rates(optimizer: Optimizer, base: Rates, lr_factor: float, weight_decay_factor: float) -> None:
    """Write base × factor into the groups, every step anew: nothing that reloads an optimizer can undo an intervention."""
    for group, (lr, weight_decay) in zip(optimizer.param_groups, base):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr * lr_factor)
        else:
            group["lr"] = lr * lr_factor
        if "weight_decay" in group:
            group["weight_decay"] = weight_decay * weight_decay_factor


def reset_moments(optimizer: Optimizer) -> None:
    """Zero the moments *and* Adam's step count: with the count kept, updates would be about three times too large."""
    for state in optimizer.state.values():
        for name in _MOMENTS:
            if isinstance(state.get(name), Tensor):
                state[name].zero_()
        if isinstance(state.get("step"), Tensor):
            state["step"].zero_()
        elif "step" in state:
            state["step"] = 0


def load_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state dict that went through JSON. Cloned in: `Optimizer.load_state_dict` keeps the very tensors it is given."""
    groups = []
    for live, saved in zip(optimizer.param_groups, state["param_groups"]):
        groups.append({k: tuple(v) if isinstance(live.get(k), tuple) else v for k, v in saved.items()})
    entries = {
        int(place): {name: value.clone() if isinstance(value, Tensor) else value for name, value in entry.items()}
        for place, entry in state["state"].items()
    }
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
