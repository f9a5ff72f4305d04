"""Products with the curvature of both networks, against dense matrices of single samples."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from psgd_optim.clipping import TrustRegion
from psgd_optim.config import CurvatureCriterion, PSGDConfig, build
from psgd_optim.updates import Update
from psgd_rl.actor_critic import Actor, CategoricalActor, Critic, GaussianActor
from psgd_rl.curvature import (
    curvature_pair,
    curvature_product,
    policy_divergence,
    value_divergence,
)

SAMPLES, OBSERVED, ACTIONS = 5, 3, 2
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def make_actor(*, is_discrete: bool = False) -> Actor:
    generator = torch.Generator().manual_seed(0)
    sizes = (OBSERVED, 4, ACTIONS)
    actor = (
        CategoricalActor(sizes, generator=generator)
        if is_discrete
        else GaussianActor(sizes, log_std=-0.7, log_std_bounds=(-4.0, 1.0), generator=generator)
    ).double()
    with torch.no_grad():
        actor.layers[-1].weight.mul_(100)  # the start's outputs are nearly zero
    return actor


def make_critic() -> Critic:
    return Critic((OBSERVED, 4, 1), generator=torch.Generator().manual_seed(1)).double()


def observations() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(SAMPLES, OBSERVED, generator=generator, dtype=torch.float64)


def policy_of(actor: Actor):
    return actor.distribution(actor(observations()))


def flat(tensors) -> Tensor:
    return torch.cat([x.flatten() for x in tensors])


def dense(divergence_of, params) -> Tensor:
    """Return the matrix of the products with every unit vector."""
    columns = []
    for unit in torch.eye(sum(p.numel() for p in params), dtype=torch.float64):
        parts = unit.split([p.numel() for p in params])
        probes = [x.view_as(p) for x, p in zip(parts, params, strict=True)]
        columns.append(flat(curvature_product(divergence_of(), params, probes)))
    return torch.stack(columns, dim=1)


def jacobian(outputs, params) -> Tensor:
    """Return the derivatives of all outputs by all parameters, one output after the other."""
    rows = [torch.autograd.grad(y, params, retain_graph=True) for y in outputs.flatten()]
    return torch.stack([flat(row) for row in rows])


def assert_positive(matrix: Tensor) -> None:
    torch.testing.assert_close(matrix, matrix.T, **EXACT)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-12


def test_normal_policys_product_is_the_fisher_matrix_of_its_scores():
    actor = make_actor()
    params = list(actor.parameters())
    # E[s s^T] of the scores s, exactly: the rule of Gauss and Hermite with three nodes integrates
    # polynomials of a normal variable up to the fifth degree, and s s^T is one of the fourth.
    node = torch.tensor([-(3**0.5), 0.0, 3**0.5], dtype=torch.float64)
    weight = torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=torch.float64)
    nodes = torch.cartesian_prod(*[node] * ACTIONS)
    weights = torch.cartesian_prod(*[weight] * ACTIONS).prod(1)
    fisher = torch.zeros(2 * (sum(p.numel() for p in params),), dtype=torch.float64)
    for x in observations():
        for node, weight in zip(nodes, weights, strict=True):
            policy = actor.distribution(actor(x[None]))
            action = (policy.mean + node * actor.log_std.exp()).detach()
            score = flat(torch.autograd.grad(policy.log_probability(action), params))
            fisher += weight / SAMPLES * score.outer(score)
    got = dense(lambda: policy_divergence(policy_of(actor)), params)
    torch.testing.assert_close(got, fisher, **EXACT)
    assert_positive(got)


def test_categorical_policys_product_is_the_fisher_matrix_of_its_scores():
    actor = make_actor(is_discrete=True)
    params = list(actor.parameters())
    fisher = torch.zeros(2 * (sum(p.numel() for p in params),), dtype=torch.float64)
    for x in observations():
        for action in range(ACTIONS):
            policy = actor.distribution(actor(x[None]))
            log_probability = policy.log_probability(torch.tensor([action]))
            score = flat(torch.autograd.grad(log_probability, params))
            fisher += log_probability.exp().detach() / SAMPLES * score.outer(score)
    got = dense(lambda: policy_divergence(policy_of(actor)), params)
    torch.testing.assert_close(got, fisher, **EXACT)
    assert_positive(got)


def test_critics_product_is_gauss_newtons():
    critic = make_critic()
    params = list(critic.parameters())
    j = jacobian(critic(observations()), params)
    got = dense(lambda: value_divergence(critic(observations())), params)
    torch.testing.assert_close(got, j.T @ j / SAMPLES, **EXACT)
    assert_positive(got)


def test_divergences_have_no_slope_where_nothing_has_moved():
    actor, critic = make_actor(), make_critic()
    for divergence, network in (
        (policy_divergence(policy_of(actor)), actor),
        (value_divergence(critic(observations())), critic),
    ):
        assert divergence == 0
        slope = flat(torch.autograd.grad(divergence, list(network.parameters())))
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-15)


def test_pairs_are_in_the_optimizers_order_and_from_the_generator():
    actor = make_actor()
    config = PSGDConfig(criterion=CurvatureCriterion())
    optimizer = build(actor.named_parameters(), config)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    assert params[-1] is actor.log_std is not list(actor.parameters())[-1]
    drawn = []
    for seed in (0, 0, 1):
        generator = torch.Generator().manual_seed(seed)
        v, hv = curvature_pair(policy_divergence(policy_of(actor)), optimizer, generator)
        expected = curvature_product(policy_divergence(policy_of(actor)), params, v)
        torch.testing.assert_close(hv, expected, rtol=0, atol=0)
        assert not any(x.requires_grad for x in (*v, *hv))
        drawn.append(flat(v))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("radius", [1e-6, 1e-8])
def test_step_of_the_trust_region_moves_the_policy_by_its_radius(radius):
    """A natural step that the region cuts short has the KL divergence that the region allows."""
    actor = make_actor()
    params = list(actor.parameters())
    fisher = dense(lambda: policy_divergence(policy_of(actor)), params)
    generator = torch.Generator().manual_seed(1)
    gradient = fisher @ torch.randn(len(fisher), generator=generator, dtype=torch.float64)
    natural = torch.linalg.lstsq(fisher, gradient).solution
    update = Update(natural[None].clone(), lengths=(gradient @ natural).sqrt()[None])
    TrustRegion(radius).clip_([update])
    old = policy_of(actor).detach()
    old = replace(old, log_std=old.log_std.clone())
    with torch.no_grad():
        parts = update.rows[0].split([p.numel() for p in params])
        for p, x in zip(params, parts, strict=True):
            p.sub_(x.view_as(p))
    moved = old.kl(policy_of(actor)).mean().item()
    assert moved == pytest.approx(radius, rel=2e-2)
