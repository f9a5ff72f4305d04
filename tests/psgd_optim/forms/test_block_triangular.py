import itertools

import pytest
import torch
from torch import Tensor

from psgd_optim.factors.base import Factor
from psgd_optim.factors.diagonal import DIAGONAL
from psgd_optim.factors.matrix import GENERAL, TRIANGULAR
from psgd_optim.factors.normalisation import NORMALISATION
from psgd_optim.forms.base import Preconditioner
from psgd_optim.forms.block_triangular import BlockTriangular
from psgd_optim.rank_two_gradient import RankTwoGradient
from psgd_optim.step_size import FrobeniusNorm, LipschitzEMA, MaxEntry, Normaliser, SpectralNorm
from psgd_optim.types import Probe, State
from tests import reference_group
from tests.psgd_optim.forms.contract import COMPLEX, REAL, B, FormContract, generator

N = 9
FORMS: dict[str, BlockTriangular] = {
    "arrow": BlockTriangular(splits=(3,)),
    "normalisation": BlockTriangular(kinds=(DIAGONAL, GENERAL), splits=(-1,)),
    "three": BlockTriangular(kinds=(GENERAL, DIAGONAL, TRIANGULAR), splits=(2, -3)),
    "nested": BlockTriangular(kinds=(NORMALISATION, DIAGONAL), splits=(4,)),
    "ones": BlockTriangular(kinds=(DIAGONAL,) * N, splits=tuple(range(1, N))),
}


def blocks(form: BlockTriangular, n: int) -> list[tuple[Factor, slice]]:
    """Return the kinds and places of the diagonal blocks, by Python's rules for slices."""
    edges = [0, *(min(i, n) if i >= 0 else max(n + i, 0) for i in form.splits), n]
    places = [slice(*pair) for pair in itertools.pairwise(edges)]
    return [(k, s) for k, s in zip(form.kinds, places, strict=True) if s.stop > s.start]


def pattern(form: BlockTriangular, n: int) -> Tensor:
    mask = torch.zeros(n, n, dtype=torch.bool)
    for kind, place in blocks(form, n):
        size = place.stop - place.start
        own = torch.eye(size, dtype=torch.bool)
        if kind is TRIANGULAR:
            own = torch.ones(size, size).triu().bool()
        if kind is GENERAL:
            own[:] = True
        if kind is NORMALISATION:
            own[:, -1] = True
        mask[place, place] = own
        mask[place, place.stop :] = True
    return mask


def curvatures(form: BlockTriangular, q: Tensor, h: Tensor, v: Tensor) -> Tensor:
    """Return the bound of each diagonal block, then of what is right of each but the last."""
    a, b = (x.abs() ** 2 for x in reference_group.vectors(q, h, v))
    own, right, places = [], [], blocks(form, len(h))
    for kind, place in places:
        weight = (a + b)[place]
        if kind is DIAGONAL:
            own.append(weight.max())
        elif kind is NORMALISATION:
            own.append(weight[-1] + weight[:-1].max())
        else:
            own.append(weight.sum())
        if place.stop < len(h):
            right.append(a[place.stop :].sum() + b[: places[-1][1].start].sum())
    return torch.stack(own + right)


def spread(form: BlockTriangular, values: Tensor, n: int) -> Tensor:
    """Return the number of every part at each of its places in `Q`, (n, n)."""
    places, matrix = blocks(form, n), torch.ones(n, n, dtype=values.dtype)
    for i, (_, place) in enumerate(places):
        matrix[place, place] = values[i]
        if place.stop < n:
            matrix[place, place.stop :] = values[len(places) + i]
    return matrix


def member(form: BlockTriangular, n: int, dtype: torch.dtype, rng: torch.Generator) -> Tensor:
    noise = 0.3 * torch.randn(n, n, generator=rng, dtype=dtype) / n**0.5
    diagonal = (0.8 + 0.5 * torch.rand(n, generator=rng, dtype=REAL)).diag()
    off_diagonal = pattern(form, n) & ~torch.eye(n, dtype=torch.bool)
    return torch.where(off_diagonal, noise, 0) + diagonal


def pair(n: int, dtype: torch.dtype, seed: int) -> tuple[Probe, Tensor, Tensor]:
    rng = generator(seed)
    h, v = (torch.randn(B, n, generator=rng, dtype=dtype) for _ in range(2))
    return Probe(h=h, v=v), h, v


def random_state(form: Preconditioner, n: int, dtype: torch.dtype = REAL) -> State:
    state = form.init((n,), torch.full((B,), 1.3), torch.empty(0, dtype=dtype))
    for seed in range(4):
        form.update(state, pair(n, dtype, 20 + seed)[0], {}, 0.5)
    return state


class TestArrow(FormContract):
    """A small triangle and a diagonal; the smallest shapes end before the split."""

    form = BlockTriangular(splits=(2,))
    newton_steps = 800
    first_order_steps = 200
    whitening_steps = 500  # measured 6 %

    def make(self, **settings: object) -> Preconditioner:
        return BlockTriangular(kinds=self.form.kinds, splits=self.form.splits, **settings)

    def expected_update(
        self, state: State, row: int, probe: Probe, rate: float
    ) -> dict[str, Tensor | float]:
        q = self.make().to_dense(state)[row].to(probe.h.dtype)
        assert probe.v is not None
        h, v = probe.h[row].flatten(), probe.v[row].flatten()
        bound = curvatures(self.form, q, h, v)
        bound = torch.maximum(0.9 * state["l"][row] + 0.1 * bound, bound)
        e = reference_group.group_gradient(q, h, v, pattern(self.form, len(h)))
        e = rate / spread(self.form, bound, len(h)) * e
        return {"dense": q - e @ q, "l": bound}

    def expected_numel(self, shape: tuple[int, ...]) -> int:
        return int(pattern(self.form, torch.Size(shape).numel()).sum())

    def stored(self, state: State) -> int:
        unused = sum(
            x.shape[-1] * (x.shape[-1] - 1) // 2
            for name, x in state.items()
            if x.ndim == 3 and name.startswith("q")
        )
        return super().stored(state) - unused  # the zeros below a triangle

    def hessians(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        n, rng = torch.Size(shape).numel(), generator(7)
        members = torch.stack([member(self.form, n, dtype, rng) for _ in range(B)])
        return torch.linalg.inv(members.mH @ members)

    def moments(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        h = self.hessians(shape, REAL)
        return h @ h


class TestNormalisation(TestArrow):
    """The input side of scaling and normalisation: a diagonal, and a last entry seen by all."""

    newton_steps = 400

    form = BlockTriangular(kinds=(DIAGONAL, GENERAL), splits=(-1,))

    def stored(self, state: State) -> int:
        return FormContract.stored(self, state)

    def expected_numel(self, shape: tuple[int, ...]) -> int:
        return 2 * torch.Size(shape).numel() - 1


@pytest.mark.parametrize("name", FORMS)
class TestEveryComposition:
    @pytest.mark.parametrize("dtype", [REAL, COMPLEX])
    def test_update_is_the_masked_dense_rule(self, name: str, dtype: torch.dtype) -> None:
        form = FORMS[name]
        state = random_state(form, N, dtype)
        state["l"].zero_()
        probe, h, v = pair(N, dtype, 5)
        before = form.to_dense(state)
        form.update(state, probe, {}, 0.3)
        after = form.to_dense(state)
        for row in range(B):
            e = reference_group.group_gradient(before[row], h[row], v[row], pattern(form, N))
            size = spread(form, curvatures(form, before[row], h[row], v[row]), N)
            expected = before[row] - (0.3 / size * e) @ before[row]
            torch.testing.assert_close(after[row], expected, rtol=1e-10, atol=1e-12)

    def test_p1_the_gradient_is_the_slope_along_every_direction_of_the_group(
        self, name: str
    ) -> None:
        form = FORMS[name]
        state, (probe, h, v) = random_state(form, N), pair(N, REAL, 5)
        q = form.to_dense(state)
        form.update(state, probe, {}, 0.1)
        e = (q - form.to_dense(state)) @ torch.linalg.inv(q) / 0.1
        e = torch.stack([spread(form, state["l"][i], N) * e[i] for i in range(B)])
        scale, mask = float(e[0].abs().max()), pattern(form, N)
        for i, j in mask.nonzero().tolist():
            direction = torch.zeros(N, N, dtype=REAL)
            direction[i, j] = 1.0
            slope = reference_group.slope(q[0], h[0], v[0], direction)
            assert abs(float(slope - e[0, i, j])) < 1e-6 * scale
        assert float(torch.where(mask, 0, e[0]).abs().max()) < 1e-9 * scale

    def test_p8_the_group_is_closed_and_has_inverses(self, name: str) -> None:
        form = FORMS[name]
        q, mask = form.to_dense(random_state(form, N)), pattern(form, N)
        assert bool((q[0][mask] != 0).all())  # the state is no special case
        inverse = torch.linalg.inv(q[2])
        for product in (q[0] @ q[1], inverse):
            assert float(torch.where(mask, 0, product).abs().max()) < 1e-12
        torch.testing.assert_close(inverse @ q[2], torch.eye(N, dtype=REAL), rtol=0, atol=1e-12)

    def test_p15_apply_is_the_assembled_matrix(self, name: str) -> None:
        form = FORMS[name]
        state, (_, x, _) = random_state(form, N, COMPLEX), pair(N, COMPLEX, 2)
        q = form.to_dense(state)
        expected = (q.mH @ q @ x[..., None])[..., 0]
        torch.testing.assert_close(form.apply(state, x), expected)

    def test_p16_count(self, name: str) -> None:
        assert FORMS[name].numel((N,)) == int(pattern(FORMS[name], N).sum())

    def test_p9_heavy_tailed_pairs_keep_q_in_its_group(self, name: str) -> None:
        for normaliser in (LipschitzEMA(), SpectralNorm()):
            base, rng = FORMS[name], generator(4)
            form = BlockTriangular(kinds=base.kinds, splits=base.splits, normaliser=normaliser)
            state = form.init((N,), torch.ones(10), torch.empty(0, dtype=REAL))
            for _ in range(100):
                z = torch.randn(2, 10, N, generator=rng, dtype=REAL)
                chi = -2 * torch.rand(2, 10, N, generator=rng, dtype=REAL).clamp(min=1e-12).log()
                power = 10 ** (4 * torch.rand(2, 10, 1, generator=rng, dtype=REAL) - 2)
                h, v = power * z / (chi / 2).sqrt()  # Student t, two degrees of freedom
                form.update(state, Probe(h=h, v=v), {}, 0.9)
            dense = form.to_dense(state)
            assert bool(dense.isfinite().all())
            assert bool((torch.linalg.slogdet(dense).sign > 0).all())


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("name", ["normalisation", "three", "ones"])
@pytest.mark.parametrize(
    ("normaliser", "order"), [(MaxEntry(), None), (SpectralNorm(), 2), (FrobeniusNorm(), "fro")]
)
def test_one_step_is_divided_by_the_largest_size_of_a_block(
    name: str, normaliser: Normaliser, order: int | str | None, dtype: torch.dtype
) -> None:
    """Algorithms 4.11; the size of a triangle is that of its Hermitian whole."""
    base = FORMS[name]
    form = BlockTriangular(kinds=base.kinds, splits=base.splits, normaliser=normaliser)
    state, (probe, h, v) = random_state(base, N, dtype), pair(N, dtype, 5)
    q = form.to_dense(state)
    form.update(state, probe, {}, 0.1)
    for row in range(B):
        a, b = reference_group.vectors(q[row], h[row], v[row])
        whole = torch.outer(a, a.conj()) - torch.outer(b, b.conj())
        parts = []
        for kind, place in blocks(form, N):
            own = whole[place, place]
            parts.append(own.diagonal().diag() if kind is DIAGONAL else own)
            if place.stop < N:
                parts.append(whole[place, place.stop :])
        if order is None:
            size = max(float(x.abs().max()) for x in parts)
        elif order == "fro":
            size = sum(float(x.abs().square().sum()) for x in parts) ** 0.5
        else:
            size = max(float(torch.linalg.matrix_norm(x, 2)) for x in parts)
        assert state["l"][row].tolist() == pytest.approx([size] * state["l"].shape[1], rel=1e-9)


def test_p14_blocks_of_one_are_the_triangular_group() -> None:
    """With one step for all; bounds of the curvature are each block's own."""
    n, full, normaliser = N, torch.ones(N, N).triu().bool(), MaxEntry()
    ones = BlockTriangular(kinds=(DIAGONAL,) * n, splits=tuple(range(1, n)), normaliser=normaliser)
    state = ones.init((n,), torch.ones(B), torch.empty(0, dtype=REAL))
    q, bounds = torch.eye(n, dtype=REAL).repeat(B, 1, 1), torch.zeros(B, dtype=REAL)
    for t in range(30):
        probe, h, v = pair(n, REAL, t)
        ones.update(state, probe, {}, 0.2)
        a, b = q @ h[..., None], torch.linalg.inv(q).mT @ v[..., None]
        gradient = RankTwoGradient(a[..., 0], b[..., 0])
        bounds = normaliser.grow(bounds, gradient)
        e = torch.where(full, a @ a.mT - b @ b.mT, 0)
        q = q - 0.2 / bounds[:, None, None] * e @ q
    torch.testing.assert_close(ones.to_dense(state), q, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "kinds",
    [
        ((TRIANGULAR, TRIANGULAR), (4,)),
        ((DIAGONAL, TRIANGULAR, DIAGONAL), (1, -1)),
    ],
)
def test_p14_triangles_compose_to_a_triangle(
    kinds: tuple[tuple[Factor, ...], tuple[int, ...]],
) -> None:
    one_step = MaxEntry()
    composed = BlockTriangular(kinds=kinds[0], splits=kinds[1], normaliser=one_step)
    whole = BlockTriangular(kinds=(TRIANGULAR,), splits=(), normaliser=one_step)
    first, second = (f.to_dense(random_state(f, N)) for f in (composed, whole))
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


def test_a_diagonal_and_a_last_entry_are_the_normalisation_factor() -> None:
    kinds, one_step = (DIAGONAL, GENERAL), MaxEntry()
    composed = BlockTriangular(kinds=kinds, splits=(-1,), normaliser=one_step)
    whole = BlockTriangular(kinds=(NORMALISATION,), splits=(), normaliser=one_step)
    first, second = (f.to_dense(random_state(f, N)) for f in (composed, whole))
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("splits", [tuple(range(1, 6)), (2, -2), ()])
def test_p14_triangles_with_steps_of_their_own_tend_to_the_same_factor(
    splits: tuple[int, ...],
) -> None:
    """The trajectories differ from the whole triangle's, the Cholesky factor does not."""
    n, rng = 6, generator(3)
    form = BlockTriangular(kinds=(TRIANGULAR,) * (len(splits) + 1), splits=splits)
    wanted = member(BlockTriangular(kinds=(TRIANGULAR,), splits=()), n, REAL, rng)
    hessian = torch.linalg.inv(wanted.mT @ wanted)
    state = form.init((n,), torch.ones(B), torch.empty(0, dtype=REAL))
    for t in range(1000):
        v = torch.randn(B, n, generator=rng, dtype=REAL)
        form.update(state, Probe(h=v @ hessian, v=v), {}, 0.9 * (1 - t / 1000))
    found = form.to_dense(state)
    torch.testing.assert_close(found, wanted.expand(B, -1, -1), rtol=0, atol=1e-6)


def test_a_long_diagonal_fits_whatever_the_length_of_the_rows_above() -> None:
    """Measured 0.003, and 0.009 for a diagonal alone; one bound for all blocks left 0.67."""
    n, rng = 1000, generator(0)
    curvature = torch.logspace(-1, 1, n)[torch.randperm(n, generator=rng)]
    form = BlockTriangular()
    state = form.init((n,), torch.full((1,), 0.4), torch.empty(0))
    for t in range(1000):
        v = torch.randn(1, n, generator=rng)
        form.update(state, Probe(h=curvature * v, v=v), {}, max(0.02, 0.7 * 0.997**t))
    p = form.to_dense(state)[0].square().sum(dim=0)
    assert float((p * curvature)[10:].log10().abs().median()) < 0.02


def test_separate_steps_are_stable_where_a_shift_is_long() -> None:
    form, n, rng = FORMS["normalisation"], 300, generator(0)
    state = form.init((n,), torch.ones(1), torch.empty(0, dtype=REAL))
    for _ in range(300):
        v = torch.randn(1, n, generator=rng, dtype=REAL)
        form.update(state, Probe(h=v, v=v), {}, 0.9)
    eye = torch.eye(n, dtype=REAL)
    torch.testing.assert_close(form.to_dense(state)[0], eye, rtol=0, atol=0.05)


def test_a_short_parameter_has_fewer_blocks() -> None:
    assert BlockTriangular().describe((7,)) == "BlockTriangular(7 triangular)"
    assert BlockTriangular().describe((4, 4)) == "BlockTriangular(10 triangular, 6 diagonal)"
    assert FORMS["normalisation"].describe((1,)) == "BlockTriangular(1 dense)"
    assert FORMS["three"].describe((3,)) == "BlockTriangular(2 dense, 1 triangular)"


@pytest.mark.parametrize("splits", [(), (1, 2), (3, 2), (2, 2)])
def test_splits_that_do_not_fit_are_refused(splits: tuple[int, ...]) -> None:
    kinds = (DIAGONAL,) * (3 if len(splits) == 2 and splits != (1, 2) else 2)
    with pytest.raises(ValueError, match=r"BlockTriangular got .*; give"):
        BlockTriangular(kinds=kinds, splits=splits)


def test_splits_from_the_end_come_last() -> None:
    with pytest.raises(ValueError, match="those counted from the end last"):
        BlockTriangular(kinds=(DIAGONAL,) * 3, splits=(-2, 2))


def test_a_sample_without_a_probe_is_refused() -> None:
    form = BlockTriangular()
    state = form.init((4,), torch.ones(1), torch.empty(0))
    with pytest.raises(ValueError, match="without v"):
        form.update(state, Probe(h=torch.ones(1, 4)), {}, 0.1)
