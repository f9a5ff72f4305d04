"""Deterministic evaluation: mean actions, frozen statistics, fixed seeds."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from psgd_optim.tools.checkpoint import read_checkpoint
from psgd_optim.tools.run_folder import BEST, LAST
from psgd_optim.types import InputError
from psgd_rl.agent import Agent
from psgd_rl.config import FIRST_EVALUATION_SEED
from psgd_rl.distributions import ActionArray
from psgd_rl.envs import make_env
from psgd_rl.rollout import allowed
from psgd_rl.types import FloatArray

LONGEST_EPISODE = 100_000
"""Steps after which an evaluation gives up; a hundred times what is usual."""

KIND = "psgd_rl"
"""The kind of this package's checkpoints."""

AGENT, PROVENANCE = "agent.pt", "provenance.json"
"""The files of an exported agent's folder."""

Watch = Callable[[ActionArray], None]
"""What looks at the actions of an episode."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the episodes of one evaluation gave.

    Args:
        returns: (episodes,), sum of the rewards, as the environment gave them.
        lengths: (episodes,), steps.
    """

    returns: FloatArray
    lengths: NDArray[np.int64]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the episodes as tensors."""
        return {"returns": torch.tensor(self.returns), "lengths": torch.tensor(self.lengths)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "Evaluation":
        """Return the evaluation whose `state_dict` this is."""
        return cls(returns=state["returns"].numpy(), lengths=state["lengths"].numpy())

    @property
    def return_mean(self) -> float:
        """Mean over the episodes."""
        return float(self.returns.mean())

    @property
    def return_std(self) -> float:
        """Standard deviation over the episodes."""
        return float(self.returns.std())

    @property
    def standard_error(self) -> float:
        """Of the mean; not a number with one episode."""
        spare = len(self.returns) - 1
        return self.return_std / math.sqrt(spare) if spare else math.nan


def evaluate(
    agent: Agent,
    episodes: int,
    *,
    threads: int = 1,
    watch: Watch | None = None,
) -> Evaluation:
    """Run one episode from each of the fixed seeds.

    Args:
        agent: Acts with its mean action.
        episodes: How many.
        threads: Threads that step the environments; the result does not depend on it.
        watch: Is given each action of the first episode, (a,) or (), as the environment was. To
            compute it again for that episode alone would round differently.

    Returns:
        The returns and lengths.

    Raises:
        InputError: If there are no episodes or threads, the agent does not fit its environment, or
            an episode does not end.
    """
    if episodes < 1:
        raise InputError(f"Got {episodes} evaluation episodes; give 1 or more.")
    seeds = [FIRST_EVALUATION_SEED + i for i in range(episodes)]
    env = make_env(agent.env_id, seeds, threads)
    agent.check_spaces(env)
    policy = agent.acting_policy()
    returns, lengths = np.zeros(episodes), np.zeros(episodes, dtype=np.int64)
    running = np.ones(episodes, dtype=bool)
    # All step until the longest episode ends; what follows the first end of each is not counted.
    while running.any():
        action = allowed(agent.best_action(policy, env.observation), env.actions)
        if watch and running[0]:
            watch(action[0].copy())
        step = env.step(action)
        returns += np.where(running, step.reward, 0.0)
        lengths += running
        running &= ~(step.terminated | step.truncated)
        if lengths.max() >= LONGEST_EPISODE and running.any():
            raise InputError(
                f"An episode of {agent.env_id} has not ended after {LONGEST_EPISODE} steps; give "
                "the environment a limit with gymnasium.wrappers.TimeLimit."
            )
    return Evaluation(returns=returns, lengths=lengths)


def evaluate_checkpoint(
    path: Path,
    episodes: int | None = None,
    *,
    watch: Watch | None = None,
) -> Evaluation:
    """Evaluate the agent of a checkpoint file, which is all that is needed.

    Args:
        path: The file.
        episodes: How many; `None` for as many as the run or the export that wrote it took.
        watch: As `evaluate` has it.

    Returns:
        The returns and lengths; with `episodes=None`, of the final checkpoint, exactly those that
        the run reported.

    Raises:
        InputError: If the file is missing, damaged, of another kind, or does not fit.
    """
    content = read_checkpoint(path, KIND)
    agent = Agent.restore(content["agent"])
    count = content["eval_episodes"] if episodes is None else episodes
    return evaluate(agent, count, watch=watch)


def load_agent(path: Path) -> Agent:
    """Return the agent of a checkpoint file.

    Args:
        path: The file.

    Returns:
        The agent.

    Raises:
        InputError: If the file is missing, damaged or of another kind.
    """
    return Agent.restore(read_checkpoint(path, KIND)["agent"])


def find_checkpoint(run: Path, *, best: bool = False) -> Path:
    """Return the checkpoint file that a path leads to.

    Args:
        run: A run's folder, that of an exported agent, or a checkpoint file.
        best: Take the run's checkpoint with the best evaluation instead of the last one.

    Returns:
        The file, which need not be there.

    Raises:
        InputError: If there is no choice and `best` is asked for.
    """
    is_alone = run.is_file() or is_exported(run)
    if is_alone and best:
        raise InputError(f"{run} has one checkpoint; leave out --best.")
    if is_alone:
        return run if run.is_file() else run / AGENT
    return run / (BEST if best else LAST)


def is_exported(folder: Path) -> bool:
    """Return whether a folder has a file of an exported agent."""
    return any((folder / name).is_file() for name in (AGENT, PROVENANCE))


def evaluate_run(run: Path, episodes: int | None = None, *, best: bool = False) -> Evaluation:
    """Evaluate a checkpoint of a run.

    Args:
        run: A run's folder, that of an exported agent, or a checkpoint file.
        episodes: How many; `None` for as many as the run took.
        best: Take the run's checkpoint with the best evaluation instead of the last one.

    Returns:
        The returns and lengths.

    Raises:
        InputError: If there is no checkpoint that can be used.
    """
    return evaluate_checkpoint(find_checkpoint(run, best=best), episodes)
