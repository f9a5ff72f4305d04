"""The step itself: against one element at a time, in plain Python numbers."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from psgd_optim import PSGD, Diagonal, Fitting, Kron
from psgd_optim.decay import Cautious, Decay, Decoupled, Hyperball, as_decay
from psgd_optim.scope import Joint, Split
from psgd_optim.views import Stacked

DTYPES = [torch.float64, torch.complex128]


def stack(dtype: torch.dtype, rows: int = 3) -> tuple[Stacked, Tensor]:
    rng = torch.Generator().manual_seed(0)
    params = [torch.randn(2, 4, generator=rng, dtype=dtype) for _ in range(rows)]
    return Stacked(params), torch.randn(rows, 2, 4, generator=rng, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1, dtype=torch.float64)])
@pytest.mark.parametrize("cautious", [False, True])
def test_decays_follow_their_formulas(dtype: torch.dtype, lr: Any, cautious: bool) -> None:
    view, updates = stack(dtype)
    expected = []
    for p, u in zip(torch.stack(view.params).flatten(), updates.flatten(), strict=True):
        x, y = complex(p), complex(u)
        decayed = not cautious or (x.conjugate() * y).real >= 0
        expected.append(x - 0.1 * y - (0.1 * 0.5 * x if decayed else 0))
    decay: Decay = Cautious(0.5) if cautious else Decoupled(0.5)
    decay.take_step(view, updates, lr, 0.5, {})
    found = torch.stack(view.params).flatten().to(torch.complex128)
    wanted = torch.tensor(expected, dtype=torch.complex128)
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("decay", [Decoupled(), Cautious(), Hyperball()])
def test_numbers_may_be_tensors(decay: Decay, dtype: torch.dtype) -> None:
    lr, rate = 0.01, 0.9
    found = []
    for as_tensors in (False, True):
        view, updates = stack(dtype)
        updates = updates if dtype.is_complex else updates.float()
        numbers = [torch.tensor(x, dtype=torch.float64) if as_tensors else x for x in (lr, rate)]
        memory = {"radius": torch.zeros(3)} if decay.memory else {}
        decay.take_step(view, updates, *numbers, memory)
        found.append(view.params)
    # The step is rounded once more with a tensor, after the product with the update.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found[1], found[0], rtol=eps, atol=1e-7 if eps < 1e-6 else 1e-5)


@pytest.mark.parametrize("as_tensors", [False, True])
def test_a_decay_is_not_rounded_to_half_precision(as_tensors: bool) -> None:
    before = torch.linspace(-8, 8, 64).bfloat16()
    p = before.clone()
    lr, rate = 0.1, 0.03
    if as_tensors:
        lr, rate = (torch.tensor(x, dtype=torch.float64) for x in (lr, rate))
    Decoupled().take_step(Stacked([p]), torch.zeros(1, 64), lr, rate, {})
    assert torch.equal(p, (before.double() * (1 - 0.1 * 0.03)).bfloat16())


def test_cautious_decay_spares_what_the_step_moves_away_from_zero() -> None:
    p = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0])
    Cautious(1.0).take_step(Stacked([p]), torch.tensor([[1.0, -1, -1, 1, 0]]), 0.5, 1.0, {})
    assert p.tolist() == [0.0, 1.5, 0.0, -1.5, 0.5]


@pytest.mark.parametrize("decay", [Decoupled(), Cautious()])
def test_without_a_rate_a_decay_is_the_plain_step(decay: Decay) -> None:
    view, updates = stack(torch.float64)
    expected = [p - 0.1 * u for p, u in zip(view.params, updates, strict=True)]
    decay.take_step(view, updates, 0.1, 0.0, {})
    for p, x in zip(view.params, expected, strict=True):
        torch.testing.assert_close(p, x, rtol=1e-15, atol=1e-15)


def test_the_rate_of_a_group_can_be_scheduled() -> None:
    p = torch.ones(3, requires_grad=True)
    optimizer = PSGD([p], 0.1, weight_decay=Cautious(0.5), fitting=Fitting(gate=0.0))
    p.grad = torch.ones(3)
    optimizer.param_groups[0]["weight_decay"] = 2.0
    optimizer.step()
    # The first whitened step is -lr; the decay takes lr * 2.0 of the parameter as well.
    torch.testing.assert_close(p.detach(), torch.full((3,), 1 - 0.1 - 0.2))


# --- hyperball -----------------------------------------------------------------------------------


def norms(params: list[Tensor]) -> Tensor:
    return torch.stack([p.detach().double().norm() for p in params])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64])
def test_a_hyperball_keeps_the_norm_and_takes_relative_steps(dtype: torch.dtype) -> None:
    real = not dtype.is_complex
    view, updates = stack(torch.float64 if real else torch.complex128)
    params = [(10.0**i * p).to(dtype) for i, p in enumerate(view.params)]
    start = torch.stack([p.to(torch.complex128).norm().real for p in params])
    memory = {"radius": torch.zeros(3)}
    state_dtype = torch.promote_types(dtype, torch.float32)
    for _ in range(20):
        old = [p.clone() for p in params]
        Hyperball().take_step(Stacked(params), updates.to(state_dtype).clone(), 0.1, 0.0, memory)
    found = torch.stack([p.to(torch.complex128).norm().real for p in params])
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)  # the radius is float32
    torch.testing.assert_close(found, start, rtol=3 * eps, atol=0)
    # The step's part along the sphere is at most lr times the radius, whatever that is.
    for p, q, r in zip(params, old, start, strict=True):
        assert float((p - q).abs().to(torch.float64).norm()) <= 0.1 * float(r) * (1 + 30 * eps)


def test_a_step_on_the_hyperball_follows_its_formula() -> None:
    view, updates = stack(torch.float64)
    expected = []
    for p, u in zip(view.params, updates, strict=True):
        moved = p - 0.3 * p.norm() * u / u.norm()
        expected.append(p.norm() * moved / moved.norm())
    Hyperball().take_step(view, updates, 0.3, 0.0, {"radius": torch.zeros(3, dtype=torch.float64)})
    for p, x in zip(view.params, expected, strict=True):
        torch.testing.assert_close(p, x, rtol=1e-14, atol=1e-15)


def test_rows_that_start_at_zero_take_plain_steps_for_good() -> None:
    params, memory = [torch.zeros(2), torch.ones(2)], {"radius": torch.zeros(2)}
    for _ in range(3):
        Hyperball().take_step(Stacked(params), torch.ones(2, 2), 0.5, 0.0, memory)
    assert params[0].tolist() == [-1.5, -1.5]
    assert float(memory["radius"][0]) == -1
    assert float(params[1].norm()) == pytest.approx(2**0.5)


def test_a_row_without_an_update_stays_bit_for_bit() -> None:
    params = [torch.tensor([0.1, 0.2, 0.3])]
    before = params[0].clone()
    memory = {"radius": torch.zeros(1)}
    for _ in range(3):
        Hyperball().take_step(Stacked(params), torch.zeros(1, 3), 0.5, 0.0, memory)
    assert torch.equal(params[0], before)


@pytest.mark.parametrize("form", [Kron(), Split(Kron(), 2), Joint(Diagonal())])
def test_norms_hold_through_the_optimizer_and_missing_gradients(form: Any) -> None:
    rng = torch.Generator().manual_seed(0)
    params = [torch.randn(4, 3, generator=rng, dtype=torch.float64) for _ in range(3)]
    params = [p.requires_grad_() for p in params]
    optimizer = PSGD(params, 0.05, form=form, weight_decay=Hyperball())
    start = norms(params)
    for step in range(5):
        for i, p in enumerate(params):
            missing = step == 1 + i and not isinstance(form, Joint)
            p.grad = None if missing else torch.randn(4, 3, generator=rng, dtype=torch.float64)
        optimizer.step()
        assert all(p.detach().isfinite().all() for p in params)
    if isinstance(form, Joint):
        torch.testing.assert_close(norms(params).norm(), start.norm(), rtol=1e-7, atol=0)
    else:
        torch.testing.assert_close(norms(params), start, rtol=1e-7, atol=0)


def test_the_radius_is_kept_when_a_row_is_left_out_and_when_it_is_resumed() -> None:
    params = [torch.ones(2, 2, requires_grad=True) for _ in range(2)]
    optimizer = PSGD(params, 0.1, weight_decay=Hyperball())
    for p in params:
        p.grad = torch.ones(2, 2)
    params[1].grad = None
    optimizer.step()
    assert float(optimizer.state[params[0]]["radius"]) == 2
    assert float(optimizer.state[params[1]]["radius"]) == 0
    other = PSGD(params, 0.1, weight_decay=Hyperball())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert float(other.state[params[0]]["radius"]) == 2


def test_rates_outside_their_range_are_refused() -> None:
    for kind in (Decoupled, Cautious):
        for rate in (-1.0, float("inf"), float("nan")):
            with pytest.raises(ValueError, match=f"{kind.__name__} got the rate"):
                kind(rate)
    with pytest.raises(ValueError, match=r"Hyperball got the rate 0\.1; it has none"):
        Hyperball(0.1)
    with pytest.raises(ValueError, match="weight_decay = -1"):
        as_decay(-1.0)
    assert as_decay(0.3) == Decoupled(0.3)
