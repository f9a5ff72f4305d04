import pytest
import torch
from experiments.problems.quadratics import DriftingQuadratic, NoisyQuadratic, Quadratic

from psgd_optim.types import InputError

CPU = torch.device("cpu")
KINDS = pytest.mark.parametrize("kind", [Quadratic, NoisyQuadratic, DriftingQuadratic])


def at_solution(problem):
    with torch.no_grad():
        problem.parameters[0].copy_(problem.solution)
    return problem


@KINDS
def test_draws_are_functions_of_seed_and_step(kind):
    first, same, other = kind(1, CPU), kind(1, CPU), kind(2, CPU)
    assert torch.equal(first.loss(5), same.loss(5))
    assert torch.equal(first.loss(5), first.loss(5))
    assert not torch.equal(first.loss(5), other.loss(5))
    assert not torch.equal(first.parameters[0], other.parameters[0])


@KINDS
@pytest.mark.parametrize("size", [6, 7])
def test_the_hessian_is_that_of_the_loss_and_has_the_condition_asked_for(kind, size):
    problem = kind(3, CPU, size=size, condition=50.0)
    (x,) = problem.parameters
    for step in (0, 300):
        (grad,) = torch.autograd.grad(problem.loss(step), x, create_graph=True)
        rows = [torch.autograd.grad(g, x, retain_graph=True)[0] for g in grad]
        torch.testing.assert_close(torch.stack(rows), problem.hessian(step), rtol=1e-10, atol=1e-10)
        values = torch.linalg.eigvalsh(problem.hessian(step))
        assert float(values[0]) == pytest.approx(1)
        assert float(values[-1]) == pytest.approx(50)


@KINDS
def test_the_solution_is_the_minimum_without_noise(kind):
    problem = kind(0, CPU)
    start = problem.evaluate()
    assert start["loss"] > 0
    assert start["distance"] > 0
    assert at_solution(problem).evaluate() == {"loss": 0.0, "distance": 0.0}


def test_a_newton_step_solves_the_still_one():
    problem = Quadratic(0, CPU)
    (x,) = problem.parameters
    (grad,) = torch.autograd.grad(problem.loss(0), x)
    with torch.no_grad():
        x -= torch.linalg.solve(problem.hessian(0), grad)
    assert problem.evaluate()["distance"] < 1e-18


def test_noise_has_the_size_asked_for_and_no_mean():
    problem = at_solution(NoisyQuadratic(0, CPU, noise=0.3))
    (x,) = problem.parameters
    grads = torch.stack([torch.autograd.grad(problem.loss(t), x)[0] for t in range(300)])
    assert float(grads.std()) == pytest.approx(0.3, rel=0.05)  # of 6000 numbers: 1 % deviation
    assert float(grads.mean(dim=0).abs().max()) < 4 * 0.3 / 300**0.5
    assert float(NoisyQuadratic(0, CPU, noise=0.0).loss(3).detach()) == pytest.approx(
        Quadratic(0, CPU).evaluate()["loss"]
    )


@pytest.mark.parametrize("size", [6, 7])
def test_a_drifting_hessian_turns_once_around_in_a_period(size):
    problem = DriftingQuadratic(0, CPU, period=100.0, size=size)
    still = Quadratic(0, CPU, size=size)
    first = problem.hessian(0)
    torch.testing.assert_close(first, still.hessian(0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(problem.hessian(100), first, rtol=1e-9, atol=1e-8)
    steps = [float((problem.hessian(t + 1) - problem.hessian(t)).norm()) for t in range(0, 50, 10)]
    assert min(steps) > 0
    assert float((problem.hessian(25) - first).norm()) > 0.3 * float(first.norm())


def test_bad_sizes_are_refused():
    for make, words in (
        (lambda: Quadratic(0, CPU, size=1), "Got size = 1"),
        (lambda: Quadratic(0, CPU, condition=0.5), "Got condition = 0.5"),
        (lambda: NoisyQuadratic(0, CPU, noise=-1.0), "Got noise = -1.0"),
        (lambda: DriftingQuadratic(0, CPU, period=0.0), "Got period = 0.0"),
    ):
        with pytest.raises(InputError, match=words):
            make()
