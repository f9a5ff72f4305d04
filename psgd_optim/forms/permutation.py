"""Forms from permutation groups: a small dense block for the entries of each orbit."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from psgd_optim.forms.base import Preconditioner, check_parts, state_dtype
from psgd_optim.group_gradient import GroupGradient
from psgd_optim.linalg import both, finite_rows, keep_rows, known, lift, per_block
from psgd_optim.permutation_groups import X_MATRIX, PermutationGroup
from psgd_optim.rank_two_gradient import RankTwoGradient
from psgd_optim.rounding import draw_bits, write_
from psgd_optim.step_size import LipschitzEMA, Normaliser
from psgd_optim.types import Probe, State, expect


@final
@dataclass(frozen=True, kw_only=True)
class Permutation(Preconditioner):
    """`Q = sum_k diag(a_k) S_k` over the permutations `S_k` of a group of order m.

    The flattened parameter's `n` entries fall into orbits, which `Q` does not mix and on each of
    which it is an arbitrary m x m matrix; two groups with equal orbits are the same form. State:
    `q`, (B, n, m), whose entry `i, j` is what `Q` has in row `i` and in the column of the `j`-th
    member of the orbit of `i`, the coefficients in another order; and `l`, (B,), the divisor of
    the step, which is one for the whole parameter.

    Args:
        group: `X_MATRIX`, `BUTTERFLY`, `KLEIN`, `Cyclic(size=m)`, `AllShifts()` or an `IndexMaps`.
        normaliser: What divides the step size. `MaxEntry` keeps `Q` invertible only for rates
            below 1 / m.
        dtype: The dtype of `q`; `None` is the parameters' dtype, at least single precision.
            Half precision is rounded stochastically.

    Source: S2, section 3.1 and theorem 3.1; algorithms 4.12. Deviation: works on the orbits' blocks
    instead of the coefficients, where the gradient has rank two and its norms are exact; a
    Lipschitz bound divides the step by default, not the largest entry.
    """

    group: PermutationGroup = X_MATRIX
    normaliser: Normaliser = LipschitzEMA()
    dtype: torch.dtype | None = None

    name: ClassVar[str] = "Permutation"

    def __post_init__(self) -> None:
        check_parts(self.name, self.normaliser, self.dtype)
        expect(self.name, "group", self.group, PermutationGroup, "one such as X_MATRIX")

    @property
    def layout(self) -> str:
        """The name and what else the numbers depend on."""
        return f"{self.name}({self.group.describe()})"

    @property
    def needs_v(self) -> bool:
        """Return yes: the norms of a gradient of rank two are exact and cheap."""
        return True

    def init(self, shape: tuple[int, ...], scale: Tensor, like: Tensor) -> State:
        """Return `Q = scale * I`.

        Args:
            shape: The shape of one parameter.
            scale: (B,).
            like: A tensor with the parameters' dtype and device.

        Returns:
            The state.

        Raises:
            ValueError: If the group cannot act on that number of elements.
        """
        scale = scale.to(like.device, state_dtype(like, self.dtype))
        orbits = self.group.orbits(torch.Size(shape).numel(), like.device)
        eye = torch.eye(orbits.shape[1], dtype=scale.dtype, device=scale.device)
        rows = _from_orbits(eye.expand(1, len(orbits), -1, -1), orbits, torch.Size(shape).numel())
        return {"q": per_block(scale, rows) * rows, "l": torch.zeros_like(lift(scale.real))}

    def draw(self, state: State, generator: torch.Generator) -> State:
        """Draw the bits that round a state in half precision; an update needs no others."""
        return draw_bits(state, generator)

    def update(self, state: State, probe: Probe, draws: State, rate: Tensor | float) -> None:
        """Take `Q <- (I - rate / L E) Q`; keeps every block invertible for rates below 1.

        On each orbit `E = a a^H - b b^H` with `a = Q h`, `b = Q^-H v`.

        Args:
            state: The state to change.
            probe: The sample, with a probe `v`.
            draws: What `draw` returned.
            rate: Step size, a number or (B,).

        Raises:
            ValueError: If the sample has no `v`.
        """
        if probe.v is None:
            raise ValueError("Permutation got a sample without v; give one, as needs_v says.")
        q, h, orbits = self._blocks(state, probe.h)
        v = _to_orbits(probe.v.flatten(1).to(q.dtype), orbits)
        a, b = (q @ h[..., None])[..., 0], _solve_adjoint(q, v)
        gradient = _OrbitsGradient(a, b)
        bound = self.normaliser.grow(state["l"], gradient)
        step = per_block((rate / bound).to(q.real.dtype), q)
        moved = q - step * gradient.left(q)
        # A sample too large for its square, or for its product with Q, says nothing: its row stays.
        safe = both(known(bound < math.inf), finite_rows(moved))
        moved = keep_rows(safe, moved, q)
        write_(state, "q", _from_orbits(moved, orbits, state["q"].shape[1]), draws)
        state["l"].copy_(keep_rows(safe, bound, state["l"]))

    def _blocks(self, state: State, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the blocks (B, o, m, m), `x` by orbits (B, o, m), and the orbits (o, m)."""
        n = state["q"].shape[1]
        dtype = torch.promote_types(state["q"].dtype, lift(x).dtype)
        orbits = self.group.orbits(n, x.device)
        q = _to_orbits(state["q"].to(dtype), orbits)
        if orbits.numel() > n:  # an orbit is short: ones where it has no entries
            q = q + torch.diag_embed((orbits == n).to(dtype))
        return q, _to_orbits(x.flatten(1).to(dtype), orbits), orbits

    def apply(self, state: State, x: Tensor) -> Tensor:
        """Return `P x`."""
        q, y, orbits = self._blocks(state, x)
        y = (q.mH @ (q @ y[..., None]))[..., 0]
        return _from_orbits(y, orbits, state["q"].shape[1]).view(x.shape).to(x.dtype)

    def to_dense(self, state: State) -> Tensor:
        """Return `Q`, (B, N, N), for row-major flattened parameters."""
        blocks, n, _ = state["q"].shape
        q, _, orbits = self._blocks(state, state["q"][:, :, 0])
        dense = q.new_zeros(blocks, n + 1, n + 1)
        dense[:, orbits[:, :, None], orbits[:, None, :]] = q
        return dense[:, :n, :n]

    def numel(self, shape: tuple[int, ...]) -> int:
        """Return the number of elements times the order of the group."""
        n = torch.Size(shape).numel()
        return n * self.group.order(n)

    def describe(self, shape: tuple[int, ...]) -> str:
        """Return e.g. `Permutation(flip of 65536)`."""
        return f"{self.name}({self.group.describe()} of {torch.Size(shape).numel()})"


@final
class _OrbitsGradient(GroupGradient):
    """The gradient `a a^H - b b^H` on every orbit."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        """Keep the vectors.

        Args:
            a: (B, o, m).
            b: Like `a`.
        """
        self._shape = a.shape[:2]
        self._each = RankTwoGradient(a.flatten(0, 1), b.flatten(0, 1))

    def left(self, q: Tensor) -> Tensor:
        """Return `E Q`, (B, o, m, m)."""
        return self._each.left(q.flatten(0, 1)).view(q.shape)

    def max_entry(self) -> Tensor:
        """Return the largest modulus of an entry over the orbits."""
        return self._each.max_entry().view(self._shape).amax(dim=1)

    def spectral_norm(self) -> Tensor:
        """Return the largest norm of an orbit's block, which is exact."""
        return self._each.spectral_norm().view(self._shape).amax(dim=1)

    def frobenius_norm(self) -> Tensor:
        """Return the 2-norm of all entries."""
        norm: Tensor = self._each.frobenius_norm().view(self._shape).norm(dim=1)
        return norm

    def curvature(self) -> Tensor:
        """Return the largest `|a|^2 + |b|^2` of an orbit."""
        return self._each.curvature().view(self._shape).amax(dim=1)


def _to_orbits(x: Tensor, orbits: Tensor) -> Tensor:
    """Return `x` (B, n, ...) by orbits, (B, o, m, ...), 0 where a short orbit has no entry."""
    if orbits.numel() > x.shape[1]:
        x = torch.cat([x, torch.zeros_like(x[:, :1])], dim=1)
    return x[:, orbits]


def _from_orbits(x: Tensor, orbits: Tensor, n: int) -> Tensor:
    """Return `x` (B, o, m, ...) in the order of the parameter's entries, (B, n, ...)."""
    where = torch.arange(orbits.numel(), device=orbits.device)
    where = torch.zeros_like(where[:1]).expand(n + 1).scatter(0, orbits.flatten(), where)
    return x.flatten(1, 2)[:, where[:n]]


def _solve_adjoint(q: Tensor, x: Tensor) -> Tensor:
    """Return `Q^-H x` for a stack of blocks, by formula for blocks of one or two.

    Args:
        q: (B, o, m, m).
        x: (B, o, m).

    Returns:
        (B, o, m).
    """
    c = q.conj()
    if q.shape[-1] == 1:
        return x / c[..., 0]
    if q.shape[-1] == 2:
        determinant = c[..., 0, 0] * c[..., 1, 1] - c[..., 0, 1] * c[..., 1, 0]
        first = c[..., 1, 1] * x[..., 0] - c[..., 1, 0] * x[..., 1]
        second = c[..., 0, 0] * x[..., 1] - c[..., 0, 1] * x[..., 0]
        return torch.stack([first, second], dim=-1) / determinant[..., None]
    # Not `solve`, which would wait for the device to look for singular blocks.
    solution: Tensor = torch.linalg.solve_ex(q.mH, x[..., None]).result[..., 0]
    return solution
