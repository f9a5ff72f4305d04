"""Newton steps through the optimizer: pairs reach `Q`, only when they should, and start it."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from psgd_optim import (
    PSGD,
    ClipNorm,
    Diagonal,
    Every,
    Fitting,
    GradientWhitening,
    InputError,
    Kron,
)
from psgd_optim.criteria import Newton
from psgd_optim.curvature import Exact, FiniteDifference, Given, GradientDifference, LossSource
from psgd_optim.derivatives import Evaluation
from psgd_optim.noise import noise_generator
from psgd_optim.scope import Joint
from psgd_optim.types import Probe
from tests.reference import diagonal_update

CPU = torch.device("cpu")
CURVATURES = torch.tensor([-4.0, 0.5, 1.0, 30.0], dtype=torch.float64)


def newton(params: Any, lr: float = 0.1, **settings: Any) -> PSGD:
    """Return an optimizer without momentum, noise or clips, with `Q = I` at the start."""
    source = settings.pop("source", Exact())
    fitting = {"gate": 1.0, "precond_lr": 0.5, "init_scale": 1.0, **settings.pop("fitting", {})}
    settings.setdefault("form", Diagonal())
    # Without the default clip, so that a step can be told from P g.
    settings.setdefault("clip", ())
    return PSGD(
        params,
        lr,
        criterion=Newton(damping=0.0, source=source),
        momentum=0.0,
        fitting=Fitting(**fitting),
        **settings,
    )


def start() -> Tensor:
    return torch.tensor([1.0, -2.0, 0.5, 0.3], dtype=torch.float64).requires_grad_()


def quadratic(x: Tensor) -> Tensor:
    return 0.5 * (CURVATURES * x.square()).sum()


# --- the pair reaches Q --------------------------------------------------------------------------


def check_a_step_against_a_hand_computation(source: LossSource) -> None:
    """Raise AssertionError unless one step fits `Q` to `v` and `H v`, and steps with it."""
    x = start()
    old = x.detach().clone()
    optimizer = newton([x], source=source)
    loss = optimizer.step(lambda: quadratic(x))
    v = torch.randn(4, generator=noise_generator(CPU, 0, 0, -2), dtype=torch.float64)
    one, zero = torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    q, bound = diagonal_update(one, zero, CURVATURES * v, v, 0.5, 0.99)
    # Both finite differences are exact for a quadratic but for rounding of about 1e-8.
    for found, expected in (
        (optimizer.state[x]["q"], q),
        (optimizer.state[x]["l"], bound),
        (x.detach(), old - 0.1 * q.square() * CURVATURES * old),
        (loss, quadratic(old)),
        (x.grad, CURVATURES * old),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("source", [Exact(), FiniteDifference(), FiniteDifference(central=True)])
def test_a_newton_step_fits_q_to_the_hessian_vector_product(source: LossSource) -> None:
    check_a_step_against_a_hand_computation(source)


def test_the_check_fails_when_no_product_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Exact.evaluate

    def without_products(self: Exact, closure: Any, params: Any, probes: Any, names: Any) -> Any:
        found = whole(self, closure, params, None, names)
        return Evaluation(found.loss, found.grads, {p: torch.zeros_like(p) for p in params})

    monkeypatch.setattr(Exact, "evaluate", without_products)
    with pytest.raises(AssertionError):
        check_a_step_against_a_hand_computation(Exact())


@pytest.mark.parametrize("kept", ["h", "v"])
def test_the_check_fails_when_the_product_or_the_probe_is_dropped(
    monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    def dropping(self: Newton, evidence: Any, *rest: Any, **more: Any) -> Probe:
        v, h = evidence.pair
        return Probe(h=h) if kept == "h" else Probe(h=evidence.grad, v=v)

    monkeypatch.setattr(Newton, "probe", dropping)
    with pytest.raises(AssertionError):
        check_a_step_against_a_hand_computation(Exact())


def test_a_fused_step_has_no_product_where_the_gate_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probed = []
    whole = Exact.evaluate

    def counting(self: Exact, closure: Any, params: Any, probes: Any, names: Any) -> Any:
        probed.append(probes is not None)
        return whole(self, closure, params, probes, names)

    monkeypatch.setattr(Exact, "evaluate", counting)
    x, unused = start(), torch.ones(3, requires_grad=True)
    for init_scale in (1.0, None):
        optimizer = newton([x, unused], fitting={"gate": Every(3), "init_scale": init_scale})
        announced = []
        for _ in range(7):
            announced.append(optimizer.fits_next)
            before = optimizer.state[x].get("q", torch.zeros(())).clone()
            optimizer.step(lambda: quadratic(x))
            assert torch.equal(before, optimizer.state[x]["q"]) != announced[-1]
        assert probed == announced == [True, False, False, True, False, False, True]
        probed.clear()


def test_without_a_scale_the_first_step_takes_its_pair_even_with_a_closed_gate() -> None:
    x = start()
    optimizer = newton([x], fitting={"gate": 0.0, "init_scale": None})
    assert optimizer.fits_next
    optimizer.step(lambda: quadratic(x))
    v = torch.randn(4, generator=noise_generator(CPU, 0, 0, -2), dtype=torch.float64)
    scale = (CURVATURES * v).pow(4).mean() ** (-1 / 8)
    torch.testing.assert_close(optimizer.state[x]["q"], scale.expand(4))
    assert not optimizer.fits_next


def test_a_late_first_gradient_waits_for_the_next_pair() -> None:
    x, late = start(), start()
    optimizer = newton([x, late], fitting={"gate": Every(4), "init_scale": None})
    held, moved = late.detach().clone(), []
    for step in range(6):
        weight = 0.0 if step == 0 else 1.0
        optimizer.step(lambda w=weight: quadratic(x) + w * quadratic(late))  # type: ignore[misc]
        moved.append(not torch.equal(held, late.detach()))
    assert moved == [False, False, False, False, True, True]
    assert float(optimizer.state[late]["step"]) == 2


def test_whitening_never_announces_that_it_needs_a_pair() -> None:
    optimizer = PSGD([start()], criterion=GradientWhitening(), fitting=Fitting(gate=0.0))
    assert not optimizer.fits_next
    assert not optimizer.needs_closure


def test_a_pair_that_is_not_finite_moves_the_parameter_and_not_q() -> None:
    x = start()
    optimizer = newton([x], source=Given())
    ones = torch.ones(4, dtype=torch.float64)
    x.grad = ones.clone()
    optimizer.step(pair=([ones], [2 * ones]))
    q = optimizer.state[x]["q"].clone()
    for bad in ((ones, math.inf * ones), (math.nan * ones, ones)):
        before = x.detach().clone()
        optimizer.step(pair=([bad[0]], [bad[1]]))
        assert torch.equal(q, optimizer.state[x]["q"])
        torch.testing.assert_close(x.detach(), before - 0.1 * q.square())


# --- closures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [Exact(), FiniteDifference()])
def test_accumulated_losses_take_the_step_of_the_whole_batch(source: LossSource) -> None:
    data = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = []
    for parts in (1, 4):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()

        def closure(net: nn.Module = net, parts: int = parts) -> Iterator[Tensor]:
            for chunk in data.chunk(parts):
                yield net(chunk).square().sum() / 8

        optimizer = newton(
            net.parameters(), source=source, form=Kron(), fitting={"precond_lr": 0.1}
        )
        losses = torch.stack([optimizer.step(closure) for _ in range(3)])
        results.append([losses, *(p.detach() for p in net.parameters())])
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-7)


def test_a_model_without_second_derivative_is_refused_by_name_and_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.out = nn.Linear(8, 8), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            q = self.query(x)[None, None]
            attended: Tensor = nn.functional.scaled_dot_product_attention(q, q, q)
            return self.out(attended).square().sum()

    net = Net()
    optimizer = newton(net.named_parameters(), form=Kron())
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(InputError, match=r"after parameter query\.bias: .*SDPBackend\.MATH"):
        optimizer.step(lambda: net(torch.ones(4, 8)))
    with pytest.raises(InputError, match=r"after parameter 1: .*SDPBackend\.MATH"):
        newton(net.parameters(), form=Kron()).step(lambda: net(torch.ones(4, 8)))
    assert all(torch.equal(x, p.detach()) for x, p in zip(before, net.parameters(), strict=True))
    differences = newton(net.parameters(), form=Kron(), source=FiniteDifference())
    differences.step(lambda: net(torch.ones(4, 8)))


def test_an_optimizer_that_needs_a_closure_says_so() -> None:
    x = start()
    optimizer = newton([x])
    assert optimizer.needs_closure
    with pytest.raises(TypeError, match=r"Exact\(\) differentiates the loss itself; call step\(c"):
        optimizer.step()
    with pytest.raises(TypeError, match="got a pair; give it"):
        optimizer.step(lambda: quadratic(x), pair=([x], [x]))


def test_frozen_parameters_are_left_out() -> None:
    x, frozen = start(), start()
    frozen.requires_grad_(False)
    optimizer = newton([frozen, x])
    before = frozen.clone()
    optimizer.step(lambda: quadratic(x) + quadratic(frozen))
    assert torch.equal(before, frozen)
    assert frozen.grad is None
    assert not optimizer.state[frozen]


# --- given pairs ---------------------------------------------------------------------------------


def test_given_pairs_take_the_step_that_exact_ones_take() -> None:
    results = []
    for source in (Exact(), Given()):
        x = start()
        optimizer = newton([x], source=source)
        for step in range(3):
            if isinstance(source, LossSource):
                optimizer.step(lambda x=x: quadratic(x))  # type: ignore[misc]
                continue
            noise = noise_generator(CPU, 0, step, -2)
            v = torch.randn(4, generator=noise, dtype=torch.float64)
            x.grad = CURVATURES * x.detach()
            optimizer.step(pair=([v], [CURVATURES * v]))
        results.append((x.detach(), optimizer.state[x]["q"]))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_a_given_pair_may_be_left_out_only_where_q_is_not_fitted() -> None:
    x = start()
    optimizer = newton([x], source=Given(), fitting={"gate": Every(2)})
    x.grad = torch.ones_like(x)
    ones = [torch.ones_like(x)]
    with pytest.raises(TypeError, match=r"call step\(pair=\(v, hv\)\)"):
        optimizer.step()
    optimizer.step(pair=(ones, ones))
    assert not optimizer.fits_next
    optimizer.step()
    assert optimizer.fits_next
    with pytest.raises(ValueError, match="got v of shapes"):
        optimizer.step(pair=([torch.ones(3)], ones))
    with pytest.raises(TypeError, match="PSGD got a pair; give it criterion"):
        PSGD([x]).step(pair=(ones, ones))


# --- differences from step to step ---------------------------------------------------------------


def test_differences_fit_q_from_the_second_step_on() -> None:
    x = start()
    optimizer = newton([x], source=GradientDifference(), fitting={"init_scale": 0.1})
    trail = []
    for _ in range(3):
        x.grad = CURVATURES * x.detach()
        trail.append(x.detach().clone())
        optimizer.step()
        assert not torch.equal(trail[-1], x.detach())
        if len(trail) == 1:
            assert optimizer.state[x]["q"].tolist() == [0.1] * 4
            torch.testing.assert_close(x.detach(), trail[0] - 0.1 * 0.01 * CURVATURES * trail[0])
    q, bound = torch.full((4,), 0.1, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for old, new in ((trail[0], trail[1]), (trail[1], trail[2])):
        v = (new - old) / (new - old).square().mean().sqrt()
        q, bound = diagonal_update(q, bound, CURVATURES * v, v, 0.5, 0.99)
    torch.testing.assert_close(optimizer.state[x]["q"], q, rtol=1e-10, atol=0)


def test_differences_need_a_scale() -> None:
    with pytest.raises(ValueError, match=r"GradientDifference, .* with init_scale = None; give"):
        PSGD([start()], criterion=Newton(source=GradientDifference()))


def test_without_a_move_there_is_nothing_to_fit() -> None:
    x = start()
    optimizer = newton([x], 0.0, source=GradientDifference())
    for step in range(3):
        x.grad = torch.full_like(x, step + 1.0)
        optimizer.step()
    assert optimizer.state[x]["q"].tolist() == [1.0] * 4
    assert float(optimizer.state[x]["step"]) == 3


# --- whole trajectories --------------------------------------------------------------------------


def rosenbrock(x: Tensor, scale: float = 1.0) -> Tensor:
    return scale * (100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)


def descend(build: Callable[[Tensor], PSGD], steps: int, scale: float = 1.0) -> Tensor:
    x = torch.tensor([-1.0, 1.0], dtype=torch.float64).requires_grad_()
    optimizer, trail = build(x), []
    for _ in range(steps):
        optimizer.step(lambda: rosenbrock(x, scale))
        trail.append(x.detach().clone())
    return torch.stack(trail)


@pytest.mark.parametrize("form", [Kron(max_skew=math.inf), Diagonal(), Joint(Kron(max_skew=9.0))])
@pytest.mark.parametrize("scale", [1e-3, 777.0])
def test_p10_newton_steps_do_not_depend_on_the_scale_of_the_loss(form: Any, scale: float) -> None:
    trails = [
        descend(
            lambda x, c=c: newton([x], 0.5, form=form, fitting={"init_scale": 0.1 / c**0.5}),  # type: ignore[misc]
            100,
            c,
        )
        for c in (1.0, scale)
    ]
    torch.testing.assert_close(*trails, rtol=1e-10, atol=1e-10)
    assert float((trails[0][0] - trails[0][-1]).norm()) > 0.1


def test_p10_gradient_whitening_with_damping_does_depend_on_it() -> None:
    def build(x: Tensor) -> PSGD:
        return PSGD(
            [x], 0.01, criterion=GradientWhitening(damping=1.0), momentum=0.0, clip=(),
            fitting=Fitting(gate=1.0, init_scale=0.1),
        )  # fmt: skip

    trails = []
    for scale in (1.0, 777.0):
        x = torch.tensor([-1.0, 1.0], dtype=torch.float64).requires_grad_()
        optimizer = build(x)
        for _ in range(20):
            optimizer.zero_grad()
            rosenbrock(x, scale).backward()
            optimizer.step()
        trails.append(x.detach())
    assert not torch.allclose(*trails, rtol=1e-2)


@pytest.mark.parametrize("limit", [1e-3, 0.1, 1e9])
def test_p19_a_clipped_step_is_at_most_lr_times_the_limit_long(limit: float) -> None:
    def build(x: Tensor, **clip: Any) -> PSGD:
        return newton([x], 0.1, form=Kron(max_skew=math.inf), fitting={"init_scale": 0.1}, **clip)

    clipped = descend(lambda x: build(x, clip=(ClipNorm(limit),)), 50)
    lengths = clipped.diff(dim=0).norm(dim=1)
    assert float(lengths.max()) <= 0.1 * limit * (1 + 1e-9)
    if limit == 1e9:
        assert torch.equal(clipped, descend(build, 50))
    else:
        assert float(lengths.max()) > 0.1 * limit * (1 - 1e-9)


# --- the trust region, and layers frozen later ----------------------------------------------------


def test_a_unit_that_wakes_up_after_a_long_sleep_does_not_end_the_run() -> None:
    # While H v is zero, P of that entry grows, to 4000 here; then its first gradient comes.
    x = torch.tensor([1.0, 1.0]).requires_grad_()
    optimizer = PSGD(
        [x], criterion=Newton(), form=Diagonal(), momentum=0.0, fitting=Fitting(gate=1.0)
    )
    awake = 0.0

    def loss() -> Tensor:
        return x[0].square() + awake * x[1].square()

    for _ in range(400):
        optimizer.step(loss)
    awake = 1.0
    assert float(optimizer.state[x]["q"][1]) > 50
    for _ in range(400):
        assert float(optimizer.step(loss)) < 1.5
    assert float(x.detach().norm()) < 0.1


def test_a_layer_that_is_frozen_later_stays_where_it_is() -> None:
    x, y = start(), start()
    optimizer = newton([x, y])
    for _ in range(2):
        optimizer.step(lambda: quadratic(x) + quadratic(y))
    x.requires_grad_(False)
    held = x.clone()
    for _ in range(3):
        optimizer.step(lambda: quadratic(y))
    assert torch.equal(x, held)
    assert x.grad is None
