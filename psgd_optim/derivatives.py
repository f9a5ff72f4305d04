"""First and second derivatives of a closure's loss, with errors that name the way out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from psgd_optim.types import InputError

Closure = Callable[[], Tensor | Iterable[Tensor]]
Probes = Mapping[Tensor, Tensor]
"""A tensor of its shape for every parameter."""


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation of the loss gave.

    Args:
        loss: 0-D, without its graph.
        grads: The gradient of every parameter that the loss depends on.
        products: `H v` of the same parameters; empty when no probes were given.
    """

    loss: Tensor
    grads: dict[Tensor, Tensor]
    products: dict[Tensor, Tensor]


@contextmanager
def readable_errors(place: Callable[[], str] = str) -> Iterator[None]:
    """Name the switch to flip where a fused kernel has no second derivative, and the place."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        text = str(error)
        if "backward through the graph a second time" in text:
            raise InputError(
                "The graph of the loss is gone: call no backward() in the closure, and let the "
                "losses that it yields share no graph."
            ) from error
        for sign in _NO_SECOND_DERIVATIVE:
            if sign in text:
                raise InputError(_told_once(sign, place())) from error
        raise


def _told_once(sign: str, place: str) -> str:
    """Return the message for a loss that has a first derivative only."""
    return (
        f"Exact() cannot differentiate this loss twice{place}: {_NO_SECOND_DERIVATIVE[sign]}, or "
        "take finite differences, PSGD(criterion=Newton(source=FiniteDifference()))."
    )


_NO_SECOND_DERIVATIVE = {
    "attention": (
        "scaled_dot_product_attention ran in a fused kernel; run the forward pass under "
        "torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
    ),
    "cudnn_rnn": (
        "a recurrent module (nn.RNN, nn.GRU or nn.LSTM) ran in cuDNN; run the forward pass under "
        "torch.backends.cudnn.flags(enabled=False)"
    ),
    "aot_autograd": (
        "a module was compiled by torch.compile; call the uncompiled module, which shares its "
        "parameters"
    ),
    "once_differentiable": "an autograd function has no second derivative; do without it",
    "is not implemented": "an operation has no second derivative; do without it",
}

# What autograd puts into the graph of a gradient that cannot be differentiated again. It raises at
# the first two, and leaves the last one, that of a once-differentiable function, out of H v.
_SILENT_END = "Error"
_DEAD_ENDS = ("NotImplemented", "CompiledFunctionBackwardBackward", _SILENT_END)


def _place(grads: Mapping[Tensor, Tensor], names: Mapping[Tensor, str]) -> str:
    """Return where the loss has no second derivative: after the last parameter that meets it."""
    met = [p for p, g in grads.items() if _meets([g], _DEAD_ENDS)]
    return f" after {names[met[-1]]}" if met and met[-1] in names else ""


def _meets(tensors: Iterable[Tensor], ends: str | tuple[str, ...]) -> bool:
    """Whether the graph of one of the tensors has a node whose name ends so."""
    seen: set[Any] = set()
    ahead: list[Any] = [x.grad_fn for x in tensors]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        if node.name().endswith(ends):
            return True
        seen.add(node)
        ahead += [function for function, _ in node.next_functions]
    return False


def losses(closure: Closure) -> Iterator[Tensor]:
    """Return the parts of the loss, one after the other."""
    result = closure()
    parts = result if isinstance(result, Iterable) and not isinstance(result, Tensor) else (result,)
    del result
    for loss in parts:
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise InputError(
                f"The closure gave {_told(loss)} for a loss; return it as a tensor of one element "
                "with its graph, without calling backward()."
            )
        yield loss
        del loss  # or it would keep its graph while the next one is built


def _told(loss: object) -> str:
    if isinstance(loss, Tensor):
        graph = "with" if loss.requires_grad else "without"
        return f"a tensor of shape {tuple(loss.shape)} {graph} a graph"
    return f"a {type(loss).__name__}"


def gradients(loss: Tensor, params: Sequence[Tensor], *, twice: bool) -> dict[Tensor, Tensor]:
    """Return the gradient of every parameter that the loss depends on."""
    with readable_errors():
        grads = torch.autograd.grad(loss, params, create_graph=twice, allow_unused=True)
    return {p: g for p, g in zip(params, grads, strict=True) if g is not None}


def products(
    grads: Mapping[Tensor, Tensor], probes: Probes, names: Mapping[Tensor, str]
) -> dict[Tensor, Tensor]:
    """Return `H v`, zero for parameters that no gradient depends on.

    Args:
        grads: Gradients with their graphs.
        probes: The vectors `v`.
        names: What to call a parameter in an error.

    Returns:
        Tensors without graphs, by parameter.

    Raises:
        InputError: If a gradient cannot be differentiated.
    """
    for p, g in grads.items():
        # A gradient without a graph would leave its part of H v out, in silence: torch.compile
        # has returned such gradients (pytorch issue 181581).
        if not g.requires_grad:
            told = names.get(p, "a parameter")
            raise InputError(
                f"The gradient of {told}, of shape {tuple(p.shape)}, has no graph, so that H v "
                "would leave it out: call the uncompiled module, or, if the loss is linear in it, "
                "take finite differences, PSGD(criterion=Newton(source=FiniteDifference()))."
            )
    inputs = list(grads)
    if not inputs:
        return {}
    if _meets(grads.values(), _SILENT_END):
        raise InputError(_told_once("once_differentiable", _place(grads, names)))
    with readable_errors(lambda: _place(grads, names)):
        found = torch.autograd.grad(
            list(grads.values()), inputs, [probes[p] for p in inputs], allow_unused=True
        )
    return {
        p: torch.zeros_like(p) if hv is None else hv for p, hv in zip(inputs, found, strict=True)
    }


class Sums:
    """Sums over the parts of a loss."""

    def __init__(self) -> None:
        self._loss: Tensor | None = None
        self._grads: dict[Tensor, Tensor] = {}
        self.products: dict[Tensor, Tensor] = {}

    def add(self, loss: Tensor, grads: Mapping[Tensor, Tensor]) -> None:
        """Add a part's loss and gradients."""
        part = loss.detach().reshape(())
        self._loss = part if self._loss is None else self._loss + part
        _add(self._grads, grads)

    def add_products(self, products: Mapping[Tensor, Tensor]) -> None:
        """Add a part's Hessian-vector products."""
        _add(self.products, products)

    def evaluation(self) -> Evaluation:
        """Return the sums."""
        if self._loss is None:
            raise InputError("The closure gave no loss; return one, or yield its parts.")
        return Evaluation(self._loss, self._grads, self.products)


def _add(sums: dict[Tensor, Tensor], parts: Mapping[Tensor, Tensor]) -> None:
    for p, x in parts.items():
        sums[p] = sums[p] + x.detach() if p in sums else x.detach()


def difference_size(params: Sequence[Tensor]) -> float:
    """Return the root of the coarsest parameter dtype's machine epsilon."""
    eps = max(torch.finfo(p.dtype).eps for p in params)
    if eps > torch.finfo(torch.float32).eps:
        raise InputError(
            "FiniteDifference got parameters in half precision, whose rounding hides the "
            "difference; keep them in float32, or use Newton(source=Exact())."
        )
    return float(eps**0.5)


class Surroundings:
    """What an evaluation of the loss sees and changes besides parameters: randomness, buffers."""

    def __init__(self, params: Sequence[Tensor], module: nn.Module | None) -> None:
        """Copy the states of torch's generators, and a module's buffers."""
        devices = {p.device for p in params if p.device.type == "cuda"}
        self._cpu = torch.get_rng_state()
        self._cuda = {device: torch.cuda.get_rng_state(device) for device in devices}
        self._module = module
        self._buffers = {name: b.detach().clone() for name, b in self._named_buffers()}

    def _named_buffers(self) -> list[tuple[str, Tensor]]:
        return [] if self._module is None else list(self._module.named_buffers())

    def restore(self) -> None:
        """Put them back."""
        torch.set_rng_state(self._cpu)
        for device, state in self._cuda.items():
            torch.cuda.set_rng_state(state, device)
        for name, buffer in self._named_buffers():  # by name: a forward pass may replace a buffer
            buffer.detach().copy_(self._buffers[name])
