"""A vanilla recurrent network whose first two derivatives are loops of two operations a step.

Autograd would record some twenty operations a step for a Hessian-vector product. Here the loops
only carry the state and its adjoint; all else is one operation for all steps.

Shape legend: `T` steps, `B` sequences, `X` inputs, `H` hidden units.
"""

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from psgd_optim.affine.base import split


@final
class ScannedRNN(nn.Module):
    """A recurrent layer on one matrix: `h_t = tanh(weight [x_t; h_{t-1}; 1])` from `h_0 = 0`.

    Args:
        weight: (H, X + H + 1), the initial values; the last column is the bias.

    Source: S0 IV.A and S2. The function is `AffineRNN`'s.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (T, B, X) to the last hidden state (B, H)."""
        matrix, bias = split(self.weight, self.weight.shape[1] - 1)
        w_x, w_h = torch.split(matrix, [x.shape[2], len(self.weight)], dim=1)
        states: Tensor = _Scan.apply(F.linear(x, w_x, bias), w_h)  # type: ignore[no-untyped-call]
        return states[-1]


class _Scan(Function):
    """`h_t = tanh(u_t + h_{t-1} w^T)` for all t, (T, B, H), from u (T, B, H) and w (H, H)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, w: Tensor) -> Tensor:  # noqa: ANN401 -- torch's
        h = torch.empty_like(u)
        states, inputs, transposed = h.unbind(), u.unbind(), w.t()
        torch.tanh(inputs[0], out=states[0])
        for t in range(1, len(states)):
            torch.addmm(inputs[t], states[t - 1], transposed, out=states[t])
            states[t].tanh_()
        ctx.save_for_backward(h, w)
        return h

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        found: tuple[Tensor, Tensor] = _AdjointScan.apply(  # type: ignore[no-untyped-call]
            grads[0], *ctx.saved_tensors
        )
        return found


class _AdjointScan(Function):
    """The gradients of `_Scan`, from the last step to the first, and their own ones.

    `d_t = (1 - h_t^2) e_t` with `e_t = g_t + d_{t+1} w`, and the weight's `sum_t d_t^T h_{t-1}`,
    from g and h, (T, B, H), and w (H, H).
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, h: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        d, e = torch.empty_like(h), torch.empty_like(h)
        deltas, rows, inputs, states = d.unbind(), e.unbind(), g.unbind(), h.unbind()
        last = len(states) - 1
        rows[last].copy_(inputs[last])
        for t in range(last, -1, -1):
            if t < last:
                torch.addmm(inputs[t], deltas[t + 1], w, out=rows[t])
            _times_slope(rows[t], states[t], deltas[t])
        ctx.save_for_backward(h, w, d, e)
        return d, outer_sum(d[1:], h[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
        (h, w, d, e), (to_d, to_w) = ctx.saved_tensors, grads
        total, grad_g = torch.empty_like(h), torch.empty_like(h)  # of d, and of g and e
        if len(h) > 1:  # what d and h are in the weight's gradient
            to_d = torch.cat((to_d[:1], to_d[1:] + h[:-1] @ to_w.t()))
        sums, rows, inputs, states = (x.unbind() for x in (total, grad_g, to_d, h))
        transposed = w.t()
        sums[0].copy_(inputs[0])
        for t in range(len(states)):
            if t:
                torch.addmm(inputs[t], rows[t - 1], transposed, out=sums[t])
            _times_slope(sums[t], states[t], rows[t])
        grad_h = (total * e).mul_(h).mul_(-2)
        grad_h[:-1] += d[1:] @ to_w
        return grad_g, grad_h, outer_sum(d[1:], grad_g[:-1])


def _times_slope(x: Tensor, h: Tensor, out: Tensor) -> None:
    """Write `(1 - h^2) x`, x times the slope of the hyperbolic tangent, where it is h."""
    torch.ops.aten.tanh_backward.grad_input(x, h, grad_input=out)


def outer_sum(left: Tensor, right: Tensor) -> Tensor:
    """Return the sum over steps and sequences of outer products of (T, B, M) and (T, B, N)."""
    return left.flatten(0, 1).t() @ right.flatten(0, 1)
