"""KFAC: the Fisher matrix with one Kronecker product per layer, inverted now and then."""

from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor, nn

from psgd_optim.derivatives import Closure
from psgd_optim.noise import noise_generator
from psgd_optim.peers.kronecker import KroneckerOptimizer, damped_inverse
from psgd_optim.peers.layers import Layer, Pass, Trace, differentiate, mean_loss, traced
from psgd_optim.peers.likelihoods import SampledLoss
from psgd_optim.types import InputError, State

_STEPS, _WARM_START = 0, 1  # random streams


@final
class KFAC(KroneckerOptimizer):
    """Steps along `(G + sqrt(lambda) I)^-1 m (A + sqrt(lambda) I)^-1`, as S4 compares with.

    `A` is the moment of a layer's inputs, `G` that of the gradients at its outputs, with targets
    drawn from the model. These need no other forward pass: the sampled loss is one of the model's
    outputs in the closure, which has to call the model as a whole.

    Args:
        model: Of `nn.Linear` and `nn.Conv2d` layers, and modules without parameters.
        lr: Step size, relative to a full natural step.
        damping: `lambda` of both factors together, above 0.
        sampled_loss: Of the distribution that the loss is the likelihood of: one of `likelihoods`,
            or another function of outputs and a generator, as a mean over samples.
        beta: Decay of all averages.
        weight_decay: Rate of the L2 penalty, whose gradient is added to the loss's.
        interval: Inverses are made anew in the first so many steps, and then once in so many.
        seed: Of the random targets, which are a function of it and of the step.

    Raises:
        InputError: If a number is outside its range, or the model has other parameters.

    Source: S4 section 6 and Table 2.
    Deviation: the targets' loss shares the forward pass; layers with positions: see
    `layers.input_moment`.
    Deviation: the published code lets the first mini-batch take the place of the warm start, and
    its decay ramps up, `min(1 - 1 / (k + 1), beta)` in step `k`; here `beta` counts from the start.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        *,
        damping: float,
        sampled_loss: SampledLoss,
        beta: float = 0.9,
        weight_decay: float = 0.0,
        interval: int = 20,
        seed: int = 0,
    ) -> None:
        if not callable(sampled_loss):
            raise TypeError(
                f"KFAC got sampled_loss = {sampled_loss!r}; give one of "
                "psgd_optim.peers.likelihoods, or a function of outputs and a generator."
            )
        self._sampled_loss = sampled_loss
        settings = {
            "damping": damping,
            "beta": beta,
            "weight_decay": weight_decay,
            "interval": interval,
            "seed": seed,
        }
        super().__init__(model, lr, settings, "KFAC")

    def _initial(self, outputs: Tensor, inputs: Tensor) -> State:
        squares = {"input": inputs, "output": outputs}
        return {
            f"{side}_{kind}": x.new_zeros(len(x), len(x))
            for side, x in squares.items()
            for kind in ("moment", "inverse")
        }

    def _warm_moments(self, closure: Closure) -> Iterator[tuple[Layer, State]]:
        number = self._settings["warm_batches"] + 1
        trace, _, sampled_loss = self._losses(closure, number, _WARM_START)
        sampled = differentiate(self._layers, trace, sampled_loss, with_gradients=False)
        for layer in self._layers:
            yield layer, _moments(layer, sampled)

    def _take_step(self, closure: Closure) -> Tensor:
        trace, loss, sampled_loss = self._losses(closure, self._settings["step"], _STEPS)
        taken = differentiate(self._layers, trace, loss, with_gradients=True, keep_graph=True)
        sampled = differentiate(self._layers, trace, sampled_loss, with_gradients=False)
        for layer in self._layers:
            state = self._state(layer)
            self._fold(state, _moments(layer, sampled))
            self._invert(state)
            gradient = self._fold_gradient(layer, taken)
            direction = state["output_inverse"] @ gradient @ state["input_inverse"]
            self._move(layer, direction)
        return taken.loss

    def _losses(self, closure: Closure, number: int, stream: int) -> tuple[Trace, Tensor, Tensor]:
        """Return a forward pass, its loss, and the sampled loss of the same outputs.

        Args:
            closure: Returns the loss.
            number: Of the mini-batch, for the random numbers.
            stream: Of the random numbers.

        Raises:
            InputError: If the closure does not call the model once, for one tensor.
        """
        outputs: list[object] = []

        def keep(module: nn.Module, args: object, output: object) -> object:
            outputs.append(output)
            return output.clone() if isinstance(output, Tensor) else output  # as in `traced`

        with torch.enable_grad(), traced(self._layers) as trace:
            handle = self._model.register_forward_hook(keep)
            try:
                loss = mean_loss(closure)
            finally:
                handle.remove()
            if len(outputs) != 1 or not isinstance(outputs[0], Tensor):
                raise InputError(
                    f"Got {len(outputs)} calls of the model in the closure; call it once, with a "
                    "tensor for its output."
                )
            seed = self._settings["seed"]
            generator = noise_generator(outputs[0].device, seed, number, stream)
            return trace, loss, self._sampled_loss(outputs[0], generator)

    def _invert(self, state: State) -> None:
        """Make the inverses anew in the steps that do; zeros before the first finite moments."""
        step, interval = self._settings["step"], self._settings["interval"]
        if step < interval or step % interval == 0 or not self._settings["is_started"]:
            damping, has_moments = self._settings["damping"] ** 0.5, state["moment_count"] > 0
            for side in ("input", "output"):
                inverse = damped_inverse(state[f"{side}_moment"], damping)
                state[f"{side}_inverse"] = torch.where(has_moments, inverse, 0.0)

    def _kept(self) -> Sequence[str]:
        return (*super()._kept(), "_sampled_loss")


def _moments(layer: Layer, sampled: Pass) -> State:
    """Return `A` and `G` of a mini-batch."""
    return {
        "input_moment": sampled.input_moment(layer),
        "output_moment": sampled.gradient_moment(layer),
    }
