"""The table that says what every parameter shape gets and what it costs."""

from collections.abc import Iterable, Sequence

from torch import Tensor

from psgd_optim.blocks import Block, squeezed


def summarise(groups: Iterable[Sequence[Block]]) -> str:
    """Return a table with a line per block and a line of totals.

    Args:
        groups: The blocks of each parameter group; their tensors may be without memory.

    Returns:
        Lines of fixed-width columns: group, count, shape, preconditioner, numbers in `Q`, bytes
        of all state, and state bytes per parameter byte.
    """
    rows = [("group", "count", "shape", "preconditioner", "numbers in Q", "state", "of params")]
    state_total = params_total = numbers_total = 0
    for index, blocks in enumerate(groups):
        for block in blocks:
            param = block.params[0]
            count = len(block.params)
            numbers = count * block.form.numel(squeezed(param.shape))
            state = _bytes(block)
            size = sum(p.numel() * p.element_size() for p in block.params)
            rows.append((
                str(index), str(count), str(tuple(param.shape)),
                block.form.describe(squeezed(param.shape)), f"{numbers:,}", _human(state),
                f"{state / size:.2f}x",
            ))  # fmt: skip
            numbers_total, state_total = numbers_total + numbers, state_total + state
            params_total += size
    ratio = f"{state_total / max(1, params_total):.2f}x"
    rows.append(("total", "", "", "", f"{numbers_total:,}", _human(state_total), ratio))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _bytes(block: Block) -> int:
    tensors: list[Tensor] = [block.steps, *block.state.values()]
    if block.momentum is not None:
        tensors.append(block.momentum)
    return sum(x.numel() * x.element_size() for x in tensors)


def _human(size: int) -> str:
    """Return a number of bytes with three digits and a binary unit.

    >>> _human(1536)
    '1.5 KiB'
    """
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit}"
