"""What the host can read without waiting for a device."""

import torch
from torch import Tensor


def is_readable(x: Tensor) -> bool:
    """Return whether a tensor's numbers are there: on a CPU, and not in a graph that is made."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def host_values(x: Tensor) -> list[float] | None:
    """Return the numbers of a tensor where reading them waits for nothing, else `None`."""
    if not is_readable(x):
        return None
    # For a few rows, Python is faster than one more kernel.
    values: list[float] = x.tolist() if x.ndim == 1 else x.flatten().tolist()
    return values
