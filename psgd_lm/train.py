"""Training: from a configuration to a run folder, exactly the same however often interrupted."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from psgd_lm.batches import Batch
from psgd_lm.config import TrainConfig
from psgd_lm.data import load_data
from psgd_lm.evaluate import evaluate
from psgd_lm.guard import BadStepError, Fingerprint, FiniteGuard, memory_advice
from psgd_lm.meter import Meter
from psgd_lm.progress import Progress
from psgd_lm.run_state import RunState
from psgd_lm.stepping import Taken
from psgd_lm.summary import figures_on_test, summarise_run
from psgd_lm.trainee import Trainee, make_batches, make_model
from psgd_optim.tools.run_folder import RunFolder
from psgd_optim.tools.runtime import Interrupt, resolve_device, seed_everything, torch_threads
from psgd_optim.types import InputError

MOVED_BY = 10
"""Steps after which a model has changed: float16's scale may leave the first few out."""


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
        seed_everything(config.seed)
        with memory_advice(f"building the model {config.model.name}", "one, by --model.*"):
            self.model = make_model(config, self.data.tokenizer.vocab_size).to(self.device)
        self.batches = make_batches(
            config, self.data.train.to(self.device), is_recurrent=self.model.is_recurrent
        )
        self.steps = config.steps or max(1, self.batches.steps_in(config.epochs))
        config.schedule.check(self.steps)
        self.trainee = Trainee(config, self.model, self.steps)
        self.validation_tokens = self.data.validation.to(self.device)
        self.guard = FiniteGuard(self.device)
        self.fingerprint: Fingerprint | None = None

    def open_folder(self) -> RunFolder:
        """Create the run's folder, or go back to the state that the run left there."""
        self.state = RunState(self.config, self.data, self.trainee)
        self.folder = self.state.folder
        # The first step of some optimizers, such as SOAP, only looks.
        if self.progress.step == 0 and self.steps > 1:
            self.fingerprint = Fingerprint(self.model)
        self.meter = Meter(self.config, self.model, self.progress)
        return self.folder

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        return self.state.progress

    def go(self, interrupt: Interrupt) -> Result:
        """Train until the last step or a signal."""
        # disable=None: no bar where the output is not a terminal.
        with tqdm(
            total=self.steps,
            initial=self.progress.step,
            unit="step",
            desc=self.config.run_dir.name,
            disable=None,
        ) as bar:
            while True:
                try:
                    self._evaluate_or_save(bar)
                    is_done = self.progress.step == self.steps
                    if is_done or interrupt.requested:
                        return self._end("finished" if is_done else "interrupted")
                    self._step(bar)
                except BadStepError as error:
                    self._roll_back(error)
                    bar.update(self.progress.step - bar.n)

    def _evaluate_or_save(self, bar: tqdm) -> None:
        """Do what is due after the steps done so far."""
        config, progress = self.config, self.progress
        is_due = progress.step == self.steps or self._ends_interval(progress.step)
        # A run resumed from the checkpoint of an evaluation has done this one.
        if is_due and progress.evaluated_at < progress.step:
            self._evaluate()
            bar.set_postfix(val_loss=f"{progress.evaluation['loss']:.4f}")
        every = config.checkpoint_every
        if every and progress.step % every == 0 and self.state.saved_step < progress.step:
            self._save()

    def _ends_interval(self, step: int) -> bool:
        """Return whether an evaluation comes after so many steps."""
        every = self.config.eval_every
        return step % every == 0 if every else self.batches.is_whole(step)

    def _step(self, bar: tqdm) -> None:
        """Take one step, or leave it out."""
        progress = self.progress
        number = progress.step + 1
        batch = self.batches.at(progress.step)
        if number in progress.skipped:
            self.trainee.objective.leave_out(batch)
            progress.step = number
            self.folder.log(number, {"train/left_out": 1.0})
        else:
            self._train_on(batch, number, bar)
        bar.update()

    def _train_on(self, batch: Batch, number: int, bar: tqdm) -> None:
        config, progress, trainee = self.config, self.progress, self.trainee
        factor = config.schedule.factor(progress.step, self.steps, progress.history)
        factor *= batch.lr_factor
        trainee.set_lr_factor(factor)
        is_logged = number % config.log_every == 0
        with (
            memory_advice(
                f"a step of {config.rows} windows of {config.model.context} tokens, "
                f"{config.micro_batch or config.rows} at a time",
                "--micro-batch (which changes no result but for rounding), --batch-size or "
                "--model.context",
            ),
            self.meter.sample(trainee.stepper, number, is_logged=is_logged),
        ):
            taken = trainee.stepper.take(batch)
        progress.step = number
        progress.tokens += batch.targets.numel()
        self.guard.watch(taken.loss, number)
        if not trainee.scaler.is_enabled():  # which looks for infinite gradients itself
            self.guard.watch(taken.gradient_norm, number)
        if self.fingerprint is not None and number >= min(MOVED_BY, self.steps):
            self.fingerprint.check_moved(number, config.optim.lr)
            self.fingerprint = None
        trainee.averaging.update(self.model, number, progress.history)
        if is_logged:
            self._log(taken, factor, bar)

    def _log(self, taken: Taken, factor: float, bar: tqdm) -> None:
        """Record a step; its loss is waited for."""
        self._check_steps()
        values = {
            "train/loss": taken.loss.item(),
            "train/gradient_norm": taken.gradient_norm.item(),
            "train/lr_factor": factor,
            **self.trainee.figures(),
        }
        speed = self.meter.speed()
        self.folder.log(self.progress.step, {**values, **speed})
        bar.set_postfix(
            loss=f"{values['train/loss']:.4f}",
            val_loss=f"{self.progress.evaluation['loss']:.4f}",
            tok_s=f"{speed['time/tokens_per_second']:,.0f}",
        )

    def _evaluate(self) -> None:
        """Evaluate, log, and save the checkpoints."""
        self._check_steps()
        progress = self.progress
        with self.meter.paused():
            with self.trainee.averaging.swapped(self.model):
                evaluation = evaluate(
                    self.model, self.validation_tokens, self.data.tokenizer.byte_lengths()
                )
            if not math.isfinite(evaluation.loss):
                raise BadStepError(progress.step, "The validation loss")
            self.state.check_finite()
            is_best = progress.record(evaluation.loss, asdict(evaluation))
            values = {f"validation/{name}": value for name, value in progress.evaluation.items()}
            values |= {"train/tokens": progress.tokens, **self.meter.times()}
            self.folder.log(progress.step, values)
            if is_best:
                self.state.save_best()
            self._save()

    def _save(self) -> None:
        """Write the checkpoint that a resumption or a roll-back starts from."""
        self._check_steps()
        self.meter.store()
        self.state.save()

    def _check_steps(self) -> None:
        if bad := self.guard.first_bad_step():
            raise BadStepError(bad, "The loss or gradient")

    def _roll_back(self, error: BadStepError) -> None:
        """Go back to the last checkpoint to leave the bad step out, or end the run."""
        left_out = self.progress.skipped
        if len(left_out) >= self.config.rollbacks or not self.state.can_go_back:
            self._diverge(error)
        self.state.go_back()
        self.progress.skipped = sorted([*left_out, error.step])
        self.guard.forget()
        self.meter.restart(self.progress)

    def _diverge(self, error: BadStepError) -> NoReturn:
        """Stop, leaving the checkpoints as they are."""
        if not self.state.can_go_back:
            raise DivergedError(
                f"{error.what} of a run that begins is not finite; start with other weights."
            ) from None
        self.meter.store()
        self._finish("diverged")
        left_out = self.progress.skipped
        after = f", after leaving out {', '.join(map(str, left_out))}" if left_out else ""
        raise DivergedError(
            f"{error.what} of step {error.step} is not finite{after}; the last good checkpoint, of "
            f"step {self.state.saved_step}, is {self.folder.last_checkpoint}: start again with a "
            "lower --optim.lr."
        ) from None

    def _end(self, status: str) -> Result:
        """Save what an interruption would lose, and write the summary."""
        if status == "interrupted":
            self._save()
        return self._finish(status)

    def _finish(self, status: str) -> Result:
        """Write the summary."""
        summary = summarise_run(self.config, self.progress, self.model, self.data)
        summary["status"] = status
        if status == "finished":
            summary |= figures_on_test(self.config.run_dir, self.data, str(self.device))
        self.folder.write_summary(summary)
        return Result(status=status, run_dir=self.config.run_dir, summary=summary)
