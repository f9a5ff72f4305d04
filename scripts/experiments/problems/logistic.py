"""Logistic regression on an image and its outer product with itself, which is never formed."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from psgd_optim.types import InputError


class QuadraticLogits(nn.Module):
    """Maps images `x` to logits that are linear in `[x; vec(x x^T)]`, all weights starting at 0.

    Logit `c` is `w_c^T x + x^T W_c x`: the products of pairs of pixels are formed for no image.

    Args:
        pixels: n, numbers of an image.
        classes: C.

    Attributes:
        weight: (C, n + n^2), row `c` holding `w_c` and then `W_c`, row by row.

    Raises:
        InputError: If a number is below 1.

    Source: S2 appendix E.3, by its published code: the paper's text has the products alone.
    """

    def __init__(self, pixels: int, classes: int = 10) -> None:
        super().__init__()
        if pixels < 1 or classes < 1:
            raise InputError(f"Got {pixels} pixels and {classes} classes; give 1 or more of both.")
        self.weight = nn.Parameter(torch.zeros(classes, pixels + pixels**2))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (B, C), of images (B, 1, height, width)."""
        x = images.flatten(1)  # (B, n)
        n = x.shape[1]
        linear, products = torch.split(self.weight, [n, n * n], dim=1)
        by_class = torch.matmul(x, products.view(-1, n, n))  # (C, B, n)
        return x @ linear.T + (by_class * x).sum(dim=2).T


def halved(images: Tensor) -> Tensor:
    """Return bytes (B, C, H, W) as means of squares of four pixels, in [0, 1]."""
    return nn.functional.avg_pool2d(images.float().div_(255), 2)


def redraw(x: Tensor, step: int, noise: torch.Generator) -> Tensor:
    """Return black and white images: a pixel is 1 with its value as the probability."""
    drawn = torch.rand(x.shape, generator=noise)
    return (drawn.to(x.device) < x).to(x.dtype)


class LimitedMemoryBFGS(torch.optim.LBFGS):
    """Torch's L-BFGS on mini-batches, stepped with a closure that returns the loss alone."""

    needs_closure = True

    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Take up to `max_iter` iterations on one batch.

        Args:
            closure: Returns the loss of the batch, without calling `backward`.

        Returns:
            The loss before them.
        """

        def evaluate() -> Tensor:
            self.zero_grad()
            loss = closure()
            if math.isfinite(float(loss.detach())):
                loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()

        before: Tensor = super().step(evaluate)  # type: ignore[no-untyped-call]
        return before
