import copy
import io

import pytest
import torch
from torch import Tensor, nn

from psgd_optim import PSGD, InputError, Newton
from psgd_optim.curvature import Given
from psgd_optim.tools.together import Together


def model_and_parts(seed: int = 0) -> tuple[nn.Sequential, dict[str, torch.optim.Optimizer]]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    parts: dict[str, torch.optim.Optimizer] = {
        "matrix": PSGD([p for p in model.parameters() if p.ndim == 2], lr=1e-2),
        "vector": torch.optim.AdamW([p for p in model.parameters() if p.ndim == 1], lr=1e-2),
    }
    return model, parts


X = torch.linspace(-1, 1, 32).view(8, 4)


def loss_of(model: nn.Module) -> Tensor:
    return (model(X) - X[:, :3].square()).square().mean()


def steps(model: nn.Module, optimizers: list[torch.optim.Optimizer], count: int) -> None:
    for _ in range(count):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(model).backward()
        for optimizer in optimizers:
            optimizer.step()


def test_a_step_is_the_step_of_each() -> None:
    first, parts = model_and_parts()
    steps(first, [Together(parts)], 4)
    second, others = model_and_parts()
    steps(second, list(others.values()), 4)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)


def test_schedulers_reach_every_part_also_after_loading() -> None:
    model, parts = model_and_parts()
    both = Together(parts)
    both.load_state_dict(both.state_dict())
    scheduler = torch.optim.lr_scheduler.LambdaLR(both, lambda step: 0.5**step)
    steps(model, [both], 1)
    scheduler.step()
    assert [part.param_groups[0]["lr"] for part in parts.values()] == [5e-3, 5e-3]


def test_the_closure_is_evaluated_once() -> None:
    model, parts = model_and_parts()
    both, calls = Together(parts), []

    def closure() -> Tensor:
        both.zero_grad()
        loss = loss_of(model)
        loss.backward()
        calls.append(loss.detach())
        return loss

    with torch.no_grad():
        assert both.step(closure) == calls[0]
    assert len(calls) == 1
    assert not both.needs_closure


def test_saved_and_loaded_it_goes_on_bit_for_bit() -> None:
    model, parts = model_and_parts()
    both = Together(parts)
    steps(model, [both], 3)
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": both.state_dict()}, buffer)
    steps(model, [both], 3)

    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    other, other_parts = model_and_parts(seed=1)
    resumed = Together(other_parts)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    steps(other, [resumed], 3)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_copy_is_an_optimizer_of_its_own() -> None:
    model, parts = model_and_parts()
    both = Together(parts)
    steps(model, [both], 2)
    twin_model, twin = copy.deepcopy((model, both))
    before = [p.clone() for p in model.parameters()]
    steps(twin_model, [twin], 2)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    steps(model, [both], 2)
    for p, q in zip(model.parameters(), twin_model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_gradient_scaler_skips_all_parts_or_none() -> None:
    model, parts = model_and_parts()
    both = Together(parts)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = [p.detach().clone() for p in model.parameters()]
    for bad in (True, False):
        both.zero_grad()
        scaler.scale(loss_of(model)).backward()
        if bad:
            model[0].bias.grad[0] = torch.inf
        scaler.unscale_(both)
        scaler.step(both)
        scaler.update()
        moved = [not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
        assert moved == [not bad] * 4


def test_figures_of_the_parts_that_have_some_are_passed_on() -> None:
    model, parts = model_and_parts()
    both = Together(parts)
    steps(model, [both], 1)
    assert both.metrics().keys() == {"matrix/update_rms", "matrix/skipped"}
    assert "AdamW, 9 numbers" in both.summary()
    assert "Kron" in both.summary()


def test_it_fits_when_a_part_does() -> None:
    model, parts = model_and_parts()
    together = Together(parts)
    fits = [any(getattr(each, "fits_next", False) for each in parts.values()), together.fits_next]
    assert fits == [True, True]
    plain = Together({"all": torch.optim.SGD(model.parameters(), lr=0.1)})
    assert not plain.fits_next


def test_what_cannot_go_together_is_refused() -> None:
    model, parts = model_and_parts()
    newton = PSGD(model.parameters(), criterion=Newton())
    with pytest.raises(InputError, match="optimizer of all differentiates the loss itself"):
        Together({"all": newton})
    with pytest.raises(ValueError, match="same parameter"):
        Together({**parts, "again": torch.optim.SGD(model.parameters(), lr=1.0)})
    both = Together(parts)
    with pytest.raises(TypeError, match="no groups of its own"):
        both.add_param_group({"params": [torch.zeros(1)]})
    with pytest.raises(ValueError, match="saved state is of vector, matrix"):
        both.load_state_dict(dict(reversed(both.state_dict().items())))


def test_one_that_takes_pairs_is_refused() -> None:
    parameters = nn.Linear(4, 3).parameters()
    with pytest.raises(InputError, match="of head is fitted to products of a curvature"):
        Together({"head": PSGD(parameters, criterion=Newton(source=Given()))})
