"""The policies once more, from their formulas: float64, lists and loops, one step at a time. And gradients to try them on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from trainenv.types import ClipReport

SHAPES = ((3, 4), (5,), (2, 3, 2), (1,))
ELEMENTS = sum(math.prod(shape) for shape in SHAPES)

Arrays = list[np.ndarray]


def parameters(dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Tensor]:
    return [torch.nn.Parameter(torch.ones(shape, dtype=dtype, device=device)) for shape in SHAPES]


def fill(tensors: Sequence[Tensor], gradient: Arrays) -> None:
    for tensor, values in zip(tensors, gradient, strict=True):
        tensor.grad = torch.tensor(values, dtype=tensor.dtype)


def grads(tensors: Sequence[Tensor]) -> Arrays:
    return [t.grad.double().numpy().copy() for t in tensors]


def gradient(rng: np.random.Generator, norm: float) -> Arrays:
    """A random direction with that global norm, in float32; inf and NaN stand in one element."""
    flat = rng.standard_normal(ELEMENTS)
    flat *= (norm if math.isfinite(norm) else 1.0) / np.linalg.norm(flat)
    if not math.isfinite(norm):
        flat[rng.integers(ELEMENTS)] = norm
    ends = np.cumsum([math.prod(shape) for shape in SHAPES])[:-1]
    return [
        part.astype(np.float32).reshape(shape)
        for part, shape in zip(np.split(flat, ends), SHAPES, strict=True)
    ]


def norms(rng: np.random.Generator, steps: int, odd: float = 0.12) -> Iterator[float]:
    """Norms that drift and jitter, with spikes × 10 to 10⁴, zeros, inf and NaN among them."""
    level = 0.5
    for _ in range(steps):
        level *= math.exp(rng.normal(0, 0.02))
        norm = level * math.exp(rng.normal(0, 0.2))
        if rng.random() < odd:
            norm = [norm * 10 ** rng.uniform(1, 4), 0.0, math.inf, math.nan][
                rng.choice(4, p=[0.6, 0.1, 0.15, 0.15])
            ]
        yield norm


def norm_of(gradient: Arrays) -> float:
    return math.sqrt(
        sum(float(x) ** 2 for part in gradient for x in part.ravel().astype(np.float64))
    )


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, NaN equal to itself."""
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.nan_to_num(nan=-7.5), b.nan_to_num(nan=-7.5))
    )


def same_report(a: ClipReport, b: ClipReport) -> bool:
    pairs = [
        (a.norm, b.norm),
        (a.clipped_norm, b.clipped_norm),
        (a.threshold, b.threshold),
        (a.score, b.score),
    ]
    return a.momentum_reset == b.momentum_reset and all(same(x, y) for x, y in pairs)


class ZClipReference:
    def __init__(self, mode: str = "adaptive", max_norm: float | None = 1.0) -> None:
        self.mode, self.cap = mode, math.inf if max_norm is None else max_norm
        self.collected: list[float] = []
        self.mu = self.var = 0.0

    def step(self, g: float) -> tuple[float, float, float]:
        """Norm after clipping, the cap in force and z."""
        if not math.isfinite(g):
            return 0.0, math.nan, math.nan
        if len(self.collected) < 25:
            self.collected.append(g)
            self.mu = statistics.fmean(self.collected)
            self.var = statistics.pvariance(self.collected)
            return min(g, self.cap), self.cap, 0.0
        sigma = math.sqrt(self.var)
        z = (g - self.mu) / (sigma + 1e-6)
        c = math.inf
        if self.mode == "percentile":
            c = self.mu + 2.5 * sigma
        elif z > 2.5:
            c = self.mu if self.mode == "mean" else self.mu + 2.5 * 2.5 * sigma / z
        x = c if g > c else g
        self.mu = 0.97 * self.mu + 0.03 * x
        self.var = 0.97 * self.var + 0.03 * (x - self.mu) ** 2
        return min(g, c, self.cap), min(c, self.cap), z


def arc_rank(n: int, share: float) -> int:
    f = 0
    if share > 0:
        f = max(1, int(share * n + 0.5))
    return math.floor(2 * (f / n) * (n - f) + 1e-9)


class ARCStepsReference:
    def __init__(self, share: float = 0.1, window: int = 32) -> None:
        self.k, self.window, self.known = arc_rank(window, share), window, []

    def step(self, g: float) -> tuple[float, float]:
        """Norm after clipping and the threshold."""
        if math.isfinite(g):
            self.known = [*self.known, g][-self.window :]
        ranked = sorted(self.known + [math.inf] * (self.window - len(self.known)), reverse=True)
        c = ranked[self.k]
        return (min(g, c) if math.isfinite(g) else 0.0), c


def arc_workers(workers: list[Arrays], share: float = 0.1) -> tuple[Arrays, float]:
    """The mean of the clipped workers, and the threshold."""
    n = len(workers)
    sizes = [norm_of(worker) for worker in workers]
    good = sorted((s for s in sizes if math.isfinite(s)), reverse=True)
    if not good:
        return [np.zeros(shape) for shape in SHAPES], math.inf
    c = good[min(arc_rank(n, share), len(good) - 1)]
    total = [np.zeros(shape) for shape in SHAPES]
    for worker, size in zip(workers, sizes, strict=True):
        if math.isfinite(size):
            factor = 1.0 if size <= c else c / size
            total = [
                t + factor * w.astype(np.float64) / n for t, w in zip(total, worker, strict=True)
            ]
    return total, c


class SPAMReference:
    """Keeps V itself; `v` may be set from outside, to follow an optimizer's."""

    def __init__(
        self,
        theta: float = 5000.0,
        every: int = 500,
        off: int = 20,
        unseen: str = "keep",
        beta2: float = 0.999,
    ) -> None:
        self.theta, self.every, self.off, self.unseen, self.beta2 = theta, every, off, unseen, beta2
        self.t = 0
        self.v = [np.zeros(shape) for shape in SHAPES]

    def step(self, gradient: Arrays) -> tuple[Arrays, float, bool]:
        """The clipped gradient, the share of elements clipped and whether moments are reset."""
        position = self.t % self.every
        self.t += 1
        reset = self.t % self.every == 0
        finite = math.isfinite(norm_of(gradient))
        clipped = [part.astype(np.float64) if finite else np.zeros(part.shape) for part in gradient]
        hits = 0
        if finite and position >= self.off:
            for part, v in zip(clipped, self.v, strict=True):
                for place in np.ndindex(part.shape):
                    g, bound = part[place], math.sqrt(self.theta * v[place])
                    if g * g > self.theta * v[place] and (v[place] > 0 or self.unseen == "clip"):
                        part[place] = math.copysign(bound, g) if bound else 0.0
                        hits += 1
        if reset:
            self.v = [np.zeros(shape) for shape in SHAPES]
        if finite:
            self.v = [
                self.beta2 * v + (1 - self.beta2) * g * g
                for v, g in zip(self.v, clipped, strict=True)
            ]
        return clipped, hits / ELEMENTS, reset
