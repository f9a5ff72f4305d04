"""The table that says what every parameter shape gets and what it costs."""

import math
from collections.abc import Iterable, Sequence

from torch import Tensor

from psgd_optim.blocks import Block


def summarise(groups: Iterable[Sequence[Block]], uses: float) -> str:
    """Return a table with a line per block and a line of totals.

    Args:
        groups: The blocks of each parameter group; their tensors may be without memory.
        uses: How often `P` is applied between two fits, at most.

    Returns:
        Lines of fixed-width columns: group, count, shape, preconditioner, numbers in `Q`, bytes
        of all state, those of the products `P` that are kept between fits, and the bytes of both
        per parameter byte.
    """
    titles = ("count", "shape", "preconditioner", "numbers in Q", "state", "kept P", "of params")
    rows = [("group", *titles)]
    state_total = kept_total = params_total = numbers_total = 0
    for index, blocks in enumerate(groups):
        for block in blocks:
            shape, count = block.view.shape, block.view.rows
            numbers = count * block.form.numel(shape)
            state, kept = _state_bytes(block), _kept_bytes(block, uses)
            size = count * math.prod(shape) * block.view.like.element_size()
            rows.append((
                str(index), str(count), str(shape),
                block.form.describe(shape), f"{numbers:,}", _human(state), _human(kept),
                f"{(state + kept) / size:.2f}x",
            ))  # fmt: skip
            numbers_total, state_total = numbers_total + numbers, state_total + state
            kept_total, params_total = kept_total + kept, params_total + size
    ratio = f"{(state_total + kept_total) / max(1, params_total):.2f}x"
    sizes = (f"{numbers_total:,}", _human(state_total), _human(kept_total), ratio)
    rows.append(("total", "", "", "", *sizes))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def check_memory(groups: Iterable[Sequence[Block]], limit: float, uses: float) -> None:
    """Refuse a plan whose state, with the products kept beside it, takes more than some bytes.

    Args:
        groups: The blocks of each parameter group; their tensors may be without memory.
        limit: In bytes.
        uses: How often `P` is applied between two fits, at most.

    Raises:
        ValueError: If it takes more; names the three largest blocks.
    """
    sizes = [
        (_state_bytes(block) + _kept_bytes(block, uses), block)
        for blocks in groups
        for block in blocks
    ]
    total = sum(size for size, _ in sizes)
    if total > limit:
        largest = "; ".join(
            f"{block.view.rows} x {block.form.describe(block.view.shape)} takes {_human(size)}"
            for size, block in sorted(sizes, key=lambda pair: -pair[0])[:3]
        )
        raise ValueError(
            f"The plan takes {_human(total)} of state, max_memory is {_human(limit)}: {largest}; "
            "give those parameters a smaller form, or raise max_memory."
        )


def _state_bytes(block: Block) -> int:
    tensors: list[Tensor] = [block.steps, *block.extra.values(), *block.state.values()]
    return sum(x.nbytes for x in tensors)


def _kept_bytes(block: Block, uses: float) -> int:
    """Return the bytes of what `apply` takes that are not the state's."""
    held = {id(x) for x in block.state.values()}
    prepared = block.form.prepare(block.state, uses)
    return sum(x.nbytes for x in prepared.values() if id(x) not in held)


def _human(size: float) -> str:
    """Return a number of bytes with three digits and a binary unit.

    >>> _human(1536)
    '1.5 KiB'
    """
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1000:
            break
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit}"
