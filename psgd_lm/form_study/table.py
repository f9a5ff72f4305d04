"""The measurements as Markdown tables."""

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any


def markdown(records: Iterable[Mapping[str, Any]]) -> str:
    """Lay the problems out, one table each, best rows first.

    Args:
        records: What the study wrote of each problem.

    Returns:
        Markdown.
    """
    parts = []
    for record in records:
        if "cpu_seconds" not in record:  # not finished
            continue
        steps = "iterations" in record["rows"][0]
        lines = _iterations(record) if steps else _losses(record)
        parts.append("\n".join([f"**{record['about']}; {record['steps']} steps**", "", *lines]))
    return "\n\n".join(parts)


def _losses(record: Mapping[str, Any]) -> list[str]:
    lines = [
        "| | lr | loss, mean ± std | ms/step fitting (min-max) | x AdamW | ms/step between fits "
        "| x AdamW | state |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    # A row without a mean has diverged at the learning rate that was best on the choice's seed.
    rows = sorted(
        record["rows"], key=lambda row: float("inf") if row["mean"] is None else row["mean"]
    )
    return lines + [_loss_line(row) for row in rows]


def _loss_line(row: Mapping[str, Any]) -> str:
    loss = "diverged" if row["mean"] is None else f"{row['mean']:.4f} ± {row['std']:.4f}"
    lrs = [lr for lr, _ in row["grid"]]
    edge = "*" if len(lrs) > 1 and row["lr"] in (min(lrs), max(lrs)) else ""
    cells = [row["name"], f"{row['lr']:g}{edge}", loss]
    for name in ("fitting", "between fits"):
        times = row["ms"][name]
        spread = f" ({times['min']:.1f}-{times['max']:.1f})" if name == "fitting" else ""
        cells += [f"{times['median']:.1f}{spread}", f"{times['ratio']:.2f}"]
    return "| " + " | ".join([*cells, f"{row['state_bytes_per_parameter_byte']:.2f}"]) + " |"


def _iterations(record: Mapping[str, Any]) -> list[str]:
    lines = ["| | median (min-max) of 10 seeds |", "|---|---:|"]
    rows = sorted(record["rows"], key=lambda row: median(row["iterations"]))
    most = record["steps"]
    return lines + [f"| {row['name']} | {_steps(row['iterations'], most)} |" for row in rows]


def _steps(steps: list[int], most: int) -> str:
    failed = sum(n >= most for n in steps)
    if failed == len(steps):
        return f"none of {failed} in {most}"
    text = f"{median(steps):g} ({min(steps)}-{max(steps)})"
    return text + (f", {failed} of {len(steps)} not" if failed else "")
