"""What every affine layer shares: the matrix `[W, b]`, how it is joined and split.

Shape legend: `M` outputs and `n` inputs of one affine map.
"""

import abc
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Affine(nn.Module, abc.ABC):
    """A layer that takes over a layer of torch's, with one matrix parameter per affine map."""

    @abc.abstractmethod
    def plain(self) -> nn.Module:
        """Return torch's layer with the same outputs, on parameters of its own."""


def join(
    weights: Sequence[Tensor],
    bias: Sequence[Tensor] = (),
    arrange: Callable[[Tensor], Tensor] | None = None,
) -> nn.Parameter:
    """Join the parts of an affine map to one matrix parameter.

    Args:
        weights: (M, ...) each, parameters of a layer; flattened to (M, n_i).
        bias: (M,) each, whose sum is the last column; none for a map without a bias.
        arrange: Brings weights that are stored otherwise into the shape (M, ...).

    Returns:
        (M, sum of n_i, plus 1 with a bias), a copy with the parts' dtype, device and
        `requires_grad`.

    Raises:
        ValueError: If parts differ in dtype, device or `requires_grad`.
    """
    parts = [*weights, *bias]
    for name in ("dtype", "device", "requires_grad"):
        if len(found := {str(getattr(part, name)) for part in parts}) > 1:
            raise ValueError(
                f"An affine map got weights and biases with {name} {' and '.join(sorted(found))}; "
                "one matrix has one: make them alike."
            )
    with torch.no_grad():
        columns = [sum(bias[1:], bias[0]).unsqueeze(1)] if bias else []
        rows = [(arrange(w) if arrange else w).flatten(1) for w in weights]
        matrix = torch.cat([*rows, *columns], dim=1)
    return nn.Parameter(matrix, requires_grad=parts[0].requires_grad)


def matrix_of(module: nn.Module, name: str) -> Tensor:
    """Return a matrix by name, which `torch.func.functional_call` may have replaced by a tensor.

    Args:
        module: Its module.
        name: Its name.

    Returns:
        The parameter, or what stands for it.
    """
    matrix: Tensor = getattr(module, name)  # get_parameter takes no tensor in its place
    return matrix


def split(matrix: Tensor, inputs: int) -> tuple[Tensor, Tensor | None]:
    """Return the weight (M, n) and the bias (M,) of `[W, b]` as views; `None` for no bias.

    Args:
        matrix: (M, n) or (M, n + 1).
        inputs: n, which tells the two apart.

    Returns:
        Views that gradients flow through.
    """
    if matrix.shape[1] == inputs:
        return matrix, None
    # One view for both: the gradients of two slices would be two padded matrices and their sum.
    weight, bias = torch.split(matrix, [inputs, 1], dim=1)
    return weight, bias.squeeze(1)


def give(layer: nn.Module, matrix: Tensor, **parts: Tensor | None) -> None:
    """Set parameters of a layer to copies of the parts of a matrix; `None` is left out.

    Args:
        layer: The layer, on any device.
        matrix: Where the parts are from, for `requires_grad`.
        **parts: The parameters by name.
    """
    for name, part in parts.items():
        if part is not None:
            copy = part.detach().clone(memory_format=torch.contiguous_format)
            setattr(layer, name, nn.Parameter(copy, requires_grad=matrix.requires_grad))
