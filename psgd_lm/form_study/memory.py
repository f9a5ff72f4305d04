"""A recurrent network that must remember: addition, an ill-conditioned, noisy Newton problem.

Shapes: `T` steps, `B` sequences. Two steps of the first half of each sequence are marked; the
answer, at its end, is the mean of their numbers.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psgd_lm.form_study.competitors import adamw, newton, whitening
from psgd_lm.form_study.trial import Problem, Trial
from psgd_optim import (
    BlockTriangular,
    Dense,
    Diagonal,
    DirectSum,
    FiniteDifference,
    Joint,
    Kron,
    LowRank,
    Permutation,
    SparseLU,
)
from psgd_optim.axis_plan import SCAN, SCAW
from psgd_optim.factors.matrix import TRIANGULAR
from psgd_optim.forms.closed_diagonal import ClosedDiagonal
from psgd_optim.geometry import EQ
from psgd_optim.permutation_groups import BUTTERFLY
from psgd_optim.scope import by_axes
from psgd_optim.step_size import MaxEntry

LENGTH, HIDDEN = 16, 15  # 286 parameters: even, as the butterfly asks


class Recurrent(nn.Module):
    """`h <- tanh(inner [x; h; 1])` over a sequence, then `outer [h; 1]`."""

    def __init__(self) -> None:
        super().__init__()
        memory = torch.nn.init.orthogonal_(torch.empty(HIDDEN, HIDDEN))
        parts = [0.1 * torch.randn(HIDDEN, 2), memory, torch.zeros(HIDDEN, 1)]
        self.inner = nn.Parameter(torch.cat(parts, dim=1))
        parts = [0.1 * torch.randn(1, HIDDEN), torch.zeros(1, 1)]
        self.outer = nn.Parameter(torch.cat(parts, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the answers (B,) to sequences (T, B, 2)."""
        inputs = F.linear(x, self.inner[:, :2], self.inner[:, -1])  # (T, B, H)
        memory = self.inner[:, 2:-1].mT
        h = x.new_zeros(x.shape[1], HIDDEN)
        for row in inputs.unbind():
            h = torch.tanh(torch.addmm(row, h, memory))
        return h @ self.outer[0, :-1] + self.outer[0, -1]


def sequences(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw sequences, (T, B, 2), and their answers, (B,)."""
    rng = torch.Generator().manual_seed(seed)
    numbers = 2 * torch.rand(LENGTH, count, generator=rng) - 1
    half = LENGTH // 2
    first = torch.randint(half, (count,), generator=rng)
    second = (first + torch.randint(1, half, (count,), generator=rng)) % half
    each = torch.arange(count)
    marks = torch.zeros(LENGTH, count)
    marks[first, each] = marks[second, each] = 1
    return torch.stack([numbers, marks], dim=2), (numbers[first, each] + numbers[second, each]) / 2


def start(seed: int, prepare: Callable[[nn.Module], nn.Module]) -> Trial:
    """Return the network of a seed and its sequences, new ones in every step."""
    torch.manual_seed(seed)
    model = prepare(Recurrent())

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), y)

    def evaluate() -> float:
        with torch.no_grad():
            return float(loss_of(*sequences(2000, 0)))

    return Trial(
        model=model,
        loss=lambda step: loss_of(*sequences(64, 10_000 * (seed + 1) + step)),
        evaluate=evaluate,
    )


def _for_matrices(plan: Kron) -> DirectSum:
    return DirectSum((by_axes(2, 2), plan), otherwise=Diagonal())


_TRIANGLE = Dense(geometry=EQ, factor=TRIANGULAR, normaliser=MaxEntry())

PROBLEM = Problem(
    about="addition over 16 steps, recurrent tanh network of 286 parameters; squared error",
    steps=500,
    lrs=(3e-3, 1e-2, 3e-2),
    start=start,
    candidates=(
        adamw(),
        whitening("Kron dense, whitening", Kron(max_skew=math.inf)),
        whitening("Joint(Dense), whitening", Joint(Dense())),
        newton("Joint(Dense), QUAD", Joint(Dense())),
        # A first-order normaliser moves Q by the whole rate in every update.
        newton("Joint(Dense), triangle", Joint(_TRIANGLE), precond_lr=0.1),
        newton("Dense per tensor", Dense()),
        newton("Kron dense", Kron(max_skew=math.inf)),
        newton("Kron dense, differences", Kron(max_skew=math.inf), FiniteDifference()),
        newton("SCAW", _for_matrices(Kron(plan=SCAW, geometry=EQ))),
        newton("SCAN", _for_matrices(Kron(plan=SCAN, geometry=EQ))),
        newton("Joint(LowRank(10))", Joint(LowRank())),
        newton("LowRank(10) per tensor", LowRank()),
        newton("Joint(SparseLU(10))", Joint(SparseLU())),
        newton("Joint(arrow(10))", Joint(BlockTriangular())),
        newton("Joint(X-matrix)", Joint(Permutation())),
        newton("Joint(butterfly)", Joint(Permutation(group=BUTTERFLY))),
        newton("Diagonal", Diagonal()),
        newton("ClosedDiagonal", ClosedDiagonal()),
    ),
)
