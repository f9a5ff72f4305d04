"""Training: from a configuration to a run folder, exactly the same however often interrupted."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from psgd_lm.batches import Windows
from psgd_lm.config import TrainConfig
from psgd_lm.data import load_data
from psgd_lm.evaluate import evaluate
from psgd_lm.gpt import GPT
from psgd_lm.language_model import token_losses
from psgd_lm.saved_run import KIND, check_text, text_identity
from psgd_lm.stepping import FiniteGuard, is_finite, lr_factor, second_derivatives
from psgd_optim.config import build
from psgd_optim.tools.checkpoint import write_checkpoint
from psgd_optim.tools.run_folder import RunFolder, config_to_dict, read_run
from psgd_optim.tools.runtime import (
    Interrupt,
    Stopwatch,
    random_state,
    resolve_device,
    seed_everything,
    set_random_state,
    torch_threads,
)
from psgd_optim.tools.stepping import check_clipping, take_step
from psgd_optim.types import InputError


class DivergedError(InputError):
    """A run whose loss or parameters are not finite any more; it keeps its last good checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run, or the part of it until an interruption, came to."""

    status: str
    """`finished` or `interrupted`."""
    run_dir: Path
    summary: Mapping[str, Any]
    """The content of `summary.json`."""


@dataclass(kw_only=True)
class Progress:
    """Where a run stands: the numbers that a checkpoint keeps beside model and optimizer."""

    step: int = 0
    """Steps done."""
    evaluated_at: int = -1
    """Steps done at the last evaluation."""
    evaluation: dict[str, float] = field(default_factory=dict)
    """The fields of the last `Evaluation`."""
    best_loss: float = float("inf")
    best_step: int = 0
    seconds: float = 0.0
    """Time of the whole run until the last checkpoint, without its interruptions."""
    training_seconds: float = 0.0
    """Part of it that went into steps, not into evaluations and checkpoints."""


def train(config: TrainConfig) -> Result:
    """Train a model, or go on training it.

    SIGINT or SIGTERM saves a checkpoint and returns; a resumed run ends with the parameters of
    an uninterrupted one, bit for bit on the CPU.

    Args:
        config: The run.

    Returns:
        Its final figures, which are also in `summary.json`.
    """
    with Interrupt() as interrupt, torch_threads(config.threads):
        run = _Run(config)
        with run.open_folder():
            return run.go(interrupt)


class _Run:
    """A run in memory; nothing is written before `open_folder`.

    Args:
        config: The run.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.device = resolve_device(config.device)
        self.data = load_data(config.data, config.model.context)
        self.identity = text_identity(self.data)
        seed_everything(config.seed)
        self.model = GPT(config.model, self.data.tokenizer.vocab_size).to(self.device)
        self.optimizer = build(self.model.named_parameters(), config.optim, config.seed)
        check_clipping(self.optimizer, config.grad_clip, "--grad-clip")
        self.full_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.batches = Windows(
            self.data.train.to(self.device),
            context=config.model.context,
            batch_size=config.batch_size,
            seed=config.seed,
        )
        self.validation_tokens = self.data.validation.to(self.device)
        self.guard = FiniteGuard(self.device)
        self.progress = Progress()

    def open_folder(self) -> RunFolder:
        """Create the run's folder, or go back to the state that the run left there."""
        config = self.config
        self.folder = RunFolder(
            config.run_dir, KIND, config, resume=config.resume, overwrite=config.overwrite
        )
        if config.resume:
            self._load(read_run(config.run_dir, KIND)[1])
            self.folder.rewind(self.progress.step)
        self.saved_step = self.progress.step
        self.stopwatch = Stopwatch(self.progress.seconds)
        self.clock = self.stopwatch.seconds
        return self.folder

    def go(self, interrupt: Interrupt) -> Result:
        """Train until the last step or a signal."""
        config, progress = self.config, self.progress
        # disable=None: no bar where the output is not a terminal.
        with tqdm(
            total=config.steps,
            initial=progress.step,
            unit="step",
            desc=config.run_dir.name,
            disable=None,
        ) as bar:
            while True:
                is_done = progress.step == config.steps
                # A run resumed from the checkpoint of an evaluation has done this one.
                if progress.evaluated_at < progress.step and (
                    is_done or progress.step % config.eval_every == 0
                ):
                    self._evaluate()
                    bar.set_postfix(val_loss=f"{progress.evaluation['loss']:.4f}")
                if is_done:
                    return self._finish("finished")
                if interrupt.requested:
                    self._stop_clock()
                    self._save(self.folder.last_checkpoint)
                    return self._finish("interrupted")
                self._step()
                bar.update()

    def _step(self) -> None:
        config, step = self.config, self.progress.step
        factor = lr_factor(
            step, steps=config.steps, warmup=config.warmup, final=config.final_lr_fraction
        )
        for group, full in zip(self.optimizer.param_groups, self.full_lrs, strict=True):
            group["lr"] = full * factor
        batch = self.batches.at(step)
        with second_derivatives(self.optimizer):
            loss = take_step(
                self.optimizer,
                self.model.parameters(),
                lambda: token_losses(self.model(batch.inputs).logits, batch.targets).mean(),
                config.grad_clip,
            )
        self.progress.step = step + 1
        self.guard.watch(loss, step + 1)
        if (step + 1) % config.log_every == 0:
            self._check_losses()
            self.folder.log(step + 1, {"train/loss": loss.item(), "train/lr_factor": factor})

    def _evaluate(self) -> None:
        """Evaluate, log, and save the checkpoints."""
        self._stop_clock()
        progress = self.progress
        evaluation = evaluate(
            self.model, self.validation_tokens, self.data.tokenizer.byte_lengths()
        )
        if not math.isfinite(evaluation.loss):
            self._diverge(f"The validation loss after step {progress.step}")
        progress.evaluated_at, progress.evaluation = progress.step, asdict(evaluation)
        values = {f"validation/{name}": value for name, value in progress.evaluation.items()}
        times = {
            "time/seconds": self.stopwatch.seconds,
            "time/training": progress.training_seconds,
            "train/tokens": progress.step * self.config.batch_size * self.config.model.context,
        }
        self.folder.log(progress.step, {**values, **times})
        if evaluation.loss < progress.best_loss:
            progress.best_loss, progress.best_step = evaluation.loss, progress.step
            self._save(self.folder.best_checkpoint)
        self._save(self.folder.last_checkpoint)
        self.clock = self.stopwatch.seconds

    def _stop_clock(self) -> None:
        """Wait for the device, count the time since the clock started, and check the losses."""
        self._check_losses()
        self.progress.training_seconds += self.stopwatch.seconds - self.clock

    def _check_losses(self) -> None:
        if bad := self.guard.first_bad_step():
            self._diverge(f"The loss of step {bad}")

    def _diverge(self, what: str) -> NoReturn:
        """Stop, leaving the checkpoints as they are."""
        if self.progress.evaluation:
            self._finish("diverged")
        raise DivergedError(
            f"{what} is not finite; the last good checkpoint, of step {self.saved_step}, is "
            f"{self.folder.last_checkpoint}: start again with a lower --optim.lr."
        )

    def _save(self, path: Path) -> None:
        if not is_finite(self.model):
            self._diverge(f"A parameter after step {self.progress.step}")
        self.progress.seconds = self.stopwatch.seconds
        write_checkpoint(
            path,
            KIND,
            {
                "config": config_to_dict(self.config),
                "identity": self.identity,
                "tokenizer": self.data.tokenizer.to_dict(),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "random": random_state(self.device),
                "progress": asdict(self.progress),
            },
        )
        self.saved_step = self.progress.step

    def _load(self, content: Mapping[str, Any]) -> None:
        check_text(content["identity"], self.data, self.config.run_dir)
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        set_random_state(self.device, content["random"])
        self.progress = Progress(**content["progress"])

    def _finish(self, status: str) -> Result:
        """Write the summary."""
        config, progress, evaluation = self.config, self.progress, self.progress.evaluation
        seconds_per_step = progress.training_seconds / max(1, progress.step)
        steps_per_second = 1 / seconds_per_step if seconds_per_step else 0.0
        summary = {
            "status": status,
            "seed": config.seed,
            "steps": progress.step,
            "seconds": progress.seconds,
            "ms_per_step": 1000 * seconds_per_step,
            "steps_per_second": steps_per_second,
            "tokens_per_second": steps_per_second * config.batch_size * config.model.context,
            "optimizer": config.optim.name,
            "lr": config.optim.lr,
            "parameters": self.model.parameter_count(),
            "val_loss": evaluation["loss"],
            "val_loss_standard_error": evaluation["standard_error"],
            "val_step": progress.evaluated_at,
            "perplexity": evaluation["perplexity"],
            "bits_per_byte": evaluation["bits_per_byte"],
            "best_val_loss": progress.best_loss,
            "best_step": progress.best_step,
            "zlib_bits_per_byte": self.data.zlib_bits_per_byte,
            "corpus": dict(self.data.provenance),
            "device": str(self.device),
            "torch": torch.__version__,
        }
        self.folder.write_summary(summary)
        return Result(status=status, run_dir=config.run_dir, summary=summary)
