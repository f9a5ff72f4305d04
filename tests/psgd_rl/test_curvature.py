"""Products with the curvature of both networks, against dense matrices of single samples."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from psgd_optim.clipping import TrustRegion
from psgd_optim.config import CurvatureCriterion, PSGDConfig, build
from psgd_optim.updates import Update
from psgd_rl import losses
from psgd_rl.actor_critic import Actor, Critic
from psgd_rl.curvature import curvature_pair, curvature_product, normal_kl, value_distance

SAMPLES, OBSERVED, ACTIONS = 5, 3, 2
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def make_networks() -> tuple[Actor, Critic, Tensor]:
    generator = torch.Generator().manual_seed(0)
    bounds = (-4.0, 1.0)
    actor = Actor(
        (OBSERVED, 4, ACTIONS), log_std=-0.7, log_std_bounds=bounds, generator=generator
    ).double()
    with torch.no_grad():
        actor.layers[-1].weight.mul_(100)  # the start's mean is nearly zero
    critic = Critic((OBSERVED, 4, 1), generator=generator).double()
    observation = torch.randn(SAMPLES, OBSERVED, generator=generator, dtype=torch.float64)
    return actor, critic, observation


def flat(tensors) -> Tensor:
    return torch.cat([x.flatten() for x in tensors])


def categorical_kl(old, new) -> Tensor:
    old, new = (x[0].log_softmax(-1) for x in (old, new))
    return (old.exp() * (old - new)).sum(-1)


def dense(divergence, outputs, params) -> Tensor:
    """Return the matrix of the products with every unit vector."""
    columns = []
    for unit in torch.eye(sum(p.numel() for p in params), dtype=torch.float64):
        parts = unit.split([p.numel() for p in params])
        probes = [x.view_as(p) for x, p in zip(parts, params, strict=True)]
        columns.append(flat(curvature_product(divergence, outputs(), params, probes)))
    return torch.stack(columns, dim=1)


def jacobian(outputs, params) -> Tensor:
    """Return the derivatives of all outputs by all parameters, one output after the other."""
    rows = [torch.autograd.grad(y, params, retain_graph=True) for y in outputs.flatten()]
    return torch.stack([flat(row) for row in rows])


def assert_positive(matrix: Tensor) -> None:
    torch.testing.assert_close(matrix, matrix.T, **EXACT)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-12


def test_normal_kl_is_torchs():
    generator = torch.Generator().manual_seed(0)
    mean, old_mean = torch.randn(2, 50, 4, generator=generator, dtype=torch.float64)
    log_std, old_log_std = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    old = Independent(Normal(old_mean, old_log_std.exp()), 1)
    new = Independent(Normal(mean, log_std.exp()), 1)
    got = normal_kl((old_mean, old_log_std), (mean, log_std))
    torch.testing.assert_close(got, kl_divergence(old, new), **EXACT)


def test_normal_policys_product_is_the_fisher_matrix_of_its_scores():
    actor, _, observation = make_networks()
    params = list(actor.parameters())
    # E[s s^T] of the scores s, exactly: the rule of Gauss and Hermite with three nodes integrates
    # polynomials of a normal variable up to the fifth degree, and s s^T is one of the fourth.
    node = torch.tensor([-(3**0.5), 0.0, 3**0.5], dtype=torch.float64)
    weight = torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=torch.float64)
    nodes = torch.cartesian_prod(*[node] * ACTIONS)
    weights = torch.cartesian_prod(*[weight] * ACTIONS).prod(1)
    fisher = torch.zeros(2 * (sum(p.numel() for p in params),), dtype=torch.float64)
    for x in observation:
        for node, weight in zip(nodes, weights, strict=True):
            mean = actor(x[None])
            action = (mean + node * actor.log_std.exp()).detach()
            score = torch.autograd.grad(losses.log_probability(mean, actor.log_std, action), params)
            fisher += weight / SAMPLES * flat(score).outer(flat(score))
    got = dense(normal_kl, lambda: (actor(observation), actor.log_std), params)
    torch.testing.assert_close(got, fisher, **EXACT)
    assert_positive(got)


def test_categorical_policys_product_is_the_fisher_matrix_of_its_scores():
    actor, _, observation = make_networks()
    params = list(actor.layers.parameters())
    fisher = torch.zeros(2 * (sum(p.numel() for p in params),), dtype=torch.float64)
    for x in observation:
        for action in range(ACTIONS):
            policy = Categorical(logits=actor(x))
            log_probability = policy.log_prob(torch.tensor(action))
            score = flat(torch.autograd.grad(log_probability, params))
            fisher += log_probability.exp().detach() / SAMPLES * score.outer(score)
    got = dense(categorical_kl, lambda: (actor(observation),), params)
    torch.testing.assert_close(got, fisher, **EXACT)
    assert_positive(got)


def test_critics_product_is_gauss_newtons():
    _, critic, observation = make_networks()
    params = list(critic.parameters())
    j = jacobian(critic(observation), params)
    got = dense(value_distance, lambda: (critic(observation),), params)
    torch.testing.assert_close(got, j.T @ j / SAMPLES, **EXACT)
    assert_positive(got)


def test_divergences_have_no_slope_where_nothing_has_moved():
    actor, critic, observation = make_networks()
    for divergence, outputs, network in (
        (normal_kl, (actor(observation), actor.log_std), actor),
        (value_distance, (critic(observation),), critic),
    ):
        old = tuple(x.detach() for x in outputs)
        loss = divergence(old, outputs).mean()
        assert loss == 0
        slope = flat(torch.autograd.grad(loss, list(network.parameters())))
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-15)


def test_pairs_are_in_the_optimizers_order_and_from_the_generator():
    actor, _, observation = make_networks()
    config = PSGDConfig(criterion=CurvatureCriterion())
    optimizer = build(actor.named_parameters(), config)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    assert params[-1] is actor.log_std is not list(actor.parameters())[-1]
    drawn = []
    for seed in (0, 0, 1):
        generator = torch.Generator().manual_seed(seed)
        outputs = (actor(observation), actor.log_std)
        v, hv = curvature_pair(normal_kl, outputs, optimizer, generator)
        expected = curvature_product(normal_kl, (actor(observation), actor.log_std), params, v)
        torch.testing.assert_close(hv, expected, rtol=0, atol=0)
        assert not any(x.requires_grad for x in (*v, *hv))
        drawn.append(flat(v))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("radius", [1e-6, 1e-8])
def test_step_of_the_trust_region_moves_the_policy_by_its_radius(radius):
    """A natural step that the region cuts short has the KL divergence that the region allows."""
    actor, _, observation = make_networks()
    params = list(actor.parameters())
    fisher = dense(normal_kl, lambda: (actor(observation), actor.log_std), params)
    generator = torch.Generator().manual_seed(1)
    gradient = fisher @ torch.randn(len(fisher), generator=generator, dtype=torch.float64)
    natural = torch.linalg.lstsq(fisher, gradient).solution
    update = Update(natural[None].clone(), lengths=(gradient @ natural).sqrt()[None])
    TrustRegion(radius).clip_([update])
    old = (actor(observation).detach(), actor.log_std.detach().clone())
    with torch.no_grad():
        parts = update.rows[0].split([p.numel() for p in params])
        for p, x in zip(params, parts, strict=True):
            p.sub_(x.view_as(p))
    moved = normal_kl(old, (actor(observation), actor.log_std)).mean().item()
    assert moved == pytest.approx(radius, rel=2e-2)
