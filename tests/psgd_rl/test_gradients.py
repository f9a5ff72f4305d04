"""Gradients derived by hand against autograd, in double precision."""

import pytest
import torch

from psgd_rl import losses
from psgd_rl.actor_critic import CategoricalActor, Critic, GaussianActor
from psgd_rl.gradients import covers, set_actor_gradient, set_critic_gradient

SIZES = [(5, 8, 8, 3), (5, 7, 3), (5, 4, 6, 5, 3)]


def filled(network):
    """Put numbers of unit size everywhere: tanh is curved, and ratios are far from 1."""
    generator = torch.Generator().manual_seed(1)
    network = network.double()
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / 2)
    return network


def make_actor(kind, sizes):
    generator = torch.Generator().manual_seed(0)
    if kind is CategoricalActor:
        return filled(CategoricalActor(sizes, generator=generator))
    bounds = (-4.0, 1.0)
    return filled(GaussianActor(sizes, log_std=0.0, log_std_bounds=bounds, generator=generator))


def make_batch(actor, size=200):
    generator = torch.Generator().manual_seed(2)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    observation = normal(size, 5)
    action = torch.randint(3, (size,), generator=generator)
    if isinstance(actor, GaussianActor):
        action = normal(size, 3)
    with torch.no_grad():
        old = actor.distribution(actor(observation)).log_probability(action)
    value = normal(size)
    return losses.Minibatch(
        observation=observation,
        action=action,
        log_probability=old + 0.3 * normal(size),  # a third inside, a third on each side
        advantage=normal(size),
        target=value + normal(size),
        value=value,
    )


def assert_equals_autograd(network, loss, set_gradient):
    loss.backward()
    expected = [p.grad for p in network.parameters()]
    network.zero_grad()
    set_gradient()
    for want, p in zip(expected, network.parameters(), strict=True):
        assert want.any()
        torch.testing.assert_close(p.grad, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("entropy", [0.0, 0.3])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", [GaussianActor, CategoricalActor])
def test_actors_gradient(kind, sizes, entropy):
    actor = make_actor(kind, sizes)
    batch = make_batch(actor)
    policy = actor.distribution(actor(batch.observation))
    log_ratio = policy.log_probability(batch.action) - batch.log_probability
    ratio = log_ratio.detach().exp()
    for side in (ratio > 1.2, ratio < 0.8):  # clipped and not, on both sides
        for gains in (batch.advantage > 0, batch.advantage < 0):
            assert (side & gains).sum() > 10
    loss = losses.policy_loss(log_ratio, batch.advantage, 0.2) - entropy * policy.entropy().mean()
    assert_equals_autograd(actor, loss, lambda: set_actor_gradient(actor, batch, 0.2, entropy))


@pytest.mark.parametrize("clip", [0.0, 0.2])
@pytest.mark.parametrize("sizes", SIZES)
def test_critics_gradient(sizes, clip):
    critic = filled(Critic((*sizes[:-1], 1), generator=torch.Generator().manual_seed(0)))
    batch = make_batch(make_actor(GaussianActor, sizes))
    loss = losses.clipped_value_loss(critic(batch.observation), batch.target, batch.value, clip)
    assert_equals_autograd(critic, loss, lambda: set_critic_gradient(critic, batch, clip))


def test_other_networks_are_left_to_autograd():
    assert covers(make_actor(GaussianActor, SIZES[0]))
    assert not covers(torch.nn.Linear(2, 1))
