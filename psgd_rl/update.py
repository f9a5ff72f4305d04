"""The PPO update: passes of minibatch steps over one rollout, each network with its optimizer.

Shape legend: `T` steps, `n` environments, `S = T n` samples, `B` samples of a minibatch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from psgd_optim.tools.stepping import check_clipping, take_step
from psgd_rl import losses
from psgd_rl.actor_critic import Actor, Critic, Float32Array
from psgd_rl.advantages import estimate_advantages
from psgd_rl.config import PPOConfig
from psgd_rl.curvature import Pair, curvature_pair, normal_kl, value_distance
from psgd_rl.normalize import RewardScaler
from psgd_rl.rollout import Rollout
from psgd_rl.tasks import FloatArray


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """A rollout on the device, flat but for the advantages' inputs."""

    observation: Tensor  # (S, o)
    next_observation: Tensor  # (S, o)
    action: Tensor  # (S, a)
    log_probability: Tensor  # (S,), under the policy that acted
    rewards: FloatArray  # (T, n), scaled


class Updater:
    """Both networks, their optimizers, and how they learn from a rollout.

    Args:
        actor: The policy.
        critic: The value function.
        optimizers: Of the actor and of the critic.
        scaler: Brings rewards to unit size.
        config: The update's settings.
        seed: Of the order of the samples.
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
        for optimizer in optimizers:
            check_clipping(optimizer, config.max_grad_norm, "--ppo.max-grad-norm")
        self._start = [[group["lr"] for group in each.param_groups] for each in optimizers]
        self._scaler = scaler
        self._config = config
        self._generator = torch.Generator().manual_seed(seed)
        self._device = actor.log_std.device

    def set_progress(self, progress: float) -> float:
        """Set both learning rates for a point of the run.

        Args:
            progress: The share of the run that is over, in [0, 1).

        Returns:
            The actor's learning rate.
        """
        # A function of the progress alone, so a resumed run needs no scheduler's state.
        factor = 1 - progress if self._config.anneal_lr else 1.0
        optimizers = (self._actor_optimizer, self._critic_optimizer)
        for optimizer, start in zip(optimizers, self._start, strict=True):
            for group, lr in zip(optimizer.param_groups, start, strict=True):
                group["lr"] = lr * factor
        return float(self._actor_optimizer.param_groups[0]["lr"])

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learn from one rollout.

        Args:
            rollout: The experience.

        Returns:
            Figures named as CleanRL names them; after the last pass, but for
            `losses/explained_variance`, which is of the critic before the first.
        """
        self._scaler.update(rollout.rewards, rollout.terminated | rollout.truncated)
        samples = self._to_device(rollout)
        advantage, target, value = self._targets(samples, rollout)
        explained = losses.explained_variance(value, target)
        figures: dict[str, float] = {}
        for epoch in range(self._config.epochs):
            if epoch and self._config.recompute_advantages:
                advantage, target, _ = self._targets(samples, rollout)
            # Drawn on the CPU, so that the order is the same on every device.
            order = torch.randperm(len(target), generator=self._generator).to(self._device)
            for part in order.tensor_split(self._config.minibatches):
                self._step(samples, advantage, target, part)
            # The only look at the device's numbers: once per pass.
            figures = self._measure(samples, advantage, target, explained)
            if 0 < self._config.target_kl < figures["losses/approx_kl"]:
                break
        return figures

    def _step(self, samples: _Samples, advantage: Tensor, target: Tensor, part: Tensor) -> None:
        """Take one step of each network on the samples `part`, (B,)."""
        observation = samples.observation[part]

        def actor_loss() -> Tensor:
            now = losses.log_probability(
                self._actor(observation), self._actor.log_std, samples.action[part]
            )
            log_ratio = now - samples.log_probability[part]
            surrogate = losses.policy_loss(log_ratio, advantage[part], self._config.clip)
            return surrogate - self._config.entropy * losses.entropy(self._actor.log_std)

        def critic_loss() -> Tensor:
            return losses.value_loss(self._critic(observation), target[part])

        def actor_pair() -> Pair:
            outputs = (self._actor(observation), self._actor.log_std)
            return curvature_pair(normal_kl, outputs, self._actor_optimizer, self._generator)

        def critic_pair() -> Pair:
            outputs = (self._critic(observation),)
            return curvature_pair(value_distance, outputs, self._critic_optimizer, self._generator)

        limit = self._config.max_grad_norm
        actor, critic = self._actor, self._critic
        take_step(self._actor_optimizer, actor.parameters(), actor_loss, limit, actor_pair)
        actor.bound_log_std_()
        take_step(self._critic_optimizer, critic.parameters(), critic_loss, limit, critic_pair)

    @torch.no_grad()
    def _to_device(self, rollout: Rollout) -> _Samples:
        def flat(values: Float32Array) -> Tensor:
            return torch.from_numpy(values).flatten(0, 1).to(self._device)

        observation, action = flat(rollout.observations), flat(rollout.actions)
        # The actor's own density, not one from acting: the ratio then starts at 1.
        mean = self._actor(observation)
        return _Samples(
            observation=observation,
            next_observation=flat(rollout.next_observations),
            action=action,
            log_probability=losses.log_probability(mean, self._actor.log_std, action),
            rewards=self._scaler.scale(rollout.rewards),
        )

    @torch.no_grad()
    def _targets(self, samples: _Samples, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
        """Return normalised advantages, value targets and values, (S,) each."""
        shape = samples.rewards.shape
        value = self._critic(samples.observation)
        advantages = torch.from_numpy(
            estimate_advantages(
                samples.rewards,
                value.cpu().double().numpy().reshape(shape),
                self._critic(samples.next_observation).cpu().double().numpy().reshape(shape),
                rollout.terminated,
                rollout.truncated,
                gamma=self._config.gamma,
                gae_lambda=self._config.gae_lambda,
            )
        )
        advantage = advantages.flatten().to(self._device, torch.float32)
        # The targets keep the critic's scale; only the policy's weights are normalised.
        normalised = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        return normalised, advantage + value, value

    @torch.no_grad()
    def _measure(
        self, samples: _Samples, advantage: Tensor, target: Tensor, explained: Tensor
    ) -> dict[str, float]:
        """Return the losses over the whole rollout."""
        log_std = self._actor.log_std
        now = losses.log_probability(self._actor(samples.observation), log_std, samples.action)
        log_ratio = now - samples.log_probability
        clip = self._config.clip
        tensors = {
            "losses/policy_loss": losses.policy_loss(log_ratio, advantage, clip),
            "losses/value_loss": losses.value_loss(self._critic(samples.observation), target),
            "losses/entropy": losses.entropy(log_std),
            "losses/approx_kl": losses.approximate_kl(log_ratio),
            "losses/clipfrac": losses.clip_fraction(log_ratio, clip),
            "losses/explained_variance": explained,
        }
        return dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))

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
