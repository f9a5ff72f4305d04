"""What both measurements write: samples as JSON, medians with their range as a table."""

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from step_bench.facts import commit, machine, today

Speeds = Mapping[str, Sequence[float]]
"""Environment steps per second, one number per repeat, by contender."""


def table(speeds: Speeds) -> str:
    """Return the medians as Markdown; the first contender is the measure of the others.

    Args:
        speeds: Of every contender that ran.

    Returns:
        The table.
    """
    base = median(next(iter(speeds.values())))
    lines = [
        "| contender | steps/s (median) | slowest to fastest | times slower than the first |",
        "|---|---:|---:|---:|",
    ]
    for name, samples in speeds.items():
        middle = median(samples)
        lines.append(
            f"| {name} | {middle:,.0f} | {min(samples):,.0f} to {max(samples):,.0f} "
            f"| {base / middle:.2f} |"
        )
    return "\n".join(lines)


def write(out: Path, command: str, settings: Mapping[str, object], speeds: Speeds) -> str:
    """Write OUT.json and OUT.md.

    Args:
        out: The files' common beginning.
        command: What was typed.
        settings: What was measured.
        speeds: What it gave.

    Returns:
        The table.
    """
    record = {
        "command": command,
        **settings,
        "date": today(),
        "commit": commit(),
        "machine": machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "steps_per_second": {name: list(samples) for name, samples in speeds.items()},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1) + "\n"
    out.with_suffix(".json").write_text(text, encoding="utf-8")
    page = table(speeds)
    out.with_suffix(".md").write_text(f"`{command}`\n\n{page}\n", encoding="utf-8")
    return page
