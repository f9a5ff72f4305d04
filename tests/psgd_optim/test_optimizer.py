"""What holds for the optimizer whatever its form, and the front end's own rules."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from psgd_optim import (
    PSGD,
    ClipNorm,
    ClipRMS,
    Diagonal,
    Every,
    Fitting,
    GradientWhitening,
    Kron,
    MomentumWhitening,
    block_step,
)
from psgd_optim.blocks import Block
from psgd_optim.clipping import TrustRegion
from psgd_optim.criteria import Criterion, Fisher

SHAPES = [(6, 4), (6, 4), (4,), (6, 1, 4), ()]
FORMS = {
    "kron": Kron(),
    "kron-dense": Kron(max_skew=float("inf")),
    "diagonal": Diagonal(),
    "kron-bf16": Kron(dtype=torch.bfloat16),
}


def parameters(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=rng).to(dtype).requires_grad_() for s in SHAPES]


def set_gradients(params: list[Tensor], step: int, scale: float = 1.0) -> None:
    rng = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = (scale * torch.randn(p.shape, generator=rng)).to(p.dtype)


def run(optimizer: PSGD, params: list[Tensor], steps: range, scale: float = 1.0) -> None:
    for step in steps:
        set_gradients(params, step, scale)
        optimizer.step()


def equal(xs: list[Tensor], ys: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(xs, ys, strict=True))


# --- it optimizes --------------------------------------------------------------------------------


def distance_after(build: Callable[[list[Tensor]], torch.optim.Optimizer]) -> float:
    """Fit x = 0 from 1 on features of six scales; return what is left of row 2 of x.

    That row has 1 / 1000 of the largest curvature.
    """
    scales = torch.logspace(-1, 1.5, 6)
    x = torch.ones(6, 4, requires_grad=True)
    optimizer = build([x])
    lr = optimizer.param_groups[0]["lr"]
    rng = torch.Generator().manual_seed(0)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / 400)
        features = scales * torch.randn(16, 6, generator=rng)
        noise = 0.1 * torch.randn(16, 4, generator=rng)
        optimizer.zero_grad()
        ((features @ x - noise).square().mean()).backward()
        optimizer.step()
    return float(x.detach()[2].norm()) / 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("criterion", [GradientWhitening(), MomentumWhitening()])
def test_it_moves_along_flat_directions_as_fast_as_along_steep_ones(
    form: str, criterion: Any
) -> None:
    # The diagonal form forgets the large first gradients more slowly (its normaliser's beta).
    fitting = Fitting(gate=1.0, precond_lr=0.5 if form == "diagonal" else 0.1)
    settings: dict[str, Any] = {"form": FORMS[form], "criterion": criterion, "fitting": fitting}
    assert distance_after(lambda ps: PSGD(ps, 0.015, **settings)) < 0.4


def test_the_largest_stable_step_without_it_leaves_flat_directions_where_they_were() -> None:
    """The control of the test above."""
    assert distance_after(lambda ps: torch.optim.SGD(ps, 0.002)) > 0.6


def test_the_default_optimizer_solves_a_regression() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 8) * torch.logspace(-1, 1, 8)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    target = torch.sin(x.sum(dim=1, keepdim=True) / 10)
    optimizer = PSGD(model.parameters())
    losses = []
    for _ in range(400):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.05 * losses[0]


# --- scale, zeros, infinities --------------------------------------------------------------------


@pytest.mark.parametrize("form", ["kron", "kron-dense", "diagonal"])
@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_the_scale_of_the_loss_does_not_matter(form: str, scale: float) -> None:
    results = []
    for factor in (1.0, scale):
        params = parameters(torch.float64)
        criterion = MomentumWhitening(damping=0.0)
        run(PSGD(params, form=FORMS[form], criterion=criterion), params, range(10), factor)
        results.append([p.detach().clone() for p in params])
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_a_finite_but_huge_gradient_is_survived(form: str) -> None:
    params = parameters()
    optimizer = PSGD(params, form=FORMS[form], fitting=Fitting(gate=1.0))
    run(optimizer, params, range(5))
    run(optimizer, params, range(5, 6), scale=1e20)
    run(optimizer, params, range(6, 9))
    assert all(bool(p.isfinite().all()) for p in params)
    assert all(bool(x.isfinite().all()) for s in optimizer.state.values() for x in s.values())


@pytest.mark.parametrize("form", FORMS)
def test_the_scale_comes_from_the_first_gradient_that_is_not_zero(form: str) -> None:
    params = parameters()
    before = [p.detach().clone() for p in params]
    optimizer = PSGD(params, 1e-2, form=FORMS[form], fitting=Fitting(gate=0.0))
    run(optimizer, params, range(1), scale=0.0)
    run(optimizer, params, range(1, 2), scale=1e-6)
    for p, old in zip(params, before, strict=True):
        assert 0.4e-2 < float((p.detach() - old).square().mean().sqrt()) < 1.2e-2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", [0.0, float("inf"), float("nan")])
def test_a_zero_or_non_finite_first_gradient_is_survived(form: str, bad: float) -> None:
    params = parameters()
    before = [p.detach().clone() for p in params]
    optimizer = PSGD(params, form=FORMS[form])
    for p in params:
        p.grad = torch.full_like(p, bad)
    optimizer.step()
    assert equal(before, [p.detach() for p in params])
    assert int(optimizer.metrics()["skipped"]) == (0 if bad == 0 else len(params))
    run(optimizer, params, range(3))
    # From here on as if the bad step had not been, apart from the random stream.
    for p, old in zip(params, before, strict=True):
        rms = float((p.detach() - old).square().mean().sqrt())
        assert 1e-4 < rms < 4e-3  # lr 1e-3, three whitened steps


@pytest.mark.parametrize("form", FORMS)
def test_a_later_non_finite_gradient_moves_only_the_others(form: str) -> None:
    params = parameters()
    optimizer = PSGD(params, form=FORMS[form], fitting=Fitting(gate=1.0))
    run(optimizer, params, range(3))
    before = [p.detach().clone() for p in params]
    average = optimizer.state[params[0]]["momentum"].clone()
    set_gradients(params, 3)
    params[0].grad[0, 0] = float("nan")
    optimizer.step()
    assert torch.equal(params[0].detach(), before[0])
    assert torch.equal(optimizer.state[params[0]]["momentum"], average)
    assert not torch.equal(params[1].detach(), before[1])
    assert int(optimizer.metrics()["skipped"]) == 1
    run(optimizer, params, range(4, 7))
    assert all(bool(p.isfinite().all()) for p in params)


def test_a_first_step_has_the_size_of_the_learning_rate() -> None:
    params = parameters()
    before = [p.detach().clone() for p in params]
    optimizer = PSGD(params, 1e-2, fitting=Fitting(gate=0.0))
    run(optimizer, params, range(1), scale=1e-5)
    for p, old in zip(params, before, strict=True):
        rms = float((p.detach() - old).square().mean().sqrt())
        assert 0.5e-2 < rms < 1.1e-2
    assert 0.5 < float(optimizer.metrics()["update_rms"]) <= 1.1


# --- stacking ------------------------------------------------------------------------------------


def test_stacking_changes_nothing() -> None:
    together, apart = parameters(torch.float64), parameters(torch.float64)
    # The diagonal form draws no random numbers, so that stacks and singles see the same ones.
    settings: dict[str, Any] = {
        "form": Diagonal(),
        "criterion": MomentumWhitening(damping=0.0),
        "weight_decay": 0.1,
    }
    optimizer = PSGD(together, **settings)
    singles = [PSGD([p], **settings) for p in apart]
    for step in range(5):
        set_gradients(together, step)
        set_gradients(apart, step)
        optimizer.step()
        for single in singles:
            single.step()
    assert len(optimizer._store.groups[0]) == 3  # (6, 4) three times, (4,), ()
    for x, y in zip(together, apart, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("form", FORMS)
def test_parameters_without_a_gradient_stay_as_they_are(form: str) -> None:
    params = parameters()
    optimizer = PSGD(params, form=FORMS[form], weight_decay=0.1)
    run(optimizer, params, range(2))
    held = copy.deepcopy(optimizer.state[params[1]])
    before = [p.detach().clone() for p in params]
    set_gradients(params, 2)
    params[1].grad = None
    optimizer.step()
    assert torch.equal(params[1].detach(), before[1])
    assert all(torch.equal(x, optimizer.state[params[1]][name]) for name, x in held.items())
    assert not torch.equal(params[0].detach(), before[0])
    assert float(optimizer.state[params[0]]["step"]) == 3


def test_the_host_looks_at_values_only_until_all_have_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params = parameters()
    optimizer = PSGD(params)
    start, starts = block_step._start, []

    def counting(block: Block, *rest: Any) -> None:
        starts.append(len(block.view.params))
        start(block, *rest)

    monkeypatch.setattr(block_step, "_start", counting)
    for step in range(4):
        set_gradients(params, step)
        params[1].grad = None  # one of a stack of three, which never gets any
        if step == 2:
            params[0].grad = None
        optimizer.step()
    assert starts == [2, 1, 1]  # in the first step alone: two of the stack, and the others


def test_a_parameter_unfrozen_later_is_trained_and_saved() -> None:
    params = parameters()
    params[0].requires_grad_(False)
    optimizer = PSGD(params)
    for p in params[1:]:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert "q0" not in optimizer.state[params[0]]
    params[0].requires_grad_(True)
    before = params[0].detach().clone()
    run(optimizer, params, range(1, 3))
    assert not torch.equal(params[0].detach(), before)
    state = copy.deepcopy(optimizer.state_dict())
    params[0].requires_grad_(False)
    other = PSGD(params)
    other.load_state_dict(state)
    assert float(other.state[params[0]]["step"]) == 2


def test_an_empty_group_is_no_obstacle() -> None:
    params = parameters()
    optimizer = PSGD([{"params": []}, {"params": params}])
    run(optimizer, params, range(2))
    again = PSGD([{"params": []}, {"params": params}])
    again.load_state_dict(optimizer.state_dict())
    assert again._step == 2


def test_gradients_are_left_unchanged() -> None:
    params = parameters()
    optimizer = PSGD(params)
    set_gradients(params, 0)
    before = [p.grad.clone() for p in params]
    optimizer.step()
    assert equal(before, [p.grad for p in params])


def test_state_is_views_of_stacks_and_no_step_replaces_it() -> None:
    params = parameters()
    optimizer = PSGD(params, fitting=Fitting(gate=1.0))
    run(optimizer, params, range(1))
    first = {name: x.data_ptr() for name, x in optimizer.state[params[1]].items()}
    run(optimizer, params, range(1, 3))
    assert first == {name: x.data_ptr() for name, x in optimizer.state[params[1]].items()}
    assert (
        optimizer.state[params[0]]["q0"].untyped_storage().data_ptr()
        == optimizer.state[params[1]]["q0"].untyped_storage().data_ptr()
    )


# --- saving and loading --------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("stop", [0, 1, 4])
def test_a_resumed_run_continues_bit_for_bit(form: str, dtype: torch.dtype, stop: int) -> None:
    """P33."""
    fitting = Fitting(gate=0.5, seed=5)
    whole = parameters(dtype)
    run(PSGD(whole, form=FORMS[form], fitting=fitting), whole, range(8))
    params = parameters(dtype)
    optimizer = PSGD(params, form=FORMS[form], fitting=fitting)
    run(optimizer, params, range(stop))
    file = io.BytesIO()
    torch.save((optimizer.state_dict(), [p.detach() for p in params]), file)
    file.seek(0)
    state, values = torch.load(file, weights_only=True)
    resumed = [v.clone().requires_grad_() for v in values]
    # Another seed at construction must not matter: the random stream is part of the state.
    other = Fitting(gate=0.5, seed=5 if stop == 0 else 99)
    optimizer = PSGD(resumed, form=FORMS[form], fitting=other)
    optimizer.load_state_dict(state)
    run(optimizer, resumed, range(stop, 8))
    assert equal([p.detach() for p in whole], [p.detach() for p in resumed])


def test_state_that_others_replaced_is_shown_again() -> None:
    params = parameters()
    optimizer = PSGD(params)
    run(optimizer, params, range(2))
    optimizer.state[params[1]] = {name: x.clone() for name, x in optimizer.state[params[1]].items()}
    run(optimizer, params, range(2, 4))
    saved = optimizer.state_dict()["state"]
    assert [float(s["step"]) for s in saved.values()] == [4.0] * len(params)


def test_a_shallow_copy_leaves_the_original_alone() -> None:
    params = parameters()
    optimizer = PSGD(params)
    run(optimizer, params, range(2))
    twin = copy.copy(optimizer)
    run(optimizer, params, range(2, 3))
    assert float(optimizer.state[params[0]]["step"]) == 3
    assert float(twin.state[params[0]]["step"]) == 2


def test_the_state_of_a_fresh_optimizer_starts_again() -> None:
    params = parameters()
    optimizer = PSGD(params)
    fresh = copy.deepcopy(optimizer.state_dict())
    run(optimizer, params, range(3))
    optimizer.load_state_dict(fresh)
    assert optimizer._step == 0
    assert not optimizer.metrics()


def test_state_without_a_clock_is_refused_before_anything_changes() -> None:
    params = parameters()
    optimizer = PSGD(params)
    run(optimizer, params, range(2))
    state = copy.deepcopy(optimizer.state_dict())
    del state["state"][0]["clock"]
    with pytest.raises(ValueError, match="no clock entry"):
        optimizer.load_state_dict(state)
    run(optimizer, params, range(2, 3))
    assert float(optimizer.state[params[0]]["step"]) == 3


def test_loaded_state_keeps_its_dtypes_and_is_stacked() -> None:
    params = parameters(torch.bfloat16)
    optimizer = PSGD(params, form=Kron(dtype=torch.bfloat16))
    run(optimizer, params, range(2))
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    state = optimizer.state[params[0]]
    assert state["q0"].dtype == torch.bfloat16
    assert state["momentum"].dtype == state["l0"].dtype == torch.float32
    assert (
        state["q0"].untyped_storage().data_ptr()
        == optimizer._store.groups[0][0].state["q0"].untyped_storage().data_ptr()
    )


@pytest.mark.parametrize(
    "other",
    [
        {"form": Diagonal()},
        {"form": Kron(dtype=torch.bfloat16)},
        {"criterion": GradientWhitening(), "momentum": 0.0},
    ],
)
def test_state_of_another_optimizer_is_refused_and_nothing_changes(other: dict[str, Any]) -> None:
    params = parameters()
    theirs = PSGD(params, **other)
    run(theirs, params, range(2))
    optimizer = PSGD(params)
    run(optimizer, params, range(2))
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"build it with the form|momentum = 0"):
        optimizer.load_state_dict(theirs.state_dict())
    after = optimizer.state_dict()
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)
    assert after["param_groups"] == before["param_groups"]
    run(optimizer, params, range(2, 4))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_continue_like_the_original(duplicate: Callable[[Any], Any]) -> None:
    params = parameters()
    optimizer = PSGD(params)
    run(optimizer, params, range(3))
    twin, twin_params = duplicate((optimizer, params))
    run(optimizer, params, range(3, 6))
    run(twin, twin_params, range(3, 6))
    assert equal([p.detach() for p in params], [p.detach() for p in twin_params])


def test_the_state_dict_holds_plain_values_only() -> None:
    params = parameters()
    optimizer = PSGD(params)
    run(optimizer, params, range(1))
    state = optimizer.state_dict()
    assert all(isinstance(x, Tensor) for s in state["state"].values() for x in s.values())
    for group in state["param_groups"]:
        assert all(isinstance(x, float | int | str | list) for x in group.values())


# --- living with torch ---------------------------------------------------------------------------


def test_a_learning_rate_scheduler_scales_the_step() -> None:
    params = parameters()
    optimizer = PSGD(params, 1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    run(optimizer, params, range(1))
    scheduler.step()
    before = [p.detach().clone() for p in params]
    run(optimizer, params, range(1, 2))
    assert equal(before, [p.detach() for p in params])


def test_a_tensor_learning_rate_equals_a_number() -> None:
    first, second = parameters(), parameters()
    run(PSGD(first, 0.01, weight_decay=0.1), first, range(3))
    run(PSGD(second, torch.tensor(0.01), weight_decay=0.1), second, range(3))
    for x, y in zip(first, second, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-8)


def test_a_closure_is_called_with_gradients_enabled() -> None:
    params = parameters()
    optimizer = PSGD(params)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.stack([p.square().sum() for p in params]).sum()
        loss.backward()
        return loss

    first = optimizer.step(closure).detach()
    assert float(optimizer.step(closure).detach()) < float(first)


def test_groups_have_their_own_numbers_and_forms() -> None:
    """P33."""
    params = parameters()
    optimizer = PSGD([{"params": params[:1], "lr": 0.0}, {"params": params[1:4]}], 1e-2)
    optimizer.add_param_group({"params": params[4:], "form": Diagonal()})
    before = [p.detach().clone() for p in params]
    run(optimizer, params, range(2))
    assert torch.equal(params[0].detach(), before[0])
    assert not torch.equal(params[1].detach(), before[1])
    assert "q0" in optimizer.state[params[1]]
    assert "q" in optimizer.state[params[4]]
    assert "form" not in optimizer.param_groups[2]


def test_a_group_added_after_a_step_joins_in() -> None:
    params = parameters()
    optimizer = PSGD(params[:2])
    run(optimizer, params[:2], range(2))
    optimizer.add_param_group({"params": params[2:]})
    before = params[4].detach().clone()
    run(optimizer, params, range(2, 4))
    assert not torch.equal(params[4].detach(), before)
    assert float(optimizer.state[params[0]]["step"]) == 4
    assert float(optimizer.state[params[4]]["step"]) == 2


def test_the_global_random_stream_is_untouched_and_does_not_matter() -> None:
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        params = parameters()
        run(PSGD(params), params, range(3))
        assert torch.equal(before, torch.get_rng_state())
        results.append([p.detach() for p in params])
    assert equal(*results)


def test_group_numbers_are_the_groups_own() -> None:
    params = [torch.ones(3, 2, requires_grad=True) for _ in range(2)]
    groups = [
        {"params": params[:1], "momentum": 0.5, "weight_decay": 0.0},
        {"params": params[1:], "momentum": 0.9, "weight_decay": 1.0},
    ]
    optimizer = PSGD(groups, 0.1, weight_decay=0.5)
    for step in range(4):
        for p in params:
            p.grad = torch.full_like(p, float(step))
        optimizer.step()
    # t / (t + 1) until it reaches the group's decay; the first gradient was zero.
    averages = [float(optimizer.state[p]["momentum"][0, 0]) for p in params]
    assert averages == pytest.approx([(1 + 2) / 2 * 0.5 + 3 * 0.5, 2.0])
    with torch.no_grad():
        params[1].grad, params[0].grad = torch.zeros(3, 2), torch.zeros(3, 2)
        before = params[1].detach().clone(), params[0].detach().clone()
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 1e-9
    optimizer.param_groups[1]["weight_decay"] = 1e8
    optimizer.step()
    torch.testing.assert_close(params[1].detach(), 0.9 * before[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(params[0].detach(), before[1], rtol=1e-5, atol=1e-6)


def test_clips_apply_to_all_parameters_in_their_order() -> None:
    results = []
    for clips in [(ClipRMS(0.5), ClipNorm(0.1)), (ClipNorm(0.1), ClipRMS(0.5)), ()]:
        params = parameters()
        optimizer = PSGD(params, 1.0, clip=clips, fitting=Fitting(gate=0.0))
        run(optimizer, params, range(1))
        moved = [p.detach() - old.detach() for p, old in zip(params, parameters(), strict=True)]
        results.append((moved, float(torch.cat([m.flatten() for m in moved]).norm())))
    assert results[0][1] == pytest.approx(0.1, rel=1e-4)
    assert results[2][1] > 1
    # RMS first makes all parameters equally large before the joint norm shrinks them.
    rms = [[float(m.square().mean().sqrt()) for m in moved] for moved, _ in results[:2]]
    assert max(rms[0]) / min(rms[0]) == pytest.approx(1.0, rel=1e-3)
    assert max(rms[1]) / min(rms[1]) > 1.05


@pytest.mark.parametrize("criterion", [GradientWhitening(damping=0.0), Fisher(damping=0.0)])
@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e18])
def test_trust_region_is_that_of_what_the_preconditioner_was_applied_to(
    criterion: Criterion, scale: float
) -> None:
    # Below m^T u, which is about the scale of the gradients, or 1 where u falls as they grow.
    radius = 1e-3 * (1 if isinstance(criterion, Fisher) else scale)
    trails = []
    for clips in ((), (TrustRegion(radius),)):
        params = parameters()
        optimizer = PSGD(params, 1.0, criterion=criterion, momentum=0.0, clip=clips)
        moves = []
        for step in range(3):
            for p in params:
                p.detach().zero_()  # so that updates are read without rounding
            run(optimizer, params, range(step, step + 1), scale)
            moves.append([-p.detach().double() for p in params])
        trails.append(moves)
    for step, (free, limited) in enumerate(zip(*trails, strict=True)):
        set_gradients(params, step, scale)
        slope = sum(float((p.grad.double() * u).sum()) for p, u in zip(params, free, strict=True))
        factor = (2 * radius / slope) ** 0.5
        assert factor < 1
        for u, cut in zip(free, limited, strict=True):
            torch.testing.assert_close(cut, factor * u, rtol=1e-5, atol=0)


def test_a_given_scale_replaces_that_of_the_first_gradient() -> None:
    params = parameters()
    optimizer = PSGD(params, clip=(), fitting=Fitting(gate=0.0, init_scale=3.0))
    run(optimizer, params, range(1))
    for p, old in zip(params, parameters(), strict=True):
        torch.testing.assert_close(
            p.detach() - old.detach(), -1e-3 * 9 * p.grad, rtol=1e-3, atol=1e-6
        )


def test_the_noise_of_a_block_does_not_depend_on_the_others() -> None:
    results = []
    for missing in (False, True):
        params = parameters()
        optimizer = PSGD(params, fitting=Fitting(gate=1.0))
        for step in range(3):
            set_gradients(params, step)
            for p in params[:2] + params[3:4]:
                p.grad = None if missing else p.grad
            optimizer.step()
        results.append(params[2].detach())
    assert torch.equal(*results)


def test_the_gate_decides_when_q_moves() -> None:
    params = parameters()
    optimizer = PSGD(params, fitting=Fitting(gate=Every(3)))
    moved = []
    for step in range(7):
        before = optimizer.state[params[0]].get("q0", torch.zeros(())).clone()
        run(optimizer, params, range(step, step + 1))
        moved.append(not torch.equal(before, optimizer.state[params[0]]["q0"]))
    assert moved == [True, False, False, True, False, False, True]


def test_update_first_decides_which_q_preconditions() -> None:
    results = []
    for update_first in (True, False):
        params = parameters()
        fitting = Fitting(update_first=update_first, gate=1.0, init_scale=1.0)
        run(PSGD(params, fitting=fitting, clip=()), params, range(1))
        results.append(params[0].detach() - parameters()[0].detach())
    first_grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(1000))
    # With the old Q = I the first step is plain SGD; with the new one it is not.
    torch.testing.assert_close(results[1], -1e-3 * first_grad)
    assert not torch.allclose(results[0], -1e-3 * first_grad, rtol=1e-2)


def test_complex_parameters_are_stepped() -> None:
    """P33."""
    x = torch.randn(4, 3, dtype=torch.complex64, requires_grad=True)
    optimizer = PSGD([x], 1e-2)
    before = float(x.detach().abs().square().sum())
    for _ in range(100):
        optimizer.zero_grad()
        x.abs().square().sum().backward()
        optimizer.step()
    assert float(x.detach().abs().square().sum()) < 0.3 * before


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
def test_steps_on_a_gpu_follow_those_on_the_cpu(form: str) -> None:
    results = []
    for device in ("cpu", "cuda"):
        params = [p.detach().to(device).requires_grad_() for p in parameters()]
        criterion = MomentumWhitening(damping=0.0)
        optimizer = PSGD(params, 1e-2, form=FORMS[form], criterion=criterion)
        for step in range(5):
            rng = torch.Generator().manual_seed(1000 + step)
            for p in params:
                p.grad = torch.randn(p.shape, generator=rng).to(device)
            optimizer.step()
        results.append([p.detach().cpu() for p in params])
    for x, y, start in zip(*results, parameters(), strict=True):
        # The two devices draw other rows for the norm estimates, which are good to 15 %.
        assert float((x - y).norm() / (x - start).norm()) < 0.15


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": "1e-3"}, "lr = '1e-3'; give a number"),
        ({"form": Kron}, "give a form such as Kron"),
        ({"clip": ClipRMS(1.0)}, "give a sequence of clips"),
    ],
)
def test_things_of_another_type_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        PSGD(parameters(), **settings)


@pytest.mark.parametrize("name", ["criterion", "clip", "fitting"])
def test_parts_that_cannot_differ_between_groups_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"PSGD got {name} in a parameter group"):
        PSGD([{"params": parameters(), name: None}])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr = -1.0"),
        ({"lr": float("nan")}, "lr = nan"),
        ({"momentum": 1.0}, r"momentum = 1.0; give a number in \[0, 1\)"),
        ({"weight_decay": -0.1}, "weight_decay = -0.1"),
        ({"momentum": 0.0}, "MomentumWhitening with momentum = 0"),
    ],
)
def test_numbers_outside_their_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PSGD(parameters(), **settings)
    with pytest.raises(ValueError, match=message):
        PSGD([{"params": parameters(), **settings}])


def test_sparse_gradients_are_refused_before_anything_moves() -> None:
    """P33."""
    dense = nn.Linear(4, 3)
    sparse = nn.Embedding(10, 4, sparse=True)
    optimizer = PSGD([*dense.parameters(), *sparse.parameters()])
    dense(sparse(torch.tensor([1, 2]))).sum().backward()
    before = [p.detach().clone() for p in dense.parameters()]
    with pytest.raises(TypeError, match=r"sparse gradient for a parameter of shape \(10, 4\)"):
        optimizer.step()
    assert equal(before, [p.detach() for p in dense.parameters()])
    assert all(int(s["step"]) == 0 for s in optimizer.state.values())
