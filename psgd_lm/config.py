"""What a training run is: one frozen record."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from psgd_lm.averaging import AverageConfig
from psgd_lm.data import DataConfig
from psgd_lm.gpt import GPTConfig
from psgd_lm.models import ModelConfig
from psgd_lm.objective import Precision
from psgd_lm.routing import Route, Routes, Same
from psgd_lm.schedules import Cosine, Schedule
from psgd_optim.config import OptimizerConfig, PSGDConfig
from psgd_optim.tools.runtime import check_threads
from psgd_optim.types import InputError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run of a language model."""

    model: ModelConfig = field(default_factory=GPTConfig)
    """Sizes of the model."""
    data: DataConfig = field(default_factory=DataConfig)
    """Text and tokens."""
    optim: OptimizerConfig = field(default_factory=PSGDConfig)
    """Optimizer, by name (--optim adamw), and its settings (--optim.lr 3e-3)."""
    embedding: Route = field(default_factory=Same)
    """Optimizer of embeddings, a tied head among them; `same` is that of --optim."""
    head: Route = field(default_factory=Same)
    """Optimizer of an untied head."""
    vector: Route = field(default_factory=Same)
    """Optimizer of biases and gains."""
    schedule: Schedule = field(default_factory=Cosine)
    """How learning rates change over the run, by name (--schedule wsd)."""
    average: AverageConfig = field(default_factory=AverageConfig)
    """Whether evaluations take an average of the weights, and from when on."""
    init_from: Path | None = None
    """Folder with a GPT-2 in Hugging Face's layout to start from, instead of fresh weights."""
    steps: int = 1000
    """Optimizer steps; 0 if --epochs says how long the run is."""
    epochs: float = 0.0
    """Times that the training text is read; 0 if --steps says how long the run is."""
    batch_size: int = 12
    """Windows of text per step, or streams of running text for a recurrent model."""
    tokens_per_step: int = 0
    """Tokens per step, from which the batch size follows; 0 takes --batch-size."""
    micro_batch: int = 0
    """Windows that go through the model at a time; fewer take less memory, and gradients are the
    same but for rounding. 0 takes all at once."""
    variable_length: bool = False
    """Whether the pieces of running text vary in length about the model's context (AWD-LSTM)."""
    grad_clip: float = 1.0
    """Largest norm of the gradient of all parameters together; 0 switches clipping off."""
    precision: Precision = "float32"
    """Of the forward pass; float16 scales gradients. Parameters are kept in float32."""
    compile: bool = False
    """Run the model through torch.compile, but where it is differentiated twice."""
    rollbacks: int = 3
    """Steps with a loss or gradient that is not finite which the run goes back for, to leave them
    out; the next one ends it."""
    log_every: int = 20
    """Steps between two records of the training loss."""
    eval_every: int = 100
    """Steps between two evaluations on the whole validation part, each saving a checkpoint; 0
    evaluates after every epoch."""
    checkpoint_every: int = 0
    """Steps between two checkpoints besides those of evaluations; 0 for none."""
    keep: int = 0
    """Checkpoints to keep under the names of their steps, besides the last and the best one."""
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
        for name in ("batch_size", "log_every"):
            self._require(name, getattr(self, name) >= 1, "1 or more")
        for name in (
            "grad_clip",
            "tokens_per_step",
            "micro_batch",
            "rollbacks",
            "eval_every",
            "checkpoint_every",
            "keep",
        ):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        self._require("seed", 0 <= self.seed < 2**63, "0 or more, and less than 2^63")
        check_threads("--threads", self.threads)
        self._check_length()
        if self.tokens_per_step % self.model.context:
            raise InputError(
                f"Got tokens_per_step {self.tokens_per_step}; give --tokens-per-step a multiple of "
                f"the model's context, {self.model.context}."
            )
        if self.micro_batch > self.rows:
            raise InputError(
                f"Got micro_batch {self.micro_batch} of the {self.rows} windows of a step; give "
                "--micro-batch fewer, or 0 for all at once."
            )

    def _check_length(self) -> None:
        if self.epochs == 0:
            self._require("steps", self.steps >= 1, "1 or more")
            self.schedule.check(self.steps)
        self._require("epochs", 0 <= self.epochs < math.inf, "0 or more")
        if self.epochs and self.steps:
            raise InputError(
                f"Got steps {self.steps} and epochs {self.epochs:g}; give one of --steps and "
                "--epochs, and 0 for the other."
            )

    @property
    def routes(self) -> Routes:
        """Which optimizer steps which parameters."""
        return Routes(
            optim=self.optim, embedding=self.embedding, head=self.head, vector=self.vector
        )

    @property
    def rows(self) -> int:
        """Windows or streams per step."""
        return self.tokens_per_step // self.model.context or self.batch_size

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            got = getattr(self, name)
            raise InputError(f"Got {name} {got}; give --{name.replace('_', '-')} {allowed}.")
