"""Gradients of PPO's losses derived by hand: those of autograd without its cost per operation.

For the two networks as `actor_critic` builds them: affine layers with tanh between them. Shape
legend: `B` samples, `k` what a network gives per sample.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from psgd_rl.actor_critic import Actor, CategoricalActor, Critic, GaussianActor
from psgd_rl.losses import Minibatch

_COVERED = (GaussianActor, CategoricalActor, Critic)


def covers(network: nn.Module) -> bool:
    """Whether the gradients of a network are known here."""
    return isinstance(network, _COVERED)


@torch.no_grad()
def set_actor_gradient(actor: Actor, batch: Minibatch, clip: float, entropy: float) -> None:
    """Set the gradients of the clipped surrogate, negated, minus the entropy bonus.

    Args:
        actor: One that is covered; its gradients are overwritten.
        batch: The samples.
        clip: Largest useful deviation of the probability ratio from 1.
        entropy: Weight of the bonus.
    """
    weights = _weights(actor.layers)
    inputs, output = _forward(weights, batch.observation)
    if isinstance(actor, GaussianActor):
        policy = actor.distribution(output)
        inverse = torch.exp(-actor.log_std)
        z = (batch.action - output).mul_(inverse)  # (B, k)
        squares = z.square()
        log_probability = policy.log_density(squares)
        weight = _surrogate_gradient(log_probability, batch, clip)  # (B,)
        # d log p / d mean = z / std,  d log p / d log std = z^2 - 1
        slope = z.mul_(inverse).mul_(weight.unsqueeze(1))
        log_std = torch.mv(squares.t(), weight).sub_(weight.sum() + entropy)
        actor.log_std.grad = log_std
    else:
        log_p = output.log_softmax(-1)
        p = log_p.exp()
        taken = batch.action.unsqueeze(1)
        weight = _surrogate_gradient(log_p.gather(1, taken).squeeze(1), batch, clip)
        # d log p_a / d logit_j = [a = j] - p_j,  d H / d logit_j = -p_j (log p_j + H)
        slope = (p * -weight.unsqueeze(1)).scatter_add_(1, taken, weight.unsqueeze(1))
        if entropy:
            mean_log_p = (p * log_p).sum(1, keepdim=True)  # -H
            slope.add_(p * (log_p - mean_log_p), alpha=entropy / len(p))
    _backward(weights, inputs, slope)


@torch.no_grad()
def set_critic_gradient(critic: Critic, batch: Minibatch, clip: float) -> None:
    """Set the gradients of the clipped value loss.

    Args:
        critic: Its gradients are overwritten.
        batch: The samples.
        clip: Largest useful movement of a value; 0 for no limit.
    """
    weights = _weights(critic.layers)
    inputs, output = _forward(weights, batch.observation)
    value = output.squeeze(1)
    slope = value - batch.target
    if clip:
        moved = value - batch.value
        near = batch.value + moved.clamp(-clip, clip) - batch.target
        # Where the value has moved too far, only the larger of both errors has a gradient: its own.
        slope = slope.where((moved.abs() <= clip) | (slope.abs() > near.abs()), 0.0)
    _backward(weights, inputs, slope.div_(len(slope)).unsqueeze(1))


def _surrogate_gradient(log_probability: Tensor, batch: Minibatch, clip: float) -> Tensor:
    """Return the gradient of the negated surrogate by the log-probabilities, (B,)."""
    ratio = (log_probability - batch.log_probability).exp_()
    gain = ratio * batch.advantage
    # min(r A, clip(r) A) is flat where it is the clipped term that is smaller.
    is_flat = gain > ratio.clamp(1 - clip, 1 + clip) * batch.advantage
    return gain.masked_fill_(is_flat, 0.0).div_(-len(gain))


def _weights(layers: nn.ModuleList) -> list[nn.Parameter]:
    return [layer.get_parameter("weight") for layer in layers]


def _forward(weights: Sequence[nn.Parameter], x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return what goes into every layer, and what comes out of the last one, (B, k)."""
    inputs = [x]
    for weight in weights[:-1]:
        hidden = torch.addmm(weight[:, -1], inputs[-1], weight[:, :-1].t())
        inputs.append(hidden.tanh_())
    last = weights[-1]
    return inputs, torch.addmm(last[:, -1], inputs[-1], last[:, :-1].t())


def _backward(weights: Sequence[nn.Parameter], inputs: list[Tensor], slope: Tensor) -> None:
    """Set the gradients of all layers from that of the output, (B, k)."""
    for i in reversed(range(len(weights))):
        weight, x = weights[i], inputs[i]
        grad = torch.empty_like(weight)
        torch.mm(slope.t(), x, out=grad[:, :-1])
        torch.sum(slope, 0, out=grad[:, -1])
        weight.grad = grad
        if i:
            before = torch.mm(slope, weight[:, :-1])
            slope = torch.ops.aten.tanh_backward(before, x)  # times 1 - tanh^2
