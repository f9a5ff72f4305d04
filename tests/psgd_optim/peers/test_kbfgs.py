"""K-BFGS against a naive loop over samples, and what its options do."""

from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from psgd_optim import InputError
from psgd_optim.peers import KBFGS, DenseBFGS, LimitedMemory

LR, DAMPING, BETA, DECAY, MU1 = 0.4, 0.09, 0.9, 0.01, 0.2
each_inverse = pytest.mark.parametrize("inverse", [DenseBFGS(), LimitedMemory()], ids=repr)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batches(count: int = 3, size: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, size, 4, generator=generator, dtype=torch.float64)


def sample_loss(z: Tensor, x: Tensor) -> Tensor:
    return ((z - x[:3]).square().sum() + z.prod() ** 2) / 2


def mean_loss(model: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([sample_loss(z, row) for z, row in zip(model(x), x, strict=True)]).mean()


# --- a naive reference: one sample at a time, matrices as they are printed -----------------------


def forward_backward(weights: list[Tensor], x: Tensor) -> list[dict[str, Tensor]]:
    """Means over samples of a, a a^T, h, g and g a^T per layer."""
    sums: list[dict[str, Tensor]] = [{} for _ in weights]
    for row in x:
        a, kept = row, []
        for number, w in enumerate(weights):
            bar = torch.cat([a.detach() if number == 0 else a, torch.ones(1, dtype=x.dtype)])
            h = (w @ bar).requires_grad_()
            kept.append((bar.detach(), h))
            a = h.tanh() if number + 1 < len(weights) else h
        grads = torch.autograd.grad(sample_loss(a, row), [h for _, h in kept])
        for total, (bar, h), g in zip(sums, kept, grads, strict=True):
            found = {"a": bar, "aa": torch.outer(bar, bar), "h": h.detach(), "g": g}
            found["gradient"] = torch.outer(g, bar)
            for name, value in found.items():
                total[name] = total.get(name, 0) + value / len(x)
    return sums


def bfgs(h: Tensor, s: Tensor, y: Tensor) -> Tensor:
    left = torch.eye(len(s), dtype=s.dtype) - torch.outer(s, y) / (s @ y)
    return left @ h @ left.mT + torch.outer(s, s) / (s @ y)


def damped(s: Tensor, y: Tensor, h: Tensor, mu1: float, mu2: float) -> tuple[Tensor, Tensor]:
    yhy = y @ h @ y
    if s @ y < mu1 * yhy:
        theta = (1 - mu1) * yhy / (yhy - s @ y)
        s = theta * s + (1 - theta) * h @ y
    if s @ y < mu2 * s @ s:
        theta = (1 - mu2) * (s @ s) / (s @ s - s @ y)
        y = theta * y + (1 - theta) * s
    return s, y


class Trained(NamedTuple):
    """The weights after one step per mini-batch, and shares of its pairs."""

    weights: list[Tensor]
    damped: float
    within_bound: float
    within_twice_bound: float


def weights_of(model: nn.Sequential) -> list[Tensor]:
    return [torch.cat([x.weight, x.bias[:, None]], 1).detach() for x in (model[0], model[2])]


def reference(
    weights: list[Tensor], data: Tensor, warm: bool, mu1: float, damping: float
) -> Trained:
    root = damping**0.5
    mean = [
        sum(m) / len(data)
        for m in zip(*[[s["aa"] for s in forward_backward(weights, x)] for x in data], strict=True)
    ]
    layers = range(len(weights))
    m = [torch.zeros_like(w) for w in weights]
    hg = [torch.eye(len(w), dtype=w.dtype) for w in weights]
    sbar = [torch.zeros(len(w), dtype=w.dtype) for w in weights]
    ybar = [x.clone() for x in sbar]
    a, ha, met = list(mean), [], torch.zeros(3)
    for k, x in enumerate(data):
        before = forward_backward(weights, x)
        for i in layers:
            m[i] = BETA * m[i] + (1 - BETA) * (before[i]["gradient"] + DECAY * weights[i])
            if k == 0:
                a[i] = mean[i] if warm else before[i]["aa"]
                eye = torch.eye(len(a[i]), dtype=x.dtype)
                ha.append(torch.linalg.inv(a[i] + root * eye))
            else:
                a[i] = BETA * a[i] + (1 - BETA) * before[i]["aa"]
        weights = [w - LR * hg[i] @ m[i] @ ha[i] for i, w in enumerate(weights)]
        after = forward_backward(weights, x)
        for i in layers:
            sbar[i] = BETA * sbar[i] + (1 - BETA) * (after[i]["h"] - before[i]["h"])
            ybar[i] = BETA * ybar[i] + (1 - BETA) * (after[i]["g"] - before[i]["g"])
            s, y = damped(sbar[i], ybar[i], hg[i], mu1, root)
            is_damped = not torch.equal(s, sbar[i]) or not torch.equal(y, ybar[i])
            ratio = (y @ hg[i] @ y) / (s @ y) * (1 - 1e-9)
            met += torch.tensor([is_damped, ratio <= 1 / mu1, ratio <= 2 / mu1])
            if s @ y > 1e-4 * (s @ s) * before[i]["g"].norm():
                hg[i] = bfgs(hg[i], s, y)
            s = ha[i] @ before[i]["a"]
            ha[i] = bfgs(ha[i], s, a[i] @ s + root * s)
    return Trained(weights, *(met / (len(data) * len(weights))).tolist())


@each_inverse
@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("mu1", [MU1, 0.6])
def test_steps_are_those_of_a_naive_loop_over_samples(inverse, warm, mu1):
    model, data = network(), batches()
    weights, settings = weights_of(model), {"weight_decay": DECAY, "inverse_ratio": mu1}
    optimizer = KBFGS(model, LR, damping=DAMPING, inverse=inverse, **settings)
    if warm:
        optimizer.warm_start(lambda x=x: mean_loss(model, x) for x in data)
    losses = [optimizer.step(lambda x=x: mean_loss(model, x)) for x in data]
    wanted = reference(weights, data, warm, mu1, DAMPING)
    assert warm or wanted.damped
    torch.testing.assert_close(weights_of(model), wanted.weights, rtol=1e-10, atol=1e-10)
    assert torch.equal(losses[0], mean_loss(network(), data[0]).detach())


def test_both_kinds_differ_when_the_memory_forgets():
    ends = []
    for memory in (2, 50):
        model = network()
        optimizer = KBFGS(model, LR, damping=DAMPING, inverse=LimitedMemory(memory))
        for x in batches(8):
            optimizer.step(partial(mean_loss, model, x))
        ends.append(model[0].weight.detach())
    assert not torch.allclose(*ends)


def test_pairs_are_averaged_with_a_decay_of_their_own():
    model, data = network(), batches(2)
    optimizer = KBFGS(model, LR, damping=DAMPING, pair_beta=0.0)
    for x in data:
        before = model(x).mean(dim=0).detach()
        optimizer.step(lambda x=x: mean_loss(model, x))
    step = model(data[1]).mean(dim=0).detach() - before
    torch.testing.assert_close(optimizer.state[model[2].weight]["step_average"], step)


def test_randomness_of_the_closure_is_the_same_in_both_passes():
    """With a step size of 0 both passes are the same, and so no pair shows any curvature."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 3)).double()
    optimizer = KBFGS(model, 0.0, damping=DAMPING)
    optimizer.step(lambda: mean_loss(model, batches()[0]))
    assert not any(state["change_average"].any() for state in optimizer.state.values())


@each_inverse
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_second_pass_that_is_not_finite_leaves_no_trace_in_averages_and_inverse(inverse, bad):
    model, x = network(), batches(4)
    optimizer = KBFGS(model, LR, damping=DAMPING, inverse=inverse)
    for batch in x[:3]:
        optimizer.step(partial(mean_loss, model, batch))
    before = [dict(state) for state in optimizer.state.values()]
    calls = []

    def closure() -> Tensor:
        calls.append(None)
        return mean_loss(model, x[3]) * (1.0 if len(calls) == 1 else bad)

    optimizer.step(closure)
    for old, new in zip(before, optimizer.state.values(), strict=True):
        for name in old.keys() - {"gradient", "input_moment", "input_inverse", "moment_count"}:
            assert torch.equal(old[name], new[name]), name
    optimizer.step(partial(mean_loss, model, x[0]))
    assert all(state["pair_counts"][0] == 4 for state in optimizer.state.values())


class InterruptedPassError(Exception):
    """Raised by a closure."""


@pytest.mark.parametrize("steps", [0, 2])
def test_an_error_in_the_second_pass_puts_weights_and_state_back(steps):
    ends = []
    for fails in (False, True):
        model, x = network(), batches(4)
        optimizer = KBFGS(model, LR, damping=DAMPING)
        for batch in x[:steps]:
            optimizer.step(partial(mean_loss, model, batch))
        calls = []

        def closure(calls=calls, model=model, x=x) -> Tensor:
            calls.append(None)
            if len(calls) == 2:
                raise InterruptedPassError
            return mean_loss(model, x[3])

        if fails:
            with pytest.raises(InterruptedPassError):
                optimizer.step(closure)
        for batch in x:
            optimizer.step(partial(mean_loss, model, batch))
        ends.append(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_damping_that_a_schedule_spoils_is_refused_before_anything_moves():
    model, x = network(), batches(1)[0]
    optimizer = KBFGS(model, LR, damping=DAMPING)
    optimizer.param_groups[0]["inverse_ratio"] = 2.0
    with pytest.raises(InputError, match="inverse_ratio"):
        optimizer.step(partial(mean_loss, model, x))
    assert torch.equal(model[0].weight, network()[0].weight)


@each_inverse
def test_metrics_are_the_shares_of_pairs_of_the_loop_that_meet_the_bound(inverse):
    model, data = network(), batches(20)
    wanted = reference(weights_of(model), data, False, 0.6, 0.5)
    settings = {"weight_decay": DECAY, "inverse_ratio": 0.6}
    optimizer = KBFGS(model, LR, damping=0.5, inverse=inverse, **settings)
    assert optimizer.metrics() == {}
    for x in data:
        optimizer.step(partial(mean_loss, model, x))
    figures = {name: float(x) for name, x in optimizer.metrics().items()}
    assert 0 < wanted.within_bound < wanted.within_twice_bound < 1
    assert figures == {
        "pairs_within_bound": pytest.approx(wanted.within_bound),
        "pairs_within_twice_bound": pytest.approx(wanted.within_twice_bound),
    }


# --- pairs that only the gradient's or the input's norm refuses ----------------------------------


@each_inverse
@pytest.mark.parametrize(("slope", "is_refused"), [(1e3, False), (1e4, True)])
def test_a_pair_of_outputs_must_show_curvature_by_the_gradients_norm(inverse, slope, is_refused):
    """A linear loss has `y = 0`, damped to `y = mu_2 s`: refused if `|g| >= 1e4 mu_2`, 3,000."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 1).double(), batches(1)[0]
    optimizer = KBFGS(model, 1e-3, damping=DAMPING, inverse=inverse, pair_beta=0.0)
    optimizer.step(lambda: slope * model(x).mean())
    state, fresh = optimizer.state[model.weight], inverse.initial(model.bias.detach())
    assert state["step_average"].any() and not state["change_average"].any()
    assert all(torch.equal(state[name], old) for name, old in fresh.items()) == is_refused


@pytest.mark.parametrize(("size", "is_refused"), [(1e3, False), (1e4, True)])
def test_a_pair_of_inputs_must_show_curvature_by_the_inputs_norm(size, is_refused):
    """Of inputs `(size, 0, 1)` where `A` has seen zeros: `s^T y ~ (0.3 + 1e-9 size^2) s^T s`.

    The second step is the first one whose moment changes `A`, and so `H_a`.
    """
    model, x = nn.Linear(2, 1).double(), torch.tensor([[size, 0.0]], dtype=torch.float64)
    optimizer = KBFGS(model, 0.0, damping=DAMPING, beta=1 - 1e-9)
    optimizer.warm_start([lambda: model(0 * x).mean()])
    optimizer.step(lambda: model(x).mean())
    before = optimizer.state[model.weight]["input_inverse"]
    optimizer.step(lambda: model(x).mean())
    assert torch.equal(before, optimizer.state[model.weight]["input_inverse"]) == is_refused


# --- bounds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_a_pair_that_the_first_damping_alone_changes_is_within_the_bound(seed):
    """It puts the pair exactly on the bound, where rounding must not decide."""
    torch.manual_seed(seed)
    model, x = nn.Linear(4, 3), torch.randn(7, 4)
    before = model(x).mean(dim=0).detach()
    optimizer = KBFGS(model, 0.1, damping=1e-6, pair_beta=0.0)
    optimizer.step(lambda: 50 * (model(x) - torch.randn(3)).square().sum(dim=1).mean())
    s = model(x).mean(dim=0).detach() - before
    y = 100 * s
    changed, same = damped(s, y, torch.eye(3), MU1, 1e-3)
    assert s @ y < MU1 * (y @ y) and not torch.equal(changed, s) and torch.equal(same, y)
    assert optimizer.metrics()["pairs_within_bound"] == 1


def test_the_ratio_of_the_first_damping_is_checked():
    with pytest.raises(InputError, match="inverse_ratio"):
        KBFGS(network(), LR, damping=DAMPING, inverse_ratio=1.5)


@each_inverse
def test_a_damping_whose_root_bounds_no_pairs_is_refused(inverse):
    KBFGS(network(), LR, damping=1.0, inverse=inverse)
    with pytest.raises(InputError, match=r"Got damping = 1\.5; .* in \(0, 1\]") as refusal:
        KBFGS(network(), LR, damping=1.5, inverse=inverse)
    assert "\n" not in str(refusal.value)
