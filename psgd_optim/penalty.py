"""Weight decay as a term of the loss, so that curvature sees it too."""

from collections.abc import Iterable

import torch
from torch import Tensor


def l2_penalty(parameters: Iterable[Tensor], strength: float) -> Tensor:
    """Return `strength / 2 * sum |p|^2`, to be added to the loss.

    It adds `strength * p` to the gradient and `strength * I` to the Hessian, so that a
    preconditioner fitted to Hessian-vector products counts it; an optimizer's own weight decay
    does neither.

    Args:
        parameters: Tensors of any shapes, real or complex, at least one.
        strength: The weight of the penalty, at least 0.

    Returns:
        A 0-dimensional tensor, differentiable twice, in single precision or better, on the first
        parameter's device.

    Raises:
        ValueError: If the strength is negative or not a number, or there are no parameters.

    Source: S2, weight decay in the experiments.

    >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> l2_penalty([w], 0.1).item()
    1.25
    """
    if not strength >= 0:
        raise ValueError(f"l2_penalty got the strength {strength}; give a number of at least 0.")
    terms = [_square_norm(p) for p in parameters]
    if not terms:
        raise ValueError(
            "l2_penalty got no parameters; give a list, or a fresh model.parameters() each time."
        )
    return 0.5 * strength * torch.stack([x.to(terms[0].device) for x in terms]).sum()


def _square_norm(p: Tensor) -> Tensor:
    """Return the sum of squared moduli, real, in single precision or better."""
    # No abs(): its second derivative at 0 is undefined.
    p = p.to(torch.promote_types(p.dtype, torch.float32))
    return (p * p.conj()).real.sum() if p.is_complex() else p.square().sum()
