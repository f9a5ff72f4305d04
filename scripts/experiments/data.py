"""Real images for experiments, from the folder that the variable PSGD_DATA names."""

import functools
import gzip
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from psgd_optim.types import InputError

VARIABLE, DEFAULT = "PSGD_DATA", "../shared/data"
_HEADERS = {3: 16, 1: 8}
"""Bytes before the numbers of an idx file, by its number of axes."""


@dataclass(frozen=True)
class Labelled:
    """Images with a label each.

    Attributes:
        images: (N, C, H, W), uint8.
        labels: (N,), int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor | slice) -> "Labelled":
        """Return some of the images."""
        return Labelled(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> "Labelled":
        """Return them on a device."""
        return Labelled(self.images.to(device), self.labels.to(device))


def find(name: str) -> Path:
    """Return a file or folder of the data folder.

    Args:
        name: Its path in that folder.

    Raises:
        InputError: If it is not there.
    """
    path = Path(os.environ.get(VARIABLE, DEFAULT)) / name
    if not path.exists():
        raise InputError(f"Got no file {path}; give its folder in the variable {VARIABLE}.")
    return path


@functools.lru_cache(maxsize=2)
def mnist(part: str) -> Labelled:
    """Return the digits of MNIST, (N, 1, 28, 28).

    Args:
        part: `train`, 60,000 images, or `t10k`, the 10,000 test images.

    Raises:
        InputError: If a file is missing or is no idx file.
    """
    images = _idx(find(f"mnist/{part}-images-idx3-ubyte.gz"), axes=3)
    labels = _idx(find(f"mnist/{part}-labels-idx1-ubyte.gz"), axes=1)
    return Labelled(images.unsqueeze(1), labels.long())


@functools.lru_cache(maxsize=2)
def cifar10(part: str) -> Labelled:
    """Return the part of CIFAR-10 that is there, (N, 3, 32, 32).

    Args:
        part: `train10k`, 10,000 of the training images, or `test2k`, 2,000 of the test images.

    Raises:
        InputError: If the file is missing or is no archive of arrays.
    """
    path = find(f"cifar10_subset/cifar10_{part}.npz")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays["x"], arrays["y"]
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"Got {path}, which holds no images `x` and labels `y`.") from error
    return Labelled(torch.from_numpy(images), torch.from_numpy(labels).long())


def _idx(path: Path, axes: int) -> Tensor:
    """Return the bytes of an idx file in their shape."""
    try:
        content = bytearray(gzip.decompress(path.read_bytes()))
    except (gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"Got {path}, which is no gzip file; give the original one.") from error
    sizes = [int.from_bytes(content[4 * i : 4 * i + 4], "big") for i in range(1, axes + 1)]
    expected = _HEADERS[axes] + int(np.prod(sizes))
    if content[:4] != bytes((0, 0, 8, axes)) or len(content) != expected:
        raise InputError(f"Got {path}, which is no idx file of {axes} axes; give the original one.")
    return torch.frombuffer(content, dtype=torch.uint8, offset=_HEADERS[axes]).view(sizes)
