import copy
import pickle

import pytest
import torch
from torch import Tensor

from psgd_optim.forms.base import Preconditioner
from psgd_optim.forms.diagonal import Diagonal
from psgd_optim.forms.permutation import Permutation
from psgd_optim.permutation_groups import (
    BUTTERFLY,
    KLEIN,
    X_MATRIX,
    AllShifts,
    Cyclic,
    IndexMaps,
    PermutationGroup,
)
from psgd_optim.step_size import FrobeniusNorm, LipschitzEMA, MaxEntry, Normaliser, SpectralNorm
from psgd_optim.types import Probe, State
from tests import reference, reference_group
from tests.psgd_optim.forms.contract import COMPLEX, REAL, B, FormContract, generator

GROUPS: dict[str, PermutationGroup] = {
    "identity": Cyclic(size=1),
    "flip": X_MATRIX,
    "butterfly": BUTTERFLY,
    "klein": KLEIN,
    "cyclic3": Cyclic(size=3),
    "cyclic4": Cyclic(size=4),
    "all": AllShifts(),
}
N = 12  # every group acts on it


def random_state(form: Preconditioner, shape: tuple[int, ...], dtype: torch.dtype) -> State:
    state = form.init(shape, torch.full((B,), 1.3), torch.empty(0, dtype=dtype))
    rng = generator(11)
    for _ in range(4):
        form.update(state, pair(shape, dtype, rng), {}, 0.5)
    return state


def pair(shape: tuple[int, ...], dtype: torch.dtype, rng: torch.Generator) -> Probe:
    h, v = (torch.randn(B, *shape, generator=rng, dtype=dtype) for _ in range(2))
    return Probe(h=h, v=v)


class TestXMatrix(FormContract):
    first_order_steps = 200
    whitening_steps = 300  # measured 5 %

    def make(self, **settings: object) -> Preconditioner:
        return Permutation(**settings)

    def expected_update(
        self, state: State, row: int, probe: Probe, rate: float
    ) -> dict[str, Tensor | float]:
        q = self.make().to_dense(state)[row].to(probe.h.dtype)
        assert probe.v is not None
        h, v = probe.h[row].flatten(), probe.v[row].flatten()
        mask = reference_group.pattern(reference_group.index_maps("flip", len(h)))
        bound = reference_group.block_curvature(q, h, v, mask)
        bound = max(0.9 * float(state["l"][row]) + 0.1 * bound, bound)
        e = reference_group.group_gradient(q, h, v, mask)
        return {"dense": q - rate / bound * e @ q, "l": bound}

    def expected_numel(self, shape: tuple[int, ...]) -> int:
        return 2 * torch.Size(shape).numel()  # P16

    def hessians(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        n = torch.Size(shape).numel()
        mask = reference_group.pattern(reference_group.index_maps("flip", n))
        rng = generator(7)
        return torch.stack([
            torch.where(mask, reference.random_spd(n, rng, dtype), 0) for _ in range(B)
        ])


@pytest.mark.parametrize("name", GROUPS)
class TestEveryGroup:
    def test_orbits_are_those_of_the_index_maps(self, name: str) -> None:
        maps = reference_group.index_maps(name, N)
        orbits = GROUPS[name].orbits(N)
        assert sorted(orbits.flatten().tolist()) == list(range(N))
        assert (
            orbits.shape == (N // len(maps), len(maps)) == (N // len(maps), GROUPS[name].order(N))
        )
        for orbit in orbits.tolist():
            assert set(orbit) == set(maps[:, orbit[0]].tolist())

    @pytest.mark.parametrize("dtype", [REAL, COMPLEX])
    @pytest.mark.parametrize(
        "normaliser", [LipschitzEMA(beta=0.0), MaxEntry(), SpectralNorm(), FrobeniusNorm()]
    )
    def test_update_is_the_masked_dense_rule(
        self, name: str, normaliser: Normaliser, dtype: torch.dtype
    ) -> None:
        form = Permutation(group=GROUPS[name], normaliser=normaliser)
        state, probe = random_state(form, (4, 3), dtype), pair((4, 3), dtype, generator(5))
        before = form.to_dense(state)
        form.update(state, probe, {}, torch.tensor([0.3, 0.2, 0.0], dtype=REAL))
        after = form.to_dense(state)
        mask = reference_group.pattern(reference_group.index_maps(name, N))
        assert probe.v is not None
        for row, rate in enumerate((0.3, 0.2, 0.0)):
            q, h, v = before[row], probe.h[row].flatten(), probe.v[row].flatten()
            e = reference_group.group_gradient(q, h, v, mask)
            size = {
                "LipschitzEMA": reference_group.block_curvature(q, h, v, mask),
                "MaxEntry": e.abs().max(),
                "SpectralNorm": torch.linalg.matrix_norm(e, 2),
                "FrobeniusNorm": torch.linalg.matrix_norm(e),
            }[type(normaliser).__name__]
            torch.testing.assert_close(after[row], q - rate / size * e @ q, rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(state["l"][row], torch.as_tensor(size, dtype=REAL))

    def test_update_is_the_rule_of_the_coefficients(self, name: str) -> None:
        form = Permutation(group=GROUPS[name], normaliser=MaxEntry())
        state, probe = random_state(form, (N,), REAL), pair((N,), REAL, generator(5))
        before = form.to_dense(state)
        form.update(state, probe, {}, 0.1)
        after = form.to_dense(state)
        maps = reference_group.index_maps(name, N)
        assert probe.v is not None
        for row in range(B):
            old, new = (x[row].gather(1, maps.mT).mT for x in (before, after))  # (m, n)
            expected = reference_group.coefficient_update(
                old, probe.h[row], probe.v[row], maps, 0.1
            )
            torch.testing.assert_close(new, expected, rtol=1e-10, atol=1e-12)

    def test_p1_the_gradient_is_the_slope_along_every_direction_of_the_group(
        self, name: str
    ) -> None:
        form = Permutation(group=GROUPS[name], normaliser=LipschitzEMA(beta=0.0))
        state, probe = random_state(form, (N,), REAL), pair((N,), REAL, generator(5))
        q = form.to_dense(state)
        form.update(state, probe, {}, 0.1)
        step = 0.1 / state["l"][:, None, None]
        e = (q - form.to_dense(state)) @ torch.linalg.inv(q) / step
        mask = reference_group.pattern(reference_group.index_maps(name, N))
        assert probe.v is not None
        scale = float(e[0].abs().max())
        for i, j in mask.nonzero().tolist():
            direction = torch.zeros(N, N, dtype=REAL)
            direction[i, j] = 1.0
            slope = reference_group.slope(q[0], probe.h[0], probe.v[0], direction)
            assert abs(float(slope - e[0, i, j])) < 1e-6 * scale
        assert float(e[0][~mask].abs().max() if not mask.all() else 0.0) < 1e-9 * scale

    def test_p8_the_group_is_closed_and_has_inverses(self, name: str) -> None:
        form = Permutation(group=GROUPS[name])
        q = form.to_dense(random_state(form, (N,), REAL))
        mask = reference_group.pattern(reference_group.index_maps(name, N))
        assert bool((q[0][mask] != 0).all())  # the state is no special case
        for member in (q[0] @ q[1], torch.linalg.inv(q[2])):
            assert float(torch.where(mask, 0, member).abs().max()) < 1e-12
        eye = torch.eye(N, dtype=REAL)
        torch.testing.assert_close(torch.linalg.inv(q[2]) @ q[2], eye, rtol=0, atol=1e-12)

    def test_p15_apply_is_the_assembled_matrix(self, name: str) -> None:
        form = Permutation(group=GROUPS[name])
        state = random_state(form, (4, 3), COMPLEX)
        x = pair((4, 3), COMPLEX, generator(2)).h
        q = form.to_dense(state)
        expected = (q.mH @ q @ x.flatten(1)[..., None]).view_as(x)
        torch.testing.assert_close(form.apply(state, x), expected)

    def test_p16_count(self, name: str) -> None:
        order = len(reference_group.index_maps(name, N))
        assert Permutation(group=GROUPS[name]).numel((4, 3)) == order * N

    def test_fit_recovers_a_member_of_the_group(self, name: str) -> None:
        form = Permutation(group=GROUPS[name])
        mask = reference_group.pattern(reference_group.index_maps(name, N))
        rng = generator(3)
        member = torch.eye(N, dtype=REAL) + torch.where(
            mask, 0.2 * torch.randn(N, N, generator=rng, dtype=REAL), 0
        )
        p = member.mT @ member
        state = form.init((N,), torch.ones(1), torch.empty(0, dtype=REAL))
        steps = 1500 if name == "all" else 700  # measured 4e-5 and 5e-6
        for t in range(steps):
            v = torch.randn(1, N, generator=rng, dtype=REAL)
            h = torch.linalg.solve(p, v[0])[None]
            form.update(state, Probe(h=h, v=v), {}, 0.9 * (1 - t / steps))
        q = form.to_dense(state)[0]
        assert float((q.mT @ q - p).norm() / p.norm()) < 1e-4  # noise-free pairs: exact in the end


@pytest.mark.parametrize(("name", "n"), [("flip", 8), ("flip", 7), ("butterfly", 8)])
def test_two_permutations_follow_the_closed_formulas(name: str, n: int) -> None:
    form = Permutation(group=GROUPS[name], normaliser=MaxEntry())
    state, probe = random_state(form, (n,), REAL), pair((n,), REAL, generator(5))
    other = reference_group.index_maps(name, n)[1]
    before = form.to_dense(state)
    form.update(state, probe, {}, 0.3)
    after = form.to_dense(state)
    assert probe.v is not None
    for row in range(B):
        old, new = (
            (x[row].diagonal(), x[row].gather(1, other[:, None])[:, 0]) for x in (before, after)
        )
        # In the middle of an odd flip the two coefficients are one number: beta is tied to 0.
        alone = other == torch.arange(n)
        beta = torch.where(alone, 0, old[1])
        alpha, beta = reference_group.involution_update(
            old[0], beta, probe.h[row], probe.v[row], other, 0.3
        )
        torch.testing.assert_close(new[0], alpha, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(torch.where(alone, 0, new[1]), beta, rtol=1e-10, atol=1e-12)
    # The last row's product, by the formula of apply.
    alpha, beta, g = new[0], torch.where(alone, 0, new[1]), probe.h[-1]
    expected = (alpha**2 + (beta**2)[other]) * g + (alpha * beta + (alpha * beta)[other]) * g[other]
    torch.testing.assert_close(form.apply(state, probe.h)[-1], expected)


def test_p14_the_trivial_group_is_the_diagonal_with_one_step() -> None:
    normaliser = LipschitzEMA(beta=0.99)
    one = Permutation(group=Cyclic(size=1), normaliser=normaliser)
    other = Diagonal(elementwise=False, normaliser=normaliser)
    states = [f.init((4, 3), torch.ones(B), torch.empty(0, dtype=REAL)) for f in (one, other)]
    rng = generator(6)
    for _ in range(50):
        probe = pair((4, 3), REAL, rng)
        for form, state in zip((one, other), states, strict=True):
            form.update(state, probe, {}, 0.4)
    first, second = (f.to_dense(s) for f, s in zip((one, other), states, strict=True))
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("group", [X_MATRIX, BUTTERFLY])
def test_p14_two_entries_are_the_general_linear_group(group: PermutationGroup) -> None:
    form, rng = Permutation(group=group, normaliser=SpectralNorm()), generator(6)
    state = form.init((2,), torch.ones(B), torch.empty(0, dtype=REAL))
    q = torch.eye(2, dtype=REAL).repeat(B, 1, 1)
    full = torch.ones(2, 2, dtype=torch.bool)
    for _ in range(50):
        probe = pair((2,), REAL, rng)
        form.update(state, probe, {}, 0.1)
        assert probe.v is not None
        for row in range(B):
            e = reference_group.group_gradient(q[row], probe.h[row], probe.v[row], full)
            q[row] -= 0.1 / torch.linalg.matrix_norm(e, 2) * e @ q[row]
    torch.testing.assert_close(form.to_dense(state), q, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("normaliser", "rate"), [(MaxEntry(), 0.4), (SpectralNorm(), 0.9)])
def test_p9_heavy_tailed_pairs_keep_x_matrices_invertible(
    normaliser: Normaliser, rate: float
) -> None:
    form, rng = Permutation(normaliser=normaliser), generator(4)
    state = form.init((8,), torch.ones(20), torch.empty(0, dtype=REAL))
    for _ in range(1000):
        z = torch.randn(2, 20, 8, generator=rng, dtype=REAL)
        # Student t with two degrees of freedom: the chi-square is twice an exponential.
        chi = -2 * torch.rand(2, 20, 8, generator=rng, dtype=REAL).clamp(min=1e-12).log()
        power = 10 ** (4 * torch.rand(2, 20, 1, generator=rng, dtype=REAL) - 2)
        h, v = power * z / (chi / 2).sqrt()
        form.update(state, Probe(h=h, v=v), {}, rate)
    dense = form.to_dense(state)
    assert bool(dense.isfinite().all())
    assert bool((torch.linalg.slogdet(dense).sign > 0).all())


def test_the_middle_of_an_odd_flip_stores_one_number() -> None:
    form = Permutation()
    state = random_state(form, (7,), REAL)
    assert bool((state["q"][:, 3] != 0).sum(dim=1).eq(1).all())


def test_index_maps_are_the_group_that_they_spell_out() -> None:
    maps = tuple(tuple(one) for one in reference_group.index_maps("klein", 8).tolist())
    forms = Permutation(group=IndexMaps(maps=maps)), Permutation(group=KLEIN)
    states = [random_state(form, (8,), REAL) for form in forms]
    first, second = (f.to_dense(s) for f, s in zip(forms, states, strict=True))
    torch.testing.assert_close(first, second)


def test_orbits_of_different_length_are_filled_up() -> None:
    # Klein's maps on 6 entries fix some of them (algorithms 4.12): orbits of four and of two.
    maps = tuple(tuple(one) for one in reference_group.index_maps("klein", 6).tolist())
    form = Permutation(group=IndexMaps(maps=maps), normaliser=SpectralNorm())
    assert form.group.orbits(6).tolist() == [[0, 2, 3, 5], [1, 4, 6, 6]]
    state, probe = random_state(form, (6,), REAL), pair((6,), REAL, generator(5))
    before = form.to_dense(state)
    form.update(state, probe, {}, 0.3)
    mask = reference_group.pattern(torch.tensor(maps))
    assert probe.v is not None
    for row in range(B):
        e = reference_group.group_gradient(before[row], probe.h[row], probe.v[row], mask)
        step = 0.3 / torch.linalg.matrix_norm(e, 2)
        torch.testing.assert_close(form.to_dense(state)[row], before[row] - step * e @ before[row])


def test_index_maps_are_made_into_a_tensor_once_per_device() -> None:
    group = IndexMaps(maps=((0, 1, 2), (2, 1, 0)))
    for device in (torch.device("cpu"), torch.device("meta")):
        assert group.orbits(3, device) is group.orbits(3, device)
        assert group.orbits(3, device).device == device
    for again in (copy.deepcopy(group), pickle.loads(pickle.dumps(group))):
        assert again == group
        assert hash(again) == hash(group)
        assert again.orbits(3, torch.device("meta")).shape == (2, 2)
        assert again.orbits(3).tolist() == [[0, 2], [1, 3]]


def test_an_update_with_index_maps_is_one_graph() -> None:
    form = Permutation(group=IndexMaps(maps=((0, 1, 2, 3), (1, 0, 2, 3))))
    states = [form.init((4,), torch.ones(B), torch.empty(0, dtype=REAL)) for _ in range(2)]
    torch.compiler.reset()
    compiled = torch.compile(form.update, fullgraph=True, backend="eager")
    for seed in range(3):
        probe = pair((4,), REAL, generator(seed))
        form.update(states[0], probe, {}, 0.3)
        compiled(states[1], probe, {}, 0.3)
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_a_large_group_of_index_maps_with_a_fixed_entry() -> None:
    n = 250
    maps = [(*((i + k) % n for i in range(n)), n) for k in range(n)]
    assert IndexMaps(maps=tuple(maps)).orbits(n + 1).tolist()[1] == [n] + [n + 1] * (n - 1)
    with pytest.raises(ValueError, match="composition"):
        IndexMaps(maps=tuple(maps[:-1]))


@pytest.mark.parametrize(
    ("group", "n"),
    [(BUTTERFLY, 7), (KLEIN, 6), (Cyclic(size=3), 8), (IndexMaps(maps=((0, 1),)), 3)],
)
def test_a_size_that_the_group_cannot_act_on_is_refused(group: PermutationGroup, n: int) -> None:
    with pytest.raises(ValueError, match=f"{n}.*; (use|give)"):
        Permutation(group=group).init((n,), torch.ones(1), torch.empty(0))


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ((), "no identity"),
        (((1, 0),), "no identity"),
        (((0, 1), (0, 1)), "twice"),
        (((0, 1), (0, 0)), "permutation of 0 to 1"),
        (((0, 1), (0,)), "permutation of 0 to 1"),
        (((0, 1, 2), (1, 2, 0)), "composition"),
    ],
)
def test_maps_that_are_no_group_are_refused(
    maps: tuple[tuple[int, ...], ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        IndexMaps(maps=maps)


def test_a_cycle_of_no_shifts_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Cyclic(size=0)


def test_a_sample_without_a_probe_is_refused() -> None:
    form = Permutation()
    state = form.init((4,), torch.ones(1), torch.empty(0))
    with pytest.raises(ValueError, match="without v"):
        form.update(state, Probe(h=torch.ones(1, 4)), {}, 0.1)


def test_describe() -> None:
    names = [Permutation(group=group).describe((4, 3)) for group in GROUPS.values()]
    assert names[1:4] == [
        "Permutation(flip of 12)",
        "Permutation(2 shifts of 12)",
        "Permutation(Klein of 12)",
    ]
    assert len(set(names)) == len(names)
