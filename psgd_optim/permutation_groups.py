"""Finite groups of permutations of a parameter's entries, told by their orbits.

`Q = sum_k diag(a_k) S_k` over all permutations `S_k` of a group maps every orbit to itself, by any
matrix whatever: the orbits are all that a preconditioner needs to know of its group.
"""

import abc
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor


class PermutationGroup(abc.ABC):
    """A finite group of permutations for each number of entries that it can act on."""

    @abc.abstractmethod
    def order(self, n: int) -> int:
        """Return the length of the longest orbit among `n` entries."""

    @abc.abstractmethod
    def orbits(self, n: int, device: torch.device | None = None) -> Tensor:
        """Return the orbits of `n` entries, one per row.

        Args:
            n: The number of entries.
            device: Where to make the tensor.

        Returns:
            (orbits, order), int64, every entry once; a shorter orbit is filled up with `n`.

        Raises:
            ValueError: If the group cannot act on `n` entries.
        """

    @abc.abstractmethod
    def describe(self) -> str:
        """Return the group in a few words."""


@final
@dataclass(frozen=True, kw_only=True)
class Flip(PermutationGroup):
    """The identity and the reversal; the middle one of an odd number of entries is alone."""

    def order(self, n: int) -> int:
        """Return 2."""
        return 2

    def orbits(self, n: int, device: torch.device | None = None) -> Tensor:
        """Return the pairs `i, n - 1 - i`."""
        i = torch.arange((n + 1) // 2, device=device)
        mirrored = n - 1 - i
        return torch.stack([i, torch.where(mirrored == i, n, mirrored)], dim=1)

    def describe(self) -> str:
        """Return its name."""
        return "flip"


@final
@dataclass(frozen=True, kw_only=True)
class Cyclic(PermutationGroup):
    """The circular shifts by multiples of `n / size`.

    Args:
        size: The number of shifts, the identity counted; it must divide `n`.

    Raises:
        ValueError: If `size` is below 1.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"Cyclic got size = {self.size}; give a number of at least 1.")

    def order(self, n: int) -> int:
        """Return the number of shifts."""
        return self.size

    def orbits(self, n: int, device: torch.device | None = None) -> Tensor:
        """Return the entries that are multiples of `n / size` apart."""
        _check_multiple(self.describe(), n, self.size)
        return torch.arange(n, device=device).view(self.size, -1).mT

    def describe(self) -> str:
        """Return e.g. `3 shifts`."""
        return f"{self.size} shifts"


@final
@dataclass(frozen=True, kw_only=True)
class Klein(PermutationGroup):
    """The reversal, the shift by half the length, both at once, and the identity."""

    def order(self, n: int) -> int:
        """Return 4."""
        return 4

    def orbits(self, n: int, device: torch.device | None = None) -> Tensor:
        """Return the fours that the permutations mix."""
        # The reversal of each half fixes two entries where half the length is odd.
        _check_multiple(self.describe(), n, 4)
        i = torch.arange(n // 4, device=device)
        return torch.stack([i, n // 2 - 1 - i, n // 2 + i, n - 1 - i], dim=1)

    def describe(self) -> str:
        """Return its name."""
        return "Klein"


@final
@dataclass(frozen=True, kw_only=True)
class AllShifts(PermutationGroup):
    """All `n` circular shifts: one orbit, and so every invertible matrix."""

    def order(self, n: int) -> int:
        """Return `n`."""
        return n

    def orbits(self, n: int, device: torch.device | None = None) -> Tensor:
        """Return all entries in one row."""
        return torch.arange(n, device=device)[None]

    def describe(self) -> str:
        """Return its name."""
        return "all shifts"


@final
@dataclass(frozen=True, kw_only=True)
class IndexMaps(PermutationGroup):
    """A group given entry by entry, for parameters of one size.

    Args:
        maps: For each permutation, the index that each entry is taken from. Entries may be
            fixed: an orbit may be shorter than the number of maps.

    Raises:
        ValueError: If a map is no permutation, two are equal, the identity is missing, or two
            of them do not compose to a third.

    Example:
        >>> IndexMaps(maps=((0, 1, 2), (2, 1, 0))).orbits(3)
        tensor([[0, 2],
                [1, 3]])
    """

    maps: tuple[tuple[int, ...], ...]
    _table: Tensor = field(init=False, repr=False, compare=False)
    # A copy to a device waits for it: one per device is made and kept.
    _copies: dict[torch.device, Tensor] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        n = len(self.maps[0]) if self.maps else 0
        if len(set(self.maps)) < len(self.maps):
            raise ValueError("IndexMaps got the same map twice; give each permutation once.")
        if tuple(range(n)) not in self.maps:
            raise ValueError("IndexMaps got no identity; add the map 0, 1, ..., n - 1.")
        lengths = [len(one) for one in self.maps]
        maps = torch.tensor([one if len(one) == n else (0,) * n for one in self.maps])
        wrong = (maps.sort(dim=1).values != torch.arange(n)).any(dim=1)
        wrong |= torch.tensor(lengths) != n
        if bool(wrong.any()):
            one = self.maps[int(wrong.int().argmax())]
            raise ValueError(f"IndexMaps got {one}; give a permutation of 0 to {n - 1}.")
        missing = _missing_composition(maps)
        if missing is not None:
            one, other = (self.maps[i] for i in missing)
            raise ValueError(f"IndexMaps got {one} and {other} without their composition; add it.")
        object.__setattr__(self, "_table", _table_of_orbits(maps))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_copies": {}}

    def order(self, n: int) -> int:
        """Return the length of the longest orbit."""
        return self._table.shape[1]

    def orbits(self, n: int, device: torch.device | None = None) -> Tensor:
        """Return the orbits under the maps; the same tensor for every call with a device."""
        size = len(self.maps[0])
        if n != size:
            raise ValueError(
                f"IndexMaps for {size} entries got a parameter of {n}; give maps of that size."
            )
        if device is None or device == self._table.device:
            return self._table
        if device not in self._copies:
            self._copies[device] = self._table.to(device)
        return self._copies[device]

    def describe(self) -> str:
        """Return e.g. `6 maps`."""
        return f"{len(self.maps)} maps"


def _missing_composition(maps: Tensor) -> tuple[int, int] | None:
    """Return the numbers of two permutations (m, n) whose composition is not there, if any."""
    m, n = maps.shape
    # Compositions are looked up by a random sum, and compared as a whole.
    weights = torch.randint(2**62, (n,), generator=torch.Generator().manual_seed(0))
    keys, places = (maps * weights).sum(dim=1).sort()  # overflow wraps around
    for i, one in enumerate(maps):
        composed = maps[:, one]  # (m, n)
        nearest = torch.searchsorted(keys, (composed * weights).sum(dim=1)).clamp(max=m - 1)
        found = (maps[places[nearest]] == composed).all(dim=1)
        if not bool(found.all()):
            return i, int(found.int().argmin())
    return None


def _table_of_orbits(maps: Tensor) -> Tensor:
    """Return the orbits of a group's permutations (m, n), one per row, filled up with `n`."""
    n = maps.shape[1]
    first = maps.amin(dim=0)  # of the orbit of each entry
    entries = first.argsort(stable=True)
    _, rows, lengths = torch.unique(first, return_inverse=True, return_counts=True)
    columns = torch.arange(n) - (lengths.cumsum(0) - lengths)[rows[entries]]
    table = torch.full((len(lengths), int(lengths.max())), n)
    table[rows[entries], columns] = entries
    return table


def _check_multiple(group: str, n: int, size: int) -> None:
    if n % size:
        raise ValueError(
            f"The group of {group} got a parameter of {n} elements, no multiple of {size}; use "
            "X_MATRIX, which acts on any number, or another form for this parameter."
        )


X_MATRIX = Flip()
BUTTERFLY = Cyclic(size=2)
KLEIN = Klein()
