"""A vanilla recurrent network whose derivatives of any order are loops of two operations a step.

Autograd would record some twenty operations a step for a Hessian-vector product. Here the loops
only carry the state; weights' gradients and all products without a recursion are one operation for
all steps.

Shape legend: `T` steps, `B` sequences, `X` inputs, `H` hidden units.
"""

import itertools
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from psgd_optim.affine.base import split


@final
class ScannedRNN(nn.Module):
    """A recurrent layer on one matrix: `h_t = tanh(weight [x_t; h_{t-1}; 1])` from `h_0 = 0`.

    Args:
        weight: (H, X + H + 1), the initial values; the last column is the bias.

    Source: S0 IV.A and S2; algorithms.md section 5. The function is `AffineRNN`'s.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (T, B, X) to the last hidden state (B, H)."""
        matrix, bias = split(self.weight, self.weight.shape[1] - 1)
        w_x, w_h = torch.split(matrix, [x.shape[2], len(self.weight)], dim=1)
        states: Tensor = _TanhScan.apply(F.linear(x, w_x, bias), w_h)
        return states[-1]


class _TanhScan(Function):
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
        h, w = ctx.saved_tensors
        delta = _LinearScan.apply(grads[0], 1 - h * h, w, True)
        return delta, delta[1:].flatten(0, 1).t() @ h[:-1].flatten(0, 1)


class _LinearScan(Function):
    """`y_t = s_t (g_t + y_{t-1} w)` for all t, or with `y_{t+1}`, from 0.

    g and s are (T, B, H), w is (H, H). The derivative of one direction is the other one with w
    transposed, so that this function has derivatives of any order.
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, s: Tensor, w: Tensor, reverse: bool) -> Tensor:  # noqa: ANN401
        y = torch.empty_like(g)
        order = range(len(g))[:: -1 if reverse else 1]
        outputs, inputs, scales = y.unbind(), g.unbind(), s.unbind()
        torch.mul(inputs[order[0]], scales[order[0]], out=outputs[order[0]])
        for last, t in itertools.pairwise(order):
            torch.addmm(inputs[t], outputs[last], w, out=outputs[t])
            outputs[t].mul_(scales[t])
        ctx.save_for_backward(g, s, w, y)
        ctx.reverse = reverse
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # noqa: ANN401
        g, s, w, y = ctx.saved_tensors
        grad_g = _LinearScan.apply(grads[0], s, w.t(), not ctx.reverse)
        # Where y_t is read, and where its gradient comes from.
        before, after = (slice(1, None), slice(-1)) if ctx.reverse else (slice(-1), slice(1, None))
        carried = F.pad(y[before] @ w, _STEP_AT_END if ctx.reverse else _STEP_AT_START)
        returned = F.pad(grad_g[after] @ w.t(), _STEP_AT_START if ctx.reverse else _STEP_AT_END)
        grad_w = y[before].flatten(0, 1).t() @ grad_g[after].flatten(0, 1)
        return grad_g, (g + carried) * (grads[0] + returned), grad_w, None


_STEP_AT_START, _STEP_AT_END = (0, 0, 0, 0, 1, 0), (0, 0, 0, 0, 0, 1)
"""For `F.pad`: one step of zeros."""
