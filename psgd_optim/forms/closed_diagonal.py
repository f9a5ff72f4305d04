"""The diagonal form in closed form: ratios of averaged squares instead of a group step."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from psgd_optim.forms.base import Preconditioner
from psgd_optim.linalg import abs_square, lift, per_block
from psgd_optim.types import Probe, State


@final
@dataclass(frozen=True, kw_only=True)
class ClosedDiagonal(Preconditioner):
    """`P_ii = sqrt(E|v_i|^2 / E|h_i|^2)`, the minimiser over diagonals, from running averages.

    With Hessian-vector products this is equilibration, with gradients it is RMSProp without a
    probe. The rate only says whether a row is updated: it is where the rate is above 0.

    State, in the parameters' real dtype and at least single precision, since an average of ten
    thousand samples does not move in less: the averages `h2` and `v2`, (B, *shape), and the number
    of updates seen, `updates`, (B,).

    Args:
        beta: How much of the old averages one update keeps, in [0, 1], but no more than
            `t / (t + 1)` at update `t`, counted from 0: the start is forgotten at once, the
            average is uniform at first, and with 1 for ever.
        eps: Added to the average of `|h|^2`, in squared gradient units, so that `P` stays below
            `rms(v) / sqrt(eps)` where gradients vanish. The default leaves gradients of rms 1e-6
            whitened to one part in a million; the recipe of S0 for pairs, ESGD, has 1e-9.

    Raises:
        ValueError: If `beta` is outside [0, 1] or `eps` is not positive.

    Source: S0 (12) and S1 6.2, algorithms 4.3; S3, algorithm 1, is `beta` 1. Deviation:
    a smaller `eps`, as gradients are often below the root of theirs.
    """

    beta: float = 0.99
    eps: float = 1e-18

    name: ClassVar[str] = "ClosedDiagonal"

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ValueError(f"ClosedDiagonal got beta = {self.beta}; give a number in [0, 1].")
        if not 0 < self.eps < float("inf"):
            raise ValueError(f"ClosedDiagonal got eps = {self.eps}; give a positive number.")

    @property
    def layout(self) -> str:
        """The name."""
        return self.name

    @property
    def needs_v(self) -> bool:
        """Return no: `E|v|^2 = 1` stands in for a probe."""
        return False

    def init(self, shape: tuple[int, ...], scale: Tensor, like: Tensor) -> State:
        """Return `P = scale^2`, as averages that the first update replaces."""
        scale = lift(scale.to(like.device, like.real.dtype))
        v2 = (scale**4 * (1 + self.eps)).view(-1, *(1,) * len(shape)).repeat(1, *shape)
        return {"h2": torch.ones_like(v2), "v2": v2, "updates": torch.zeros_like(scale)}

    def draw(self, state: State, generator: torch.Generator) -> State:
        """Return nothing: an update needs no random numbers."""
        return {}

    def update(self, state: State, probe: Probe, draws: State, rate: Tensor | float) -> None:
        """Average the squares of one sample; a row with an overflow, or rate 0, stays."""
        h2, v2, count = state["h2"], state["v2"], state["updates"]
        keep = per_block((count / (count + 1)).clamp(max=self.beta), h2)
        new_v2 = 1.0 if probe.v is None else abs_square(lift(probe.v))
        new_h2 = keep * h2 + (1 - keep) * abs_square(lift(probe.h))
        new_v2 = keep * v2 + (1 - keep) * new_v2
        moves = (new_h2 + new_v2).isfinite().flatten(1).all(dim=1)
        moves = moves & (torch.ones_like(count) * rate > 0)  # (B,)
        state["h2"].copy_(torch.where(per_block(moves, h2), new_h2, h2))
        state["v2"].copy_(torch.where(per_block(moves, v2), new_v2, v2))
        state["updates"].copy_(torch.where(moves, count + 1, count))

    def apply(self, state: State, x: Tensor) -> Tensor:
        """Return `P x`."""
        return (self._p(state) * x).to(x.dtype)

    def _p(self, state: State) -> Tensor:
        return (state["v2"] / (state["h2"] + self.eps)).sqrt()

    def to_dense(self, state: State) -> Tensor:
        """Return the roots of `P` as diagonal matrices, (B, N, N)."""
        return torch.diag_embed(self._p(state).flatten(1).sqrt())

    def numel(self, shape: tuple[int, ...]) -> int:
        """Return twice the number of elements, for the averages, and one for the count."""
        return 2 * torch.Size(shape).numel() + 1

    def describe(self, shape: tuple[int, ...]) -> str:
        """Return e.g. `ClosedDiagonal(512, 128)`."""
        return f"{self.name}({', '.join(map(str, shape))})"
