"""The PPO update: passes of minibatch steps over one rollout, each network with its optimizer.

Shape legend: `T` steps, `n` environments, `S <= T n` real samples, `B` samples of a minibatch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psgd_optim.tools.stepping import (
    check_clipping,
    needs_closure,
    reset_momentum,
    step_from_gradients,
    take_step,
)
from psgd_optim.types import InputError
from psgd_rl import gradients, losses
from psgd_rl.actor_critic import Actor, Critic
from psgd_rl.advantages import estimate_advantages
from psgd_rl.config import PPOConfig
from psgd_rl.curvature import Pair, curvature_pair, policy_divergence, value_divergence
from psgd_rl.distributions import ActionArray
from psgd_rl.losses import Minibatch
from psgd_rl.normalize import RewardScaler
from psgd_rl.rollout import Rollout
from psgd_rl.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """The real samples of a rollout on the device."""

    observation: Tensor  # (S, o)
    next_observation: Tensor  # (S, o)
    action: Tensor  # (S, a) or (S,)
    log_probability: Tensor  # (S,), under the policy that acted


@dataclass(frozen=True, kw_only=True)
class _Targets:
    """What the samples say of actions and values."""

    advantage: Tensor  # (S,)
    target: Tensor  # (S,), what the critic shall give
    value: Tensor  # (S,), what it gave


class Updater:
    """Both networks, their optimizers, and how they learn from a rollout.

    Args:
        actor: The policy.
        critic: The value function.
        optimizers: Of the actor and of the critic.
        scaler: Knows the size of the returns.
        config: The update's settings.
        seed: Of the order of the samples, and of RPO's noise.

    Raises:
        InputError: If settings do not go with the optimizers or with the kind of actions.
    """

    def __init__(
        self,
        actor: Actor,
        critic: Critic,
        optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
        scaler: RewardScaler,
        config: PPOConfig,
        seed: int,
    ) -> None:
        self._actor, self._critic = actor, critic
        self._actor_optimizer, self._critic_optimizer = optimizers
        limits = (config.actor_max_grad_norm, config.critic_max_grad_norm)
        for name, optimizer, limit in zip(("actor", "critic"), optimizers, limits, strict=True):
            check_clipping(optimizer, limit, f"--ppo.{name}-max-grad-norm")
        if config.rpo_alpha and actor.is_discrete:
            raise InputError(
                f"Got ppo.rpo_alpha = {config.rpo_alpha} with numbered actions, which have no "
                "mean to add noise to; give 0."
            )
        self._scaler = scaler
        self._config = config
        self._generator = torch.Generator().manual_seed(seed)
        self._device = next(actor.parameters()).device
        self._knows_gradients = tuple(
            gradients.covers(network) and not needs_closure(optimizer)
            for network, optimizer in zip((actor, critic), optimizers, strict=True)
        )

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learn from one rollout.

        Args:
            rollout: The experience.

        Returns:
            Figures named as CleanRL names them; after the last pass, but for
            `losses/explained_variance`, which is of the critic before the first. With a
            `max_clip_fraction`, also the share of the policy's steps that were left out.
        """
        config = self._config
        done = rollout.terminated | rollout.truncated
        self._scaler.update(rollout.rewards, done, rollout.is_real)
        if config.reset_momentum:
            reset_momentum(self._actor_optimizer)
            reset_momentum(self._critic_optimizer)
        samples = self._to_device(rollout)
        targets = self._targets(samples, rollout)
        explained = losses.explained_variance(targets.value, targets.target)
        taken: list[bool] = []
        for epoch in range(config.epochs):
            if epoch and config.recompute_advantages:
                targets = self._targets(samples, rollout)
            taken += [self._step(batch) for batch in self._minibatches(samples, targets)]
            # The only look at the device's numbers: once per pass.
            figures = self._measure_policy(samples, targets)
            if 0 < config.target_kl < figures["losses/approx_kl"]:
                break
        figures["losses/value_loss"] = self._value_loss(samples, targets)
        figures["losses/explained_variance"] = float(explained)
        if config.max_clip_fraction:
            figures["losses/skipped"] = 1 - sum(taken) / len(taken)
        return figures

    def _minibatches(self, samples: _Samples, targets: _Targets) -> Iterator[Minibatch]:
        """Yield all samples in a new order, in parts."""
        # Drawn on the CPU, so that the order is the same on every device.
        order = torch.randperm(len(targets.target), generator=self._generator).to(self._device)
        action = samples.action[order]
        if self._config.rpo_alpha:
            # Noise on the mean is the same as its opposite on the action.
            width = self._config.rpo_alpha
            noise = torch.empty(action.shape).uniform_(-width, width, generator=self._generator)
            action = action - noise.to(self._device)
        shuffled = (
            samples.observation[order],
            action,
            samples.log_probability[order],
            targets.advantage[order],
            targets.target[order],
            targets.value[order],
        )
        parts = (x.tensor_split(self._config.minibatches) for x in shuffled)
        for observation, action, log_probability, advantage, target, value in zip(
            *parts, strict=True
        ):
            yield Minibatch(
                observation=observation,
                action=action,
                log_probability=log_probability,
                advantage=advantage,
                target=target,
                value=value,
            )

    def _step(self, batch: Minibatch) -> bool:
        """Take one step of each network; return whether the actor took its one."""
        steps = not self._has_moved_too_far(batch)
        if steps:
            self._step_actor(batch)
        self._step_critic(batch)
        return steps

    @torch.no_grad()
    def _has_moved_too_far(self, batch: Minibatch) -> bool:
        """Whether too many ratios are outside the clip range; waits for the device if asked."""
        most = self._config.max_clip_fraction
        if most == 0:
            return False
        log_ratio = self._log_probability(batch) - batch.log_probability
        return bool(losses.clip_fraction(log_ratio, self._config.clip) > most)

    def _step_actor(self, batch: Minibatch) -> None:
        config, limit = self._config, self._config.actor_max_grad_norm
        if self._knows_gradients[0]:
            gradients.set_actor_gradient(self._actor, batch, config.clip, config.entropy)
            step_from_gradients(
                self._actor_optimizer,
                self._actor.parameters(),
                limit,
                lambda: self._actor_pair(batch),
            )
        else:
            self._differentiate_actor(batch, limit)
        self._actor.bound_()

    def _step_critic(self, batch: Minibatch) -> None:
        limit = self._config.critic_max_grad_norm
        if self._knows_gradients[1]:
            gradients.set_critic_gradient(self._critic, batch, self._config.value_clip)
            step_from_gradients(
                self._critic_optimizer,
                self._critic.parameters(),
                limit,
                lambda: self._critic_pair(batch),
            )
        else:
            self._differentiate_critic(batch, limit)

    def _differentiate_actor(self, batch: Minibatch, limit: float) -> None:
        def loss_of() -> Tensor:
            policy = self._actor.distribution(self._actor(batch.observation))
            log_ratio = policy.log_probability(batch.action) - batch.log_probability
            surrogate = losses.policy_loss(log_ratio, batch.advantage, self._config.clip)
            return surrogate - self._config.entropy * policy.entropy().mean()

        take_step(
            self._actor_optimizer,
            self._actor.parameters(),
            loss_of,
            limit,
            lambda: self._actor_pair(batch),
        )

    def _differentiate_critic(self, batch: Minibatch, limit: float) -> None:
        def loss_of() -> Tensor:
            value = self._critic(batch.observation)
            clip = self._config.value_clip
            return losses.clipped_value_loss(value, batch.target, batch.value, clip)

        take_step(
            self._critic_optimizer,
            self._critic.parameters(),
            loss_of,
            limit,
            lambda: self._critic_pair(batch),
        )

    def _actor_pair(self, batch: Minibatch) -> Pair:
        policy = self._actor.distribution(self._actor(batch.observation))
        return curvature_pair(policy_divergence(policy), self._actor_optimizer, self._generator)

    def _critic_pair(self, batch: Minibatch) -> Pair:
        value = self._critic(batch.observation)
        return curvature_pair(value_divergence(value), self._critic_optimizer, self._generator)

    def _log_probability(self, samples: _Samples | Minibatch) -> Tensor:
        """Return the log-probabilities of actions under the actor as it is."""
        output = self._actor(samples.observation)
        return self._actor.distribution(output).log_probability(samples.action)

    @torch.no_grad()
    def _to_device(self, rollout: Rollout) -> _Samples:
        def flat(values: ActionArray) -> Tensor:
            return torch.from_numpy(values[rollout.is_real]).to(self._device)

        observation, action = flat(rollout.observations), flat(rollout.actions)
        # The actor's own density, not one from acting: the ratio then starts at 1.
        policy = self._actor.distribution(self._actor(observation))
        return _Samples(
            observation=observation,
            next_observation=flat(rollout.next_observations),
            action=action,
            log_probability=policy.log_probability(action),
        )

    @torch.no_grad()
    def _targets(self, samples: _Samples, rollout: Rollout) -> _Targets:
        """Estimate advantages, and what the critic shall give."""
        config, moments = self._config, self._scaler.moments
        is_normal = config.normalize_returns == "values"
        # A value is `mean + deviation * output` of the critic.
        mean, deviation = (moments.mean, moments.deviation) if is_normal else (0.0, 1.0)

        def values(output: Tensor) -> FloatArray:
            found = np.zeros(rollout.is_real.shape)
            found[rollout.is_real] = mean + deviation * output.cpu().double().numpy()
            return found

        is_scaled = config.normalize_returns == "rewards"
        output = self._critic(samples.observation)
        advantages = estimate_advantages(
            self._scaler.scale(rollout.rewards) if is_scaled else rollout.rewards,
            values(output),
            values(self._critic(samples.next_observation)),
            rollout.terminated,
            rollout.truncated,
            rollout.is_real,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
        )
        flat = torch.from_numpy(advantages[rollout.is_real])
        advantage = flat.to(self._device, torch.float32)
        target = advantage / float(deviation) + output
        if config.normalize_advantages:
            # The targets keep the critic's scale; only the policy's weights are normalised.
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        return _Targets(advantage=advantage, target=target, value=output)

    @torch.no_grad()
    def _measure_policy(self, samples: _Samples, targets: _Targets) -> dict[str, float]:
        """Return figures of the policy over the whole rollout."""
        policy = self._actor.distribution(self._actor(samples.observation))
        log_ratio = policy.log_probability(samples.action) - samples.log_probability
        clip = self._config.clip
        tensors = {
            "losses/policy_loss": losses.policy_loss(log_ratio, targets.advantage, clip),
            "losses/entropy": policy.entropy().mean(),
            "losses/old_approx_kl": -log_ratio.mean(),
            "losses/approx_kl": losses.approximate_kl(log_ratio),
            "losses/clipfrac": losses.clip_fraction(log_ratio, clip),
        }
        return dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))

    @torch.no_grad()
    def _value_loss(self, samples: _Samples, targets: _Targets) -> float:
        value = self._critic(samples.observation)
        return float(losses.value_loss(value, targets.target))

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the actor that the next update depends on."""
        return {
            "critic": self._critic.state_dict(),
            "actor_optimizer": self._actor_optimizer.state_dict(),
            "critic_optimizer": self._critic_optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._critic.load_state_dict(state["critic"])
        self._actor_optimizer.load_state_dict(state["actor_optimizer"])
        self._critic_optimizer.load_state_dict(state["critic_optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self._generator.set_state(state["generator"])
