"""What the rest of the package knows of environments: several of them, stepped together.

Shape legend: `n` environments, `o` observations, `a` actions.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psgd_optim.types import InputError
from psgd_rl.spaces import ActionSpace
from psgd_rl.types import BoolArray, FloatArray


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step of all environments gives.

    Args:
        observation: (n, o), what the next action is chosen from: of a new episode where one was
            begun within this step.
        reward: (n,), of the action taken.
        terminated: (n,), whether the episode failed: nothing follows it.
        truncated: (n,), whether it ran out of time: its value goes on in `final_observation`.
        final_observation: (n, o), what the action led to, before any reset; equal to
            `observation` where no episode was begun.
        is_real: (n,), False where the environment began an episode instead of taking the action:
            nothing is to be learned from that row, whose reward is 0 and which ends nothing.
    """

    observation: FloatArray
    reward: FloatArray
    terminated: BoolArray
    truncated: BoolArray
    final_observation: FloatArray
    is_real: BoolArray


class VectorEnv(ABC):
    """Several copies of an environment, stepped together.

    Attributes:
        env_id: Its name.
        num_envs: The number of copies, `n`.
        observation_size: The number of observed values, `o`.
        actions: What an action may be.
        observation: (n, o), what the next action is chosen from.
        threads: Threads that step the copies; no result depends on it.
        is_restorable: Whether a loaded state continues its episodes; where it does not, they begin
            anew, with seeds that follow from the state.
    """

    env_id: str
    num_envs: int
    observation_size: int
    actions: ActionSpace
    observation: FloatArray
    threads: int
    is_restorable: bool

    @abstractmethod
    def step(self, action: NDArray[Any]) -> Step:
        """Advance every copy by one step.

        Args:
            action: (n, a) float32 within the bounds of a `Box`, (n,) int64 for `Discrete`.

        Returns:
            What happened.

        Raises:
            InputError: If a copy fails, or gives a value that is not finite.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return what the next steps depend on, as tensors and plain values."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `state_dict`.

        Args:
            state: Of the same environment with the same number of copies.

        Raises:
            InputError: If it has another number of copies.
        """


def check_finite(env_id: str, step: int, values: Mapping[str, FloatArray]) -> None:
    """Refuse values that are not finite.

    Args:
        env_id: The environment's name.
        step: Steps taken, for the message.
        values: (n, ...) by name.

    Raises:
        InputError: For the first such value, naming it and its copy.
    """
    for name, value in values.items():
        if not np.isfinite(value).all():
            bad = ~np.isfinite(value.reshape(len(value), -1)).all(axis=1)
            raise InputError(
                f"{env_id} gave a value that is not finite at step {step}: environment "
                f"{int(bad.argmax())}, {name}; lower the learning rate or the largest log-std."
            )


def check_copies(state: Mapping[str, Any], num_envs: int) -> None:
    """Refuse the state of another number of copies.

    Args:
        state: With `"copies"`, their number.
        num_envs: What it has to be.

    Raises:
        InputError: If it differs.
    """
    if state["copies"] != num_envs:
        raise InputError(
            f"Got the state of {state['copies']} environments for {num_envs}; "
            "give the number that the run was started with."
        )
