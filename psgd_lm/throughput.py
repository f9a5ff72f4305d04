"""How fast a device can be, to set what a run reaches against it (MFU)."""

import functools
import time
from typing import NamedTuple

import torch

# Dense peaks in operations per second, from the makers' data sheets, under the names that the
# driver gives: products of half-precision matrices with float32 sums, and float32 products without
# TF32, as torch takes them by default. A part of a device (MIG) has another name.
_A100, _H100, _V100 = (312e12, 19.5e12), (989e12, 67e12), (125e12, 15.7e12)
_CUDA_PEAKS: dict[str, tuple[float, float]] = {
    "NVIDIA H200": _H100,
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA H100 PCIe": (756e12, 51e12),
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA A10": (125e12, 31.2e12),
    "NVIDIA A40": (149.7e12, 37.4e12),
    "NVIDIA RTX A6000": (154.8e12, 38.7e12),
    "NVIDIA L4": (121e12, 30.3e12),
    "NVIDIA L40": (181e12, 90.5e12),
    "NVIDIA L40S": (362e12, 91.6e12),
    "NVIDIA GeForce RTX 4090": (165.2e12, 82.6e12),
    "NVIDIA GeForce RTX 3090": (71e12, 35.6e12),
    "Tesla V100-SXM2-16GB": _V100,
    "Tesla V100-SXM2-32GB": _V100,
    "Tesla T4": (65e12, 8.1e12),
}
_SIZE = 512
"""Of the matrices whose product measures a CPU: larger ones leave its caches and are slower."""


class Peak(NamedTuple):
    """What a device can do at most.

    Attributes:
        operations: Per second.
        source: How it is known.
    """

    operations: float
    source: str


def device_peak(device: torch.device, dtype: torch.dtype) -> Peak | None:
    """Return a device's peak, or None where it is not known: no figure is better than a wrong one.

    Args:
        device: The device.
        dtype: That products of matrices are taken in.

    Returns:
        The data sheet's figure of a CUDA device, or a rate measured on the CPU.
    """
    if device.type == "cuda":
        return cuda_peak(torch.cuda.get_device_name(device), dtype)
    if device.type == "cpu":
        rate = _measured_rate(dtype, torch.get_num_threads())
        return Peak(rate, f"measured: product of {_SIZE} x {_SIZE} {str(dtype)[6:]} matrices")
    return None


def cuda_peak(name: str, dtype: torch.dtype) -> Peak | None:
    """Return the peak of a CUDA device by its name, if it is in the table."""
    if name not in _CUDA_PEAKS:
        return None
    half, single = _CUDA_PEAKS[name]
    return Peak(single if dtype == torch.float32 else half, f"data sheet of {name}, dense")


@functools.cache
def _measured_rate(dtype: torch.dtype, threads: int) -> float:  # `threads` is part of the key
    """Return the operations per second of a matrix product on the CPU, the best of some."""
    matrix = torch.ones(_SIZE, _SIZE, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        best = min(best, time.perf_counter() - start)
    return 2 * _SIZE**3 / best
