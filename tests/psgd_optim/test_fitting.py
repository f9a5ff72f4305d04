import itertools
import math

import pytest
import torch

from psgd_optim import PSGD, Diagonal
from psgd_optim.fitting import Fitting, initial_scale
from psgd_optim.noise import noise_generator
from psgd_optim.schedules import Adaptive, Every

CPU = torch.device("cpu")


def peaks(grad: torch.Tensor) -> torch.Tensor:
    return grad.abs().flatten(1).amax(dim=1)


def test_the_initial_scale_makes_the_first_preconditioned_gradient_unit_sized() -> None:
    grad = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grad *= torch.tensor([1e-7, 1.0, 1e6], dtype=torch.float64)[:, None, None]
    scale = initial_scale(grad, peaks(grad), damping=0.0)
    whitened = scale.square()[:, None, None] * grad
    fourth_root = whitened.pow(4).flatten(1).mean(dim=1) ** 0.25
    torch.testing.assert_close(fourth_root, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("size", [1e-38, 1e-20, 1e20, 3e38])
def test_the_initial_scale_survives_the_whole_range_of_float32(size: float) -> None:
    grad = torch.full((1, 8), size)
    scale = initial_scale(grad, peaks(grad), damping=0.0)
    torch.testing.assert_close(
        scale.double() ** 2 * size, torch.ones(1).double(), rtol=1e-4, atol=0
    )


def test_damping_bounds_the_initial_scale() -> None:
    grad = torch.full((1, 8), 1e-30)
    scale = initial_scale(grad, peaks(grad), damping=1e-9)
    torch.testing.assert_close(scale, torch.tensor([1e9**0.5]))


def test_a_zero_gradient_gets_scale_one() -> None:
    torch.testing.assert_close(
        initial_scale(torch.zeros(2, 3), torch.zeros(2), 1e-9), torch.ones(2)
    )


def test_the_gate_opens_with_its_probability_and_repeats_itself() -> None:
    fitting = Fitting(gate=0.2)
    due = [fitting.rate(3, step) > 0 for step in range(20_000)]
    assert sum(due) / len(due) == pytest.approx(0.2, abs=0.01)
    assert due[:100] == [fitting.rate(3, step) > 0 for step in range(100)]
    assert due != [fitting.rate(4, step) > 0 for step in range(20_000)]
    # Neighbouring coins are independent: both open with probability 0.04.
    both = sum(a and b for a, b in itertools.pairwise(due)) / len(due)
    assert both == pytest.approx(0.04, abs=0.006)


@pytest.mark.parametrize(("gate", "share"), [(0.0, 0.0), (1.0, 1.0), (Every(4), 0.25)])
def test_certain_gates_do_not_depend_on_the_seed(gate: float, share: float) -> None:
    fitting = Fitting(gate=gate)
    for seed in range(3):
        assert sum(fitting.rate(seed, step) > 0 for step in range(400)) == 400 * share


def test_noise_depends_on_seed_step_and_block_alone() -> None:
    def draw(*key: int) -> float:
        return float(torch.rand((), generator=noise_generator(CPU, *key)))

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(1, 2, 3), draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4)}) == 4


def test_the_rate_follows_its_schedule_where_the_gate_is_open() -> None:
    fitting = Fitting(precond_lr=lambda step: 0.5 / (1 + step), gate=Every(2))
    assert [fitting.rate(0, step) for step in range(5)] == [0.5, 0, 0.5 / 3, 0, 0.1]


def test_a_schedule_that_leaves_its_range_is_refused() -> None:
    fitting = Fitting(precond_lr=lambda step: 0.5 * step, gate=1.0)
    with pytest.raises(ValueError, match=r"precond_lr gave 1\.0 at step 2"):
        fitting.rate(0, 2)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5])
def test_seeds_that_cannot_be_saved_are_refused(seed: float) -> None:
    with pytest.raises(ValueError, match="seed"):
        Fitting(seed=seed)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("precond_lr", 1.0),
        ("precond_lr", -0.1),
        ("gate", 1.1),
        ("init_scale", 0.0),
        ("max_memory", 0),
        ("max_memory", math.nan),
    ],
)
def test_numbers_outside_their_range_are_refused(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{setting} = {value}"):
        Fitting(**{setting: value})


def test_an_adaptive_rate_is_its_largest_one_where_the_gate_is_open() -> None:
    fitting = Fitting(precond_lr=Adaptive(0.1, 0.5), gate=Every(2))
    assert [fitting.rate(0, step) for step in range(4)] == [0.5, 0, 0.5, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_initial_scale_equals_its_formula(dtype: torch.dtype) -> None:
    grad = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
    expected = (grad.abs().pow(4).flatten(1).mean(dim=1) + 0.3**4) ** (-1 / 8)
    torch.testing.assert_close(initial_scale(grad, peaks(grad), 0.3), expected)


def test_spread_fits_have_the_same_chance_and_fall_on_different_steps() -> None:
    fitting, blocks, steps = Fitting(gate=0.1, spread=True), 10, 4000
    opened = torch.tensor([
        [fitting.rate(3, step, block) > 0 for block in range(blocks)] for step in range(steps)
    ]).double()
    torch.testing.assert_close(
        opened.mean(dim=0), torch.full((blocks,), 0.1).double(), rtol=0, atol=0.02
    )
    # One of ten in nearly every step, where independent coins would leave a third of them empty.
    assert float((opened.sum(dim=1) - 1).abs().max()) <= 2
    assert float((opened.sum(dim=1) == 1).double().mean()) > 0.6
    together = Fitting(gate=0.1)
    assert all(
        len({together.rate(3, step, block) for block in range(blocks)}) == 1 for step in range(99)
    )


def test_uses_follow_the_gate_of_the_past_and_are_the_same_for_a_stretch() -> None:
    assert Fitting(gate=1.0).uses(0) == 2  # the sample of a fit, and the step
    assert Fitting(gate=0.03).uses(1000) == 32
    assert Fitting(gate=0.0).uses(5) == 64
    fitting = Fitting(gate=lambda step: 1.0 if step < 128 else 0.1)
    found = [fitting.uses(step) for step in range(320)]
    assert found == [2.0] * 192 + [8.0] * 128
    seen: list[int] = []
    Fitting(gate=lambda step: float(seen.append(step) or 1)).uses(130)
    assert seen and max(seen) < 130 and min(seen) >= 0  # a schedule may end with the run


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({}, True),
        ({"update_first": False}, False),
        ({"overlap": True}, False),
        ({"overlap": True, "update_first": True}, False),
    ],
)
def test_a_fit_that_overlaps_cannot_come_first(settings: dict[str, bool], first: bool) -> None:
    assert Fitting(**settings).fits_first is first


def test_a_step_fits_if_any_block_does() -> None:
    params = [torch.ones(n, requires_grad=True) for n in (2, 3, 4, 5)]
    optimizer = PSGD(params, form=Diagonal(), fitting=Fitting(gate=0.25, spread=True))
    told, done = [], []
    for step in range(40):
        for p in params:
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
        before = [optimizer.state[p]["q"].clone() for p in params] if step else []
        told.append(optimizer.fits_next)
        optimizer.step()
        pairs = zip(before, params, strict=False)
        done.append(any(not torch.equal(q, optimizer.state[p]["q"]) for q, p in pairs))
    assert told[1:] == done[1:]
    assert {True, False} == set(told[1:])
