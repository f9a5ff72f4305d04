"""K-BFGS and K-BFGS(L): quasi-Newton preconditioners with one Kronecker product per layer."""

from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor, nn

from psgd_optim.derivatives import Closure
from psgd_optim.peers.arguments import check_number
from psgd_optim.peers.kronecker import KroneckerOptimizer, damped_inverse
from psgd_optim.peers.layers import Layer, Pass, input_moment, run_pass, traced
from psgd_optim.peers.quasi_newton import (
    DenseBFGS,
    DoubleDamping,
    InverseHessian,
    SecantPair,
    update_inverse,
)
from psgd_optim.types import State

# The first damping puts pairs exactly on the bound, where rounding would decide about them.
_ROUNDING = 1e-4
_DENSE = DenseBFGS()


@final
class KBFGS(KroneckerOptimizer):
    """Steps along `H_g m H_a`: `H_g` from secant pairs, `H_a` from moments of the inputs.

    A layer's Hessian is taken for `A (x) G`, with `A` the moment of its inputs and `G` the Hessian
    by its outputs. `H_g` approximates `G^-1`: its pairs are the changes of mean outputs and mean
    gradients between two passes over one mini-batch, before and after the step, averaged and
    damped twice. `H_a` approximates `(A + lambda_A I)^-1`: BFGS with pairs along the mean input.
    `lambda_A = lambda_G = sqrt(damping)`.

    Args:
        model: Of `nn.Linear` and `nn.Conv2d` layers, and modules without parameters.
        lr: Step size, relative to a full quasi-Newton step.
        damping: `lambda` of both factors together, in (0, 1]: its root is also `mu_2` of the
            double damping.
        inverse: How `H_g` is kept: `DenseBFGS()`, a matrix per layer, which is K-BFGS, or
            `LimitedMemory()`, a memory of pairs per layer, which is K-BFGS(L).
        beta: Decay of the averages of gradients and inputs.
        pair_beta: Decay of the averages of pairs, 0 if a mini-batch is the data set; `None` for
            `beta`.
        weight_decay: Rate of the L2 penalty, whose gradient is added to the loss's.
        inverse_ratio: `mu_1` of the double damping.

    Raises:
        InputError: If a number is outside its range, or the model has other parameters.
        TypeError: If `inverse` is something else.

    Source: S4 Algorithm 2 and section 6.
    Deviation: for layers with positions, see `layers.input_moment`.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> optimizer = KBFGS(model, lr=0.3, damping=0.3)
    >>> x = torch.ones(2, 4)
    >>> loss = optimizer.step(lambda: model(x).square().mean())
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        *,
        damping: float,
        inverse: InverseHessian = _DENSE,
        beta: float = 0.9,
        pair_beta: float | None = None,
        weight_decay: float = 0.0,
        inverse_ratio: float = 0.2,
    ) -> None:
        if not isinstance(inverse, InverseHessian):
            raise TypeError(f"Got inverse = {inverse!r}; give DenseBFGS() or LimitedMemory().")
        self._inverse = inverse
        settings = {
            "damping": damping,
            "beta": beta,
            "pair_beta": beta if pair_beta is None else pair_beta,
            "weight_decay": weight_decay,
            "inverse_ratio": inverse_ratio,
        }
        super().__init__(model, lr, settings, f"K-BFGS with {inverse}")

    def _check_damping(self, x: object) -> None:
        told = "a number in (0, 1], whose root bounds pairs by the identity"
        check_number("damping", x, told, lambda x: 0 < x <= 1)

    def _damping(self) -> DoubleDamping:
        settings = self._settings
        return DoubleDamping(settings["inverse_ratio"], settings["damping"] ** 0.5)

    def _initial(self, outputs: Tensor, inputs: Tensor) -> State:
        return {
            "input_moment": inputs.new_zeros(len(inputs), len(inputs)),
            "input_inverse": inputs.new_zeros(len(inputs), len(inputs)),
            "step_average": outputs.clone(),
            "change_average": outputs.clone(),
            "pair_counts": outputs.new_zeros(3),
            **self._inverse.initial(outputs),
        }

    def _warm_moments(self, closure: Closure) -> Iterator[tuple[Layer, State]]:
        with traced(self._layers) as trace:
            closure()  # forward only: the inputs need no loss
        trace.check(self._layers)
        for layer in self._layers:
            yield layer, {"input_moment": input_moment(layer, trace.inputs[layer])}

    def _take_step(self, closure: Closure) -> Tensor:
        damping = self._damping()
        surroundings = self._surroundings()
        before = run_pass(self._layers, closure)
        once = self._surroundings()
        for layer in self._layers:
            self._move(layer, self._direction(layer, before))
        surroundings.restore()  # dropout must not be taken for curvature
        try:
            after = run_pass(self._layers, closure, with_gradients=False)
        finally:
            once.restore()
        for layer in self._layers:
            self._fit_outputs(layer, before, after, damping)
            self._fit_inputs(layer, before)
        return before.loss

    def _direction(self, layer: Layer, before: Pass) -> Tensor:
        """Return `H_g m H_a`, zeros (M, n) before the first finite moments."""
        state = self._state(layer)
        self._fold(state, {"input_moment": before.input_moment(layer)})
        if not self._settings["is_started"]:
            first = damped_inverse(state["input_moment"], self._settings["damping"] ** 0.5)
            old = state["input_inverse"]
            is_due = (state["moment_count"] > 0) & ~old.any()
            state["input_inverse"] = torch.where(is_due, first, old)
        gradient = self._fold_gradient(layer, before)
        return self._inverse.apply(state, gradient @ state["input_inverse"])

    def _fit_outputs(self, layer: Layer, before: Pass, after: Pass, damping: DoubleDamping) -> None:
        """Update `H_g` by the averaged and damped pair; one that is not finite changes nothing.

        Source: S4 equation 5, Algorithm 3 and section 6.
        """
        state = self._state(layer)
        weight = 1 - self._settings["pair_beta"]
        old_gradient = before.gradient_mean(layer)
        s = after.output_mean(layer) - before.output_mean(layer)
        y = after.gradient_mean(layer) - old_gradient
        is_finite = s.isfinite().all() & y.isfinite().all()
        for name, x in (("step_average", s), ("change_average", y)):
            old = state[name]
            state[name] = old.lerp(torch.where(is_finite, x, old), weight)
        s = state["step_average"]
        y = torch.where(is_finite, state["change_average"], torch.nan)  # which the gates refuse
        pair = damping.damp(s, y, self._inverse.apply(state, y))
        hy = self._inverse.apply(state, pair.y)
        least, sy = self._settings["inverse_ratio"] * (pair.y @ hy), pair.s @ pair.y
        within = [least <= bound * (1 + _ROUNDING) * sy for bound in (1, 2)]
        state["pair_counts"] = state["pair_counts"] + torch.stack([is_finite, *within])
        state.update(self._inverse.update(state, pair, hy, old_gradient.norm()))

    def _fit_inputs(self, layer: Layer, before: Pass) -> None:
        """Update `H_a` by "Hessian action": `s = H_a a`, `y = (A + lambda_A I) s`.

        Source: S4 section 4.
        """
        state = self._state(layer)
        h, mean = state["input_inverse"], before.input_mean(layer)
        s = h @ mean
        y = state["input_moment"] @ s + self._settings["damping"] ** 0.5 * s
        pair = SecantPair(s, y)
        state["input_inverse"] = update_inverse(h, pair, h @ y, mean.norm())

    def metrics(self) -> dict[str, Tensor]:
        """Return figures of all pairs so far as 0-D tensors; empty before the first step.

        Returns:
            The shares of damped pairs with `y^T H y <= k s^T y / mu_1`, which the first damping
            gives and the second may take: `pairs_within_bound` with `k = 1`, and
            `pairs_within_twice_bound` with `k = 2`, each but for rounding.
        """
        states = [self.state[layer.module.weight] for layer in self._layers]
        if not all(states) or not self._settings["step"]:
            return {}
        device = states[0]["pair_counts"].device
        counts = torch.stack([state["pair_counts"].to(device) for state in states]).sum(dim=0)
        return {
            "pairs_within_bound": counts[1] / counts[0],
            "pairs_within_twice_bound": counts[2] / counts[0],
        }

    def _kept(self) -> Sequence[str]:
        return (*super()._kept(), "_inverse")
