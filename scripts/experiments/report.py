"""The report: every experiment's claim, setting, figures and verdict, as Markdown."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from experiments.experiment import (
    INFEASIBLE,
    NOT_RUN,
    Budget,
    Experiment,
    Study,
    verdict,
)
from experiments.results import CPU, DIVERGED, Record, Results, value_of

Reader = Callable[[Experiment, str], Results]
HEAD = """# The papers' experiments

Every experiment of the five papers that PSGD and its peers come from, with what came of it here.
This page is made by `python scripts/reproduce.py report` out of `results/experiments`.
`python scripts/reproduce.py run ID --budget quick` does an experiment again, and
`python scripts/reproduce.py run --all-quick --workers 2` all quick ones.

- **reproduced**: every criterion holds, with the paper's model, data and length.
- **reproduced, reduced**: every criterion holds in a smaller setting, which the text describes.
- **not reproduced**: a criterion does not hold; the evidence stands beside it.
- **runs, claim not tested**: all parts work, in a setting too small to tell anything of the claim.
- **not feasible here**: the data are not to be had, or a CPU would take days.

Every rate of a method is tried with the first seed. The one whose target, the figure that the
picture shows, is lowest **with this seed** is the best one, and runs with the others too: the
figure that is shown has chosen its rate, which favours methods with many rates. The tables show the
best rates, of how many, and what a method's first rate, its own default, gave; "edge" marks a best
rate that is the smallest or the largest of several, so that a better one may lie beyond. Figures
are means over the seeds with their standard errors. Two controls run along in every race: one takes
no step, the other random ones.
"""
PAPERS = {
    "S0": "Preconditioned SGD with five preconditioners (arXiv 1803.09383)",
    "S1": "Preconditioner on matrix Lie group for SGD (ICLR 2019)",
    "S2": "Curvature-informed SGD via general purpose Lie-group preconditioners",
    "S3": "Equilibrated adaptive learning rates (ESGD)",
    "S4": "Practical quasi-Newton methods for training deep networks (K-BFGS)",
}
"""By the first two characters of the ids."""
MOST_DECIMALS = 5


def verdict_of(experiment: Experiment, read: Reader) -> str:
    """Return the verdict of the longest budget that was run."""
    if not experiment.budgets:
        return INFEASIBLE
    found = [verdict(b, read(experiment, name))[0] for name, b in experiment.budgets.items()]
    ran = [word for word in found if word != NOT_RUN]
    return ran[-1] if ran else NOT_RUN


def overview(experiments: Sequence[Experiment], read: Reader) -> str:
    """Return one line per experiment: id, title, minutes and verdict."""
    lines = [_row(["id", "experiment", "minutes", "verdict"]), "|---|---|--:|---|"]
    for experiment in experiments:
        minutes = ", ".join(f"{n} {b.minutes:g}" for n, b in experiment.budgets.items()) or "-"
        link = f"[{experiment.id}](#{anchor(experiment)})"
        lines.append(_row([link, experiment.title, minutes, verdict_of(experiment, read)]))
    return "\n".join(lines)


def anchor(experiment: Experiment) -> str:
    """Return what a Markdown page calls the section of an experiment."""
    kept = [c for c in heading(experiment).lower() if c.isalnum() or c in " -"]
    return "".join(kept).replace(" ", "-")


def heading(experiment: Experiment) -> str:
    """Return the title of an experiment's section."""
    return f"{experiment.id} {experiment.title}"


def page(experiments: Sequence[Experiment], read: Reader, pictures: Mapping[str, str]) -> str:
    """Return the whole report.

    Args:
        experiments: In its order.
        read: Returns the results of an experiment's budget.
        pictures: Paths of pictures, as seen from the report, by `ID.budget`.
    """
    runs = [record for e in experiments for name in e.budgets for record in read(e, name).records]
    parts = [HEAD, _devices(runs), "", overview(experiments, read), ""]
    for paper, name in PAPERS.items():
        parts += [f"## {name}", ""]
        parts += [section(e, read, pictures) for e in experiments if e.id.split("-")[0] == paper]
    return "\n".join(parts)


def _devices(records: Sequence[Record]) -> str:
    """Return where the runs computed."""
    counts = Counter(record.device for record in records)
    if not counts.keys() - {CPU}:
        return "All runs: CPU, one thread each. **Nothing here was measured on a GPU.**"
    told = ", ".join(f"{count} on {name}" for name, count in counts.most_common())
    return f"Runs: {told}; one thread each on a CPU."


def section(experiment: Experiment, read: Reader, pictures: Mapping[str, str]) -> str:
    """Return an experiment's part of the report."""
    lines = [f"### {heading(experiment)}", "", f"Claim: {experiment.claim}", ""]
    if experiment.obstacle:
        lines += [f"What stands in the way: {experiment.obstacle}", ""]
    for name, budget in experiment.budgets.items():
        lines += [budget_report(experiment, name, budget, read(experiment, name)), ""]
        if picture := pictures.get(f"{experiment.id}.{name}"):
            lines += [f"![{experiment.id}, {name}]({picture})", ""]
    return "\n".join(lines)


def budget_report(experiment: Experiment, name: str, budget: Budget, results: Results) -> str:
    """Return setting, verdict, criteria with their evidence, and table of one budget."""
    word, findings = verdict(budget, results)
    told, done = word, len(results.records)
    if word == NOT_RUN and done:
        told = f"unfinished, {done} of {budget.study.total} runs"
    if findings and budget.study.seeds == 1:
        told += ", one seed"
    lines = [f"**{name}: {told}.** {budget.setting}", ""]
    command = f"`{command_of(experiment, name)}`"
    if findings:
        for criterion, finding in zip(budget.all_criteria(), findings, strict=True):
            mark = "holds" if finding.holds else "**does not hold**"
            text = criterion.told(budget.study.columns)
            lines.append(f"- {text}: {finding.evidence}; {mark}")
        lines.append("")
    if done:
        lines += [table(budget, results), ""]
        minutes = sum(record.seconds for record in results.records) / 60
        command += f"; {minutes:.1f} minutes of one core."
    return "\n".join([*lines, command])


def command_of(experiment: Experiment, budget: str) -> str:
    """Return what does an experiment."""
    return f"python scripts/reproduce.py run {experiment.id} --budget {budget}"


def table(budget: Budget, results: Results) -> str:
    """Return the figures of every case and method at its best rate."""
    study = budget.study
    cases = results.cases()
    has_cases, has_rates = cases != [""], any(r.key.rate is not None for r in results.records)
    has_defaults = any(
        results.of(m, case) and results.best_rate(m, case) != _first_rate(study, m)
        for m in study.labels
        for case in cases
    )
    first_columns = ["case"] * has_cases + ["method"] + ["rate"] * has_rates
    heads = [*first_columns, "seeds", *study.columns.values()]
    heads += [f"{study.columns.get(study.target, study.target)}, default rate"] * has_defaults
    lines = [_row(heads)]
    lines.append("|" + "---|" * len(first_columns) + "--:|" * (len(heads) - len(first_columns)))
    for case in cases:
        for method in study.labels:
            runs = results.of(method, case)
            if not runs:
                continue
            rate = _rate(results.best_rate(method, case), study.rates_of(method))
            cells = [case] * has_cases + [method] + [rate] * has_rates + [f"{len(runs)}"]
            cells += [_figure(runs, figure) for figure in study.columns]
            cells += [_default(budget, results, method, case)] * has_defaults
            lines.append(_row(cells))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    """Return a line of a table; a bar in a cell would end the cell."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _rate(best: float | None, tried: Sequence[float]) -> str:
    """Return the best rate, of how many, and whether it is at their edge."""
    if len(tried) < 2:
        return _number(best)
    edge = ", edge" if best in (min(tried), max(tried)) else ""
    return f"{_number(best)} (best of {len(tried)}{edge})"


def _first_rate(study: Study, method: str) -> float | None:
    return next(iter(study.rates_of(method)), None)


def _figure(runs: Sequence[Record], figure: str) -> str:
    """Return the spread of a figure; nothing where it is of other parts of the study alone."""
    finished = [run for run in runs if run.outcome.status != DIVERGED]
    if finished and not any(figure in run.outcome.figures for run in finished):
        return "-"
    return _spread([value_of(run, figure) for run in runs])


def _default(budget: Budget, results: Results, method: str, case: str) -> str:
    """Return what the first rate of a method gave."""
    rate = _first_rate(budget.study, method)
    runs = results.of(method, case, rate) if rate is not None else []
    return _spread([value_of(run, results.target) for run in runs])


def _spread(values: Sequence[float]) -> str:
    """Return mean and standard error, with two digits of the error."""
    if not values:
        return "-"
    if lost := sum(map(math.isinf, values)):
        return f"diverged ({lost} of {len(values)})"
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    if error == 0:
        return _number(mean)
    decimals = max(0, 1 - math.floor(math.log10(error)))
    if decimals > MOST_DECIMALS:
        return f"{mean:.2e} ± {error:.1e}"
    return f"{mean:.{decimals}f} ± {error:.{decimals}f}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if 1e4 <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.4g}"


def write_page(path: Path, text: str) -> None:
    """Write the report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.rstrip() + "\n", encoding="utf-8")
