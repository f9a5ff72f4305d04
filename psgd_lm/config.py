"""What a training run is: one frozen record, and the presets that name good ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from psgd_lm.data import DataConfig
from psgd_lm.gpt import GPTConfig
from psgd_optim.config import OPTIMIZER_PARTS, OPTIMIZERS, AdamWConfig, OptimizerConfig, PSGDConfig
from psgd_optim.tools.runtime import check_threads
from psgd_optim.types import InputError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run of a language model."""

    model: GPTConfig = field(default_factory=GPTConfig)
    """Sizes of the model."""
    data: DataConfig = field(default_factory=DataConfig)
    """Text and tokens."""
    optim: OptimizerConfig = field(default_factory=PSGDConfig)
    """Optimizer, by name (--optim adamw), and its settings (--optim.lr 3e-3)."""
    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 12
    """Windows of text per step."""
    warmup: int = 100
    """Steps in which the learning rate grows linearly from almost 0 to its full value."""
    final_lr_fraction: float = 0.1
    """Part of the learning rate that is left at the last step; a cosine leads there."""
    grad_clip: float = 1.0
    """Largest norm of the gradient of all parameters together; 0 switches clipping off."""
    log_every: int = 20
    """Steps between two records of the training loss."""
    eval_every: int = 100
    """Steps between two evaluations on the whole validation part, each saving a checkpoint."""
    seed: int = 0
    """Seed of the initial weights, the order of the data, and dropout."""
    threads: int = 1
    """CPU threads; a run is reproducible bit for bit with the same number only. More than one
    speeds up small models by half on idle cores, and slows them down severalfold on busy ones."""
    device: str = "auto"
    """auto (CUDA if there is one), cpu, cuda, cuda:1 ..."""
    run_dir: Path = Path("runs/embedded")
    """Folder that the run is written to."""
    resume: bool = False
    """Go on with the run in the folder, from its last checkpoint."""
    overwrite: bool = False
    """Delete the run in the folder first."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "eval_every"):
            self._require(name, getattr(self, name) >= 1, "1 or more")
        for name in ("warmup", "grad_clip"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        self._require("seed", 0 <= self.seed < 2**63, "0 or more, and less than 2^63")
        check_threads("--threads", self.threads)
        self._require("warmup", self.warmup < self.steps, f"less than the {self.steps} steps")
        self._require("final_lr_fraction", 0 <= self.final_lr_fraction <= 1, "between 0 and 1")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            got = getattr(self, name)
            raise InputError(f"Got {name} {got}; give --{name.replace('_', '-')} {allowed}.")


SHAKESPEARE = DataConfig(path="input.txt")
"""The tiny-shakespeare file that nanoGPT made customary; `--data.path` says where it lies."""

CHOICES: Mapping[str, Mapping[str, object]] = {**OPTIMIZER_PARTS, "optim": OPTIMIZERS}
"""What the parts of a run can be, by field and name."""

TUNED: dict[str, dict[str, OptimizerConfig]] = {
    # Tried with seed 0; final validation loss by learning rate:
    #   psgd   1e-3 1.366, 1.4e-3 1.342, 2e-3 1.362
    #   adamw  2.5e-3 1.616, 4e-3 1.599, 6e-3 1.626
    # On an earlier, easier text, weight decay 0.1, beta2 0.95 or no grad_clip did not help adamw.
    "embedded": {"psgd": PSGDConfig(lr=1.4e-3), "adamw": AdamWConfig(lr=4e-3)},
    "smoke": {"psgd": PSGDConfig(lr=1e-2), "adamw": AdamWConfig(lr=1e-2)},
    # Tried with seed 0; final validation loss by learning rate:
    #   psgd   1e-3 1.623;  adamw  1e-3 (nanoGPT's) 1.907, 3e-3 1.775, 5e-3 1.800
    "shakespeare-cpu": {"psgd": PSGDConfig(lr=1e-3), "adamw": AdamWConfig(lr=3e-3)},
    # adamw is nanoGPT's; nothing else was tried, the run takes a GPU.
    "shakespeare-char": {
        "psgd": PSGDConfig(lr=1e-3, weight_decay=0.1),
        "adamw": AdamWConfig(lr=1e-3, weight_decay=0.1),
    },
}
"""Per preset, the settings that every optimizer starts from."""

ABOUT = {
    "embedded": "0.8 M parameters on text that needs no download; a minute or two on a CPU",
    "smoke": "a few thousand parameters; under a second, to see what a run writes",
    "shakespeare-cpu": "nanoGPT's CPU run; needs --data.path FILE; some minutes on a CPU",
    "shakespeare-char": "nanoGPT's GPU run, 10.7 M parameters; needs --data.path FILE",
}
"""What each preset is, in a line."""

PRESETS: dict[str, TrainConfig] = {
    "embedded": TrainConfig(optim=TUNED["embedded"]["psgd"], run_dir=Path("runs/embedded")),
    "smoke": TrainConfig(
        model=GPTConfig(layers=1, heads=2, width=16, context=16),
        optim=TUNED["smoke"]["psgd"],
        steps=20,
        batch_size=4,
        warmup=2,
        log_every=5,
        eval_every=10,
        run_dir=Path("runs/smoke"),
    ),
    "shakespeare-cpu": TrainConfig(
        data=SHAKESPEARE,
        optim=TUNED["shakespeare-cpu"]["psgd"],
        steps=2000,
        eval_every=250,
        run_dir=Path("runs/shakespeare-cpu"),
    ),
    "shakespeare-char": TrainConfig(
        model=GPTConfig(layers=6, heads=6, width=384, context=256, dropout=0.2),
        data=SHAKESPEARE,
        optim=TUNED["shakespeare-char"]["psgd"],
        steps=5000,
        batch_size=64,
        eval_every=250,
        threads=4,
        run_dir=Path("runs/shakespeare-char"),
    ),
}
"""Configurations by name."""
