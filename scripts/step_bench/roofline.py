"""The limits: what a step must compute and move, and how fast this machine does either.

Shapes: a block is `B` rows of `N` numbers each, with axes of sizes `n`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from psgd_optim import Kron, Preconditioner
from psgd_optim.axis_plan import SizePlan
from psgd_optim.factors.matrix import MatrixFactor
from psgd_optim.geometry import Q0_5EQ1_5, QUAD, Geometry
from psgd_optim.scope import Scope, as_scope
from step_bench.models import Named
from step_bench.timing import timed

_SIZES = {"cpu": (256, 512, 1024), "cuda": (1024, 2048, 4096)}
_COPIED = 1 << 24
"""Numbers in the tensors that are copied: 64 MB, more than a cache holds."""
_NORM_ROWS, _NORM_PRODUCTS = 32, 8
"""Rows and products of the two norm estimates of an update, at least."""


@dataclass
class Machine:
    """How fast the machine multiplies and copies, sampled between the repeats.

    Args:
        device: What to measure.
    """

    device: torch.device
    gflops: list[float] = field(default_factory=list)
    """Of float32 matrix products, the best size of each sample."""
    gigabytes: list[float] = field(default_factory=list)
    """Per second, read and written together."""

    def __post_init__(self) -> None:
        self._matrices = [torch.randn(n, n, device=self.device) for n in _SIZES[self.device.type]]
        self._source = torch.zeros(_COPIED, device=self.device)
        self._target = torch.zeros_like(self._source)
        self.sample()  # the first one finds cold caches and libraries that have yet to load
        self.gflops.clear()
        self.gigabytes.clear()

    def sample(self) -> None:
        """Measure both once."""
        rates = []
        for x in self._matrices:
            times = timed(partial(_multiply, x), self.device)
            rates.append(2 * len(x) ** 3 / (1e6 * times.wall))
        self.gflops.append(max(rates))
        times = timed(self._copy, self.device)
        self.gigabytes.append(2 * self._source.nbytes / (1e6 * times.wall))

    def _copy(self) -> None:
        self._target.copy_(self._source)

    def record(self) -> dict[str, list[float]]:
        """Return the samples as JSON values."""
        return {"matmul_gflops": self.gflops, "copy_gigabytes_per_second": self.gigabytes}


def _multiply(x: torch.Tensor) -> None:
    _ = x @ x


def limits_ms(
    machine: Mapping[str, list[float]], flops: float | None, moved: float
) -> tuple[float | None, float]:
    """Return the least milliseconds for computing and for moving.

    Args:
        machine: What `Machine.record` returned.
        flops: Of a step, if known.
        moved: Bytes.

    Returns:
        Both limits.
    """
    compute = None if flops is None else flops / (1e6 * median(machine["matmul_gflops"]))
    return compute, moved / (1e6 * median(machine["copy_gigabytes_per_second"]))


def moved_bytes(named: Named, moments: int) -> int:
    """Return what any step moves: gradients in, parameters and averages in and out.

    Args:
        named: The parameters.
        moments: Averages of their size that the step keeps, in single precision.

    Returns:
        Bytes.
    """
    return sum(p.numel() * (3 * p.element_size() + 2 * 4 * moments) for _, p in named)


def plan_flops(form: Preconditioner | Scope, named: Named) -> tuple[int, int] | None:
    """Return the FLOPs of a step without and of one with a fit, if the plan says it all.

    For every dense axis, an application takes one product with a `P` that is at hand, and a fit
    what `_fit_flops` says and an application to its sample.

    Args:
        form: What is stepped.
        named: The parameters.

    Returns:
        Both numbers, or `None` if a form is not a `Kron` in one of the geometries that are counted.
    """
    apply = fit = 0
    for view, part in as_scope(form).arrange([(name, p) for name, p in named]):
        if not isinstance(part, Kron) or part.geometry not in (Q0_5EQ1_5, QUAD):
            return None
        plan = part.plan or SizePlan(max_size=part.max_size, max_skew=part.max_skew)
        factors = plan.factors(view.shape)
        dense = [n for n, f in zip(view.shape, factors, strict=True) if isinstance(f, MatrixFactor)]
        numbers = torch.Size(view.shape).numel()
        products = view.rows * sum(2 * numbers * n for n in dense)
        apply += products
        fit += products + view.rows * sum(_fit_flops(n, numbers, part.geometry) for n in dense)
        # One estimate of the norm of T1 serves both sides of a matrix.
        shortest = min(dense, default=0)
        fit += view.rows * 2 * _NORM_ROWS * _NORM_PRODUCTS * shortest**2
    return apply, apply + fit


def _fit_flops(n: int, numbers: int, geometry: Geometry) -> int:
    """Return the FLOPs of moving one dense factor and of forming its `P`."""
    sides = 2 if geometry is QUAD else 1  # QUAD multiplies from both
    rotation = 0 if geometry.rotate is None else 2 * 2 * n**3 + 2 * 8 * 5 * n**2
    square = 2 * n**3
    if 2 * numbers <= n * n:  # a long axis: two products with the sample, and no Gram matrix
        return 4 * numbers * n + rotation + square
    return 2 * numbers * n + sides * 2 * n**3 + rotation + square


def counted_flops(step: Callable[[], None]) -> int:
    """Return the FLOPs of the matrix products and convolutions that a real step takes."""
    with FlopCounterMode(display=False) as counter:
        step()
    flops: int = counter.get_total_flops()
    return flops
