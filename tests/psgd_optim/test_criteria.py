"""What each criterion makes of a step, and what a preconditioner fitted to it becomes."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from psgd_optim.criteria import (
    Criterion,
    Evidence,
    Fisher,
    GradientWhitening,
    MomentumWhitening,
    Newton,
    UnbiasedFisher,
    Whitening,
)
from psgd_optim.forms.kron import Kron
from psgd_optim.noise import noise_generator
from psgd_optim.types import Probe, State
from tests.reference import inverse_square_root

GRAD, AVERAGE = torch.full((1, 5000), 2.0), torch.full((1, 5000), 3.0)
SEEN = Evidence(grad=GRAD, average=AVERAGE, steps=torch.zeros(1))
CPU = torch.device("cpu")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sampled(
    criterion: Criterion, seen: Evidence, memory: State, random: torch.Generator, needs_v: bool
) -> Probe:
    noise = criterion.draw(seen.grad, random, needs_v=needs_v)
    return criterion.probe(seen, memory, noise, needs_v=needs_v)


# --- samples -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (GradientWhitening(damping=0.0), GRAD),
        (Fisher(damping=0.0), GRAD),
        (MomentumWhitening(damping=0.0), AVERAGE),
    ],
)
def test_each_whitening_has_its_own_sample(criterion: Whitening, expected: Tensor) -> None:
    probe = sampled(criterion, SEEN, {}, rng(), needs_v=False)
    torch.testing.assert_close(probe.h, expected, rtol=0, atol=0)
    assert probe.v is None
    assert criterion.pairs is None
    assert torch.equal(criterion.size_sample(SEEN), GRAD)


def test_damping_is_noise_of_that_size_and_leaves_the_input_alone() -> None:
    grad = GRAD.clone()
    seen = Evidence(grad=grad, average=grad, steps=torch.zeros(1))
    probe = sampled(GradientWhitening(damping=0.5), seen, {}, rng(), needs_v=False)
    # Two standard errors of a standard deviation from 5000 numbers are 2 %.
    assert float((probe.h - GRAD).std()) == pytest.approx(0.5, rel=0.03)
    assert torch.equal(grad, GRAD)


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_a_form_that_needs_a_probe_gets_the_damping_noise_itself(damping: float) -> None:
    probe = sampled(GradientWhitening(damping=damping), SEEN, {}, rng(), needs_v=True)
    assert probe.v is not None
    assert float(probe.v.std()) == pytest.approx(1.0, rel=0.03)
    torch.testing.assert_close(probe.h, GRAD + damping * probe.v, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("traditional", [False, True])
def test_newton_damps_with_the_probe_or_with_an_independent_one(traditional: bool) -> None:
    v = torch.randn(1, 5000, generator=rng(1))
    seen = Evidence(grad=GRAD, average=AVERAGE, steps=torch.ones(1), pair=(v, 2 * v))
    criterion = Newton(damping=0.5, traditional=traditional)
    probe = sampled(criterion, seen, {}, rng(), needs_v=False)
    assert probe.v is v
    noise = (probe.h - 2 * v) / 0.5
    correlation = float((noise * v).mean())
    assert float(noise.std()) == pytest.approx(1.0, rel=0.03)
    assert correlation == pytest.approx(1.0 if traditional else 0.0, abs=0.05)
    assert torch.equal(criterion.size_sample(seen), 2 * v)
    assert torch.equal(sampled(Newton(damping=0.0), seen, {}, rng(), needs_v=True).h, 2 * v)


def test_newton_without_a_pair_says_so() -> None:
    with pytest.raises(ValueError, match="no pair in a step that fits Q"):
        sampled(Newton(), SEEN, {}, rng(), needs_v=False)


def test_the_unbiased_sample_keeps_the_right_part_of_the_mean() -> None:
    criterion = UnbiasedFisher(batch_size=4, damping=0.0)
    memory = {"mean_grad": torch.full((1, 5000), 1.5)}
    probe = sampled(criterion, SEEN, memory, rng(), needs_v=False)
    torch.testing.assert_close(probe.h, GRAD - 1.5 + 0.75)
    criterion.remember(Evidence(grad=GRAD, average=GRAD, steps=torch.ones(1)), memory, None)
    torch.testing.assert_close(memory["mean_grad"], torch.full((1, 5000), 1.75))
    criterion.remember(SEEN, memory, torch.tensor([False]))
    torch.testing.assert_close(memory["mean_grad"], torch.full((1, 5000), 1.75))


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (GradientWhitening(), 3.0),
        (MomentumWhitening(), 3.0),
        (Newton(), 3.0),
        (Fisher(), 9.0),
        (UnbiasedFisher(batch_size=2), 4.5),
    ],
)
def test_fisher_applies_p_twice(criterion: Criterion, expected: float) -> None:
    found = criterion.direction(lambda x: 3 * x, torch.ones(1, 2))
    torch.testing.assert_close(found, torch.full((1, 2), expected))


def test_numbers_outside_their_range_are_refused() -> None:
    for kind in (GradientWhitening, Newton, Fisher):
        for damping in (-1.0, math.nan):
            with pytest.raises(ValueError, match=f"{kind.__name__} got damping"):
                kind(damping=damping)
    with pytest.raises(ValueError, match="batch_size = 0"):
        UnbiasedFisher(batch_size=0)
    with pytest.raises(ValueError, match="decay = 1"):
        UnbiasedFisher(batch_size=2, decay=1.0)
    with pytest.raises(ValueError, match="UnbiasedFisher got damping"):
        UnbiasedFisher(batch_size=2, damping=-1.0)


# --- what a fit becomes --------------------------------------------------------------------------

ROWS, N = 12, 4
FORM = Kron(max_skew=math.inf)  # dense on a vector


def fit(
    criterion: Criterion,
    evidence: Callable[[int], Evidence],
    updates: int = 1500,
    memory: dict[str, Tensor] | None = None,
    fall: float = 0.01,
) -> Tensor:
    """Return `P` after a fit whose step falls by a factor, (ROWS, N, N); rows are repeats.

    Pairs of a positive definite matrix need no fall: at `P H = I` the gradient of every sample
    vanishes, whereas with `P H` a reflection only its mean does.
    """
    state = FORM.init((N,), torch.ones(ROWS, dtype=torch.float64), torch.empty(0).double())
    for t in range(updates):
        noise = noise_generator(CPU, 0, t, 0)
        probe = sampled(criterion, evidence(t), memory or {}, noise, needs_v=False)
        FORM.update(state, probe, FORM.draw(state, noise), 0.4 * fall ** (t / updates))
    q = FORM.to_dense(state)
    return q.mH @ q


def hessian(*eigenvalues: float) -> Tensor:
    turn = torch.linalg.qr(torch.randn(N, N, generator=rng(3), dtype=torch.float64)).Q
    return turn @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ turn.mT


def curvature(h: Tensor, noise: float = 0.0) -> Callable[[int], Evidence]:
    """Return pairs `(v, H v + noise)`, fresh ones in every step."""

    def evidence(t: int) -> Evidence:
        v, e = torch.randn(2, ROWS, N, generator=rng(1000 + t), dtype=torch.float64)
        return Evidence(grad=v, average=v, steps=torch.ones(ROWS), pair=(v, v @ h + noise * e))

    return evidence


def error(p: Tensor, target: Tensor) -> float:
    """Return the mean relative Frobenius error of the rows."""
    return float((p - target).flatten(1).norm(dim=1).mean() / target.norm())


def absolute(h: Tensor) -> Tensor:
    return inverse_square_root(h @ h)  # |H|^-1


def test_p3_newton_fits_the_inverse_modulus_of_an_indefinite_hessian() -> None:
    h = hessian(-2.0, 0.3, 1.0, 4.0)
    p = fit(Newton(damping=0.0), curvature(h))
    assert error(p, absolute(h)) < 0.03  # of single repeats, noise-limited: measured 1.6 %
    mean = p.mean(dim=0)
    assert float((mean - absolute(h)).norm() / absolute(h).norm()) < 0.01
    # The other sign of the pair is as good, but the plain inverse is far off.
    assert error(p, torch.linalg.inv(h)) > 0.2


def test_p4_noisy_pairs_damp_the_fit() -> None:
    h, noise = hessian(-2.0, 0.3, 1.0, 4.0), 0.7
    p = fit(Newton(damping=0.0), curvature(h, noise))
    target = inverse_square_root(h @ h + noise**2 * torch.eye(N, dtype=torch.float64))
    assert error(p, target) < 0.08  # of single repeats, noise-limited as P5
    mean = p.mean(dim=0)
    assert float((mean - target).norm() / target.norm()) < 0.04
    assert float(torch.linalg.eigvalsh(absolute(h) - mean).min()) > 0


def test_p5_whitening_fits_the_inverse_root_of_the_damped_second_moment() -> None:
    root, damping = hessian(0.2, 0.5, 1.0, 3.0), 0.4

    def evidence(t: int) -> Evidence:
        g = torch.randn(ROWS, N, generator=rng(5000 + t), dtype=torch.float64) @ root
        return Evidence(grad=g, average=g, steps=torch.ones(ROWS))

    p = fit(GradientWhitening(damping=damping), evidence, 2000)
    target = inverse_square_root(root @ root + damping**2 * torch.eye(N, dtype=torch.float64))
    assert error(p, target) < 0.08
    undamped = inverse_square_root(root @ root)
    assert error(p, undamped) > 0.2


def test_p6_the_unbiased_fit_is_the_inverse_fisher_matrix_of_single_samples() -> None:
    size, root = 8, hessian(0.5, 0.8, 1.0, 2.0)
    mean = torch.tensor([1.0, -0.5, 0.3, 0.8], dtype=torch.float64)
    fisher = root @ root + torch.outer(mean, mean)  # of single samples from N(mean, root^2)

    def evidence(t: int) -> Evidence:
        x = torch.randn(ROWS, N, generator=rng(9000 + t), dtype=torch.float64)
        g = mean + x @ root / math.sqrt(size)  # distributed as the mean over a batch
        return Evidence(grad=g, average=g, steps=torch.full((ROWS,), float(t)))

    memory = {"mean_grad": mean.expand(ROWS, N).clone()}
    p = fit(UnbiasedFisher(batch_size=size, damping=0.0), evidence, 2000, memory)
    target = torch.linalg.inv(fisher)
    squared = p @ p / size
    assert error(squared, target) < 0.15
    # The plain sample has the mean's part 8 times too large.
    biased = torch.linalg.inv(root @ root + size * torch.outer(mean, mean))
    assert error(squared, biased) > error(squared, target)


@pytest.mark.parametrize("traditional", [False, True])
def test_p7_damping_keeps_an_eigenvalue_near_minus_damping_bounded(traditional: bool) -> None:
    damping = 0.5
    h = hessian(-damping, 0.3, 1.0, 3.0)
    updates = 800 if traditional else 1500
    p = fit(Newton(damping=damping, traditional=traditional), curvature(h), updates)
    eye = torch.eye(N, dtype=torch.float64)
    largest = torch.linalg.matrix_norm(p, 2)
    if traditional:  # |H + damping I|^-1, which does not exist: P grows without end
        assert float(largest.min()) > 100
        return
    target = inverse_square_root(h @ h + damping**2 * eye)
    assert error(p, target) < 0.05
    # At most 1 / damping, up to the noise of the fit.
    assert float(largest.mean()) < 1.05 / damping


def test_p7_traditional_damping_shifts_the_eigenvalues() -> None:
    h, eye = hessian(-0.3, 0.3, 1.0, 4.0), torch.eye(N, dtype=torch.float64)
    p = fit(Newton(damping=0.5, traditional=True), curvature(h), updates=700, fall=1.0)
    assert error(p, absolute(h + 0.5 * eye)) < 1e-6


def test_p30_the_criterion_is_at_least_twice_the_trace_of_the_modulus() -> None:
    h = hessian(-2.0, 0.3, 1.0, 4.0)
    bound = 2 * float(torch.linalg.eigvalsh(h).abs().sum())

    def cost(p: Tensor) -> float:
        """Return c(P) for v ~ N(0, I): tr(P H^2) + tr(P^-1)."""
        return float((p @ h @ h).trace() + torch.linalg.inv(p).trace())

    for seed in range(20):
        x = torch.randn(N, N, generator=rng(seed), dtype=torch.float64)
        assert cost(x @ x.mT + 0.01 * torch.eye(N, dtype=torch.float64)) > bound
    assert cost(absolute(h)) == pytest.approx(bound, rel=1e-12)
    fitted = fit(Newton(damping=0.0), curvature(h), 600)
    assert all(bound * (1 - 1e-12) <= cost(p) < 1.01 * bound for p in fitted)
    # The criterion of the samples themselves, one more look at what a probe is.
    probe: Probe = sampled(Newton(damping=0.0), curvature(h)(1), {}, rng(), needs_v=False)
    assert probe.v is not None
    torch.testing.assert_close(probe.h, probe.v @ h)
