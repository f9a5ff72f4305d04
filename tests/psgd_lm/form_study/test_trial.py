"""One training run of a measurement, and the size of what it keeps."""

import math

import pytest
import torch
from torch import nn

from psgd_lm.form_study.competitors import adamw, newton, whitening
from psgd_lm.form_study.trial import Trial, advance, state_share, train
from psgd_optim import Diagonal, Joint, Kron, LowRank


def quadratic(seed: int) -> Trial:
    """The square of a linear map of fixed inputs, with gradient noise from the step."""
    torch.manual_seed(seed)
    model = nn.Linear(4, 6, bias=False)
    scales = torch.tensor([10.0, 3.0, 1.0, 0.3])

    def loss(step):
        rng = torch.Generator().manual_seed(step)
        return (model(scales * torch.randn(16, 4, generator=rng)) - 1).square().mean()

    def evaluate():
        return float(loss(10**6).detach())

    return Trial(model=model, loss=loss, evaluate=evaluate)


@pytest.mark.parametrize(
    "candidate",
    [adamw(), whitening("k", Kron()), newton("n", Diagonal()), newton("l", Joint(LowRank()))],
    ids=["adamw", "whitening", "newton", "newton-joint"],
)
def test_training_lowers_the_loss_and_ends_at_the_last_rate(candidate):
    trial = quadratic(0)
    before = trial.evaluate()
    optimizers = candidate.build(trial.model, 0.1, 1.0)
    after = train(trial, optimizers, 60)
    assert after < 0.6 * before
    # A tenth of the full rate is left in the last step.
    assert optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01)


def test_loss_that_is_not_finite_counts_as_infinite():
    trial = quadratic(0)
    bad = Trial(model=trial.model, loss=trial.loss, evaluate=lambda: math.nan)
    assert train(bad, adamw().build(bad.model, 0.1, 1.0), 2) == math.inf


def test_steps_with_several_optimizers_move_all_parameters():
    model = nn.Linear(2, 2)
    optimizers = [torch.optim.SGD([p], 0.1) for p in model.parameters()]
    before = [p.detach().clone() for p in model.parameters()]
    advance(optimizers, lambda: model(torch.ones(1, 2)).square().sum())
    assert not any(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_state_is_counted_in_bytes_of_the_parameters():
    trial = quadratic(0)
    for candidate, numbers in (
        (adamw(), 2 * 24 + 1),
        # The momentum, Q, and for every element of Q its divisor.
        (whitening("d", Diagonal()), 24 + 24 + 24),
        # The momentum; d, U and V of rank 2; the divisors of the three.
        (whitening("l", Joint(LowRank(rank=2))), 24 + 5 * 24 + 3),
    ):
        optimizers = candidate.build(trial.model, 0.1, 1.0)
        train(trial, optimizers, 1)
        # Counters of steps and the clock are a few numbers more, of eight bytes at most.
        assert 0 <= 24 * state_share(optimizers) - numbers <= 10
