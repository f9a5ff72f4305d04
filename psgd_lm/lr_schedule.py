"""The learning rate of a step as a part of its full value."""

import math


def lr_factor(step: int, *, steps: int, warmup: int, final: float) -> float:
    """Return the learning rate of a step as a part of its full value.

    Args:
        step: Steps done before this one.
        steps: Length of the run.
        warmup: Steps of linear growth.
        final: The factor at the last step.

    Returns:
        In (0, 1]: linear growth, then half a cosine.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
