"""Loss terms against torch.distributions and by hand."""

import pytest
import torch
from torch.distributions import Normal

from psgd_rl import losses
from psgd_rl.distributions import Gaussian


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "has_gradient"),
    [
        (1.0, 2.0, -2.0, True),
        (1.5, 2.0, -2.4, False),  # already likelier than the clip range: no more to gain
        (0.5, 2.0, -1.0, True),
        (1.5, -2.0, 3.0, True),
        (0.5, -2.0, 1.6, False),
    ],
)
def test_policy_loss_is_clipped_only_where_that_lowers_the_gain(
    ratio, advantage, loss, has_gradient
):
    log_ratio = torch.tensor([ratio], dtype=torch.float64).log().requires_grad_()
    got = losses.policy_loss(log_ratio, torch.tensor([advantage], dtype=torch.float64), 0.2)
    got.backward()
    assert got.item() == pytest.approx(loss)
    assert (log_ratio.grad.item() != 0) == has_gradient


def test_approximate_kl_estimates_the_exact_one():
    generator = torch.Generator().manual_seed(0)
    old_std, new_std, shift = 1.0, 1.2, 0.3
    action = old_std * torch.randn(400_000, 1, generator=generator, dtype=torch.float64)
    zero = torch.zeros_like(action)
    old = Gaussian(mean=zero, log_std=torch.tensor([old_std]).log()).log_probability(action)
    new = Gaussian(mean=zero + shift, log_std=torch.tensor([new_std]).log()).log_probability(action)
    exact = torch.distributions.kl_divergence(Normal(0.0, old_std), Normal(shift, new_std))
    assert losses.approximate_kl(new - old).item() == pytest.approx(exact.item(), rel=0.02)
    assert losses.approximate_kl(torch.zeros(3)) == 0


def test_clip_fraction_counts_the_outside():
    log_ratio = torch.tensor([0.5, 0.79, 0.81, 1.0, 1.19, 1.21]).log()
    assert losses.clip_fraction(log_ratio, 0.2).item() == pytest.approx(0.5)


def test_value_loss_and_explained_variance():
    value, target = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 5.0])
    assert losses.value_loss(value, target).item() == pytest.approx(2 / 3)
    assert losses.explained_variance(target, target) == 1
    assert losses.explained_variance(torch.zeros(3), target) == 0
    assert losses.explained_variance(value, torch.ones(3)).isfinite()


def test_value_loss_gains_nothing_from_values_that_moved_too_far():
    before, target = torch.zeros(4), torch.tensor([1.0, 1.0, -1.0, 0.1])
    value = torch.tensor([0.1, 0.5, 0.5, 0.5], requires_grad=True)
    loss = losses.clipped_value_loss(value, target, before, 0.2)
    # within the range; past it towards the target; away from the target; past the target
    expected = [0.9**2, 0.8**2, 1.5**2, 0.4**2]
    assert loss.item() == pytest.approx(0.5 * sum(expected) / 4)
    loss.backward()
    assert (value.grad != 0).tolist() == [True, False, True, True]
    torch.testing.assert_close(
        losses.clipped_value_loss(value, target, before, 0.0), losses.value_loss(value, target)
    )
