"""What a policy may choose from."""

from dataclasses import dataclass

from psgd_rl.types import FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Box:
    """Continuous actions.

    Args:
        low: (a,) float32, the least value of each; may be infinite.
        high: (a,) float32, the largest.
    """

    low: FloatArray
    high: FloatArray

    @property
    def size(self) -> int:
        """The number of values of an action, `a`."""
        return len(self.low)


@dataclass(frozen=True, kw_only=True)
class Discrete:
    """One of several actions, 0 to `count - 1`.

    Args:
        count: How many.
    """

    count: int

    @property
    def size(self) -> int:
        """The number of actions."""
        return self.count


ActionSpace = Box | Discrete
