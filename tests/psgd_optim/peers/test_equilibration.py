"""ESGD and Jacobi SGD against dense references, and the theory they come from (S3)."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from psgd_optim import PSGD
from psgd_optim.criteria import Newton
from psgd_optim.curvature import FiniteDifference
from psgd_optim.noise import noise_generator, normal_like, signs_like
from psgd_optim.peers import (
    ESGD,
    JacobiSGD,
    cosine_distance,
    estimate_hessian_diagonal,
)
from psgd_optim.tools.stepping import (
    differentiates_twice,
    needs_closure,
    needs_second_derivatives,
    take_step,
)
from psgd_optim.types import InputError

CPU = torch.device("cpu")
REAL = torch.float64
BOTH = pytest.mark.parametrize("peer", [ESGD, JacobiSGD])
Peer = type[ESGD] | type[JacobiSGD]


def random_hessian(n: int, seed: int) -> Tensor:
    """Return an indefinite symmetric matrix."""
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=REAL)
    return (a + a.mT) / 2


def start(n: int, seed: int = 1) -> Tensor:
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=REAL)
    return x.requires_grad_()


def quadratic(hessian: Tensor, x: Tensor) -> Callable[[], Tensor]:
    return lambda: 0.5 * x @ hessian @ x


def small_net(seed: int = 0) -> tuple[nn.Module, Callable[[int], Tensor]]:
    """Return a network and its loss on a batch of a step."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def loss(step: int) -> Tensor:
        rng = torch.Generator().manual_seed(step)
        x = torch.randn(8, 3, generator=rng, dtype=next(net.parameters()).dtype)
        return nn.functional.cross_entropy(net(x), torch.arange(8) % 2)

    return net, loss


def modulus(a: Tensor, power: float = 1.0) -> Tensor:
    values, vectors = torch.linalg.eigh(a)
    return vectors * values.abs() ** power @ vectors.mT


# --- the step against a slow reference ----------------------------------------------------------


def reference_points(peer: Peer, hessian: Tensor, x: Tensor, lr: float, steps: int) -> list[Tensor]:
    """Return where a quadratic's steps lead, with a refresh in steps 0, 3, 6, ..."""
    x, total, points = x.detach().clone(), torch.zeros(len(x), dtype=REAL), []
    refreshes = 0
    for step in range(steps):
        if step % 3 == 0:
            noise = noise_generator(CPU, 7, step, 0)
            v = normal_like(x, noise) if peer is ESGD else signs_like(x, noise)
            hv = hessian @ v
            total = total + (hv**2 if peer is ESGD else v * hv)
            refreshes += 1
        size = (total / refreshes).sqrt() if peer is ESGD else (total / refreshes).abs()
        x = x - lr * (hessian @ x) / (size + 0.1)
        points.append(x)
    return points


@BOTH
def test_steps_are_those_of_algorithm_1_with_refreshes_counted(peer: Peer) -> None:
    """P22: the mean is over refreshes, in steps 0, 3 and 6, not over the steps."""
    hessian, x = random_hessian(4, 0), start(4)
    optimizer = peer([x], 0.05, damping=0.1, refresh_every=3, seed=7)
    expected = reference_points(peer, hessian, x, 0.05, 8)
    for step, point in enumerate(expected):
        assert optimizer.fits_next == (step % 3 == 0)
        before = quadratic(hessian, x)().detach()
        loss = optimizer.step(quadratic(hessian, x))
        torch.testing.assert_close(loss, before)
        torch.testing.assert_close(x.detach(), point, rtol=1e-12, atol=1e-12)
    assert int(optimizer.state[x]["refreshes"]) == 3


def test_p22_the_mean_over_normal_probes_tends_to_the_diagonal_of_h_squared() -> None:
    hessian, x = random_hessian(5, 1), start(5)
    optimizer = ESGD([x], 0.0, damping=1.0, refresh_every=1)
    for _ in range(200):
        optimizer.step(quadratic(hessian, x))
    state = optimizer.state[x]
    mean = state["squares"] / state["refreshes"]
    # The relative deviation of a mean of 200 squares of normal numbers is sqrt(2 / 200), 10 %.
    torch.testing.assert_close(mean, (hessian @ hessian).diagonal(), rtol=0.4, atol=0)


def test_p22_one_probe_of_signs_is_exact_for_a_diagonal_h() -> None:
    curvatures = torch.tensor([-4.0, 0.5, 1.0, 30.0], dtype=REAL)
    x = start(4)
    before = x.detach().clone()
    optimizer = JacobiSGD([x], 0.1, damping=1e-12)
    optimizer.step(quadratic(curvatures.diag(), x))
    torch.testing.assert_close(optimizer.state[x]["products"], curvatures, rtol=1e-12, atol=0)
    # |H|^-1 g: down along positive curvatures, and away from the saddle along the negative one.
    torch.testing.assert_close(x.detach(), before * (1 - 0.1 * curvatures.sign()))


@BOTH
def test_only_steps_that_refresh_need_a_second_derivative(peer: Peer) -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.square().sum()

        @staticmethod
        @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return 2 * grad * x

    x = start(4)
    optimizer = peer([x], 0.1, damping=0.1, refresh_every=3)
    optimizer.step(lambda: x.square().sum())
    for _ in range(2):
        optimizer.step(lambda: Once.apply(x))
    with pytest.raises(InputError, match="has no graph"):
        optimizer.step(lambda: Once.apply(x))
    assert int(optimizer.state[x]["refreshes"]) == 1


@BOTH
def test_whoever_evaluates_the_loss_is_told_what_the_next_step_needs(peer: Peer) -> None:
    x = start(2)
    optimizer = peer([x], 0.1, damping=0.1, refresh_every=2)
    told = []
    for _ in range(4):
        told.append(differentiates_twice(optimizer))
        take_step(optimizer, [x], lambda: x.square().sum(), 0.0)
    assert told == [True, False, True, False]
    assert needs_closure(optimizer)
    assert needs_second_derivatives(optimizer)


def test_optimizers_of_gradients_and_differences_need_no_second_derivative() -> None:
    x = start(2)
    for each in (PSGD([x]), PSGD([x], criterion=Newton(source=FiniteDifference()))):
        assert not needs_second_derivatives(each)
        assert not differentiates_twice(each)
    newton = PSGD([x], criterion=Newton())
    assert needs_second_derivatives(newton)
    assert differentiates_twice(newton)

    class Always(torch.optim.SGD):
        differentiates_twice = True  # says nothing of when

    assert differentiates_twice(Always([x]))


@BOTH
def test_parts_of_a_loss_give_the_step_of_the_whole(peer: Peer) -> None:
    points = []
    for in_parts in (False, True):
        x = start(4)
        losses = [quadratic(random_hessian(4, seed), x) for seed in range(3)]
        optimizer = peer([x], 0.1, damping=0.1)
        if in_parts:
            optimizer.step(lambda losses=losses: (each() for each in losses))
        else:
            optimizer.step(lambda losses=losses: sum(each() for each in losses))
        points.append(x.detach())
    torch.testing.assert_close(points[0], points[1], rtol=1e-12, atol=1e-12)


# --- groups, and what is left alone --------------------------------------------------------------


def test_groups_have_their_own_rates_and_damping() -> None:
    x, y = start(3, 1), start(3, 2)
    before = [x.detach().clone(), y.detach().clone()]
    optimizer = JacobiSGD(
        [{"params": [x]}, {"params": [y], "lr": 0.5, "damping": 3.0}], 0.1, damping=1.0
    )
    optimizer.step(lambda: x.square().sum() + y.square().sum())  # H = 2 I
    torch.testing.assert_close(x.detach(), before[0] * (1 - 0.1 * 2 / 3))
    torch.testing.assert_close(y.detach(), before[1] * (1 - 0.5 * 2 / 5))
    z = start(3, 3)
    optimizer.add_param_group({"params": [z]})
    assert [group["step"] for group in optimizer.param_groups] == [1, 1, 1]


@BOTH
def test_a_late_parameter_waits_for_its_first_probe(peer: Peer) -> None:
    x, late = start(3, 1), start(3, 2)
    before = late.detach().clone()
    optimizer = peer([x, late], 0.1, damping=0.1, refresh_every=2)
    optimizer.step(lambda: x.square().sum())
    optimizer.step(lambda: x.square().sum() + late.square().sum())
    assert torch.equal(late, before)
    optimizer.step(lambda: x.square().sum() + late.square().sum())
    assert not torch.equal(late, before)
    assert [int(optimizer.state[p]["refreshes"]) for p in (x, late)] == [2, 1]


@BOTH
def test_frozen_parameters_are_left_out_and_change_no_probe(peer: Peer) -> None:
    points = []
    for is_frozen in (False, True):
        first, x = start(3, 1), start(3, 2)
        first.requires_grad_(not is_frozen)
        first.grad = torch.ones(3, dtype=REAL)
        optimizer = peer([first, x], 0.1, damping=0.1)
        optimizer.step(lambda x=x: (x.square() * x).sum())
        assert first.grad is None
        assert not optimizer.state.get(first)
        points.append(x.detach())
    assert torch.equal(*points)


@BOTH
def test_probes_and_steps_that_are_not_finite_are_skipped(peer: Peer) -> None:
    x = start(3)
    before = x.detach().clone()
    optimizer = peer([x], 0.1, damping=0.1, refresh_every=1)
    scales = iter([float("inf"), 1.0, float("nan"), 1.0])
    moved = []
    for scale in scales:
        optimizer.step(lambda scale=scale: scale * x.square().sum())
        moved.append(not torch.equal(x, before))
        before = x.detach().clone()
    assert moved == [False, True, False, True]
    assert int(optimizer.state[x]["refreshes"]) == 2
    assert bool(x.isfinite().all())


# --- saving and loading --------------------------------------------------------------------------


def run(
    peer: Peer, dtype: torch.dtype, steps: range, saved: Any = None
) -> tuple[list[Tensor], Any, torch.optim.Optimizer]:
    net, loss = small_net()
    net.to(dtype)
    optimizer = peer(net.parameters(), 0.05, damping=1e-2, refresh_every=3, seed=5 if saved else 2)
    if saved:
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
    for step in steps:
        optimizer.step(lambda step=step: loss(step))
    state = {"net": copy.deepcopy(net.state_dict()), "optimizer": optimizer.state_dict()}
    return [p.detach() for p in net.parameters()], copy.deepcopy(state), optimizer


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_resumed_run_is_bit_identical(peer: Peer, dtype: torch.dtype, tmp_path: Any) -> None:
    """P33, from a point between two refreshes and with another seed in the constructor."""
    whole, _, straight = run(peer, dtype, range(8))
    _, saved, _ = run(peer, dtype, range(4))
    torch.save(saved, tmp_path / "saved.pt")
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    resumed, _, other = run(peer, dtype, range(4, 8), saved)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    ours, theirs = straight.state_dict()["state"], other.state_dict()["state"]
    for place, entries in ours.items():
        for name, x in entries.items():
            assert torch.equal(x, theirs[place][name])
            assert x.dtype == theirs[place][name].dtype


@BOTH
def test_loading_keeps_no_hold_of_what_was_loaded_and_copies_go_on_alike(peer: Peer) -> None:
    hessian, x = random_hessian(3, 0), start(3)
    optimizer = peer([x], 0.1, damping=0.1, refresh_every=1)
    optimizer.step(quadratic(hessian, x))
    saved = optimizer.state_dict()
    held = copy.deepcopy(saved["state"])
    y = x.detach().clone().requires_grad_()
    other = peer([y], 0.1, damping=0.1)
    other.load_state_dict(saved)
    other.step(quadratic(hessian, y))
    assert all(torch.equal(held[0][name], saved["state"][0][name]) for name in held[0])
    other = copy.deepcopy(other)
    other.load_state_dict(saved)  # a copy loads too
    pair = copy.deepcopy((x, optimizer))
    pair[1].step(quadratic(hessian, pair[0]))
    assert torch.equal(pair[0], y)


def test_state_of_something_else_is_refused_and_changes_nothing() -> None:
    x, hessian = start(3), random_hessian(3, 0)
    optimizer = ESGD([x], 0.1, damping=0.1)
    optimizer.step(quadratic(hessian, x))
    before = copy.deepcopy(optimizer.state_dict())
    y, z = start(3, 5), start(4, 5)
    jacobi, other, adam = (
        JacobiSGD([y], 0.1, damping=0.1),
        ESGD([z], 0.1, damping=0.1),
        torch.optim.Adam([y]),
    )
    jacobi.step(lambda: y.square().sum())
    other.step(lambda: z.square().sum())
    adam.step()
    for strange, words in (
        (jacobi.state_dict(), "give what ESGD.state_dict"),
        (other.state_dict(), r"give what ESGD.state_dict\(\) returned for it"),
        (adam.state_dict(), "Got the state of another optimizer"),
        ({"first": {}}, "Got the state of another optimizer"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            optimizer.load_state_dict(strange)
        assert "\n" not in str(caught.value)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert torch.equal(after["state"][0]["squares"], before["state"][0]["squares"])


@BOTH
@pytest.mark.parametrize(
    ("name", "x", "words"),
    [
        ("damping", -1.0, "Got damping = -1.0; give a positive number"),
        ("lr", float("nan"), "Got lr = nan; give a number of at least 0"),
        ("refresh_every", 0, "Got refresh_every = 0; give an integer of at least 1"),
        ("step", -1, "Got step = -1; give an integer of at least 0"),
    ],
)
def test_saved_settings_outside_their_range_are_refused(
    peer: Peer, name: str, x: float, words: str
) -> None:
    saved = peer([start(2)], 0.1, damping=0.1).state_dict()
    saved["param_groups"][0][name] = x
    optimizer = peer([start(2)], 0.1, damping=0.1)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(InputError, match=words) as refusal:
        optimizer.load_state_dict(saved)
    assert "\n" not in str(refusal.value)
    assert optimizer.state_dict() == before


# --- bad input -----------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr": -0.1}, "Got lr = -0.1"),
        ({"lr": "fast"}, "Got lr = 'fast'"),
        ({"lr": torch.ones(2)}, r"Got an lr of shape \(2,\)"),
        ({"damping": 0.0}, "Got damping = 0.0; give a positive"),
        ({"damping": float("nan")}, "Got damping = nan"),
        ({"refresh_every": 0}, "Got refresh_every = 0"),
        ({"refresh_every": 2.5}, "Got refresh_every = 2.5"),
        ({"seed": None}, "Got seed = None"),
    ],
)
def test_bad_settings_are_refused(peer: Peer, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        peer([start(2)], **{"lr": 0.1, "damping": 0.1, **settings})


@BOTH
def test_bad_groups_closures_and_gradients_are_refused(peer: Peer) -> None:
    x = start(2)
    with pytest.raises(InputError, match="Got seed in a parameter group; give it to"):
        peer([{"params": [x], "seed": 3}], 0.1, damping=0.1)
    with pytest.raises(InputError, match=r"dtype torch.complex64; give real"):
        peer([torch.zeros(2, dtype=torch.complex64, requires_grad=True)], 0.1, damping=0.1)
    optimizer = peer([x], 0.1, damping=0.1)
    with pytest.raises(TypeError, match=rf"{peer.__name__} with Exact\(\) differentiates the loss"):
        optimizer.step()
    words = nn.Embedding(4, 2, sparse=True)
    optimizer = peer(words.parameters(), 0.1, damping=0.1)
    before = words.weight.detach().clone()
    with pytest.raises(InputError, match="sparse"):
        optimizer.step(lambda: words(torch.tensor([1, 2])).square().sum())
    assert torch.equal(words.weight, before)


# --- diagnostics ---------------------------------------------------------------------------------


def test_estimates_over_all_signs_are_the_diagonals_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P22: with every vector of signs once, the means are exact, over two parameters."""
    n = 5
    hessian, x, y = random_hessian(n, 3), start(2), start(3, 2)
    design = iter(torch.tensor(list(itertools.product((-1.0, 1.0), repeat=n)), dtype=REAL))
    rest: list[Tensor] = []

    def chosen(like: Tensor, _: torch.Generator) -> Tensor:
        if like is x:
            v = next(design)
            rest[:] = [v[2:]]
            return v[:2]
        return rest[0]

    monkeypatch.setattr("psgd_optim.peers.hessian_diagonal.signs_like", chosen)

    def loss() -> Tensor:
        z = torch.cat([x, y])
        return 0.5 * z @ hessian @ z

    found = estimate_hessian_diagonal(loss, [x, y], probes=2**n)
    both = [torch.cat([each[x], each[y]]) for each in (found.row_squares, found.diagonal)]
    torch.testing.assert_close(both[0], (hessian @ hessian).diagonal(), rtol=1e-12, atol=0)
    torch.testing.assert_close(both[1], hessian.diagonal(), rtol=1e-12, atol=1e-12)
    gradient = hessian @ torch.cat([x, y]).detach()
    torch.testing.assert_close(found.gradient_squares[x], gradient[:2].square())


def test_dominance_is_free_of_the_noise_of_few_probes() -> None:
    """d(H) of 300 random entries reads 5.8 %, not the 11.5 % that 100 probes would add noise to."""
    n = 300
    hessian, x = random_hessian(n, 4), start(n)
    squared = hessian.diagonal().square().sum() / hessian.square().sum()
    means = []
    for seed in range(6):
        found = estimate_hessian_diagonal(quadratic(hessian, x), [x], probes=100, seed=seed)
        means.append(found.dominance() ** 2 / 1e4)
    assert sum(means) / 6 == pytest.approx(float(squared), rel=0.25)


def test_dominance_of_a_diagonal_is_a_hundred_and_of_nothing_is_zero() -> None:
    x = start(4)
    curvatures = torch.tensor([1.0, -2.0, 3.0, 0.0], dtype=REAL).diag()
    found = estimate_hessian_diagonal(quadratic(curvatures, x), [x], probes=3)
    assert found.dominance() == pytest.approx(100, rel=1e-12)
    found = estimate_hessian_diagonal(quadratic(0 * curvatures, x), [x], probes=3)
    assert found.dominance() == 0


def test_dominance_of_few_probes_is_zero_where_their_noise_is_all_there_is() -> None:
    """Two probes of `[[0, 1], [1, 0]]` estimate a diagonal of 0 or of +-1."""
    x, hessian = start(2), torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=REAL)
    found = []
    for seed in range(8):
        estimate = estimate_hessian_diagonal(quadratic(hessian, x), [x], probes=2, seed=seed)
        found.append(estimate.dominance())
    assert sorted(set(found)) == [0.0, 100.0]


def test_estimates_of_half_precision_are_in_single_precision() -> None:
    curvatures = torch.tensor([1.0078125, -3.015625], dtype=torch.bfloat16)
    x = torch.tensor([1.0078125, 1.015625], dtype=torch.bfloat16, requires_grad=True)
    found = estimate_hessian_diagonal(lambda: 0.5 * (curvatures * x.square()).sum(), [x], probes=2)
    (gradient,) = torch.autograd.grad(0.5 * (curvatures * x.square()).sum(), x)
    wide = curvatures.float()
    assert torch.equal(found.row_squares[x], wide.square())
    assert torch.equal(found.diagonal[x], wide)
    assert found.diagonal[x].dtype == torch.float32
    assert torch.equal(found.gradient_squares[x], gradient.float().square())


def test_cosine_distance_is_over_all_pieces_together() -> None:
    x, y = start(2), start(3)
    a = {x: torch.tensor([3.0, 0.0]), y: torch.tensor([4.0, 0.0, 0.0])}
    b = {y: torch.tensor([1.0, 0.0, 0.0]), x: torch.tensor([0.0, 0.0])}
    assert cosine_distance(a, b) == pytest.approx(1 - 4 / 5)
    assert cosine_distance(a, a) == pytest.approx(0, abs=1e-12)
    with pytest.raises(InputError, match="Got 2 and 1 parameters"):
        cosine_distance(a, {x: a[x]})
    with pytest.raises(InputError, match="Got probes = 1"):
        estimate_hessian_diagonal(lambda: x.sum(), [x], probes=1)


# --- theory (S3, section 5) ----------------------------------------------------------------------


def test_lemmas_1_and_2_of_the_modulus() -> None:
    """S3: `x'Ax <= x'|A|x`, and `||Av|| = || |A| v ||`."""
    rng = torch.Generator().manual_seed(0)
    for seed in range(50):
        a, x = random_hessian(6, seed), torch.randn(6, generator=rng, dtype=REAL)
        size = modulus(a)
        assert float(x @ a @ x) < float(x @ size @ x)
        torch.testing.assert_close((a @ x).norm(), (size @ x).norm(), rtol=1e-10, atol=0)
        convex = a @ a  # where the modulus is the matrix itself
        torch.testing.assert_close(modulus(convex), convex)


def test_theorem_1_the_modulus_is_the_only_ideal_positive_preconditioner() -> None:
    """S3: `kappa(H M)` falls to 1 at `c |H|^-1` alone, from any positive definite start."""
    hessian = random_hessian(4, 8)
    assert float(torch.linalg.eigvalsh(hessian).min()) < 0
    ideal = modulus(hessian, -1.0)
    torch.testing.assert_close(torch.linalg.cond(hessian @ ideal), torch.ones((), dtype=REAL))
    for seed in range(2):
        rng = torch.Generator().manual_seed(seed)
        root = torch.randn(4, 4, generator=rng, dtype=REAL).requires_grad_()
        descent = torch.optim.LBFGS([root], max_iter=500, line_search_fn="strong_wolfe")

        def kappa(root: Tensor = root) -> Tensor:
            """Return the Frobenius norm's condition, which is smooth, and `n` at the ideal."""
            product = hessian @ root @ root.mT
            return product.norm() * torch.linalg.inv(product).norm()

        def closure(descent: Any = descent, kappa: Any = kappa) -> Tensor:
            descent.zero_grad()
            loss: Tensor = kappa()
            loss.backward()
            return loss

        descent.step(closure)
        assert float(kappa().detach()) == pytest.approx(4, rel=1e-6)
        found = (root @ root.mT).detach()
        found *= ideal.trace() / found.trace()
        torch.testing.assert_close(found, ideal, rtol=0, atol=1e-2 * float(ideal.abs().max()))


def test_p24_theorem_2_a_step_with_the_modulus_ends_no_higher_than_newtons() -> None:
    for seed in range(50):
        hessian, x = random_hessian(5, seed), start(5, seed).detach()
        gradient = hessian @ x
        ours = x - modulus(hessian, -1.0) @ gradient
        newton = x - torch.linalg.solve(hessian, gradient)
        # Newton's ends at the critical point, whose value is 0 and no minimum.
        assert float(ours @ hessian @ ours) <= float(newton @ hessian @ newton) + 1e-9
