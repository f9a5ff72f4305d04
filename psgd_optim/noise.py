"""Random numbers as functions of (seed, step, block).

Nothing but two integers has to be saved, and a resumed run, or another process with the same seed,
draws the same numbers.
"""

import torch
from torch import Tensor

_WORD = 2**64 - 1


def normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return standard normal numbers of the shape, dtype and device of a tensor."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def signs_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return fair signs, -1 or 1 (Rademacher), of the shape, dtype and device of a tensor."""
    coins = torch.randint(2, x.shape, generator=generator, device=x.device)
    return coins.to(x.dtype).mul_(2).sub_(1)


def coin(seed: int, step: int) -> float:
    """Return the gate's random number of a step, uniform in [0, 1)."""
    return _hash(seed, step, 0) / (_WORD + 1)


def noise_generator(device: torch.device, seed: int, step: int, block: int) -> torch.Generator:
    """Return a fresh generator for the noise of one block in one step."""
    # Block -1 is the gate's coin; the CPU generator reads only the low 32 bits of its seed.
    return torch.Generator(device).manual_seed(_hash(seed, step, block + 1) & 0xFFFFFFFF)


def _hash(*words: int) -> int:
    """Mix integers into 64 well-spread bits (the finaliser of the splitmix64 generator)."""
    state = 0
    for word in words:
        state = (state + (word & _WORD) + 0x9E3779B97F4A7C15) & _WORD
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _WORD
        state ^= state >> 31
    return state
