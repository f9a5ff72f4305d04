"""All blocks of an optimizer, by parameter group."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from psgd_optim.blocks import Block
from psgd_optim.state_io import STACK, restore_rows, saved_stacks

Blocks = list[list[Block]]
"""Blocks by parameter group."""

Arrange = Callable[[Callable[[Tensor], bool]], Blocks]
"""Makes fresh blocks, by group, for the parameters that it is told."""


PLACE_SHIFT = 20
"""A block's number is the place of its first parameter, shifted by this, and a count."""


class BlockStore:
    """The blocks of every parameter group, in the order in which they were made.

    Attributes:
        groups: The blocks of each group.
        placed: The parameters that have a block.
    """

    def __init__(self, groups: int) -> None:
        """Make an empty store for some number of groups."""
        self.groups: list[list[Block]] = [[] for _ in range(groups)]
        self.placed: set[Tensor] = set()

    def __iter__(self) -> Iterator[Block]:
        return itertools.chain.from_iterable(self.groups)

    def is_new(self, param: Tensor) -> bool:
        """Whether a parameter has no block yet and can be trained: a frozen one costs nothing."""
        wanted = param.requires_grad or param.grad is not None
        return wanted and param not in self.placed and param.numel() > 0

    def add(self, new: Sequence[Sequence[Block]]) -> None:
        """Take blocks in, by group."""
        for blocks, more in zip(self.groups, new, strict=True):
            blocks += more
            self.placed.update(p for block in more for p in block.view.params)

    def numbered(self, params: Iterable[Tensor]) -> Iterator[tuple[int, int, Block]]:
        """Yield every block with a number for its random stream.

        Args:
            params: The optimizer's parameters, in the order of its groups.

        Yields:
            The number, the index of the block's group, and the block. The number is that of the
            block's first parameter, with the count of earlier blocks of this parameter: it does not
            depend on when the block was made.
        """
        places = {p: place for place, p in enumerate(params)}
        seen: dict[int, int] = defaultdict(int)
        for index, blocks in enumerate(self.groups):
            for block in blocks:
                place = min(places[unit[0]] for unit in block.view.units)
                yield (place << PLACE_SHIFT) + seen[place], index, block
                seen[place] += 1

    def rows(self, params: Sequence[Tensor]) -> dict[Tensor, dict[str, Any]]:
        """Return the state of every unit's first parameter, as views of the stacks.

        Args:
            params: The optimizer's parameters, in the order of its groups.
        """
        rows: dict[Tensor, dict[str, Any]] = {}
        together = self._arranged_together(params)
        for _, _, block in self.numbered(params):
            for param, row in block.entries():
                rows.setdefault(param, {STACK: torch.tensor(together[param])}).update(row)
        return rows

    def _arranged_together(self, params: Sequence[Tensor]) -> dict[Tensor, int]:
        """Return a place for every parameter, the same for those that stacks connect.

        Pieces of two shapes of one parameter are in two stacks, each with pieces of others: all of
        them have to be arranged together again.
        """
        places = {p: place for place, p in enumerate(params)}
        blocks = [block.view.params for block in self]
        changed = True
        while changed:
            changed = False
            for members in blocks:
                least = min(places[p] for p in members)
                changed |= any(places[p] != least for p in members)
                places.update(dict.fromkeys(members, least))
        return places

    def made(self, arrange: Arrange, saved: Mapping[Tensor, Mapping[str, Tensor]]) -> Blocks:
        """Return blocks, by group, for the parameters that need one and have none yet.

        Args:
            arrange: Makes fresh blocks, by group, for the parameters that it is told.
            saved: State to start from where there is some.

        Returns:
            Blocks of what can be trained now, has a gradient, or has saved state.
        """
        # Stack by stack, as they were: the noise of a row depends on the stack that it is in.
        stacks = saved_stacks(saved)
        seen, new = BlockStore(len(self.groups)), BlockStore(len(self.groups))
        seen.placed = set(self.placed)
        for stack in [*sorted(set(stacks.values())), None]:

            def wanted(p: Tensor, stack: int | None = stack) -> bool:
                is_free = seen.is_new(p) or (p in saved and p not in seen.placed)
                return stacks.get(p) == stack and is_free

            found = arrange(wanted)
            seen.add(found)
            new.add(found)
        for block in new:
            restore_rows(block, saved)
        return new.groups
