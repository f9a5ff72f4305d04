"""Runs the benchmark: model after model; writes what there is after each."""

import fnmatch
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from psgd_optim.tools.names import closest
from psgd_optim.tools.run_folder import write_json
from psgd_optim.tools.runtime import (
    check_threads,
    resolve_device,
    seed_everything,
    torch_threads,
)
from psgd_optim.types import InputError
from step_bench import facts
from step_bench.contenders import CAPTURED, COMPILED, HEADLINE, OURS, STANDARD, Contender
from step_bench.models import MODELS, make_workload
from step_bench.peers import MODULES, PEERS, installed
from step_bench.race import Record, race
from step_bench.report import markdown
from step_bench.timing import Effort

CONTENDERS = (*STANDARD, *OURS, COMPILED, CAPTURED, *PEERS)
LEAST_REPEATS = 7


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What to measure."""

    models: tuple[str, ...] = ("gpt-0.8m",)
    """Of gpt-0.8m, gpt-10m, gpt2-124m, lstm-ptb, mlp-64, conv."""
    contenders: tuple[str, ...] = (
        *(contender.name for contender in STANDARD),
        *HEADLINE,
        *(contender.name for contender in PEERS),
    )
    """Names or shell patterns, such as 'psgd-*' for PSGD in every form. The names: adamw-fused,
    adamw-foreach, muon, psgd-long-diagonal, psgd-blocks-128, psgd-both-dense, psgd-both-dense-quad,
    psgd-both-dense-every-step, psgd-both-dense-quad-every-step, psgd-long-diagonal-bf16,
    psgd-both-dense-bf16, psgd-all-diagonal, psgd-scan, psgd-scaw, psgd-diagonal,
    psgd-closed-diagonal, psgd-scalar, psgd-dense, psgd-lowrank, psgd-sparse-lu, psgd-arrow,
    psgd-permutation, psgd-butterfly, psgd-long-diagonal-compiled,
    psgd-long-diagonal-captured, pytorch-optimizer-kron,
    pytorch-optimizer-soap, pytorch-optimizer-shampoo, heavyball-psgdkron, heavyball-psgdpro,
    kron-torch."""
    repeats: int = 9
    """Samples of everything, taken in turns; at least 7."""
    warmup: int = 3
    """Steps of every kind before the first sample."""
    threads: int = 2
    """CPU threads of torch."""
    device: str = "auto"
    """Or cpu, cuda."""
    autocast: bool = False
    """Forward and backward passes in bfloat16."""
    update_prob: float = 0.03
    """Probability that a step fits the preconditioner."""
    longest: float = 20.0
    """Seconds; a contender whose step takes longer is left out."""
    max_state: float = 4.0
    """Gigabytes; a contender with more state is left out."""
    seed: int = 0
    """Of weights and data."""
    out: Path = Path("runs/bench_step")
    """Files to write, without .json and .md."""

    def __post_init__(self) -> None:
        for name in self.models:
            if name not in MODELS:
                raise InputError(f"There is no model {name!r}; {closest(name, list(MODELS))}")
        self.chosen()
        if self.repeats < LEAST_REPEATS or self.warmup < 1:
            raise InputError(
                f"Got repeats {self.repeats} and warmup {self.warmup}; give --repeats "
                f"{LEAST_REPEATS} or more and --warmup 1 or more."
            )
        if not 0 <= self.update_prob <= 1:
            raise InputError(f"Got update-prob {self.update_prob}; give --update-prob in [0, 1].")
        check_threads("--threads", self.threads)

    def chosen(self) -> list[Contender]:
        """Return the contenders that the patterns name, installed or not.

        Returns:
            In the order of the table.

        Raises:
            InputError: If a pattern names none.
        """
        names = [contender.name for contender in CONTENDERS]
        for pattern in self.contenders:
            if not fnmatch.filter(names, pattern):
                raise InputError(f"There is no contender {pattern!r}; {closest(pattern, names)}")
        return [
            contender
            for contender in CONTENDERS
            if any(fnmatch.fnmatchcase(contender.name, pattern) for pattern in self.contenders)
        ]


def run_bench(config: BenchConfig, command: str, say: Callable[[str], None]) -> str:
    """Measure, and write `OUT.json` and `OUT.md` after every model.

    Args:
        config: What to measure.
        command: How it was called, for the record.
        say: Takes a line on progress.

    Returns:
        The tables, Markdown.
    """
    device = resolve_device(config.device)
    there = installed(MODULES)
    here = [c for c in config.chosen() if c.distribution is None or c.distribution in there]
    missing = [c.name for c in config.chosen() if c not in here]
    record: Record = {"facts": _facts(config, command, device, missing), "models": {}}
    effort = Effort(
        repeats=config.repeats,
        warmup=config.warmup,
        longest=config.longest,
        max_state=1e9 * config.max_state,
    )
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with torch_threads(config.threads):
        for name in config.models:
            # What one model has compiled must not count against the next one's limit.
            torch.compiler.reset()
            seed_everything(config.seed)
            workload = make_workload(name, device, config.autocast)
            record["models"][name] = race(workload, here, effort, say)
            text = markdown(record)
            write_json(Path(f"{config.out}.json"), record)
            Path(f"{config.out}.md").write_text(text + "\n", encoding="utf-8")
    return text


def _facts(
    config: BenchConfig, command: str, device: torch.device, missing: Sequence[str]
) -> Record:
    """Return what the figures depend on."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {
        "command": command.replace(str(config.out), config.out.name),
        "config": {key: value for key, value in asdict(config).items() if key != "out"},
        "date": facts.today(),
        "commit": facts.commit(),
        "machine": facts.machine(),
        "device": facts.device_name(device),
        "versions": {**versions, **installed(MODULES)},
        "not_installed": list(missing),
    }
