"""What a person does to an optimizer that nobody planned for."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from psgd_optim import (
    PSGD,
    ClipNorm,
    Dense,
    Diagonal,
    DirectSum,
    Fitting,
    GradientWhitening,
    Joint,
    Kron,
    LowRank,
    Newton,
    Permutation,
    SparseLU,
    Split,
    TouchedRows,
)
from psgd_optim.axis_plan import AxisPlan
from psgd_optim.decay import Cautious, Hyperball
from psgd_optim.factors.matrix import TRIANGULAR
from psgd_optim.forms.low_rank import Order
from psgd_optim.geometry import EQ, QUAD4P
from psgd_optim.permutation_groups import BUTTERFLY
from psgd_optim.scope import PerTensor
from psgd_optim.step_size import LipschitzEMA, MaxEntry
from psgd_optim.types import Probe


def parameters(count: int = 3) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(4, 4, generator=rng).requires_grad_() for _ in range(count)]


def run(optimizer: PSGD, params: list[Tensor], steps: range) -> None:
    for step in steps:
        rng = torch.Generator().manual_seed(step)
        for p in params:
            grad = torch.randn(p.shape, generator=rng)
            p.grad = grad if p.requires_grad else None
        optimizer.step()


# --- gradients that are not there ----------------------------------------------------------------


def test_a_step_before_any_gradient_does_nothing() -> None:
    params = parameters()
    before = [p.detach().clone() for p in params]
    optimizer = PSGD(params[:2])
    optimizer.step()
    run(optimizer, params[:2], range(2))
    optimizer.add_param_group({"params": params[2:]})
    run(optimizer, params[:2], range(2, 4))
    assert torch.equal(params[2].detach(), before[2])
    run(optimizer, params, range(4, 6))
    assert not torch.equal(params[2].detach(), before[2])


def test_a_newton_closure_in_a_whitening_optimizer_is_noticed() -> None:
    params = parameters()
    with pytest.raises(TypeError, match="calls backward"):
        PSGD(params).step(lambda: params[0].sum())


def test_an_empty_parameter_is_not_arranged_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    params = [*parameters(), torch.empty(0, requires_grad=True)]
    optimizer = PSGD(params)
    run(optimizer, params, range(1))
    calls = []
    monkeypatch.setattr(PerTensor, "arrange", lambda *_: calls.append(1))
    run(optimizer, params, range(1, 4))
    assert not calls


def test_groups_are_planned_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    arrange, seen = PerTensor.arrange, []

    def counting(self: PerTensor, params: Any, wanted: Any) -> Any:
        seen.append(len(params))
        return arrange(self, params, wanted)

    monkeypatch.setattr(PerTensor, "arrange", counting)
    PSGD([{"params": [p]} for p in parameters(20)])
    assert len(seen) == 20


# --- freezing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [Kron(), Kron(geometry=EQ), Joint(LowRank(rank=2))])
def test_a_run_that_unfreezes_a_layer_resumes_bit_for_bit(form: Any) -> None:
    whole = parameters()
    whole[0].requires_grad_(False)
    optimizer = PSGD(whole, form=form)
    run(optimizer, whole, range(3))
    whole[0].requires_grad_(True)
    run(optimizer, whole, range(3, 5))
    resumed = [p.detach().clone().requires_grad_() for p in whole]
    other = PSGD(resumed, form=form)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    twin, twin_params = copy.deepcopy((optimizer, whole))
    for each, params in ((optimizer, whole), (other, resumed), (twin, twin_params)):
        run(each, params, range(5, 8))
    for a, b, c in zip(whole, resumed, twin_params, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_a_joint_vector_holds_frozen_members_and_leaves_them_alone() -> None:
    params = parameters()
    params[1].requires_grad_(False)
    before = params[1].clone()
    optimizer = PSGD(params, form=Joint(Diagonal()))
    run(optimizer, params, range(3))
    assert torch.equal(params[1], before)
    params[1].requires_grad_(True)
    params[2].requires_grad_(False)
    state = copy.deepcopy(optimizer.state_dict())
    run(optimizer, params, range(3, 5))
    assert len(optimizer._store.groups[0]) == 1
    PSGD(params, form=Joint(Diagonal())).load_state_dict(state)


# --- state of another kind -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        (Kron(), Kron(geometry=QUAD4P)),
        (Dense(geometry=EQ), Dense(geometry=EQ, factor=TRIANGULAR)),
        (Permutation(), Permutation(group=BUTTERFLY)),
        (LowRank(rank=2), LowRank(rank=2, order=Order.SCALE_LAST)),
        (Kron(geometry=EQ), Kron(geometry=EQ, plan=AxisPlan((TRIANGULAR, TRIANGULAR)))),
    ],
)
def test_state_of_equal_shapes_and_another_meaning_is_refused(saved: Any, loaded: Any) -> None:
    params = parameters()
    theirs = PSGD(params, form=saved)
    run(theirs, params, range(2))
    with pytest.raises(ValueError, match="is of the form"):
        PSGD(params, form=loaded).load_state_dict(theirs.state_dict())


def test_another_normaliser_may_take_over_the_state() -> None:
    params = parameters()
    theirs = PSGD(params)
    run(theirs, params, range(2))
    optimizer = PSGD(params, form=Kron(normaliser=LipschitzEMA(beta=0.5)))
    optimizer.load_state_dict(theirs.state_dict())


def test_hooks_see_a_state_dict_before_it_is_read() -> None:
    params = parameters()
    theirs = PSGD(params)
    run(theirs, params, range(2))
    optimizer = PSGD(params)
    optimizer.register_load_state_dict_pre_hook(lambda _, wrapped: wrapped["optimizer"])
    optimizer.load_state_dict({"optimizer": theirs.state_dict()})
    assert float(optimizer.state[params[0]]["step"]) == 2


def test_what_the_state_cannot_follow_is_refused() -> None:
    model = nn.Linear(3, 2)
    optimizer = PSGD(model.parameters(), criterion=GradientWhitening(), momentum=0.0)
    run(optimizer, list(model.parameters()), range(1))
    optimizer.param_groups[0]["momentum"] = 0.9
    with pytest.raises(ValueError, match=r"momentum became 0\.9"):
        optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.0
    model.double()
    model(torch.ones(1, 3).double()).sum().backward()
    with pytest.raises(TypeError, match=r"was torch.float32 and is now torch.float64"):
        optimizer.step()


# --- broken preconditioners ----------------------------------------------------------------------


def test_rows_that_a_broken_preconditioner_stops_are_counted() -> None:
    params = parameters()
    optimizer = PSGD(params)
    run(optimizer, params, range(2))
    assert int(optimizer.metrics()["skipped"]) == 0
    optimizer.state[params[1]]["q0"].fill_(math.nan)
    before = [p.detach().clone() for p in params]
    run(optimizer, params, range(2, 3))
    assert int(optimizer.metrics()["skipped"]) == 1
    moved = [not torch.equal(p.detach(), b) for p, b in zip(params, before, strict=True)]
    assert moved == [True, False, True]


@pytest.mark.parametrize("form", [Kron(), Kron(geometry=QUAD4P), Dense(), Permutation(), LowRank()])
def test_no_sample_however_large_breaks_the_preconditioner(form: Any) -> None:
    for exponent in torch.arange(14, 24, 0.25).tolist():
        state = form.init((4, 4), torch.full((1,), 300.0), torch.empty(0))
        rng = torch.Generator().manual_seed(0)
        for size in (1e-5, 1e-5, 1e-5 * 10**exponent, 1e-5):
            h, v = torch.randn(2, 1, 4, 4, generator=rng)
            probe = Probe(h=size * h, v=v)
            form.update(state, probe, form.draw(state, rng), 0.5)
        assert all(bool(x.isfinite().all()) for x in state.values()), exponent


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"criterion": Newton},
        {"criterion": "newton"},
        {"clip": 1.0},
        {"clip": (1.0,)},
        {"clip": (ClipNorm,)},
        {"fitting": Fitting},
        {"fitting": None},
        {"weight_decay": Cautious},
        {"momentum": (0.9, 0.99)},
        {"form": Kron},
    ],
)
def test_parts_of_the_wrong_type_are_refused_at_once(settings: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"PSGD got (a )?\w+( = )?.*; give"):
        PSGD(parameters(), **settings)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Newton(source="exact"), "Newton got source = 'exact'; give"),
        (lambda: Kron(geometry="EQ"), "Kron got geometry = 'EQ'; give"),
        (lambda: Kron(plan="scan"), "Kron got plan = 'scan'; give"),
        (lambda: Kron(normaliser=None), "Kron got normaliser = None; give"),
        (lambda: Permutation(group="x"), "Permutation got group = 'x'; give"),
        (lambda: LowRank(order="x"), "LowRank got order = 'x'; give"),
        (lambda: Dense(factor="tri"), "Dense got a factor = 'tri'; give"),
        (lambda: DirectSum(("*.bias", Diagonal()), otherwise=Kron()), "got the rule '\\*.bias'"),
    ],
)
def test_parts_of_a_part_are_refused_at_once(build: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        build()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Kron(dtype=torch.int32), "real floating-point dtype"),
        (lambda: Diagonal(dtype=torch.complex64), "real floating-point dtype"),
        (lambda: Kron(dtype="bf16"), "real floating-point dtype"),
        (lambda: LowRank(rank=1.5), "whole number"),
        (lambda: SparseLU(rank=1.5), "whole number"),
        (lambda: Split(Kron(), 2.5), "whole number"),
        (lambda: Kron(normaliser=MaxEntry()), "MaxEntry with a dense factor"),
        (lambda: TouchedRows(normaliser=MaxEntry()), "MaxEntry with a dense factor"),
        (lambda: PSGD(parameters(), lr=math.inf), "lr = inf"),
        (lambda: PSGD(parameters(), lr=torch.ones(2)), "lr of shape"),
    ],
)
def test_values_out_of_range_are_refused_at_once(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_the_step_size_and_clip_follow_the_criterion() -> None:
    assert PSGD(parameters()).param_groups[0]["lr"] == 1e-3
    newton = PSGD(parameters(), criterion=Newton())
    assert newton.param_groups[0]["lr"] == 0.1
    assert newton.clip == Newton.default_clip


@pytest.mark.parametrize("decay", [0.1, Cautious(0.1), Hyperball()])
def test_an_lr_of_one_element_is_a_number(decay: Any) -> None:
    found = []
    for lr in (torch.tensor(0.1), torch.tensor([0.1])):
        p = torch.linspace(-1, 2, 6).view(3, 2).requires_grad_()
        optimizer = PSGD([p], lr, weight_decay=decay)
        for _ in range(2):
            p.grad = torch.ones_like(p)
            optimizer.step()
        found.append(p.detach())
    assert torch.equal(*found)
