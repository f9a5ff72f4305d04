"""gymnasium's spaces as arrays of numbers.

Shape legend: `n` environments, `o` observations, `a` actions.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from psgd_optim.types import InputError
from psgd_rl.spaces import ActionSpace, Box, Discrete
from psgd_rl.types import FloatArray

Encode = Callable[[Any], FloatArray]
"""From observations as the environments gave them to (n, o) float64, a copy."""

Decode = Callable[[NDArray[Any]], NDArray[Any]]
"""From actions as a policy gives them to those that the environments take."""


def encode_observations(env_id: str, space: gymnasium.Space[Any]) -> Encode:
    """Return what turns observations into rows of numbers.

    Args:
        env_id: The environment's name, for the message.
        space: Of one environment: a box is flattened, a discrete value becomes one-hot.

    Returns:
        The function.

    Raises:
        InputError: For any other space.
    """
    if isinstance(space, gymnasium.spaces.Box):

        def flatten(batch: Any) -> FloatArray:  # noqa: ANN401
            return np.array(batch, dtype=np.float64).reshape(len(batch), -1)

        return flatten
    if isinstance(space, gymnasium.spaces.Discrete):
        rows, start = np.eye(int(space.n)), int(space.start)

        def one_hot(batch: Any) -> FloatArray:  # noqa: ANN401
            encoded: FloatArray = rows[np.asarray(batch) - start]
            return encoded

        return one_hot
    raise InputError(
        f"{env_id} has observations in {type(space).__name__}; give Box or Discrete, as "
        "gymnasium.wrappers.FlattenObservation makes of the others."
    )


def decode_actions(env_id: str, space: gymnasium.Space[Any]) -> tuple[ActionSpace, Decode]:
    """Return what a policy may choose from, and what turns its choice into gymnasium's.

    Args:
        env_id: The environment's name, for the message.
        space: Of one environment: a box of floating-point numbers, or discrete.

    Returns:
        The space and the function.

    Raises:
        InputError: For any other space.
    """
    if isinstance(space, gymnasium.spaces.Box) and np.issubdtype(space.dtype, np.floating):
        shape, dtype = space.shape, space.dtype
        low, high = (bound.reshape(-1).astype(np.float32) for bound in (space.low, space.high))

        def unflatten(action: NDArray[Any]) -> NDArray[Any]:
            return action.reshape(len(action), *shape).astype(dtype)

        return Box(low=low, high=high), unflatten
    if isinstance(space, gymnasium.spaces.Discrete):
        start = int(space.start)

        def shift(action: NDArray[Any]) -> NDArray[Any]:
            return np.asarray(action) + start

        return Discrete(count=int(space.n)), shift
    raise InputError(
        f"{env_id} has actions in {space}; give a Box of floating-point numbers or Discrete."
    )
