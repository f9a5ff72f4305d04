"""One optimizer step on a batch, with an optimizer of either kind."""

from typing import NamedTuple

import torch
from torch import Tensor

from psgd_lm.batches import Batch
from psgd_lm.objective import BatchLoss, Objective
from psgd_lm.timing import PhaseTimer
from psgd_optim.tools.stepping import clip_gradients, differentiates_twice, needs_closure


class Taken(NamedTuple):
    """What a step saw.

    Attributes:
        loss: 0-D, the mean loss of the batch's tokens before the step.
        gradient_norm: 0-D, of all parameters together, before clipping.
    """

    loss: Tensor
    gradient_norm: Tensor


class Stepper:
    """Takes steps.

    Args:
        optimizer: Steps from gradients, or from a closure that yields the parts of the loss.
        objective: The loss.
        max_norm: Largest norm of the gradient; 0 for no clipping.
        scaler: Keeps gradients in float16's range; disabled in all other precisions.
        timer: Told where the phases of a step begin and end.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        *,
        max_norm: float,
        scaler: torch.amp.GradScaler,
        timer: PhaseTimer,
    ) -> None:
        self.optimizer = optimizer
        self.objective = objective
        self.scaler = scaler
        self._max_norm = max_norm
        self.timer = timer
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def take(self, batch: Batch) -> Taken:
        """Step on a batch, and carry the memory on.

        Args:
            batch: On the model's device.

        Returns:
            What it saw, on the device, which is not waited for.

        Raises:
            TypeError: If the optimizer has stepped without evaluating the loss.
        """
        phase = "optimizer_fit" if self.fits_next else "optimizer"
        loss = self.objective.evaluation(batch, twice=differentiates_twice(self.optimizer))
        take = self._from_closure if needs_closure(self.optimizer) else self._from_gradients
        norm = take(loss, phase)
        self.objective.advance(loss)
        value = loss.value
        if value is None:  # an optimizer that has not called its closure
            raise TypeError(f"{type(self.optimizer).__name__} has not evaluated the loss.")
        return Taken(value, norm)

    @property
    def fits_next(self) -> bool:
        """Whether the next step fits a preconditioner, which takes longer."""
        return bool(getattr(self.optimizer, "fits_next", False))

    def _from_gradients(self, loss: BatchLoss, phase: str) -> Tensor:
        for part in loss():
            with self.timer.phase("backward"):
                self.scaler.scale(part).backward()  # type: ignore[no-untyped-call]
        with self.timer.phase(phase):
            self.scaler.unscale_(self.optimizer)
            norm = clip_gradients(self._parameters, self._max_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
        return norm

    def _from_closure(self, loss: BatchLoss, phase: str) -> Tensor:
        with self.timer.phase(phase):
            self.optimizer.step(loss)  # type: ignore[arg-type]  # torch types it as a float
            norm = clip_gradients(self._parameters, 0.0)
            self.optimizer.zero_grad()
        return norm
