"""KFAC's factors and steps against dense formulas, and the distributions of its targets."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psgd_optim import InputError
from psgd_optim.noise import noise_generator
from psgd_optim.peers import KFAC
from psgd_optim.peers.likelihoods import bernoulli, categorical, normal

LR, DAMPING, BETA, SEED = 0.5, 0.04, 0.9, 3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batches(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, 7, 4, generator=generator, dtype=torch.float64)


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(x), x[:, :3].sigmoid(), reduction="sum") / 7


def moments(model: nn.Sequential, x: Tensor, step: int, stream: int) -> list[tuple[Tensor, Tensor]]:
    """`A` and `G` of a mini-batch, one sample at a time, with the targets that the step draws."""
    z = model(x)
    generator = noise_generator(torch.device("cpu"), SEED, step, stream)
    targets = torch.bernoulli(z.detach().sigmoid(), generator=generator)
    found = [[0, 0], [0, 0]]
    for row, target in zip(x, targets, strict=True):
        h1 = model[0](row)
        h2 = model[2](h1.tanh())
        loss = F.binary_cross_entropy_with_logits(h2, target, reduction="sum")
        grads = torch.autograd.grad(loss, [h1, h2])
        for total, a, g in zip(found, (row, h1.tanh().detach()), grads, strict=True):
            bar = torch.cat([a, a.new_ones(1)])
            total[0] = total[0] + torch.outer(bar, bar) / len(x)
            total[1] = total[1] + torch.outer(g, g) / len(x)
    return [(a, g) for a, g in found]


@pytest.mark.parametrize("warm", [True, False])
def test_steps_are_those_of_dense_formulas(warm):
    model, data, interval = network(), batches(5), 2
    layers = [model[0], model[2]]
    optimizer = KFAC(
        model, LR, damping=DAMPING, sampled_loss=bernoulli, interval=interval, seed=SEED
    )
    if warm:
        optimizer.warm_start(lambda x=x: loss_of(model, x) for x in data)
        passes = [moments(model, x, k + 1, 1) for k, x in enumerate(data)]
        factors = [
            tuple(sum(f) / 5 for f in zip(*p, strict=True)) for p in zip(*passes, strict=True)
        ]
    gradient = [0, 0]
    for k, x in enumerate(data):
        new = moments(model, x, k, 0)
        if k == 0:
            factors = factors if warm else new
        else:
            factors = [
                tuple(BETA * old + (1 - BETA) * now for old, now in zip(*both, strict=True))
                for both in zip(factors, new, strict=True)
            ]
        if k < interval or k % interval == 0:
            inverses = [
                tuple(torch.linalg.inv(f + DAMPING**0.5 * torch.eye(len(f)).double()) for f in both)
                for both in factors
            ]
        grads = torch.autograd.grad(loss_of(model, x), list(model.parameters()))
        wanted = []
        for i, layer in enumerate(layers):
            w = torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
            g = torch.cat([grads[2 * i], grads[2 * i + 1][:, None]], 1)
            gradient[i] = BETA * gradient[i] + (1 - BETA) * g
            wanted.append(w - LR * inverses[i][1] @ gradient[i] @ inverses[i][0])
        optimizer.step(lambda x=x: loss_of(model, x))
        for layer, w in zip(layers, wanted, strict=True):
            ours = torch.cat([layer.weight, layer.bias[:, None]], 1)
            torch.testing.assert_close(ours, w, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("sampled", "fisher"),
    [
        (bernoulli, lambda z: torch.diag(z.sigmoid() * (1 - z.sigmoid()))),
        (normal, lambda z: torch.eye(3)),
        (categorical, lambda z: torch.diag(z.softmax(0)) - torch.outer(z.softmax(0), z.softmax(0))),
    ],
)
def test_sampled_losses_have_the_fisher_matrix_of_their_distribution(sampled, fisher):
    z = torch.tensor([0.5, -1.0, 2.0])
    logits = z.repeat(40_000, 1).requires_grad_()
    loss = sampled(logits, torch.Generator().manual_seed(0))
    (g,) = torch.autograd.grad(loss, logits)
    g = len(g) * g
    # Four standard errors of a product of two such gradients.
    torch.testing.assert_close(g.mT @ g / len(g), fisher(z), rtol=0, atol=0.03)
    torch.testing.assert_close(g.mean(dim=0), torch.zeros(3), rtol=0, atol=0.02)


def test_classes_need_one_axis_of_their_own():
    with pytest.raises(InputError, match=r"logits of shape \(2, 3, 4\); give \(samples, classes"):
        categorical(torch.zeros(2, 3, 4), torch.Generator())


def test_a_closure_may_change_the_output_in_place():
    ends = []
    for in_place in (False, True):
        model, x = network(), batches(1)[0]
        optimizer = KFAC(model, LR, damping=DAMPING, sampled_loss=bernoulli)

        def closure(model=model, x=x, in_place=in_place) -> Tensor:
            z = model(x)
            z = z.mul_(2) if in_place else z * 2
            return F.binary_cross_entropy_with_logits(z, x[:, :3].sigmoid())

        optimizer.step(closure)
        ends.append(model[0].weight.detach())
    assert torch.equal(*ends)


def test_a_warm_start_differentiates_the_sampled_loss_alone():
    model, x = network(), batches(1)[0]
    optimizer = KFAC(model, LR, damping=DAMPING, sampled_loss=bernoulli)
    calls = []

    def closure() -> Tensor:
        z = model(x)
        loss = z.square().mean()
        loss.register_hook(calls.append)
        return loss

    optimizer.warm_start([closure])
    assert not calls
    optimizer.step(closure)
    assert len(calls) == 1


def test_another_seed_draws_other_targets():
    ends = []
    for seed in (0, 0, 1):
        model = network()
        KFAC(model, LR, damping=DAMPING, sampled_loss=bernoulli, seed=seed).step(
            lambda model=model: loss_of(model, batches(1)[0])
        )
        ends.append(model[0].weight.detach())
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_a_closure_has_to_call_the_model_itself():
    model = network()
    optimizer = KFAC(model, LR, damping=DAMPING, sampled_loss=bernoulli)

    def closure() -> Tensor:
        return model[2](model[1](model[0](batches(1)[0]))).mean()

    with pytest.raises(InputError, match="0 calls of the model"):
        optimizer.step(closure)
    with pytest.raises(InputError, match="Got interval = 0; give an integer"):
        KFAC(model, LR, damping=DAMPING, sampled_loss=bernoulli, interval=0)
