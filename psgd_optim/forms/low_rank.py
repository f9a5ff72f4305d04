"""The low-rank form: a diagonal and the identity plus an outer product of two tall matrices."""

import enum
import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from psgd_optim.forms.base import Preconditioner, check_parts, state_dtype
from psgd_optim.group_gradient import VectorGradient
from psgd_optim.linalg import (
    both,
    finite_rows,
    keep_rows,
    known,
    lift,
    matvec,
    per_block,
    real_product,
)
from psgd_optim.low_rank_gradient import LowRankGradient
from psgd_optim.rounding import draw_bits, write_
from psgd_optim.step_size import LipschitzEMA, MaxEntry, Normaliser
from psgd_optim.types import Probe, State, expect

# The directions in which U V^H first grows; any number does, as long as it never changes.
_START_SEED = 20
# Frobenius norm of the first V (anchors 8.5). A larger one would hold back the first moves of U,
# whose divisors grow with it and fall slowly.
_START_SIZE = 0.1**0.5


class Order(enum.Enum):
    """Whether `Q` scales a vector before or after its low-rank part; each has its own updates.

    `SCALE_LAST` is the less forgiving one: with a first-order normaliser, rates near 1 and heavy
    tails, rounding to single precision can carry det(Q) through 0, which P = Q^H Q survives.
    """

    SCALE_FIRST = "(I + U V^H) diag(d)"
    SCALE_LAST = "diag(d) (I + U V^H)"


@final
@dataclass(frozen=True, kw_only=True)
class LowRank(Preconditioner):
    """`Q = (I + U V^H) diag(d)` on the flattened parameter, `U` and `V` of shape (N, r).

    Takes O(r N) memory and time; rank 0 is a diagonal whose elements share one divisor. State:
    `scale` (B, N), which is `d`, real and positive; `pair` (B, 2, N, r), `U` and then `V`; the
    step's bounds `l_scale` (B,) and `l_pair` (B, 2).

    Args:
        rank: `r`, at least 0; smaller parameters use their size.
        order: Which comes first, the scales or the low-rank part.
        normaliser: What divides the step size; `d`, `U` and `V` have a divisor each. `MaxEntry`
            is refused: it needs all N^2 entries, and keeps no low-rank `Q` invertible.
        dtype: The real dtype of the state; `None` is the parameters' dtype, at least single
            precision. Updates compute in single precision or better, and round half precision
            stochastically.

    Raises:
        ValueError: If `rank` is negative, or if `normaliser` is `MaxEntry`.

    Source: S2 App. C and D, E.1 for the other order; algorithms 4.13, anchors 8.5. Deviations:
    the start is `U = 0` with a random `V`, not both random, so that `Q` starts as a multiple of
    the identity; the divisor for `d` is `max(|h p| + |v w|)`, not the sum of two largest entries;
    the norms of the rank-two gradients of `U` and `V` are exact; complex parameters are allowed,
    with real `d`.
    """

    rank: int = 10
    order: Order = Order.SCALE_FIRST
    normaliser: Normaliser = LipschitzEMA()
    dtype: torch.dtype | None = None

    name: ClassVar[str] = "LowRank"

    def __post_init__(self) -> None:
        check_parts(self.name, self.normaliser, self.dtype)
        expect(self.name, "order", self.order, Order, "Order.SCALE_FIRST or Order.SCALE_LAST")
        if not isinstance(self.rank, int) or self.rank < 0:
            raise ValueError(f"LowRank got rank = {self.rank}; give a whole number of at least 0.")
        if isinstance(self.normaliser, MaxEntry):
            raise ValueError(
                "LowRank got normaliser MaxEntry, which needs all N^2 entries of its gradient; "
                "give LipschitzEMA, SpectralNorm or FrobeniusNorm."
            )

    @property
    def layout(self) -> str:
        """The name and what else the numbers depend on."""
        return f"{self.name}({self.order.value})"

    @property
    def needs_v(self) -> bool:
        """Return True: the images of `v` cannot be integrated out in O(r N)."""
        return True

    def init(self, shape: tuple[int, ...], scale: Tensor, like: Tensor) -> State:
        """Return `d = scale`, `U = 0` and a `V` of fixed random numbers, the same in every row.

        The first update of `U` wakes the low-rank part.
        """
        n = torch.Size(shape).numel()
        dtype = state_dtype(like, self.dtype)
        d = scale.to(like.device, state_dtype(like.real, self.dtype))[:, None].repeat(1, n)
        # Drawn on the host, so that every device starts with the same numbers; a plan without
        # memory draws none.
        host = torch.device("meta" if d.is_meta else "cpu")
        start = None if d.is_meta else torch.Generator().manual_seed(_START_SEED)
        random = torch.complex64 if dtype.is_complex else torch.float32
        v = torch.randn(n, min(self.rank, n), dtype=random, generator=start, device=host)
        v = (v * (_START_SIZE / v.norm())).to(like.device, dtype)
        bound = torch.zeros_like(lift(d[:, 0]))
        return {
            "scale": d,
            "pair": torch.stack((torch.zeros_like(v), v)).repeat(len(d), 1, 1, 1),
            "l_scale": bound,
            "l_pair": bound[:, None].repeat(1, 2),
        }

    def draw(self, state: State, generator: torch.Generator) -> State:
        """Draw each row's `coin`, 0 where `U` is to move, 1 where `V` is; and bits for rounding."""
        d = state["scale"]
        coin = torch.randint(2, (len(d),), generator=generator, device=d.device)
        return {"coin": coin} | draw_bits(state, generator)

    def update(self, state: State, probe: Probe, draws: State, rate: Tensor | float) -> None:
        """Move `d`, and `U` or `V`, from the same old values; keeps det(Q) > 0.

        Raises:
            ValueError: If the probe has no `v`.
        """
        if probe.v is None:
            raise ValueError("LowRank got a probe without v; give one, as needs_v says.")
        q = self._factor(state, probe.h, balanced=True)
        dtype = q.pair.dtype
        core = q.core()
        left, right = q.terms(core, probe.h.flatten(1).to(dtype), probe.v.flatten(1).to(dtype))
        if self.order is Order.SCALE_LAST:
            left, right = right, left
        gradient = VectorGradient(*(real_product(s, t) for s, t in right))
        bound = self.normaliser.grow(state["l_scale"], gradient)
        d = q.scale - (rate / bound)[:, None] * gradient.left(q.scale)
        coin = draws["coin"]
        columns, rows, low_rank = _pair_move(q, core, left, coin)
        is_moved = coin[:, None] == torch.arange(2, device=coin.device)  # (B, 2)
        old = state["l_pair"].take_along_dim(coin[:, None], dim=1)[:, 0]
        pair_bound = self.normaliser.grow(old, low_rank)
        step = torch.where(is_moved, (rate / pair_bound)[:, None], 0.0)
        pair = q.pair  # balancing made a copy
        for k, share in enumerate(step.unbind(dim=1)):
            pair[:, k].baddbmm_(columns.mT, -share[:, None, None] * rows)
        bounds = torch.where(is_moved, pair_bound[:, None], state["l_pair"])
        # A sample too large for its squares, or its products, says nothing: its row stays.
        bounded = known((bound < math.inf) & (pair_bound < math.inf))
        safe = both(bounded, finite_rows(d), finite_rows(pair))
        moved = {"scale": d, "pair": pair, "l_scale": bound, "l_pair": bounds}
        for name, x in moved.items():
            write_(state, name, keep_rows(safe, x, state[name]), draws)

    def _factor(self, state: State, like: Tensor, balanced: bool = False) -> "_Factor":
        """Return `Q` in the dtype to compute in."""
        pair, d = state["pair"], state["scale"]
        pair = pair.to(torch.promote_types(pair.dtype, state_dtype(like, None)))
        d = d.to(torch.promote_types(d.dtype, state_dtype(like.real, None)))
        return _Factor(self.order, d, _balance(pair) if balanced else pair)

    def apply(self, state: State, x: Tensor) -> Tensor:
        """Return `P x`, in O(r N)."""
        q = self._factor(state, x)
        return q.adjoint_times(q.times(x.flatten(1).to(q.pair.dtype))).to(x.dtype).view(x.shape)

    def to_dense(self, state: State) -> Tensor:
        """Return `Q`, (B, N, N)."""
        q = self._factor(state, state["pair"])
        n = q.scale.shape[1]
        low_rank = torch.eye(n, dtype=q.pair.dtype, device=q.pair.device)
        low_rank = low_rank + q.pair[:, 0] @ q.pair[:, 1].mH
        first = self.order is Order.SCALE_FIRST
        return low_rank * (q.scale[:, None] if first else q.scale[:, :, None])

    def numel(self, shape: tuple[int, ...]) -> int:
        """Return `(2 r + 1) N`."""
        n = torch.Size(shape).numel()
        return (2 * min(self.rank, n) + 1) * n

    def describe(self, shape: tuple[int, ...]) -> str:
        """Return e.g. `LowRank(65536, rank 10)`."""
        n = torch.Size(shape).numel()
        return f"{self.name}({n}, rank {min(self.rank, n)})"


Terms = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Vectors (s1, t1), (s2, t2), each (B, N), of a gradient `s1 t1^H - s2 t2^H`."""


class _Factor(NamedTuple):
    """A stack of `Q`: `M diag(d)` or `diag(d) M`, with `M = I + U V^H`."""

    order: Order
    scale: Tensor
    pair: Tensor

    def times(self, x: Tensor) -> Tensor:
        """Return `Q x`, (B, N)."""
        if self.order is Order.SCALE_FIRST:
            return self._plus(self.scale * x, 0)
        return self.scale * self._plus(x, 0)

    def adjoint_times(self, x: Tensor) -> Tensor:
        """Return `Q^H x`, (B, N)."""
        if self.order is Order.SCALE_FIRST:
            return self.scale * self._plus(x, 1)
        return self._plus(self.scale * x, 1)

    def core(self) -> Tensor:
        """Return `V^H U`, (B, r, r)."""
        return self.pair[:, 1].mH @ self.pair[:, 0]

    def terms(self, core: Tensor, h: Tensor, v: Tensor) -> tuple[Terms, Terms]:
        """Return the gradients of moves on the left and on the right of `Q`.

        They are `a a^H - b b^H` and `p h^H - v w^H` with `a = Q h`, `p = Q^H a`,
        `b = Q^-H v` and `w = Q^-1 b`. Source: algorithms 3.1 and 4.13.
        """
        a = self.times(h)
        p = self.adjoint_times(a)
        eye = torch.eye(core.shape[-1], dtype=core.dtype, device=core.device)
        # The unchecked factorisation does not wait for the device; det(I + V^H U) stays above 0.
        lu, pivots, _ = torch.linalg.lu_factor_ex(core + eye)
        if self.order is Order.SCALE_FIRST:
            b = self._solve(v / self.scale, 1, lu, pivots)
            w = self._solve(b, 0, lu, pivots) / self.scale
        else:
            b = self._solve(v, 1, lu, pivots) / self.scale
            w = self._solve(b / self.scale, 0, lu, pivots)
        return ((a, a), (b, b)), ((p, h), (v, w))

    def _plus(self, x: Tensor, k: int) -> Tensor:
        """Return `M x` for k = 0 and `M^H x` for k = 1."""
        return x + matvec(self.pair[:, k], matvec(self.pair[:, 1 - k].mH, x))

    def _solve(self, x: Tensor, k: int, lu: Tensor, pivots: Tensor) -> Tensor:
        """Return `M^-1 x` for k = 0 and `M^-H x` for k = 1."""
        y = matvec(self.pair[:, 1 - k].mH, x)
        y = torch.linalg.lu_solve(lu, pivots, y[..., None], adjoint=k == 1)[..., 0]
        return x - matvec(self.pair[:, k], y)


def _pair_move(
    q: _Factor, core: Tensor, terms: Terms, coin: Tensor
) -> tuple[Tensor, Tensor, LowRankGradient]:
    """Return the direction in which `U` or `V` moves, and the gradient behind it.

    With `G` the gradient of the terms, `M` the matrix that moves, `W` the other one and
    `X = G W` (for `V`, `G^H W`), the move along `X W^H` is `X (I + W^H M)` where it acts on the
    outer side of `I + U V^H`, and `X + M W^H X` on the inner side. Both are of rank two. No copy
    of `M` or of `W` is made, only of what they are multiplied with.

    Args:
        q: The factors.
        core: (B, r, r), `V^H U`.
        terms: Of the gradient.
        coin: (B,), 0 where `U` moves, 1 where `V` does.

    Returns:
        The direction's columns (B, 2, N) and rows (B, 2, r), whose outer products add up to it,
        and the gradient.
    """
    first, second = (torch.stack(pair, dim=1) for pair in zip(*terms, strict=True))  # (B, 2, N)
    moves_u = (coin == 0)[:, None, None]
    outer = moves_u if q.order is Order.SCALE_FIRST else ~moves_u
    s, t = torch.where(moves_u, first, second), torch.where(moves_u, second, first)
    u, v = q.pair.unbind(dim=1)
    st = torch.cat((s, t), dim=1)
    by_fixed = torch.where(moves_u, st @ v.conj(), st @ u.conj())  # (B, 4, r)
    s_fixed, t_fixed = torch.split(by_fixed, 2, dim=1)
    to_moved = torch.where(moves_u, core, core.mH).conj()  # (W^H M)^*: rows times it
    rows = t_fixed + torch.where(outer, t_fixed @ to_moved, 0)  # (B, 2, r)
    # M (W^H s), for the columns of the inner side, and W (W^H t).
    nothing = torch.zeros_like(s_fixed)
    by_moved = torch.cat((torch.where(outer, 0, s_fixed), nothing), dim=1)
    by_other = torch.cat((nothing, t_fixed), dim=1)
    for_u = torch.where(moves_u, by_moved, by_other)
    for_v = torch.where(moves_u, by_other, by_moved)
    images = torch.baddbmm(for_u @ u.mT, for_v, v.mT)  # (B, 4, N)
    more, x = torch.split(images, 2, dim=1)
    gradient = LowRankGradient(s[:, 0], x[:, 0], s[:, 1], x[:, 1])
    plus, minus = rows.conj().unbind(dim=1)
    return s + more, torch.stack((plus, -minus), dim=1), gradient


def _balance(pair: Tensor) -> Tensor:
    """Return copies of `U` and `V` of equal norms, with Gram matrices one step closer.

    `U V^H` changes by a factor of `I + E^4 / 4` with `|E| <= 0.1`. Where one of them is zero,
    nothing changes. Source: anchors 8.5.
    """
    gram = pair.mH @ pair  # (B, 2, r, r)
    trace = gram.diagonal(dim1=2, dim2=3).real.sum(dim=2)  # (B, 2), of U^H U and V^H V
    alive = (trace > 0).all(dim=1)
    rho = torch.where(alive, trace[:, 0] / trace[:, 1], 1.0).pow(0.25)
    scales = torch.stack((1 / rho, rho), dim=1)  # (B, 2)
    squares = scales.square()
    total = (trace * squares).sum(dim=1) + torch.finfo(trace.dtype).tiny
    gram = gram * per_block(squares, gram)
    e = per_block(torch.where(alive, 0.1 / total, 0.0), gram[:, 0]) * (gram[:, 0] - gram[:, 1])
    bend = 0.5 * e @ e
    moves = torch.stack((bend - e, bend + e), dim=1) * per_block(scales, gram)
    # The small part alone goes through a product, which may be one of low precision.
    balanced = pair * per_block(scales, pair)
    balanced.flatten(0, 1).baddbmm_(pair.flatten(0, 1), moves.flatten(0, 1))
    return balanced
