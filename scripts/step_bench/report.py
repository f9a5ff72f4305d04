"""The measurements as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from step_bench.figures import Line, Spread, lines, spread
from step_bench.split import OTHER, PARTS

LEGEND = """\
Times are wall milliseconds, medians of the repeats; ranges are their smallest and largest sample.
`p` is the probability that a step fits the preconditioner: the time is (1 - p) apply + p fit, the
medians of steps without and with a fit. `f+b` is one forward and backward pass. `compute` is the
time that the FLOPs of the step's plan take at the measured rate of float32 matrix products; for
forms other than Kron, and for other optimizers, the FLOPs of matrix products are counted in a real
step (decompositions and solves are not), and for compiled ones they are not known. `move` is the
time to read gradients, and to read and write parameters and averages, at the measured copying
speed: the floor of any such step. `x limit` is the time over the larger of both; it can fall below
1 where what is moved stays in a cache, or the products are of bfloat16, as Muon's. CPU is of all
threads. State is allocated bytes, also as a multiple of the parameters'; peak is the most that a
step of any phase holds besides. The parts of a step are wall milliseconds of steps with clocks
around them, which cost some time of their own."""

HEADER = (
    "contender", "p", "ms/step", "range", "apply", "fit", "x f+b", "x AdamW", "x Muon",
    "compute", "move", "x limit", "CPU ms", "state MB", "x params", "peak MB",
)  # fmt: skip


def markdown(record: Mapping[str, Any]) -> str:
    """Lay a benchmark out.

    Args:
        record: What the study wrote.

    Returns:
        Markdown.
    """
    facts = record["facts"]
    parts = [f"# Step benchmark\n\n{_facts(facts)}"]
    for name, model in record["models"].items():
        parts.append(_model(name, model, facts["config"]["update_prob"]))
    missing = facts["not_installed"]
    notes = [f"Not installed: {', '.join(missing)}."] if missing else []
    return "\n\n".join([*parts, *notes, LEGEND])


def _facts(facts: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    config = facts["config"]
    autocast = "; forward and backward in bfloat16 autocast" if config["autocast"] else ""
    return "\n".join([
        f"`{facts['command']}`\n",
        f"- {facts['date']}, commit {facts['commit'] or 'unknown'}",
        f"- {facts['machine']}, device {facts['device']}, threads: {config['threads']}{autocast}",
        f"- {versions}",
        f"- {config['repeats']} repeats in turns after {config['warmup']} warm-up steps of a kind",
    ])  # fmt: skip


def _model(name: str, record: Mapping[str, Any], probability: float) -> str:
    passes = spread(record["forward_backward"]["wall_ms"])
    cpu = median(record["forward_backward"]["cpu_ms"])
    machine = {key: median(values) for key, values in record["machine"].items()}
    text = [
        f"## {name}: {record['parameters']:,} parameters, batch of {record['batch']}",
        f"Forward and backward: {number(passes.middle)} ms ({_range(passes)}), "
        f"{number(cpu)} ms of CPU. Matrix products: {number(machine['matmul_gflops'])} GFLOP/s. "
        f"Copying: {number(machine['copy_gigabytes_per_second'])} GB/s.",
        table(HEADER, [_cells(line) for line in lines(record, probability)]),
    ]
    rows = list(_split_rows(record["contenders"]))
    if rows:
        header = ("ms of a step", "phase", *PARTS, OTHER, "sum")
        text.append(table(header, rows))
    notes = [f"- {n}: {c['note']}" for n, c in record["contenders"].items() if c["note"]]
    notes += [f"- {n}: left out, {reason}" for n, reason in record["left_out"].items()]
    return "\n\n".join(text + (["\n".join(notes)] if notes else []))


def _cells(line: Line) -> list[str]:
    figures = [
        line.apply, line.fit, line.to_backward, line.to_adamw, line.to_muon,
        line.compute_limit, line.move_limit, line.to_limit, line.cpu,
        line.state / 1e6, line.state_share, line.peak / 1e6,
    ]  # fmt: skip
    probability = "-" if line.probability is None else f"{line.probability:g}"
    return [
        line.contender,
        probability,
        number(line.wall.middle),
        _range(line.wall),
        *map(number, figures),
    ]


def _range(x: Spread) -> str:
    return f"{number(x.low)}-{number(x.high)}"


def _split_rows(contenders: Mapping[str, Any]) -> Iterable[list[str]]:
    """Yield the medians of the parts of every step that was taken apart."""
    for name, contender in contenders.items():
        for phase, measured in contender["phases"].items():
            if "split_ms" in measured:
                middles = [median(measured["split_ms"][part]) for part in (*PARTS, OTHER)]
                yield [name, phase, *map(number, [*middles, sum(middles)])]


def number(x: float | None) -> str:
    """Return a number with three digits, or all before the point; a dash for none."""
    if x is None:
        return "-"
    if x >= 99.95:
        return f"{x:,.0f}"
    if 0 < x < 0.001:
        return "<0.001"
    return f"{x:#.3g}" if x else "0"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return an aligned Markdown table, its first column to the left, the others to the right."""
    body = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in body) for i in range(len(header))]
    laid = [
        [
            cell.rjust(w) if i else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        for row in body
    ]
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [laid[0], rule, *laid[1:]])
