"""Where a run stands: the numbers that a checkpoint keeps beside model and optimizer."""

from dataclasses import dataclass, field

from psgd_lm.timing import Samples


@dataclass(kw_only=True)
class Progress:
    """Where a run stands."""

    step: int = 0
    """Steps done, those left out among them."""
    tokens: int = 0
    """Tokens trained on."""
    skipped: list[int] = field(default_factory=list)
    """Numbers of the steps whose batch is left out, counted from 1."""
    evaluated_at: int = -1
    """Steps done at the last evaluation."""
    evaluation: dict[str, float] = field(default_factory=dict)
    """The fields of the last `Evaluation`."""
    history: list[tuple[int, float]] = field(default_factory=list)
    """Steps done and validation loss of every evaluation."""
    best_loss: float = float("inf")
    best_step: int = 0
    seconds: float = 0.0
    """Time of the whole run until the last checkpoint, without its interruptions."""
    training_seconds: float = 0.0
    """Part of it that went into steps, not into evaluations and checkpoints."""
    timing: Samples = field(default_factory=dict)
    """Where the time of the sampled steps went."""

    def record(self, loss: float, evaluation: dict[str, float]) -> bool:
        """Note an evaluation.

        Args:
            loss: Validation loss.
            evaluation: All figures.

        Returns:
            Whether it is the best so far.
        """
        self.evaluated_at, self.evaluation = self.step, evaluation
        self.history.append((self.step, loss))
        is_best = loss < self.best_loss
        if is_best:
            self.best_loss, self.best_step = loss, self.step
        return is_best
