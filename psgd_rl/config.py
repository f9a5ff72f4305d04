"""What a training run can be told."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from psgd_optim.config import (
    OptimizerConfig,
    PSGDConfig,
)
from psgd_optim.tools.runtime import check_threads
from psgd_optim.types import InputError
from psgd_rl.envs import check_env_id
from psgd_rl.schedules import Linear, Schedule

FIRST_EVALUATION_SEED = 10**9
"""Evaluation episode `i` has this seed plus `i`; those of training end below it."""


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Refuse a value, saying what is allowed."""
    if not condition:
        raise InputError(f"Got {name} = {value}; give {allowed}.")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The sizes of both networks and the spread of the policy."""

    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers, the same for actor and critic."""
    log_std: float = -1.0
    """Log of the policy's standard deviation at the start, in action units."""
    min_log_std: float = -4.0
    """Smallest log-std; below it exploration would end for good."""
    max_log_std: float = 1.0
    """Largest log-std."""

    def __post_init__(self) -> None:
        _require(
            len(self.hidden) > 0 and min(self.hidden) >= 1,
            "network.hidden",
            self.hidden,
            "one or more widths of at least 1",
        )
        _require(
            self.min_log_std <= self.log_std <= self.max_log_std,
            "network.log_std",
            self.log_std,
            f"a number from min-log-std to max-log-std, [{self.min_log_std}, {self.max_log_std}]",
        )


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """The settings of the PPO update."""

    epochs: int = 10
    """Passes over each rollout, at most."""
    minibatches: int = 8
    """Parts that a rollout is cut into in each pass, one step of each optimizer per part."""
    target_kl: float = 0.02
    """Ends the passes over a rollout once the policy moved this far, in nats; 0 never does."""
    reset_momentum: bool = False
    """Whether every rollout's update starts with empty gradient averages."""
    gamma: float = 0.99
    """Discount per step, in (0, 1)."""
    gae_lambda: float = 0.95
    """Decay of the weight of later steps in the advantage, in [0, 1]."""
    normalize_returns: Literal["rewards", "values", "none"] = "rewards"
    """What the running deviation of the returns brings to unit size: rewards, before anything else,
    or values alone, with their mean taken off: the critic's targets."""
    normalize_advantages: bool = True
    """Whether advantages are brought to mean 0 and deviation 1 for the policy."""
    recompute_advantages: bool = False
    """Whether every pass takes its advantages from the critic as it then is."""
    clip: float = 0.2
    """Largest useful deviation of the probability ratio from 1."""
    entropy: float = 0.0
    """Weight of the entropy bonus, per nat."""
    max_clip_fraction: float = 0.0
    """Largest share of a minibatch's ratios outside the clip range with which the policy still
    takes a step; 0 takes every step."""
    rpo_alpha: float = 0.0
    """Width of the uniform noise that RPO adds to mean actions in the update; 0 is PPO."""
    value_clip: float = 0.0
    """Largest useful movement of a value in a rollout's update, in units of the critic; 0 leaves it
    unlimited."""
    actor_max_grad_norm: float = 0.0
    """Largest norm of the actor's gradient; 0 leaves it unlimited."""
    critic_max_grad_norm: float = 0.0
    """Largest norm of the critic's gradient; 0 leaves it unlimited."""

    def __post_init__(self) -> None:
        for name in ("epochs", "minibatches"):
            value = getattr(self, name)
            _require(value >= 1, f"ppo.{name}", value, "1 or more")
        _require(0 < self.gamma < 1, "ppo.gamma", self.gamma, "a number between 0 and 1")
        _require(
            0 <= self.gae_lambda <= 1, "ppo.gae_lambda", self.gae_lambda, "a number from 0 to 1"
        )
        _require(self.clip > 0, "ppo.clip", self.clip, "a number above 0")
        _require(
            0 <= self.max_clip_fraction <= 1,
            "ppo.max_clip_fraction",
            self.max_clip_fraction,
            "a number from 0 to 1",
        )
        for name in (
            "entropy",
            "target_kl",
            "rpo_alpha",
            "value_clip",
            "actor_max_grad_norm",
            "critic_max_grad_norm",
        ):
            value = getattr(self, name)
            _require(value >= 0, f"ppo.{name}", value, "a number of at least 0")
        modes = get_args(type(self).__annotations__["normalize_returns"])
        _require(
            self.normalize_returns in modes,
            "ppo.normalize_returns",
            self.normalize_returns,
            f"one of {', '.join(modes)}",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run of PPO."""

    env_id: str = "HalfCheetah-v5"
    """The environment: gymnasium's name, or module:callable."""
    total_steps: int = 1_000_000
    """Environment steps, all environments together; rounded up to whole rollouts."""
    seed: int = 0
    """Seed of the weights, the action noise, the minibatches and the environments."""
    num_envs: int = 8
    """Environments stepped together."""
    rollout_steps: int = 256
    """Steps of each environment between two updates."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """The update."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """The networks."""
    actor: OptimizerConfig = field(default_factory=PSGDConfig)
    """The actor's optimizer."""
    critic: OptimizerConfig = field(default_factory=PSGDConfig)
    """The critic's optimizer."""
    actor_schedule: Schedule = field(default_factory=Linear)
    """The actor's learning rate over the run."""
    critic_schedule: Schedule = field(default_factory=Linear)
    """The critic's learning rate over the run."""
    eval_every: int = 50
    """Rollouts from one deterministic evaluation to the next; 0 evaluates at the end only."""
    eval_episodes: int = 10
    """Episodes of an evaluation."""
    save_every: int = 20
    """Rollouts from one checkpoint to the next."""
    threads: int = 1
    """Threads of torch's operations; small networks gain nothing from more."""
    env_threads: int = 0
    """Threads that step the environments, 0 for the fastest number; no result depends on it."""
    device: str = "auto"
    """Where the networks are trained: auto (CUDA if there is one), cpu, cuda; acting is always on
    the CPU."""
    run_dir: Path = Path("runs/rl")
    """The folder of the run."""
    resume: bool = False
    """Continue the run that is in the folder."""
    overwrite: bool = False
    """Delete the run that is in the folder first."""

    def __post_init__(self) -> None:
        check_env_id(self.env_id)
        for name in (
            "total_steps",
            "num_envs",
            "rollout_steps",
            "eval_episodes",
            "save_every",
        ):
            value = getattr(self, name)
            _require(value >= 1, name, value, "1 or more")
        for name in ("seed", "eval_every"):
            value = getattr(self, name)
            _require(value >= 0, name, value, "0 or more")
        check_threads("--threads", self.threads)
        check_threads("--env-threads", self.env_threads, least=0)
        most = FIRST_EVALUATION_SEED // self.num_envs - 1
        _require(self.seed <= most, "seed", self.seed, f"at most {most} with this num-envs")
        # Up to half of a rollout may be steps that are no action's outcome.
        _require(
            2 * self.ppo.minibatches <= self.rollout_size,
            "ppo.minibatches",
            self.ppo.minibatches,
            f"at most half of num-envs x rollout-steps, which is {self.rollout_size}",
        )

    @property
    def rollout_size(self) -> int:
        """Environment steps of one rollout."""
        return self.num_envs * self.rollout_steps

    @property
    def iterations(self) -> int:
        """Rollouts of the whole run."""
        return -(-self.total_steps // self.rollout_size)
