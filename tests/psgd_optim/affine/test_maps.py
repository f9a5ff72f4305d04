import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psgd_optim.affine import Affine, AffineConv2d, AffineConvTranspose2d, AffineLinear

CONVOLUTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"stride": 2, "padding": (1, 2)},
    {"dilation": (2, 1), "padding": 2},
    {"groups": 2},
    {"groups": 2, "bias": False, "stride": (1, 2)},
    {"padding": "same", "dilation": (1, 2)},
    {"padding": "same", "dilation": (1, 3), "padding_mode": "circular"},
    {"padding": "valid", "padding_mode": "reflect"},
    {"padding": (1, 2), "padding_mode": "reflect"},
    {"padding": (2, 0), "padding_mode": "replicate", "stride": 2},
    {"padding": (2, 1), "padding_mode": "circular", "groups": 2},
]
TRANSPOSED: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"stride": 2, "padding": (1, 0)},
    {"stride": (2, 3), "output_padding": (1, 2)},
    {"dilation": (2, 1)},
    {"groups": 2, "stride": 2},
    {"groups": 2, "bias": False, "padding": 1},
]


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def conv(options: dict[str, Any], dtype: torch.dtype = torch.float64) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(4, 6, (3, 2), dtype=dtype, **options)


def transposed(options: dict[str, Any], dtype: torch.dtype = torch.float64) -> nn.ConvTranspose2d:
    torch.manual_seed(0)
    return nn.ConvTranspose2d(4, 6, (3, 2), dtype=dtype, **options)


def linear(options: dict[str, Any], dtype: torch.dtype = torch.float64) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 6, dtype=dtype, **options)


CASES: list[tuple[Any, Any, dict[str, Any], tuple[int, ...]]] = [
    *((AffineLinear, linear, options, (2, 5, 4)) for options in ({}, {"bias": False})),
    *((AffineConv2d, conv, options, (2, 4, 8, 7)) for options in CONVOLUTIONS),
    *((AffineConvTranspose2d, transposed, options, (2, 4, 5, 4)) for options in TRANSPOSED),
]
NAMES = [f"{kind.__name__}-{options}" for kind, _, options, _ in CASES]


# Sums in another order differ by some roundings of terms of size 1.
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize(("kind", "make", "options", "shape"), CASES, ids=NAMES)
def test_outputs_and_gradients_equal_torchs(
    kind: Any,
    make: Any,
    options: dict[str, Any],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    atol: float,
) -> None:
    layer = make(options, dtype)
    twin: Affine = kind(layer)
    x, y = (noise(*shape, dtype=dtype).requires_grad_() for _ in range(2))
    expected, got = layer(x), twin(y)
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)
    expected.square().mean().backward()
    got.square().mean().backward()
    torch.testing.assert_close(y.grad, x.grad, rtol=0, atol=atol)
    # The gradient of the matrix is the matrix of the gradients.
    with torch.no_grad():
        twin.weight.copy_(twin.weight.grad)
    for name, p in twin.plain().named_parameters():
        torch.testing.assert_close(p.detach(), layer.get_parameter(name).grad, rtol=0, atol=atol)


@pytest.mark.parametrize(("kind", "make", "options", "shape"), CASES, ids=NAMES)
def test_plain_returns_the_layer_bit_for_bit(
    kind: Any, make: Any, options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    layer = make(options)
    random_state = torch.get_rng_state()
    back = kind(layer).plain()
    assert torch.equal(torch.get_rng_state(), random_state), "no random numbers are used"
    assert type(back) is type(layer)
    assert repr(back) == repr(layer)  # which shows every option
    assert list(back.state_dict()) == list(layer.state_dict())
    for name, p in layer.named_parameters():
        assert torch.equal(back.get_parameter(name), p)
        assert back.get_parameter(name).is_contiguous()
        assert back.get_parameter(name).data_ptr() != p.data_ptr()
    x = noise(*shape)
    assert torch.equal(back(x), layer(x))


def test_a_linear_layers_matrix_is_weight_and_bias() -> None:
    layer = linear({})
    twin = AffineLinear(layer)
    assert torch.equal(twin.weight, torch.cat((layer.weight, layer.bias[:, None]), dim=1))
    assert list(twin.state_dict()) == ["weight"]
    assert AffineLinear(linear({"bias": False})).weight.shape == (6, 4)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": (1, 2)}, {"dilation": (2, 1)}])
def test_a_convolution_is_the_matrix_times_every_patch_and_one(options: dict[str, Any]) -> None:
    twin = AffineConv2d(conv(options))
    assert twin.weight.shape == (6, 4 * 3 * 2 + 1)
    x = noise(2, 4, 8, 7)
    patches = F.unfold(x, (3, 2), **options)  # (2, 24, places)
    augmented = torch.cat((patches, torch.ones_like(patches[:, :1])), dim=1)
    torch.testing.assert_close(twin(x).flatten(2), twin.weight @ augmented)


def test_a_grouped_convolutions_rows_are_its_output_channels() -> None:
    layer = conv({"groups": 2})
    twin = AffineConv2d(layer)
    assert twin.weight.shape == (6, 2 * 3 * 2 + 1)
    for o in range(6):
        assert torch.equal(twin.weight[o, :-1], layer.weight[o].flatten())
        assert twin.weight[o, -1] == layer.bias[o]


@pytest.mark.parametrize("options", TRANSPOSED)
def test_a_transposed_convolution_is_an_affine_map_of_the_inputs_that_reach_a_pixel(
    options: dict[str, Any],
) -> None:
    twin = AffineConvTranspose2d(transposed(options))
    groups = twin.groups
    assert twin.weight.shape == (6, 4 // groups * 3 * 2 + options.get("bias", True))
    x = noise(1, 4, 3, 3)
    y = twin(x)
    for o, row, column in itertools.product(range(6), *map(range, y.shape[2:])):
        group = o // (6 // groups)
        features = torch.zeros(4 // groups, 3, 2, dtype=x.dtype)
        for a, b in itertools.product(range(3), range(2)):
            # Input (i, j) reaches output (i s - p + a d, j s - p + b d) by tap (a, b).
            at_row, left = divmod(row + twin.padding[0] - a * twin.dilation[0], twin.stride[0])
            at_col, over = divmod(column + twin.padding[1] - b * twin.dilation[1], twin.stride[1])
            if left == over == 0 and 0 <= at_row < 3 and 0 <= at_col < 3:
                mine = slice(group * 4 // groups, (group + 1) * 4 // groups)
                features[:, a, b] = x[0, mine, at_row, at_col]
        one = torch.ones(twin.weight.shape[1] - features.numel(), dtype=x.dtype)
        expected = twin.weight[o] @ torch.cat((features.flatten(), one))
        torch.testing.assert_close(y[0, o, row, column], expected)


@pytest.mark.parametrize("output_size", [(9, 11), (10, 13), (2, 6, 9, 12)])
def test_a_transposed_convolution_takes_an_output_size(output_size: tuple[int, ...]) -> None:
    layer = transposed({"stride": (2, 3), "padding": (1, 0)})
    x = noise(2, 4, 5, 4)
    expected = layer(x, output_size=output_size)
    assert torch.equal(AffineConvTranspose2d(layer)(x, output_size=output_size), expected)


@pytest.mark.parametrize(
    ("kind", "make"), [(AffineConv2d, conv), (AffineConvTranspose2d, transposed)]
)
def test_convolutions_take_an_input_without_a_batch(kind: Any, make: Any) -> None:
    layer = make({"padding": 1})
    x = noise(4, 6, 5)
    torch.testing.assert_close(kind(layer)(x), layer(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "make", "options", "shape"), CASES[:5] + CASES[-3:])
def test_hessian_vector_products_equal_torchs(
    kind: Any, make: Any, options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    layer = make(options)
    twin = kind(layer)
    v = noise(*twin.weight.shape, seed=1)
    direction = kind(layer)  # carries v, to split it in the parts of the layer
    with torch.no_grad():
        direction.weight.copy_(v)
    parts = {name: p.detach() for name, p in direction.plain().named_parameters()}

    def product(module: nn.Module, along: list[Tensor]) -> tuple[Tensor, ...]:
        params = list(module.parameters())
        loss = torch.tanh(module(noise(*shape))).square().mean()
        grads = torch.autograd.grad(loss, params, create_graph=True)
        return torch.autograd.grad(grads, params, grad_outputs=along)

    (result,) = product(twin, [v])
    with torch.no_grad():
        direction.weight.copy_(result)
    got = dict(direction.plain().named_parameters())
    names = [name for name, _ in layer.named_parameters()]
    for name, x in zip(names, product(layer, [parts[n] for n in names]), strict=True):
        torch.testing.assert_close(got[name].detach(), x, rtol=0, atol=1e-12)
        assert x.abs().max() > 1e-4


@pytest.mark.parametrize(("kind", "make", "options", "shape"), CASES[::4])
def test_mode_dtype_device_and_requires_grad_are_kept(
    kind: Any, make: Any, options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    layer = make(options, torch.bfloat16).eval().requires_grad_(False).to("meta")
    with torch.no_grad():
        twin = kind(layer)
    for module in (twin, twin.plain()):
        assert not module.training
        for p in module.parameters():
            assert (p.dtype, p.device.type, p.requires_grad) == (torch.bfloat16, "meta", False)
    with torch.no_grad():
        trained = kind(make(options))
    assert trained.training and trained.weight.requires_grad
    assert all(p.requires_grad for p in trained.plain().parameters())


def test_parts_that_are_not_alike_are_refused() -> None:
    layer = linear({})
    layer.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="requires_grad False and True; one matrix has one"):
        AffineLinear(layer)
    layer = linear({})
    layer.bias = nn.Parameter(layer.bias.float())
    with pytest.raises(ValueError, match=r"dtype torch\.float32 and torch\.float64"):
        AffineLinear(layer)


def test_the_options_show_in_repr() -> None:
    assert repr(AffineLinear(linear({}))) == "AffineLinear(4, 6)"
    assert "padding=same" in repr(AffineConv2d(conv({"padding": "same", "dilation": 2})))
