"""Affine layers as matrices `W = [weight, bias]`, and what passes through them.

Methods with one Kronecker product per layer need, besides the gradient, the layer's inputs `a` and
the gradients `g` at its outputs `h = W [a; 1]`. A convolution is the same map at every position of
an image: its rows of inputs are the patches.

Shape legend: `M` outputs and `n` inputs of a layer, the constant 1 of a bias included; `m` samples
of a mini-batch, `T` positions of a sample (1 in a plain layer), `R = m T` rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psgd_optim.derivatives import Closure, losses, readable_errors
from psgd_optim.types import InputError, expect


@final
@dataclass(frozen=True, eq=False)
class Layer:
    """An `nn.Linear` or `nn.Conv2d` as one matrix.

    What a closure does with the parameters besides calling the layer counts in gradients, and is
    not seen by moments and pairs.

    Args:
        name: Its name in the model, for messages.
        module: The layer itself.
    """

    name: str
    module: nn.Linear | nn.Conv2d

    @property
    def told(self) -> str:
        """What a message calls it: its name, which is empty where the model is this layer."""
        return self.name or "the layer"

    @property
    def shape(self) -> tuple[int, int]:
        """`M` and `n`."""
        weight = self.module.weight
        return len(weight), weight[0].numel() + (self.module.bias is not None)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weight and, where there is one, the bias."""
        return list(self.module.parameters(recurse=False))

    def matrix(self, parts: Sequence[Tensor]) -> Tensor:
        """Join tensors shaped as the parameters to a matrix.

        Args:
            parts: (M, ...) like the weight and, with a bias, (M,).

        Returns:
            (M, n).
        """
        rows = [parts[0].flatten(1), *(part.unsqueeze(1) for part in parts[1:])]
        return torch.cat(rows, dim=1) if len(rows) > 1 else rows[0]

    @torch.no_grad()
    def move_(self, direction: Tensor, rate: float | Tensor) -> None:
        """Add a multiple of a matrix (M, n) to the parameters."""
        weight, *bias = self.parameters
        columns = weight[0].numel()
        weight.add_(rate * direction[:, :columns].reshape(weight.shape))
        for b in bias:
            b.add_(rate * direction[:, columns])

    def input_rows(self, x: Tensor) -> Tensor:
        """Return what the matrix is multiplied by, with the constant 1 of a bias.

        Args:
            x: The layer's input, (m, ..., n) of a linear one, (m, C, height, width) of another, in
                any precision: autocast's is lower than the weight's, which is returned.

        Returns:
            (R, n).
        """
        if isinstance(self.module, nn.Conv2d):
            x = _patches(self.module, x)
        rows = x.reshape(-1, x.shape[-1]).to(self.module.weight.dtype)
        return rows if self.module.bias is None else F.pad(rows, (0, 1), value=1.0)

    def output_rows(self, x: Tensor) -> Tensor:
        """Return (R, M) of a tensor like the layer's output, in the order of `input_rows`.

        Args:
            x: (m, ..., M) or (m, M, height, width), in any precision.

        Returns:
            The rows in the precision of the weight.
        """
        if isinstance(self.module, nn.Conv2d):
            x = x.flatten(2).mT
        return x.reshape(-1, x.shape[-1]).to(self.module.weight.dtype)


def _patches(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Return what a convolution sees at every position of its output, (m, T, C * kernel)."""
    sides: list[int] = []
    for axis in (1, 0):  # F.pad begins with the last axis
        if isinstance(layer.padding, str):
            reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
            both = reach if layer.padding == "same" else 0
            sides += [both // 2, both - both // 2]
        else:
            sides += [layer.padding[axis]] * 2
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(x, sides, mode=mode)
    return F.unfold(padded, layer.kernel_size, layer.dilation, stride=layer.stride).mT


def layers_of(model: nn.Module) -> list[Layer]:
    """Return the trainable layers of a model that has no other trainable parameters.

    Args:
        model: Of `nn.Linear` and `nn.Conv2d` layers, and modules without parameters.

    Returns:
        The layers, in the model's order; frozen ones are left out.

    Raises:
        TypeError: If it is no module.
        InputError: If another module has trainable parameters, or a layer cannot be one matrix, or
            there is none.
    """
    expect("layers_of", "model", model, nn.Module, "the nn.Module itself, not its parameters")
    found: list[Layer] = []
    owner: dict[Tensor, str] = {}
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if not any(p.requires_grad for p in own):
            continue
        told = f"{name or 'the model'} ({type(module).__name__})"
        # Exactly these types: a subclass may use its weights in another way.
        if type(module) is not nn.Linear and type(module) is not nn.Conv2d:
            raise InputError(
                f"Got a model with parameters in {told}; give one whose trainable parameters are "
                "all of nn.Linear and nn.Conv2d, or freeze them."
            )
        _check(told, module, owner)
        owner.update(dict.fromkeys(own, told))
        found.append(Layer(name, module))
    if not found:
        raise InputError("Got a model without a trainable layer; give one with an nn.Linear.")
    return found


def _check(told: str, layer: nn.Linear | nn.Conv2d, owner: Mapping[Tensor, str]) -> None:
    """Refuse a layer whose weight and bias are not one matrix of its own."""
    own = list(layer.parameters(recurse=False))
    if isinstance(layer, nn.Conv2d) and layer.groups != 1:
        raise InputError(f"Got {told} with groups={layer.groups}; give it groups=1, or freeze it.")
    if not all(p.requires_grad for p in own):
        raise InputError(f"Got {told} with one frozen parameter; freeze both or none.")
    if shared := [owner[p] for p in own if p in owner]:
        raise InputError(f"Got a parameter of {told} that is also one of {shared[0]}; untie them.")
    if any(p.dtype not in (torch.float32, torch.float64) for p in own):
        raise InputError(
            f"Got {told} in {layer.weight.dtype}; keep it in float32 or float64, which sums of "
            "products need."
        )


@final
@dataclass(frozen=True)
class Pass:
    """One forward and backward pass.

    Args:
        loss: 0-D, without its graph.
        gradients: (M, n) by layer, of the loss; empty if not asked for.
        inputs: (m, ...) by layer, as they came.
        outputs: (m, ...) by layer, as they left.
        output_gradients: (m, ...) by layer, of the loss.
    """

    loss: Tensor
    gradients: Mapping[Layer, Tensor]
    inputs: Mapping[Layer, Tensor]
    outputs: Mapping[Layer, Tensor]
    output_gradients: Mapping[Layer, Tensor]

    def input_mean(self, layer: Layer) -> Tensor:
        """Return the mean input row, (n,)."""
        return layer.input_rows(self.inputs[layer]).mean(dim=0)

    def input_moment(self, layer: Layer) -> Tensor:
        """Return `input_moment` of the layer's input, (n, n)."""
        return input_moment(layer, self.inputs[layer])

    def output_mean(self, layer: Layer) -> Tensor:
        """Return the mean output row, (M,)."""
        return layer.output_rows(self.outputs[layer]).mean(dim=0)

    def sample_gradients(self, layer: Layer) -> Tensor:
        """Return the gradient of every sample's own loss at its outputs, (R, M).

        The loss is the mean over `m` samples: a row of its gradient is 1/m of a sample's.
        """
        rows = layer.output_rows(self.output_gradients[layer])
        return len(self.outputs[layer]) * rows

    def gradient_mean(self, layer: Layer) -> Tensor:
        """Return the mean of `sample_gradients`, (M,)."""
        return self.sample_gradients(layer).mean(dim=0)

    def gradient_moment(self, layer: Layer) -> Tensor:
        """Return `G = 1/R sum g g^T`, (M, M)."""
        rows = self.sample_gradients(layer)
        return rows.mT @ rows / len(rows)


def input_moment(layer: Layer, x: Tensor) -> Tensor:
    """Return `A = 1/m sum_i sum_t a a^T`.

    Args:
        layer: The layer.
        x: (m, ...), its input.

    Returns:
        (n, n).

    Source: S4 section 6, without positions. Our reading of them, that of the Fisher matrix in
    KFAC: a layer's curvature is the sum over positions; `A` takes the sum, `G` is a mean.
    """
    rows = layer.input_rows(x)
    return rows.mT @ rows / len(x)


class Trace:
    """What passed through layers in one forward pass, with its graph."""

    def __init__(self) -> None:
        self.inputs: dict[Layer, Tensor] = {}
        self.outputs: dict[Layer, Tensor] = {}

    def add(self, layer: Layer, x: Tensor, output: Tensor) -> None:
        """Remember the input and the output of a layer.

        Args:
            layer: The layer.
            x: Its input.
            output: Its output.

        Raises:
            InputError: If the layer had its turn, or the input is not that of some samples.
        """
        if layer in self.outputs:
            raise InputError(
                f"Got a closure that uses {layer.told} twice in one pass; give "
                "every use a layer of its own, and the whole mini-batch at once."
            )
        if x.ndim < (4 if isinstance(layer.module, nn.Conv2d) else 2):
            raise InputError(
                f"Got an input of shape {tuple(x.shape)} for {layer.told}; give a "
                "mini-batch, whose first axis counts the samples."
            )
        if not x.numel():
            raise InputError(
                f"Got an empty mini-batch, of shape {tuple(x.shape)}, for "
                f"{layer.told}; give at least one sample."
            )
        self.inputs[layer] = x.detach()
        self.outputs[layer] = output

    def check(self, layers: Sequence[Layer]) -> None:
        """Refuse a forward pass that went past a layer.

        Args:
            layers: All of the model's.

        Raises:
            InputError: If one of them was not used.
        """
        for layer in layers:
            if layer not in self.outputs:
                raise InputError(
                    f"Got a closure that does not use {layer.told}; use it, or freeze it."
                )


@contextmanager
def traced(layers: Sequence[Layer]) -> Iterator[Trace]:
    """Record what passes through layers; hooks are there inside of the context only.

    Args:
        layers: All of the model's.

    Yields:
        The record.

    Raises:
        InputError: If one of the layers is frozen.
    """
    for layer in layers:
        if not all(p.requires_grad for p in layer.parameters):
            raise InputError(
                f"Got {layer.told} frozen since the optimizer was made; unfreeze it, or make a new "
                "optimizer."
            )
    trace = Trace()

    def hook_of(layer: Layer) -> Any:  # noqa: ANN401 -- a hook as torch types it
        def hook(
            module: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor
        ) -> Tensor:
            trace.add(layer, args[0] if args else named["input"], output)
            return output.clone()  # what follows may write into it, as an in-place ReLU does

        return hook

    handles = [
        layer.module.register_forward_hook(hook_of(layer), with_kwargs=True) for layer in layers
    ]
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def mean_loss(closure: Closure) -> Tensor:
    """Return what a closure returns, one element with its graph.

    Args:
        closure: Returns the mean loss of a mini-batch.

    Returns:
        The loss.

    Raises:
        InputError: If it is none, or comes in parts.
    """
    loss, *more = losses(closure)
    if more:
        raise InputError("Got a loss in parts; return the mean loss of one mini-batch.")
    return loss


def run_pass(layers: Sequence[Layer], closure: Closure, *, with_gradients: bool = True) -> Pass:
    """Evaluate a closure, and differentiate its loss.

    Args:
        layers: All of the model's.
        closure: Returns the mean loss of a mini-batch with its graph.
        with_gradients: Whether gradients of the parameters are wanted, a third of the products.

    Returns:
        The pass.

    Raises:
        InputError: If the closure gives no loss, or does not use every layer once.
    """
    with torch.enable_grad(), traced(layers) as trace:
        loss = mean_loss(closure)
    return differentiate(layers, trace, loss, with_gradients=with_gradients)


def differentiate(
    layers: Sequence[Layer],
    trace: Trace,
    loss: Tensor,
    *,
    with_gradients: bool,
    keep_graph: bool = False,
) -> Pass:
    """Differentiate a loss by the outputs of layers and, if wanted, by their parameters.

    Args:
        layers: All of the model's.
        trace: Of the forward pass of the loss.
        loss: One element, with its graph.
        with_gradients: Whether gradients of the parameters are wanted.
        keep_graph: Whether another loss of the same forward pass will be differentiated.

    Returns:
        The pass.

    Raises:
        InputError: If the loss does not depend on a layer, or its graph is gone.
    """
    trace.check(layers)
    outputs = [trace.outputs[layer] for layer in layers]
    params = [p for layer in layers for p in layer.parameters] if with_gradients else []
    with readable_errors():
        found = torch.autograd.grad(
            loss, [*outputs, *params], allow_unused=True, retain_graph=keep_graph
        )
    rest = iter(found[len(outputs) :])
    for layer, gradient in zip(layers, found, strict=False):
        if gradient is None:
            raise InputError(f"Got a loss that does not depend on {layer.told}; freeze it.")
    return Pass(
        loss=loss.detach().reshape(()),
        gradients={layer: layer.matrix([next(rest) for _ in layer.parameters]) for layer in layers}
        if with_gradients
        else {},
        inputs=trace.inputs,
        outputs={layer: x.detach() for layer, x in trace.outputs.items()},
        output_gradients=dict(zip(layers, found, strict=False)),
    )
