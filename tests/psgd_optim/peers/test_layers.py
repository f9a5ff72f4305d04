"""Layers as matrices: what a pass records, against per-sample autograd; what is refused."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psgd_optim import InputError
from psgd_optim.peers.layers import layers_of, run_pass


def perceptron(inplace: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace), nn.Linear(4, 3, bias=False), nn.Tanh())
    return model.double()


def batch(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_of(output: Tensor) -> Tensor:
    """A loss that is a mean over samples and no sum of functions of single outputs."""
    flat = output.flatten(1)
    return (flat.sum(dim=1).square() + flat.pow(3).sum(dim=1)).mean()


# --- P29 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
def test_gradients_of_samples_are_those_of_passes_of_one_sample(inplace):
    model, x = perceptron(inplace), batch(6, 5)
    layers = layers_of(model)
    taken = run_pass(layers, lambda: loss_of(model(x)))
    for i in range(6):
        h1 = model[0](x[i : i + 1])
        h2 = model[2](h1.relu())
        wanted = torch.autograd.grad(loss_of(h2.tanh()), [h1, h2])
        for layer, g in zip(layers, wanted, strict=True):
            torch.testing.assert_close(taken.sample_gradients(layer)[i], g[0], rtol=0, atol=1e-14)


def test_a_pass_is_what_dense_formulas_say():
    model, x = perceptron(), batch(6, 5)
    first, second = layers_of(model)
    taken = run_pass([first, second], lambda: loss_of(model(x)))
    loss = loss_of(model(x))
    weight, bias, last = torch.autograd.grad(loss, list(model.parameters()))
    assert torch.equal(taken.loss, loss.detach())
    torch.testing.assert_close(taken.gradients[first], torch.cat([weight, bias[:, None]], 1))
    torch.testing.assert_close(taken.gradients[second], last)
    ones = torch.cat([x, x.new_ones(6, 1)], dim=1)
    torch.testing.assert_close(taken.input_moment(first), ones.mT @ ones / 6)
    torch.testing.assert_close(taken.input_mean(first), ones.mean(dim=0))
    hidden = model[0](x).detach()
    torch.testing.assert_close(taken.output_mean(first), hidden.mean(dim=0))
    torch.testing.assert_close(taken.input_mean(second), hidden.relu().mean(dim=0))
    g = taken.sample_gradients(first)
    torch.testing.assert_close(taken.gradient_moment(first), g.mT @ g / 6)
    # S4 equation 1: the gradient is the mean of g a^T.
    torch.testing.assert_close(g.mT @ ones / 6, taken.gradients[first])


def test_hooks_stay_in_the_pass_and_outputs_do_not_change():
    model, x = perceptron(), batch(6, 5)
    before = model(x)
    run_pass(layers_of(model), lambda: loss_of(model(x)), with_gradients=False)
    assert torch.equal(model(x), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_without_gradients_the_rest_is_the_same():
    model, x = perceptron(), batch(6, 5)
    layers = layers_of(model)
    full = run_pass(layers, lambda: loss_of(model(x)))
    bare = run_pass(layers, lambda: loss_of(model(x)), with_gradients=False)
    assert not bare.gradients
    for layer in layers:
        assert torch.equal(full.sample_gradients(layer), bare.sample_gradients(layer))


# --- convolutions --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # of an uneven sum, as it is meant
@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)},
        {"kernel_size": (3, 2), "padding": "same", "bias": False},
        {"kernel_size": (2, 3), "padding": 1, "padding_mode": "circular"},
    ],
)
def test_a_convolution_is_the_linear_layer_of_its_patches(settings):
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, **settings).double()
    (layer,) = layers_of(conv)
    x = batch(4, 2, 6, 7)
    taken = run_pass([layer], lambda: loss_of(conv(x)))
    positions = conv(x).flatten(2).shape[2]
    rows = layer.input_rows(x)
    assert rows.shape == (4 * positions, layer.shape[1])

    linear = nn.Linear(layer.shape[1], 3, bias=False).double()
    with torch.no_grad():
        linear.weight.copy_(layer.matrix(layer.parameters))
    (twin,) = layers_of(linear)
    patches = rows.view(4, positions, -1)
    # Output channels first, as the convolution has them: the loss may look at their order.
    same = run_pass([twin], lambda: loss_of(linear(patches).mT))
    torch.testing.assert_close(taken.loss, same.loss)
    torch.testing.assert_close(taken.gradients[layer], same.gradients[twin])
    for name in (
        "input_mean",
        "input_moment",
        "output_mean",
        "sample_gradients",
        "gradient_moment",
    ):
        ours, theirs = (getattr(run, name)(own) for run, own in ((taken, layer), (same, twin)))
        torch.testing.assert_close(ours, theirs, msg=name)


def test_moments_of_positions_are_sums_for_inputs_and_means_for_gradients():
    linear = nn.Linear(2, 3).double()
    (layer,) = layers_of(linear)
    x = batch(4, 5, 2)
    taken = run_pass([layer], lambda: loss_of(linear(x)))
    ones = F.pad(x, (0, 1), value=1.0)
    torch.testing.assert_close(
        taken.input_moment(layer), torch.einsum("itn,itk->nk", ones, ones) / 4
    )
    g = 4 * taken.output_gradients[layer]
    torch.testing.assert_close(taken.gradient_moment(layer), torch.einsum("itn,itk->nk", g, g) / 20)


@pytest.mark.parametrize(
    "module", [nn.Linear(4, 3), nn.Conv2d(2, 3, 2), nn.Linear(4, 3, bias=False)]
)
def test_a_move_adds_the_matrix_to_the_parameters(module):
    (layer,) = layers_of(module)
    before = layer.matrix(layer.parameters).detach().clone()
    direction = torch.randn(layer.shape)
    layer.move_(direction, -0.5)
    torch.testing.assert_close(layer.matrix(layer.parameters), before - 0.5 * direction)


# --- what is refused -----------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight


def half_frozen() -> nn.Linear:
    layer = nn.Linear(3, 3)
    layer.bias.requires_grad_(False)
    return layer


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), r"1 \(LayerNorm\)"),
        (nn.MultiheadAttention(4, 2), r"MultiheadAttention"),
        (nn.ConvTranspose2d(2, 2, 3), "ConvTranspose2d"),
        (nn.Conv2d(2, 2, 3, groups=2), "groups=2"),
        (nn.ReLU(), "without a trainable layer"),
        (Tied(), "untie"),
        (half_frozen(), "freeze both"),
        (nn.Linear(3, 3).bfloat16(), "float32"),
    ],
)
def test_models_without_one_matrix_per_layer_are_refused_in_a_line(model, told):
    with pytest.raises(InputError, match=told) as refusal:
        layers_of(model)
    assert "\n" not in str(refusal.value)


def test_frozen_layers_of_any_kind_are_left_out():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3).requires_grad_(False), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    (layer,) = layers_of(model)
    assert layer.name == "2"
    run_pass([layer], lambda: model(torch.ones(2, 3)).square().mean())


@pytest.mark.parametrize(
    ("closure", "told"),
    [
        (lambda model: model(model(torch.ones(2, 3))).mean(), "uses 0 twice"),
        (lambda model: model[0](torch.ones(2, 3)).mean(), "does not use 1"),
        (lambda model: model(torch.ones(2, 3)).mean().detach(), "without a graph"),
        (lambda model: model(torch.ones(3)).mean(), "mini-batch"),
        (lambda model: model[0](model[1](torch.ones(2, 3)).detach()).mean(), "not depend on 1"),
    ],
)
def test_closures_that_a_pass_cannot_use_are_refused_in_a_line(closure, told):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(InputError, match=told) as refusal:
        run_pass(layers_of(model), lambda: closure(model))
    assert "\n" not in str(refusal.value)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_that_is_one_layer_is_told_by_a_word():
    model = nn.Linear(3, 3)
    with pytest.raises(InputError, match="does not use the layer"):
        run_pass(layers_of(model), lambda: torch.ones((), requires_grad=True))
    with pytest.raises(InputError, match="not depend on the layer"):
        run_pass(
            layers_of(model),
            lambda: model(torch.ones(2, 3)).detach().sum() * torch.ones((), requires_grad=True),
        )


def test_a_layer_that_was_frozen_later_is_refused_by_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    layers = layers_of(model)
    model[1].bias.requires_grad_(False)
    with pytest.raises(InputError, match=r"Got 1 frozen since .*; unfreeze it") as refusal:
        run_pass(layers, lambda: model(torch.ones(2, 3)).mean())
    assert "\n" not in str(refusal.value)


def test_a_closure_that_has_called_backward_is_told_so():
    model = nn.Linear(3, 3)

    def closure() -> Tensor:
        loss = model(torch.ones(2, 3)).square().mean()
        loss.backward()
        return loss

    with pytest.raises(InputError, match=r"call no backward\(\)"):
        run_pass(layers_of(model), closure)


def test_an_input_may_come_by_name():
    model, x = perceptron(), batch(6, 5)
    layers = layers_of(model)
    plain = run_pass(layers, lambda: loss_of(model(x)))
    named = run_pass(layers, lambda: loss_of(model[1:](model[0](input=x))))
    assert torch.equal(plain.input_moment(layers[0]), named.input_moment(layers[0]))


def test_what_autocast_made_coarser_is_lifted_to_the_precision_of_the_weight():
    model, x = perceptron().float(), batch(6, 5).float()
    layers = layers_of(model)

    def closure() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss_of(model(x))

    coarse = run_pass(layers, closure)
    fine = run_pass(layers, lambda: loss_of(model(x)))
    for layer in layers:
        assert coarse.outputs[layer].dtype == torch.bfloat16
        for name in ("input_mean", "input_moment", "output_mean", "gradient_moment"):
            ours, theirs = (getattr(taken, name)(layer) for taken in (coarse, fine))
            assert ours.dtype == torch.float32
            # bfloat16 has a relative error of 2^-9 per number, some ten of which are multiplied.
            torch.testing.assert_close(
                ours, theirs, rtol=0.1, atol=0.05 * float(theirs.abs().max())
            )


def test_a_loss_in_parts_is_refused():
    model = nn.Linear(3, 3)
    parts = [model(torch.ones(2, 3)).mean(), torch.ones((), requires_grad=True)]
    with pytest.raises(InputError, match="in parts"):
        run_pass(layers_of(model), lambda: parts)
