"""The update: which steps it takes, when it stops, and what the critic learns."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from psgd_optim.config import AdamWConfig, CurvatureCriterion, PSGDConfig, build
from psgd_rl.actor_critic import Actor, Critic
from psgd_rl.config import PPOConfig
from psgd_rl.normalize import RewardScaler
from psgd_rl.rollout import Rollout
from psgd_rl.update import Updater

CURVATURE = partial(PSGDConfig, criterion=CurvatureCriterion(), trust_region=1e-3)
STEPS, ENVS, OBSERVED, ACTIONS = 30, 4, 3, 2
GAMMA = 0.9


def make_rollout(seed=0, **changes) -> Rollout:
    generator = np.random.default_rng(seed)
    observations = generator.normal(size=(2, STEPS, ENVS, OBSERVED)).astype(np.float32)
    values = {
        "observations": observations[0],
        "next_observations": observations[1],
        "actions": generator.normal(size=(STEPS, ENVS, ACTIONS)).astype(np.float32),
        "rewards": generator.normal(size=(STEPS, ENVS)),
        "terminated": np.zeros((STEPS, ENVS), dtype=bool),
        "truncated": np.zeros((STEPS, ENVS), dtype=bool),
        "episodes": [],
    }
    return Rollout(**{**values, **changes})


class Parts:
    """An updater with its networks at hand."""

    def __init__(self, *, lr=1e-2, kind=AdamWConfig, **ppo) -> None:
        generator = torch.Generator().manual_seed(0)
        self.actor = Actor(
            (OBSERVED, 8, ACTIONS), log_std=0.0, log_std_bounds=(-4.0, 1.0), generator=generator
        )
        self.critic = Critic((OBSERVED, 8, 1), generator=generator)
        self.scaler = RewardScaler(ENVS, GAMMA)
        self.optimizers = tuple(
            build(net.named_parameters(), kind(lr=lr)) for net in (self.actor, self.critic)
        )
        self.calls = 0
        self.optimizers[0].register_step_post_hook(self._count)
        config = PPOConfig(**{"gamma": GAMMA, **ppo})
        self.updater = Updater(
            self.actor, self.critic, self.optimizers, self.scaler, config, seed=0
        )

    def _count(self, *_):
        self.calls += 1


def test_every_pass_steps_once_per_minibatch():
    parts = Parts(epochs=3, minibatches=4)
    figures = parts.updater.update(make_rollout())
    assert parts.calls == 12
    names = ("policy_loss", "value_loss", "entropy", "approx_kl", "clipfrac", "explained_variance")
    assert set(figures) == {f"losses/{name}" for name in names}


@pytest.mark.parametrize("radius", [1e-5, 1e-3])
def test_natural_step_moves_the_policy_by_about_its_trust_region(radius):
    lr = 0.5
    config = partial(CURVATURE, trust_region=radius, momentum=0.0, clip_joint_rms=math.inf)
    parts = Parts(kind=config, lr=lr, epochs=1, minibatches=20, target_kl=0.0)
    parts.updater.update(make_rollout())  # fits the preconditioner
    parts.updater._config = PPOConfig(gamma=GAMMA, epochs=1, minibatches=1)
    figures = parts.updater.update(make_rollout(1))
    assert 0.3 < figures["losses/approx_kl"] / (lr**2 * radius) < 3


def test_kl_limit_ends_the_passes():
    parts = Parts(epochs=50, minibatches=1, target_kl=0.01)
    figures = parts.updater.update(make_rollout())
    assert 1 < parts.calls < 50
    assert figures["losses/approx_kl"] > 0.01


def test_ratio_starts_at_one():
    figures = Parts(lr=1e-30, epochs=1).updater.update(make_rollout())
    assert figures["losses/approx_kl"] == pytest.approx(0, abs=1e-9)
    assert figures["losses/clipfrac"] == 0
    # The advantages have mean zero.
    assert figures["losses/policy_loss"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", [AdamWConfig, PSGDConfig])
def test_update_makes_good_actions_likelier(kind):
    parts = Parts(kind=kind, lr=3e-3, epochs=10, minibatches=2, gae_lambda=0.0)
    rollout = make_rollout()
    # Actions with a positive first component pay.
    rewards = np.sign(rollout.actions[..., 0]).astype(np.float64)
    observation = torch.from_numpy(rollout.observations).flatten(0, 1)
    before = parts.actor(observation)[:, 0].mean()
    for _ in range(5):
        parts.updater.update(replace(rollout, rewards=rewards))
    assert parts.actor(observation)[:, 0].mean() > before + 0.1


def learned_value(*, terminated: bool) -> float:
    """Train a critic on reward 1 with an end every 10 steps; return V in units of the reward."""
    parts = Parts(lr=1e-2, epochs=4, minibatches=1)
    ends = np.zeros((STEPS, ENVS), dtype=bool)
    ends[9::10] = True
    state = np.ones((STEPS, ENVS, OBSERVED), dtype=np.float32)
    rollout = make_rollout(
        observations=state,
        next_observations=state,
        rewards=np.ones((STEPS, ENVS)),
        **{"terminated" if terminated else "truncated": ends},
    )
    for _ in range(120):
        parts.updater.update(rollout)
    return parts.critic(torch.ones(1, OBSERVED)).item() / parts.scaler.scale(np.ones(1)).item()


def test_critic_learns_to_see_past_time_limits():
    assert learned_value(terminated=False) == pytest.approx(1 / (1 - GAMMA), rel=0.02)


def test_critic_learns_that_failures_end_everything():
    assert learned_value(terminated=True) < 0.8 / (1 - GAMMA)


def test_learning_rates_fall_linearly():
    parts = Parts(lr=0.4)
    assert parts.updater.set_progress(0.0) == pytest.approx(0.4)
    assert parts.updater.set_progress(0.75) == pytest.approx(0.1)
    rates = [group["lr"] for each in parts.optimizers for group in each.param_groups]
    assert rates == pytest.approx([0.1] * len(rates))
    assert Parts(lr=0.4, anneal_lr=False).updater.set_progress(0.75) == pytest.approx(0.4)


def test_log_std_stays_within_its_bounds():
    parts = Parts(lr=1.0, epochs=5, entropy=10.0)
    parts.updater.update(make_rollout())
    assert parts.actor.log_std.max() <= 1.0


def test_recomputed_advantages_follow_the_critic():
    results = []
    for recompute in (False, True):
        parts = Parts(epochs=3, minibatches=1, recompute_advantages=recompute)
        parts.updater.update(make_rollout())
        results.append(parts.actor.layers[0].weight.detach().clone())
    assert not torch.equal(*results)


def test_networks_clip_their_gradients_separately():
    norms = []
    parts = Parts(epochs=1, minibatches=1, max_grad_norm=1e-3)

    def record(optimizer, *_):
        grads = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.cat(grads).norm().item())

    for optimizer in parts.optimizers:
        optimizer.register_step_pre_hook(record)
    parts.updater.update(make_rollout())
    assert norms == pytest.approx([1e-3, 1e-3], rel=1e-2)


@pytest.mark.parametrize("kind", [AdamWConfig, PSGDConfig, CURVATURE])
def test_restored_updater_continues_bit_for_bit(kind, tmp_path):
    one, two = Parts(kind=kind, epochs=2), Parts(kind=kind, epochs=2)
    one.updater.update(make_rollout(0))
    torch.save((one.updater.state_dict(), one.actor.state_dict()), tmp_path / "state")
    updater, actor = torch.load(tmp_path / "state", weights_only=True)
    two.actor.load_state_dict(actor)
    two.updater.load_state_dict(updater)
    for parts in (one, two):
        parts.updater.update(make_rollout(1))
    for p, q in zip(one.actor.parameters(), two.actor.parameters(), strict=True):
        assert torch.equal(p, q)
    for p, q in zip(one.critic.parameters(), two.critic.parameters(), strict=True):
        assert torch.equal(p, q)
