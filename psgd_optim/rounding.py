"""Stochastic rounding of state in half precision, so that steps below half a unit are not lost.

A step of one percent or less changes most of the eight bits of a bfloat16 number by less than half
of the last one. Rounding to nearest undoes such a step every time, and a fit stalls. Here a number
is rounded up with the chance of its distance from below, so that the mean of what is stored is what
was computed. The bits of chance come in as an argument.
"""

import math

import torch
from torch import Tensor

from psgd_optim.linalg import lift
from psgd_optim.types import State

_EPS = torch.finfo(torch.float32).eps
# Bits of a single-precision mantissa that a dtype has no room for: 16 and 13.
_DROPPED = {
    dtype: round(math.log2(torch.finfo(dtype).eps / _EPS))
    for dtype in (torch.bfloat16, torch.float16)
}


def is_half(dtype: torch.dtype) -> bool:
    """Return whether numbers of a dtype are rounded stochastically: bfloat16 and float16 are."""
    return dtype in _DROPPED


def draw_bits(state: State, generator: torch.Generator) -> State:
    """Draw the bits that `write_` rounds with.

    Square matrices get the same bits on both sides of their diagonal: one that is symmetric stays
    so, as geometries without a rotation need.

    Args:
        state: What will be written, each (B, ...).
        generator: On the device of the state.

    Returns:
        `bits_NAME`, int16 and of the same shape, for each tensor in half precision: as much memory
        as the tensor, until the update is over. Nothing is drawn for the others.
    """
    return {f"bits_{k}": _bits(x, generator) for k, x in state.items() if is_half(x.dtype)}


def rounded(x: Tensor, name: str, dtype: torch.dtype, draws: State) -> Tensor:
    """Return numbers in the dtype of an entry of the state, half precision stochastically.

    The mean over the bits is `x`, to a part in 2^16 of the last place; numbers that the dtype
    has stay, and so do nan and infinities. Those beyond the largest of the dtype are not rounded
    up. In float16, numbers below 6e-5, which have fewer bits, are rounded to nearest.

    Args:
        x: (B, ...), in single precision or better, or in `dtype`.
        name: Of the entry.
        dtype: Of the entry.
        draws: With the entry's bits, where it is in half precision.

    Returns:
        `x` itself where the dtype is not of half precision; else of the dtype.
    """
    if not is_half(dtype):
        return x
    kept = -1 << _DROPPED[dtype]  # all bits but the last ones
    single = lift(x).to(torch.float32).contiguous()
    # Larger numbers get no noise, which would turn them into infinities, and those into nan.
    noisy = single.abs() < torch.finfo(dtype).max
    noise = draws[f"bits_{name}"].to(torch.int32).bitwise_and_(~kept).mul_(noisy)
    # The pattern of a float grows with its modulus: a carry goes into the exponent as it should.
    pattern = noise.add_(single.view(torch.int32)).bitwise_and_(kept)
    return pattern.view(torch.float32).to(dtype)


def write_(state: State, name: str, new: Tensor, draws: State) -> None:
    """Write an entry of the state, rounded as its dtype asks for.

    Args:
        state: The state to change.
        name: Of the entry.
        new: (B, ...), its new numbers.
        draws: What `draw_bits` returned, among others.
    """
    held = state[name]
    held.copy_(rounded(new, name, held.dtype, draws))


def _bits(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return random int16 of the shape of `x`, the same on both sides of a diagonal."""
    # Four from each long integer: on a CPU, in less than half of the time of one by one.
    long = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
    bits = long.random_(-(2**63), None, generator=generator).view(torch.int16)
    bits = bits[: x.numel()].view(x.shape)
    if x.ndim < 3 or x.shape[-1] != x.shape[-2]:
        return bits
    return bits.triu().add_(bits.triu(1).mT)
