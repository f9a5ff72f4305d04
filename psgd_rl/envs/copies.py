"""One copy of a gymnasium environment among several: which one failed, and its state."""

from collections.abc import Mapping
from typing import Any, SupportsFloat

import gymnasium

ELAPSED = "_elapsed_steps"
"""What gymnasium's time limit counts; a state without it would get longer episodes."""


class CopyError(Exception):
    """What a copy raised, as the cause.

    Args:
        index: The copy's number.
    """

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


class Copy(gymnasium.Wrapper):  # type: ignore[misc]
    """An environment that knows its number and passes its state on.

    Args:
        env: The environment.
        index: Its number among the copies.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], index: int) -> None:
        super().__init__(env)
        self._index = index

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        try:
            observation, info = self.env.reset(seed=seed, options=options)
        except Exception as error:
            raise CopyError(self._index) from error
        return observation, info

    def step(
        self,
        action: Any,  # noqa: ANN401
    ) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take an action."""
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except Exception as error:
            raise CopyError(self._index) from error
        return observation, reward, terminated, truncated, info

    @property
    def is_restorable(self) -> bool:
        """Whether the environment has a state to save and to load."""
        return all(map(self.env.has_wrapper_attr, ("state_dict", "load_state_dict")))

    def state_dict(self) -> dict[str, Any]:
        """Return the environment's state and how long its episode is already."""
        limited = self.env.has_wrapper_attr(ELAPSED)
        return {
            "env": self.env.get_wrapper_attr("state_dict")(),
            "elapsed": self.env.get_wrapper_attr(ELAPSED) if limited else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `state_dict`."""
        self.env.get_wrapper_attr("load_state_dict")(state["env"])
        if state["elapsed"] is not None:
            self.env.set_wrapper_attr(ELAPSED, state["elapsed"])
