"""The clocks of a run: what it took, what a step takes, and how fast tokens go through."""

import contextlib
from collections.abc import Iterator

import torch

from psgd_lm.config import TrainConfig
from psgd_lm.language_model import LanguageModel
from psgd_lm.objective import DTYPES, Precision
from psgd_lm.progress import Progress
from psgd_lm.stepping import Stepper
from psgd_lm.throughput import Peak, device_peak
from psgd_lm.timing import means
from psgd_optim.tools.runtime import Stopwatch

UNTYPICAL = 2
"""Steps at the start that are not sampled: they allocate and compile."""


class Meter:
    """Counts time into a run's progress; pauses between its parts are left out.

    Args:
        config: The run.
        model: Knows its operations per token.
        progress: Holds the seconds so far.
    """

    def __init__(self, config: TrainConfig, model: LanguageModel, progress: Progress) -> None:
        self._precision = config.precision
        self._model = model
        self._has_fit = False
        self._stopwatch = Stopwatch(progress.seconds)
        self.restart(progress)

    def restart(self, progress: Progress) -> None:
        """Count into this progress from now on, as after a roll-back."""
        self._progress = progress
        self._since: float | None = self._stopwatch.seconds  # None while it is paused
        self._mark = (progress.tokens, progress.training_seconds)

    def store(self) -> None:
        """Bring the progress up to date."""
        now = self._stopwatch.seconds
        self._progress.seconds = now
        if self._since is not None:
            self._progress.training_seconds += now - self._since
            self._since = now

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock of training for an evaluation."""
        self.store()
        self._since = None
        yield
        self._since = self._stopwatch.seconds

    @contextlib.contextmanager
    def sample(self, stepper: Stepper, number: int, *, is_logged: bool) -> Iterator[None]:
        """Time the phases of a step that is logged, or the first since then that fits.

        Args:
            stepper: Takes the step.
            number: The step's number, counted from 1.
            is_logged: Whether the step's loss is waited for anyway.

        Yields:
            Nothing.
        """
        fits = stepper.fits_next
        is_sampled = number > UNTYPICAL and (is_logged or (fits and not self._has_fit))
        self._has_fit = (self._has_fit and not is_logged) or (is_sampled and fits)
        if not is_sampled:
            yield
            return
        with stepper.timer.sample(self._progress.timing):
            yield

    def speed(self) -> dict[str, float]:
        """Return how fast it went since the last call, and where a step's time goes."""
        self.store()
        progress = self._progress
        tokens, seconds = self._mark
        self._mark = (progress.tokens, progress.training_seconds)
        rate = (progress.tokens - tokens) / max(1e-9, progress.training_seconds - seconds)
        return {**self._rates(rate), **means(progress.timing, "time/")}

    def _rates(self, tokens_per_second: float) -> dict[str, float]:
        rates = {"time/tokens_per_second": tokens_per_second}
        peak = model_peak(self._model, self._precision)
        if peak is not None:
            operations = tokens_per_second * self._model.flops_per_token()
            rates["time/mfu"] = operations / peak.operations
        return rates

    def times(self) -> dict[str, float]:
        """Return the clocks, for the log."""
        self.store()
        progress = self._progress
        return {"time/seconds": progress.seconds, "time/training": progress.training_seconds}


def model_peak(model: LanguageModel, precision: Precision) -> Peak | None:
    """Return what a model's device can do at most in some precision, if it is known."""
    return device_peak(next(model.parameters()).device, DTYPES.get(precision, torch.float32))
