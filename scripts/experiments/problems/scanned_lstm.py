"""The papers' LSTMs whose first two derivatives are loops of about six operations a step.

Autograd would record some hundred operations a step for a Hessian-vector product. Here the loops
only carry the state and its adjoint; all else is one operation for all steps.

Shape legend: `T` steps, `B` sequences, `X` inputs, `H` hidden units. A step's gates (B, 4H) lie in
the order o, i, f, g: the ones with a sigmoid side by side, and the ones that make the cell's state.
The state (B, 2H) is h and then c.
"""

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from experiments.problems.scanned_rnn import outer_sum
from psgd_optim.affine import CellInputLSTM, PeepholeLSTM
from psgd_optim.affine.base import matrix_of


@final
class ScannedLSTM(nn.Module):
    """A layer of `psgd_optim.affine`, of which only the last hidden state is read.

    Args:
        layer: Has the parameters and says what is computed.
    """

    def __init__(self, layer: CellInputLSTM | PeepholeLSTM) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Map (T, B, X) to the last hidden state (B, H)."""
        matrix, late = self._matrix()
        hidden = self.layer.hidden_size
        sizes = [x.shape[2], hidden, hidden, 1]
        w_x, w_h, w_c, bias = torch.split(matrix, sizes, dim=1)
        if late:  # the output gate sees the new cell state, and not the old one
            w_late, w_early = w_c[:hidden], F.pad(w_c[hidden:], (0, 0, hidden, 0))
        else:
            w_late, w_early = None, w_c
            bias = bias + torch.eye(4)[2].repeat_interleave(hidden)[:, None].to(bias)
        inputs = F.linear(x, w_x, bias[:, 0])
        w = torch.cat((w_h, w_early), dim=1)
        states, _ = _LSTMScan.apply(inputs, w, w_late)  # type: ignore[no-untyped-call]
        last: Tensor = states[-1, :, :hidden]
        return last

    def _matrix(self) -> tuple[Tensor, bool]:
        """Return all rows in the order of the gates, and whether the output gate is late."""
        if isinstance(self.layer, CellInputLSTM):
            i, f, g, o = matrix_of(self.layer, "weight").chunk(4)
            return torch.cat((o, i, f, g)), False
        names = ("weight_o", "weight_i", "weight_f", "weight_c")
        return torch.cat([matrix_of(self.layer, name) for name in names]), True


class _LSTMScan(Function):
    """All states and gates of an LSTM, `a_t = act(u_t + z_{t-1} w^T)` and so on.

    u is (T, B, 4H), w (4H, 2H), and v (H, H), which maps the new cell state to the output gate, or
    `None`. Returns the states (T + 1, B, 2H) from 0 on, and the gates (T, B, 4H).
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, w: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:  # noqa: ANN401 -- torch's
        ctx.set_materialize_grads(False)
        steps, batch, size = u.shape[0], u.shape[1], u.shape[2] // 4
        z, a = u.new_zeros(steps + 1, batch, 2 * size), torch.empty_like(u)
        h, c = (part.unbind() for part in z.chunk(2, dim=2))
        o, i, f, g = (part.unbind() for part in a.chunk(4, dim=2))
        squashed = a[..., (0 if v is None else size) : 3 * size].unbind()
        inputs, states, gates, transposed = u.unbind(), z.unbind(), a.unbind(), w.t()
        for t in range(steps):
            torch.addmm(inputs[t], states[t], transposed, out=gates[t])
            squashed[t].sigmoid_()
            g[t].tanh_()
            torch.mul(f[t], c[t], out=c[t + 1]).addcmul_(i[t], g[t])
            if v is not None:
                o[t].addmm_(c[t + 1], v.t()).sigmoid_()
            torch.tanh(c[t + 1], out=h[t + 1]).mul_(o[t])
        ctx.save_for_backward(z, a, w, v)
        return z, a

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:  # noqa: ANN401
        z, a, w, v = ctx.saved_tensors
        o, i, f, g = a.chunk(4, dim=2)
        c = z.chunk(2, dim=2)[1]
        bounded, squashed = torch.tanh(c[1:]), a[..., : 3 * o.shape[2]]
        slopes = torch.cat((squashed * (1 - squashed), 1 - g * g), dim=2)
        grad_z = torch.zeros_like(z) if grads[0] is None else grads[0]
        delta: Tensor = _AdjointScan.apply(  # type: ignore[no-untyped-call]
            grad_z[1:],
            None if grads[1] is None else slopes * grads[1],
            slopes * torch.cat((bounded, g, c[:-1], i), dim=2),
            o * (1 - bounded * bounded),
            f,
            w,
            v,
        )
        grad_v = None if v is None else outer_sum(delta[..., : o.shape[2]], c[1:])
        return delta, outer_sum(delta, z[:-1]), grad_v


class _AdjointScan(Function):
    """The gradients of a step's gates before their activation, from the last step to the first.

    With `e_t = x_t + d_{t+1} w`, whose halves are e_h and e_c, and q the gradient of the cell:

        d_o = j_o e_h + y_o
        q_t = e_c + f_{t+1} q_{t+1} + k e_h + d_o v
        d_n = j_n q_t + y_n    for n = i, f, g

    x is (T, B, 2H), y (T, B, 4H) or `None` for 0, j (T, B, 4H), k and f (T, B, H), w and v as in
    `_LSTMScan`. Returns d, (T, B, 4H).
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        y: Tensor | None,
        j: Tensor,
        k: Tensor,
        f: Tensor,
        w: Tensor,
        v: Tensor | None,
    ) -> Tensor:
        size = k.shape[2]
        d, e, q = torch.empty_like(j), torch.empty_like(x), torch.empty_like(k)
        e_h, e_c = (part.unbind() for part in e.chunk(2, dim=2))
        (j_o, j_n), (d_o, d_n) = _parts(j, size), _parts(d, size)
        y_parts = None if y is None else _parts(y, size)
        rows, gates, cells = e.unbind(), d.unbind(), q.unbind()
        inputs, keeps, kept = x.unbind(), k.unbind(), f.unbind()
        for t in reversed(range(len(j))):
            if t + 1 < len(j):
                torch.addmm(inputs[t], gates[t + 1], w, out=rows[t])
            else:
                rows[t].copy_(inputs[t])
            torch.mul(j_o[t], e_h[t], out=d_o[t])
            if y_parts is not None:
                d_o[t].add_(y_parts[0][t])
            torch.addcmul(e_c[t], keeps[t], e_h[t], out=cells[t])
            if t + 1 < len(j):
                cells[t].addcmul_(kept[t + 1], cells[t + 1])
            if v is not None:
                cells[t].addmm_(d_o[t], v)
            torch.mul(j_n[t], cells[t].unsqueeze(1), out=d_n[t])
            if y_parts is not None:
                d_n[t].add_(y_parts[1][t])
        ctx.save_for_backward(j, k, f, w, v, d, e, q)
        ctx.has_y = y is not None
        return d

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        j, k, f, w, v, d, e, q = ctx.saved_tensors
        size = k.shape[2]
        grad_d, grad_e = torch.empty_like(j), torch.empty_like(e)
        from_h, from_c = (part.unbind() for part in grad_e.chunk(2, dim=2))
        (j_o, j_n), (to_o, to_n) = _parts(j, size), _parts(grad_d, size)
        rows, gates, inputs = grad_e.unbind(), grad_d.unbind(), grads[0].unbind()
        keeps, kept, transposed = k.unbind(), f.unbind(), w.t()
        for t in range(len(j)):
            if t:
                torch.addmm(inputs[t], rows[t - 1], transposed, out=gates[t])
            else:
                gates[t].copy_(inputs[t])
            torch.sum(j_n[t] * to_n[t], dim=1, out=from_c[t])
            if t:
                from_c[t].addcmul_(kept[t], from_c[t - 1])
            if v is not None:
                to_o[t].addmm_(from_c[t], v.t())
            torch.mul(j_o[t], to_o[t], out=from_h[t]).addcmul_(keeps[t], from_c[t])
        grad_q = grad_e[..., size:]
        e_h = e[..., :size]
        grad_f = F.pad(grad_q[:-1] * q[1:], (0, 0, 0, 0, 1, 0))
        grad_v = None if v is None else outer_sum(d[..., :size], grad_q)
        return (
            grad_e,
            grad_d if ctx.has_y else None,
            grad_d * torch.cat((e_h, q, q, q), dim=2),
            grad_q * e_h,
            grad_f,
            outer_sum(d[1:], grad_e[:-1]),
            grad_v,
        )


def _parts(gates: Tensor, size: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return views by step of the output gates (B, H) and of the others (B, 3, H)."""
    others = gates[..., size:].view(*gates.shape[:2], 3, size)
    return gates[..., :size].unbind(), others.unbind()
