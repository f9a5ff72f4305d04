"""What actions an environment takes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Box:
    """Continuous actions.

    Args:
        low: (a,), the smallest value of each component, possibly -inf.
        high: (a,), the largest.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @property
    def size(self) -> int:
        """The number of components, `a`."""
        return len(self.low)


@dataclass(frozen=True, kw_only=True)
class Discrete:
    """Actions numbered from 0.

    Args:
        count: How many there are.
    """

    count: int

    @property
    def size(self) -> int:
        """The number of actions."""
        return self.count


ActionSpace = Box | Discrete
