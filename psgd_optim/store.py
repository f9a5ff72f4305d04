"""All blocks of an optimizer, by parameter group."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from psgd_optim.blocks import Block


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
                yield (place << 20) + seen[place], index, block
                seen[place] += 1

    def rows(self) -> dict[Tensor, dict[str, Any]]:
        """Return the state of every unit's first parameter, as views of the stacks."""
        rows: dict[Tensor, dict[str, Any]] = {}
        for block in self:
            for param, row in block.entries():
                rows.setdefault(param, {}).update(row)
        return rows
