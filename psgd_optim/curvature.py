"""Where the Newton criterion's pairs `(v, H v)` come from.

A source either differentiates the loss itself, from a closure, or has its pairs from elsewhere.
The closure returns the loss, without calling `backward`; or it is a generator of losses whose sum
is the loss, one micro-batch after the other, for gradient accumulation: only one graph is alive at
a time.
"""

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from psgd_optim.derivatives import (
    Closure,
    Evaluation,
    Probes,
    Sums,
    Surroundings,
    difference_size,
    gradients,
    losses,
    products,
)
from psgd_optim.linalg import Mask, keep_rows, per_block
from psgd_optim.types import State

Pairs = tuple[Probes, Mapping[Tensor, Tensor]]
"""The probes `v` and their Hessian-vector products, by parameter."""

_NO_NAMES: Mapping[Tensor, str] = {}
_AVERAGE_PAIRS = (
    "average gradients and H v over the processes yourself and call PSGD.step(pair=(v, hv)) with "
    "Newton(source=Given())"
)


class PairSource:
    """Where pairs come from; concrete sources are final frozen dataclasses."""

    needs_closure: ClassVar[bool] = False
    """Whether the optimizer must evaluate the loss by itself."""
    memory: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors (B, *shape) that it keeps from step to step, zero at the start."""

    def observe(self, param: Tensor, grad: Tensor, memory: State) -> tuple[Tensor, Tensor] | None:
        """Return the pair that this step's parameters and gradients make with the memory.

        Args:
            param: (B, *shape), the parameters before the step.
            grad: (B, *shape), their gradient.
            memory: What the source keeps.

        Returns:
            `(v, h)`, (B, *shape) each, or `None` if the source has its pairs from elsewhere.
        """
        return None

    def remember(self, param: Tensor, grad: Tensor, memory: State, active: Mask) -> None:
        """Update the memory, in place, of the active rows."""
        return  # most sources remember nothing


class LossSource(PairSource, abc.ABC):
    """A source that differentiates the loss."""

    needs_closure: ClassVar[bool] = True
    differentiates_twice: ClassVar[bool] = False
    """Whether the loss needs a second derivative."""

    @abc.abstractmethod
    def evaluate(
        self,
        closure: Closure,
        params: Sequence[Tensor],
        probes: Probes | None,
        names: Mapping[Tensor, str] = _NO_NAMES,
    ) -> Evaluation:
        """Return loss, gradients and Hessian-vector products on one and the same batch.

        Args:
            closure: Returns the loss with its graph, or yields its parts.
            params: What to differentiate by.
            probes: The vectors `v`, or `None` for gradients only.
            names: What to call a parameter in an error.

        Returns:
            The evaluation.

        Raises:
            InputError: If the loss cannot be differentiated twice.
        """


@final
@dataclass(frozen=True)
class Exact(LossSource):
    """Differentiates the gradient once more: `H v = d(g^T v) / d theta`.

    Source: S0 (11), S1 (9).
    """

    differentiates_twice: ClassVar[bool] = True

    def evaluate(
        self,
        closure: Closure,
        params: Sequence[Tensor],
        probes: Probes | None,
        names: Mapping[Tensor, str] = _NO_NAMES,
    ) -> Evaluation:
        """Return loss, gradients and Hessian-vector products."""
        total = Sums()
        with torch.enable_grad():
            for loss in losses(closure):
                grads = gradients(loss, params, twice=probes is not None)
                total.add(loss, grads)
                if probes is not None:
                    total.add_products(products(grads, probes, names))
                del loss, grads  # or they would keep this graph while the next one is built
        return total.evaluation()


@final
@dataclass(frozen=True, kw_only=True)
class FiniteDifference(LossSource):
    """Differences gradients: `H v = (g(theta + d v) - g(theta)) / d`, with `d = sqrt(eps)`.

    Calls the closure two or three times, which must see one and the same batch. All evaluations
    see the same random numbers, and the parameters are put back from a copy, bit for bit. Works
    where nothing can be differentiated twice, such as fused attention or recurrent kernels.

    Args:
        central: Use `(g(theta + d v) - g(theta - d v)) / 2 d`: one evaluation more, and an error
            of second order in `d`.
        module: The module whose buffers (running statistics) the loss changes: every evaluation
            starts from the same buffers, and they end as after one evaluation.

    Source: S0 (6), S1 section 3. Deviation: `v` has unit variance and the difference is divided
    by `d`, which gives the same update and does not underflow.
    """

    central: bool = False
    module: nn.Module | None = None

    def evaluate(
        self,
        closure: Closure,
        params: Sequence[Tensor],
        probes: Probes | None,
        names: Mapping[Tensor, str] = _NO_NAMES,
    ) -> Evaluation:
        """Return loss, gradients and differences."""
        if probes is None:
            return self._gradients_at(closure, params)
        size = difference_size(params)
        held = [p.detach().clone() for p in params]
        before = Surroundings(params, self.module)
        base = self._gradients_at(closure, params)
        after = Surroundings(params, self.module)
        try:
            ahead = self._moved(closure, params, held, probes, size, before)
            if self.central:
                behind = self._moved(closure, params, held, probes, -size, before)
                size = 2 * size
            else:
                behind = base
        finally:
            for p, old in zip(params, held, strict=True):
                p.detach().copy_(old)
            after.restore()
        differences = {
            p: (ahead.grads[p] - behind.grads[p]) / size
            for p in base.grads
            if p in ahead.grads and p in behind.grads
        }
        return Evaluation(base.loss, base.grads, differences)

    def _moved(
        self,
        closure: Closure,
        params: Sequence[Tensor],
        held: Sequence[Tensor],
        probes: Probes,
        size: float,
        before: Surroundings,
    ) -> Evaluation:
        """Evaluate at `theta + size v`."""
        for p, old in zip(params, held, strict=True):
            p.detach().copy_(old).add_(probes[p], alpha=size)
        before.restore()
        return self._gradients_at(closure, params)

    def _gradients_at(self, closure: Closure, params: Sequence[Tensor]) -> Evaluation:
        total = Sums()
        with torch.enable_grad():
            for loss in losses(closure):
                total.add(loss, gradients(loss, params, twice=False))
                del loss
        return total.evaluation()


@final
@dataclass(frozen=True)
class GradientDifference(PairSource):
    """Takes the change of the parameters and of the gradient from one step to the next.

    Costs nothing but memory, two tensors per parameter. Different batches add the difference of
    their gradients' noise to the pair, which damps the preconditioner. Both differences are scaled
    by the root mean square of the first, so that the pair is in the units of a normal probe; a row
    that did not move has no pair.

    Source: S0 (6), with the step itself as the perturbation.
    """

    memory: ClassVar[tuple[str, ...]] = ("last_param", "last_grad")

    def observe(self, param: Tensor, grad: Tensor, memory: State) -> tuple[Tensor, Tensor] | None:
        """Return the differences from the last step."""
        v, h = param - memory["last_param"], grad - memory["last_grad"]
        size = v.flatten(1).norm(dim=1) / v[0].numel() ** 0.5
        size = per_block(size, v)
        return v / size, h / size  # not finite, and so not used, where nothing moved

    def remember(self, param: Tensor, grad: Tensor, memory: State, active: Mask) -> None:
        """Keep the parameters and their gradient."""
        for name, x in (("last_param", param), ("last_grad", grad)):
            held = memory[name]
            held.copy_(keep_rows(active, x, held))


@final
@dataclass(frozen=True)
class Given(PairSource):
    """Takes the pair that the caller passes to `step(pair=(v, hv))` in the steps that fit `Q`."""


def given_pairs(pair: tuple[Sequence[Tensor], Sequence[Tensor]], params: Sequence[Tensor]) -> Pairs:
    """Return a caller's pair by parameter.

    Args:
        pair: `(v, hv)`, in the order of the parameters.
        params: The trainable parameters.

    Returns:
        The pairs, without graphs.

    Raises:
        ValueError: If it is no pair, or its shapes are not the parameters'.
    """
    if len(pair) != 2:
        raise ValueError(f"PSGD got a pair of {len(pair)}; give (v, hv).")
    expected = [tuple(p.shape) for p in params]
    for name, tensors in zip(("v", "hv"), pair, strict=True):
        found = [tuple(x.shape) for x in tensors]
        if found != expected:
            raise ValueError(
                f"PSGD got {name} of shapes {found}; give the trainable parameters' {expected}."
            )
    v, hv = (dict(zip(params, (x.detach() for x in xs), strict=True)) for xs in pair)
    return v, hv


def check_closure(
    source: LossSource,
    closure: Callable[[], Any] | None,
    owner: str = "PSGD",
    way_out: str = _AVERAGE_PAIRS,
) -> Callable[[], Any]:
    """Return the closure of a step that differentiates the loss itself, where that can be done.

    Args:
        source: What differentiates it.
        closure: What the caller gave.
        owner: The optimizer, for the message.
        way_out: What to do with several processes, for the message.

    Raises:
        TypeError: If there is none, or other processes would have to know.
    """
    if closure is None:
        raise TypeError(
            f"{owner} with {type(source).__name__}() differentiates the loss itself; call "
            "step(closure) with a closure that returns the loss, without backward()."
        )
    refuse_processes(f"{owner} with {type(source).__name__}()", way_out)
    return closure


def refuse_processes(told: str, way_out: str) -> None:
    """Refuse several processes to an optimizer that differentiates the loss itself.

    Args:
        told: The optimizer, for the message.
        way_out: What to do instead.

    Raises:
        TypeError: If torch's distributed processes have been started.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise TypeError(
            f"{told} differentiates the loss on this process alone, which DistributedDataParallel "
            f"does not see; {way_out}."
        )
