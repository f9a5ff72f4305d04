"""Block triangular forms: groups on the diagonal, full matrices above it."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from psgd_optim.block_matrix import BlockMatrix, BlocksGradient
from psgd_optim.factors.base import Factor
from psgd_optim.factors.diagonal import DIAGONAL
from psgd_optim.factors.matrix import TRIANGULAR
from psgd_optim.forms.base import Preconditioner, check_parts, state_dtype
from psgd_optim.linalg import lift, per_block
from psgd_optim.rounding import draw_bits, write_
from psgd_optim.step_size import LipschitzEMA, Normaliser
from psgd_optim.types import Probe, State


@final
@dataclass(frozen=True, kw_only=True)
class BlockTriangular(Preconditioner):
    """`Q = [A C; 0 B]` on the flattened parameter, with `A` and `B` from groups of their own.

    Any number of blocks: composing `[A C; 0 B]` with a `B`, or an `A`, of that kind again gives
    this form with one block more. State: `q{i}`, the diagonal block `i` as its kind stores it;
    `c{i}`, (B, n_i, rest), all that stands to the right of it; and `l`, (B, 2 blocks - 1), the
    divisors of the steps of every `q{i}`, then of every `c{i}`. A parameter that ends before a
    split has no blocks after it.

    Args:
        kinds: The group of each diagonal block. The default is the arrow of limited memory, a
            small triangle that sees everything and a diagonal for the rest; with a diagonal before
            the last entry, `kinds=(DIAGONAL, GENERAL), splits=(-1,)`, it is a normalisation.
        splits: Where the blocks after the first begin, counted from the end if negative.
        normaliser: What divides the step sizes: `LipschitzEMA` each by a bound of its own, the
            others all by one size, the largest of a block.
        dtype: The dtype of the blocks; `None` is the parameters' dtype, at least single precision.
            Half precision is rounded stochastically.

    Raises:
        ValueError: If there is not one split between any two kinds, in order.

    Source: S1 (21); algorithms 4.11. Deviation: Lipschitz bounds divide the steps by default, and
    then not one for all blocks.
    """

    kinds: tuple[Factor, ...] = (TRIANGULAR, DIAGONAL)
    splits: tuple[int, ...] = (10,)  # the order that all experiments of S0 take
    normaliser: Normaliser = LipschitzEMA()
    dtype: torch.dtype | None = None

    name: ClassVar[str] = "BlockTriangular"

    def __post_init__(self) -> None:
        check_parts(self.name, self.normaliser, self.dtype)
        if len(self.kinds) != len(self.splits) + 1:
            raise ValueError(
                f"BlockTriangular got {len(self.kinds)} kinds and {len(self.splits)} splits; give "
                "one split less than kinds."
            )
        if list(self.splits) != sorted(set(self.splits), key=lambda i: (i < 0, i)):
            raise ValueError(
                f"BlockTriangular got splits = {self.splits}; give each once and in order, those "
                "counted from the end last."
            )

    @property
    def layout(self) -> str:
        """The name and what else the numbers depend on."""
        return f"{self.name}({', '.join(kind.name for kind in self.kinds)})"

    @property
    def needs_v(self) -> bool:
        """Return yes: the gradient of one pair has rank two, and exact norms."""
        return True

    def _plan(self, n: int) -> list[tuple[Factor, int]]:
        """Return the kinds and the sizes of the blocks that a parameter of `n` elements has."""
        ends = [min(max(i if i >= 0 else n + i, 0), n) for i in self.splits] + [n]
        plan, begin = [], 0
        for kind, end in zip(self.kinds, ends, strict=True):
            if end > begin:
                plan.append((kind, end - begin))
                begin = end
        return plan

    def init(self, shape: tuple[int, ...], scale: Tensor, like: Tensor) -> State:
        """Return `Q = scale * I`."""
        scale = scale.to(like.device, state_dtype(like, self.dtype))
        rest, state = torch.Size(shape).numel(), {}
        plan = self._plan(rest)
        for i, (kind, n) in enumerate(plan):
            rest -= n
            state[f"q{i}"] = kind.init(n, scale)
            if rest:
                state[f"c{i}"] = scale.new_zeros(len(scale), n, rest)
        bound = torch.zeros_like(lift(scale.real))
        return {**state, "l": bound[:, None].repeat(1, 2 * len(plan) - 1)}

    def draw(self, state: State, generator: torch.Generator) -> State:
        """Draw the bits that round a state in half precision; an update needs no others."""
        return draw_bits(state, generator)

    def update(self, state: State, probe: Probe, draws: State, rate: Tensor | float) -> None:
        """Take `Q <- (I - E) Q`; keeps every diagonal block invertible for rates below 1.

        `E` is `a a^H - b b^H`, cut to the pattern, with `a = Q h`, `b = Q^-H v`, and each part of
        it times `rate / L` for its own bound `L`.

        Args:
            state: The state to change.
            probe: The sample, with a probe `v`.
            draws: What `draw` returned.
            rate: Step size, a number or (B,).

        Raises:
            ValueError: If the sample has no `v`.
        """
        if probe.v is None:
            raise ValueError("BlockTriangular got a sample without v; give one, as needs_v says.")
        q, h = self._blocks(state, probe.h)
        a, b = q.multiply(h), q.solve_adjoint(probe.v.flatten(1).to(h.dtype))
        gradient = BlocksGradient(q.kinds, q.parts(a), q.parts(b))
        bound = self.normaliser.grow(state["l"], gradient)
        rates = torch.as_tensor(rate, dtype=bound.dtype, device=bound.device)
        steps = (rates.view(-1, 1) / bound).to(h.real.dtype)
        # A sample too large for its square says nothing: its row stays as it is.
        safe = bound.isfinite().all(dim=1)
        for name, new in q.moved(gradient, steps, a, b).items():
            kept = torch.where(per_block(safe, new), new, state[name].to(h.dtype))
            write_(state, name, kept, draws)
        state["l"].copy_(torch.where(safe[:, None], bound, state["l"]))

    def _blocks(self, state: State, x: Tensor) -> tuple[BlockMatrix, Tensor]:
        """Return the blocks, and `x` flattened, in the dtype to compute in."""
        dtype = torch.promote_types(state["q0"].dtype, lift(x).dtype)
        x = x.flatten(1).to(dtype)
        blocks = {name: value.to(dtype) for name, value in state.items() if name != "l"}
        return BlockMatrix(self._plan(x.shape[1]), blocks), x

    def apply(self, state: State, x: Tensor) -> Tensor:
        """Return `P x`."""
        q, y = self._blocks(state, x)
        return q.tails(q.multiply(y))[0].view(x.shape).to(x.dtype)

    def to_dense(self, state: State) -> Tensor:
        """Return `Q`, (B, N, N), for row-major flattened parameters."""
        couplings = [x for name, x in state.items() if name.startswith("c")]
        rest = couplings[0].shape[2] if couplings else 0
        # Every kind keeps the size of its block in the last axis of `q`.
        n = state["q0"].shape[-1] + rest
        q, _ = self._blocks(state, state["l"].new_zeros(len(state["l"]), n))
        return q.matrix()

    def numel(self, shape: tuple[int, ...]) -> int:
        """Return what the kinds have, and the full blocks above the diagonal."""
        rest, total = torch.Size(shape).numel(), 0
        for kind, n in self._plan(rest):
            rest -= n
            total += kind.numel(n) + n * rest
        return total

    def describe(self, shape: tuple[int, ...]) -> str:
        """Return e.g. `BlockTriangular(10 triangular, 118 diagonal)`."""
        plan = self._plan(torch.Size(shape).numel())
        return f"{self.name}({', '.join(f'{n} {kind.name}' for kind, n in plan)})"
