"""The networks, and acting in numpy against the torch actor."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from psgd_rl.actor_critic import ActingPolicy, AffineLayer, CategoricalActor, Critic, GaussianActor


def make_actor(sizes=(17, 64, 64, 6), seed=0) -> GaussianActor:
    generator = torch.Generator().manual_seed(seed)
    return GaussianActor(sizes, log_std=-0.5, log_std_bounds=(-4.0, 1.0), generator=generator)


def test_affine_layer_is_a_linear_layer_in_one_matrix():
    layer = AffineLayer(5, 3, 1.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.weight[:, -1] = torch.tensor([1.0, 2.0, 3.0])
    peer = nn.Linear(5, 3)
    peer.load_state_dict({"weight": layer.weight[:, :-1].detach(), "bias": layer.weight[:, -1]})
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), peer(x), rtol=1e-6, atol=1e-6)


def test_start_is_orthogonal_with_zero_bias():
    weight = make_actor().layers[1].weight.detach()
    torch.testing.assert_close(weight[:, :-1] @ weight[:, :-1].T, 2 * torch.eye(64))
    assert (weight[:, -1] == 0).all()


def test_first_actions_are_nearly_zero():
    x = torch.randn(100, 17, generator=torch.Generator().manual_seed(1))
    assert make_actor()(x).abs().max() < 0.1


@pytest.mark.parametrize("sizes", [(17, 64, 64, 6), (3, 8, 1), (4, 16, 16, 16, 2)])
def test_acting_agrees_with_the_actor(sizes):
    actor = make_actor(sizes)
    with torch.no_grad():
        for p in actor.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
    policy = ActingPolicy(actor)
    x = np.random.default_rng(0).normal(size=(8, sizes[0])).astype(np.float32)
    got = policy.best(x)
    assert got.dtype == np.float32
    # Both are float32 with other orders of summation.
    np.testing.assert_allclose(got, actor(torch.from_numpy(x)).detach(), rtol=1e-4, atol=2e-6)
    noise = policy.noise(np.random.default_rng(0), (9, 8))
    assert (noise.dtype, noise.shape) == (np.float32, (9, 8, sizes[-1]))
    np.testing.assert_array_equal(policy.act(x, noise[1]), got + noise[1])


def test_numbered_actions_have_the_probabilities_of_the_actor():
    actor = CategoricalActor((3, 8, 4), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        actor.layers[-1].weight.copy_(torch.randn(4, 9, generator=torch.Generator().manual_seed(1)))
    policy, x = ActingPolicy(actor), np.ones((1, 3), dtype=np.float32)
    logits = actor(torch.from_numpy(x))
    noise = policy.noise(np.random.default_rng(0), (40_000,))
    drawn = policy.act(x, noise)
    assert (drawn.dtype, drawn.shape) == (np.int64, (40_000,))
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(shares, logits.softmax(-1)[0].detach(), atol=0.01)
    assert policy.best(x).tolist() == logits.argmax(-1).tolist()


def test_acting_keeps_the_weights_of_its_moment():
    actor = make_actor()
    policy, x = ActingPolicy(actor), np.ones((1, 17), dtype=np.float32)
    before = policy.best(x)
    with torch.no_grad():
        for p in actor.parameters():
            p.add_(1)
    np.testing.assert_array_equal(policy.best(x), before)


def test_log_std_comes_back_within_its_bounds():
    actor = make_actor()
    with torch.no_grad():
        actor.log_std.copy_(torch.tensor([-9.0, -4.0, 0.0, 0.5, 1.0, 7.0]))
    actor.bound_()
    assert actor.log_std.tolist() == [-4.0, -4.0, 0.0, 0.5, 1.0, 1.0]


def test_critic_gives_one_value_per_row():
    critic = Critic((17, 32, 1), generator=torch.Generator().manual_seed(0))
    assert critic(torch.zeros(5, 17)).shape == (5,)
    assert math.isclose(critic(torch.zeros(1, 17)).item(), 0.0)


def test_seed_decides_the_start():
    one, two, three = (make_actor(seed=s).layers[0].weight for s in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
