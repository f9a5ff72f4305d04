"""Training: collect a rollout, update, log, save; interruptible and resumable to the bit."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from psgd_optim.tools.checkpoint import write_checkpoint
from psgd_optim.tools.choices import config_to_dict
from psgd_optim.tools.run_folder import RunFolder, read_run
from psgd_optim.tools.runtime import Interrupt, Stopwatch, resolve_device, torch_threads
from psgd_optim.types import InputError
from psgd_rl.actor_critic import Critic
from psgd_rl.agent import Agent
from psgd_rl.config import TrainConfig
from psgd_rl.envs import make_env
from psgd_rl.evaluate import KIND, Evaluation, evaluate
from psgd_rl.normalize import RewardScaler
from psgd_rl.optimizers import build_optimizer, health
from psgd_rl.rollout import Collector, Episode
from psgd_rl.schedules import LearningRate
from psgd_rl.spaces import Discrete
from psgd_rl.update import Updater

_HEALTH_EVERY = 10
"""Rollouts from one look at the preconditioners to the next."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended.

    Args:
        status: `"finished"`, or `"interrupted"` when a signal ended it early.
        run_dir: Its folder.
        steps: Environment steps done.
        seconds: Time taken, over all parts of the run.
        evaluation: The final evaluation; `None` when interrupted.
    """

    status: str
    run_dir: Path
    steps: int
    seconds: float
    evaluation: Evaluation | None


def train(config: TrainConfig) -> Result:
    """Train an agent, or continue to train it.

    The first SIGINT or SIGTERM ends the run after the current rollout, with a checkpoint from
    which `resume` continues to the same bits as an uninterrupted run.

    Args:
        config: The run.

    Returns:
        How it ended; the same figures are in the folder's `summary.json`.

    Raises:
        InputError: If the folder cannot be used, or a loss, an observation or a reward is not
            finite; the last checkpoint stays.
    """
    with Interrupt() as interrupt, torch_threads(config.threads):
        run = _Run(config)
        with run.open_folder():
            total = config.iterations * config.rollout_size
            with tqdm(total=total, initial=run.steps, unit=" steps", disable=None) as bar:
                bar.set_postfix(env_threads=run.env_threads)
                while run.steps < total and not interrupt.requested:
                    run.iterate()
                    bar.update(config.rollout_size)
            return run.finish()


class _Run:
    """A run between two rollouts; nothing is written before `open_folder`.

    Args:
        config: The run.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        device = resolve_device(config.device)
        generator = torch.Generator().manual_seed(config.seed)
        # Seeds s and s + 1 share no environment's seed.
        seeds = [config.seed * config.num_envs + i for i in range(config.num_envs)]
        env = make_env(config.env_id, seeds, config.env_threads)
        self.env_threads = env.threads
        # One generator for both networks, actor first: the order is part of what a seed means.
        hidden = config.network.hidden
        sizes = (env.observation_size, *hidden, env.actions.size)
        self._agent = Agent.build(
            config.env_id,
            sizes,
            config.network,
            generator,
            is_discrete=isinstance(env.actions, Discrete),
        )
        critic = Critic((env.observation_size, *hidden, 1), generator=generator).to(device)
        actor = self._agent.actor.to(device)
        self._collector = Collector(env, self._agent.moments, config.rollout_steps, config.seed)
        self._optimizers = (
            build_optimizer(actor, config.actor, 2 * config.seed),
            build_optimizer(critic, config.critic, 2 * config.seed + 1),
        )
        schedules = (config.actor_schedule, config.critic_schedule)
        self._rates = [
            LearningRate(*pair) for pair in zip(self._optimizers, schedules, strict=True)
        ]
        scaler = RewardScaler(config.num_envs, config.ppo.gamma)
        self._updater = Updater(actor, critic, self._optimizers, scaler, config.ppo, config.seed)
        self.iteration = 0
        self._evaluation: Evaluation | None = None  # the final one
        self._best = -math.inf
        self._watch = Stopwatch()

    def open_folder(self) -> RunFolder:
        """Create the run's folder, or go back to the state that the run left there."""
        config = self._config
        self._folder = RunFolder(
            config.run_dir, KIND, config, resume=config.resume, overwrite=config.overwrite
        )
        if config.resume:
            self._load(read_run(config.run_dir, KIND)[1])
            self._folder.rewind(self.steps)
        else:
            self.save()  # so that there is something to resume from at any moment
        return self._folder

    @property
    def steps(self) -> int:
        """Environment steps done."""
        return self.iteration * self._config.rollout_size

    def iterate(self) -> None:
        """Collect one rollout, learn from it, and log, evaluate and save when due."""
        config = self._config
        actor_lr, critic_lr = (r.set(self.iteration, config.iterations) for r in self._rates)
        rollout = self._collector.collect(self._agent.acting_policy())
        figures = self._updater.update(rollout)
        bad = [name for name, value in figures.items() if not math.isfinite(value)]
        # Before the figures are logged or saved: the folder keeps the last good state.
        if bad:
            raise InputError(
                f"The update after step {self.steps + config.rollout_size} gave {bad[0]} = "
                f"{figures[bad[0]]}; lower --actor.lr and --critic.lr. The last good checkpoint "
                f"is {self._folder.last_checkpoint}."
            )
        for rate in self._rates:
            rate.adapt(figures["losses/approx_kl"])
        if self.iteration % _HEALTH_EVERY == 0:
            for name, optimizer in zip(("actor", "critic"), self._optimizers, strict=True):
                figures |= health(optimizer, f"precond/{name}")
        self.iteration += 1
        figures["charts/learning_rate"] = actor_lr
        figures["charts/critic_learning_rate"] = critic_lr
        figures["charts/SPS"] = self.steps / self._watch.seconds
        self._folder.log(self.steps, {**figures, **_episode_figures(rollout.episodes)})
        is_last = self.iteration == config.iterations  # `finish` evaluates then
        if config.eval_every and self.iteration % config.eval_every == 0 and not is_last:
            self._evaluate()
        # The last one is saved with its evaluation: a kill between the two would log it twice.
        if self.iteration % config.save_every == 0 and not is_last:
            self.save()

    def finish(self) -> Result:
        """Evaluate if the run is complete, save, and write the summary.

        Returns:
            How the run stands; one that had been finished before keeps its figures.
        """
        done = self.iteration >= self._config.iterations
        if self._evaluation is None:
            if done:
                self._evaluation = self._evaluate()
            self.save()
        result = Result(
            status="finished" if done else "interrupted",
            run_dir=self._folder.path,
            steps=self.steps,
            seconds=self._seconds,
            evaluation=self._evaluation,
        )
        self._folder.write_summary(self._summary(result))
        return result

    def _summary(self, result: Result) -> dict[str, Any]:
        evaluation = result.evaluation
        return {
            "status": result.status,
            "seed": self._config.seed,
            "steps": result.steps,
            "total_steps": self._config.total_steps,
            "seconds": result.seconds,
            "ms_per_step": 1000 * result.seconds / max(result.steps, 1),
            "steps_per_second": result.steps / result.seconds,
            "optimizer": self._config.actor.name,
            "critic_optimizer": self._config.critic.name,
            "return_mean": evaluation.return_mean if evaluation else None,
            "return_std": evaluation.return_std if evaluation else None,
            "episodes": self._config.eval_episodes if evaluation else 0,
            "env_threads": self.env_threads,
        }

    def _evaluate(self) -> Evaluation:
        """Evaluate, log, and keep the agent if it is the best so far."""
        config = self._config
        evaluation = evaluate(self._agent, config.eval_episodes, threads=self.env_threads)
        figures = {
            "eval/return_mean": evaluation.return_mean,
            "eval/return_std": evaluation.return_std,
        }
        self._folder.log(self.steps, figures)
        if evaluation.return_mean > self._best:
            self._best = evaluation.return_mean
            write_checkpoint(self._folder.best_checkpoint, KIND, self._content())
        return evaluation

    def save(self) -> None:
        """Write the checkpoint that a resumption starts from."""
        write_checkpoint(self._folder.last_checkpoint, KIND, self._content())

    def _content(self) -> dict[str, Any]:
        self._seconds = self._watch.seconds
        evaluation = self._evaluation
        return {
            "config": config_to_dict(self._config),
            "agent": self._agent.state_dict(),
            "collector": self._collector.state_dict(),
            "updater": self._updater.state_dict(),
            "rates": [rate.state_dict() for rate in self._rates],
            "iteration": self.iteration,
            "best": self._best,
            "seconds": self._seconds,
            "env_threads": self.env_threads,
            "evaluation": evaluation and evaluation.state_dict(),
            "eval_episodes": self._config.eval_episodes,
        }

    def _load(self, content: Mapping[str, Any]) -> None:
        self._agent.load_state_dict(content["agent"])
        self._collector.load_state_dict(content["collector"])
        self._updater.load_state_dict(content["updater"])
        for rate, state in zip(self._rates, content["rates"], strict=True):
            rate.load_state_dict(state)
        self.iteration = content["iteration"]
        self._best = content["best"]
        self._seconds = content["seconds"]
        self._watch = Stopwatch(self._seconds)
        if content["evaluation"] is not None:
            self._evaluation = Evaluation.from_state(content["evaluation"])
            # The run is over: its summary says what it had, not what would be chosen now.
            self.env_threads = content["env_threads"]


def _episode_figures(episodes: list[Episode]) -> dict[str, float]:
    """Return the means over the episodes that ended; nothing when none did."""
    if not episodes:
        return {}
    return {
        "charts/episodic_return": float(np.mean([episode.total for episode in episodes])),
        "charts/episodic_length": float(np.mean([episode.length for episode in episodes])),
    }
