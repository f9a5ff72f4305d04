"""The update: which steps it takes, when it stops, and what the critic learns."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from psgd_optim.config import AdamWConfig, CurvatureCriterion, PSGDConfig, build
from psgd_optim.types import InputError
from psgd_rl import gradients
from psgd_rl.actor_critic import CategoricalActor, Critic, GaussianActor
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
        "is_real": np.ones((STEPS, ENVS), dtype=bool),
        "episodes": [],
    }
    return Rollout(**{**values, **changes})


class Parts:
    """An updater with its networks at hand."""

    def __init__(self, *, lr=1e-2, kind=AdamWConfig, is_discrete=False, **ppo) -> None:
        generator = torch.Generator().manual_seed(0)
        sizes = (OBSERVED, 8, ACTIONS)
        self.actor = (
            CategoricalActor(sizes, generator=generator)
            if is_discrete
            else GaussianActor(sizes, log_std=0.0, log_std_bounds=(-4.0, 1.0), generator=generator)
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
    names = "policy_loss value_loss entropy old_approx_kl approx_kl clipfrac explained_variance"
    assert set(figures) == {f"losses/{name}" for name in names.split()}


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
    limits = {"actor_max_grad_norm": 1e-3, "critic_max_grad_norm": 2e-3}
    parts = Parts(epochs=1, minibatches=1, **limits)

    def record(optimizer, *_):
        grads = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.cat(grads).norm().item())

    for optimizer in parts.optimizers:
        optimizer.register_step_pre_hook(record)
    parts.updater.update(make_rollout())
    assert norms == pytest.approx([1e-3, 2e-3], rel=1e-2)


def weights(parts):
    nets = (parts.actor, parts.critic)
    return torch.cat([p.detach().flatten() for net in nets for p in net.parameters()])


def test_numbered_actions_that_pay_become_likelier():
    parts = Parts(is_discrete=True, lr=3e-3, minibatches=2, gae_lambda=0.0)
    actions = np.random.default_rng(0).integers(0, ACTIONS, (STEPS, ENVS))
    rollout = make_rollout(actions=actions, rewards=actions.astype(np.float64))
    for _ in range(5):
        parts.updater.update(rollout)
    observation = torch.from_numpy(rollout.observations).flatten(0, 1)
    assert parts.actor(observation).softmax(-1)[:, 1].mean() > 0.6


def test_nothing_is_learned_from_steps_that_are_not_real():
    is_real = np.ones((STEPS, ENVS), dtype=bool)
    is_real[10, 1] = is_real[20] = False
    results = []
    for noise in (0.0, 1.0):
        parts, rollout = Parts(epochs=2), make_rollout(is_real=is_real)
        # The reward and the end of such a step are 0 and false; all else can be anything.
        rollout.rewards[~is_real] = 0.0
        for values in (rollout.observations, rollout.next_observations, rollout.actions):
            values[~is_real] += noise
        parts.updater.update(rollout)
        results.append(weights(parts))
    assert torch.equal(*results)
    parts = Parts(epochs=2)
    parts.updater.update(make_rollout())
    assert not torch.equal(results[0], weights(parts))


@pytest.mark.parametrize(
    "option",
    [
        {"normalize_returns": "values"},
        {"normalize_returns": "none"},
        {"normalize_advantages": False},
        {"value_clip": 0.01},
        {"rpo_alpha": 0.5},
        {"entropy": 0.1},
        {"reset_momentum": True},
        {"max_clip_fraction": 0.01},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_changes_the_update_and_is_repeatable(option):
    results = []
    for own in ({}, option, option):
        parts = Parts(epochs=4, target_kl=0.0, **own)
        for seed in range(2):
            parts.updater.update(make_rollout(seed))
        results.append(weights(parts))
    assert results[1].isfinite().all()
    assert not torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])


def test_policy_rests_while_too_many_ratios_are_outside_the_clip_range():
    parts = Parts(lr=0.05, epochs=10, target_kl=0.0, max_clip_fraction=0.3)
    figures = parts.updater.update(make_rollout())
    assert 0 < parts.calls < 80
    assert figures["losses/skipped"] == pytest.approx(1 - parts.calls / 80)


def test_noise_on_means_is_for_continuous_actions():
    with pytest.raises(InputError, match=r"rpo_alpha = 0.5 with numbered actions"):
        Parts(is_discrete=True, rpo_alpha=0.5)


def test_normalised_values_are_in_units_of_the_returns():
    # Rewards of 100 +- 1 with a discount of 0.9: values of about 1000.
    parts = Parts(lr=1e-2, normalize_returns="values", minibatches=1, epochs=4)
    generator = np.random.default_rng(0)
    for seed in range(40):
        rewards = 100 + generator.normal(size=(STEPS, ENVS))
        parts.updater.update(make_rollout(seed, rewards=rewards))
    output = parts.critic(torch.from_numpy(make_rollout().observations).flatten(0, 1))
    moments = parts.scaler.moments
    values = moments.mean + moments.deviation * output.detach().numpy()
    assert values.mean() == pytest.approx(1000, rel=0.03)
    assert np.abs(output.detach().numpy()).max() < 3


@pytest.mark.parametrize("is_discrete", [False, True])
def test_gradients_derived_by_hand_make_the_updates_of_autograd(is_discrete, monkeypatch):
    results = []
    for by_hand in (True, False):
        monkeypatch.setattr(gradients, "covers", lambda network, answer=by_hand: answer)
        parts = Parts(is_discrete=is_discrete, entropy=0.1, value_clip=0.1, minibatches=2)
        kinds = {"actions": np.ones((STEPS, ENVS), dtype=np.int64)} if is_discrete else {}
        parts.updater.update(make_rollout(**kinds))
        results.append(weights(parts))
    assert not torch.equal(*results)  # float32 rounds them differently
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


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
