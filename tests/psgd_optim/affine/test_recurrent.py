import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from psgd_optim.affine import AffineGRU, AffineLSTM, AffineRNN

X, H, T, B = 3, 4, 5, 2
KINDS = [(nn.RNN, AffineRNN), (nn.GRU, AffineGRU), (nn.LSTM, AffineLSTM)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"batch_first": True},
    {"num_layers": 3},
    {"bidirectional": True},
    {"bidirectional": True, "num_layers": 2, "batch_first": True, "bias": False},
]
CASES = [(plain, kind, options) for plain, kind in KINDS for options in OPTIONS]
CASES.append((nn.RNN, AffineRNN, {"nonlinearity": "relu", "num_layers": 2}))
NAMES = [f"{kind.__name__}-{options}" for _, kind, options in CASES]


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make(plain: Any, options: dict[str, Any], dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    return plain(X, H, dtype=dtype, **options)


def sequence(options: dict[str, Any], dtype: torch.dtype = torch.float64) -> Tensor:
    return (
        noise(B, T, X, dtype=dtype) if options.get("batch_first") else noise(T, B, X, dtype=dtype)
    )


def states(plain: Any, options: dict[str, Any], dtype: torch.dtype = torch.float64) -> Any:
    rows = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    h, c = (noise(rows, B, H, dtype=dtype, seed=seed) for seed in (1, 2))
    return (h, c) if plain is nn.LSTM else h


def flat(result: Any) -> list[Tensor]:
    output, end = result
    return [output, *end] if isinstance(end, tuple) else [output, end]


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize(("plain", "kind", "options"), CASES, ids=NAMES)
def test_outputs_and_states_equal_torchs(
    plain: Any, kind: Any, options: dict[str, Any], dtype: torch.dtype, atol: float
) -> None:
    layer = make(plain, options, dtype)
    twin = kind(layer)
    x = sequence(options, dtype)
    for hx in (None, states(plain, options, dtype)):
        for got, expected in zip(flat(twin(x, hx)), flat(layer(x, hx)), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(("plain", "kind"), KINDS)
@pytest.mark.parametrize("options", OPTIONS[2:5])
def test_a_single_sequence_needs_no_batch(plain: Any, kind: Any, options: dict[str, Any]) -> None:
    layer = make(plain, options)
    twin = kind(layer)
    hx = states(plain, options)
    single = tuple(s[:, 0] for s in hx) if plain is nn.LSTM else hx[:, 0]
    for start in (None, single):
        pairs = zip(flat(twin(noise(T, X), start)), flat(layer(noise(T, X), start)), strict=True)
        for got, expected in pairs:
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("plain", "kind", "options"), CASES, ids=NAMES)
def test_plain_returns_the_layer_bit_for_bit(
    plain: Any, kind: Any, options: dict[str, Any]
) -> None:
    layer = make(plain, options)
    random_state = torch.get_rng_state()
    back = kind(layer).plain()
    assert torch.equal(torch.get_rng_state(), random_state), "no random numbers are used"
    assert type(back) is plain
    assert repr(back) == repr(layer)  # which shows every option
    assert list(back.state_dict()) == list(layer.state_dict())
    for name, p in layer.named_parameters():
        assert torch.equal(back.get_parameter(name), p), name
    x = sequence(options)
    for got, expected in zip(flat(back(x)), flat(layer(x)), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(("plain", "kind", "options"), CASES, ids=NAMES)
def test_plain_follows_the_twins_training(plain: Any, kind: Any, options: dict[str, Any]) -> None:
    twin = kind(make(plain, options))
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(0.1 * noise(*p.shape))
    twin = copy.deepcopy(twin)
    x = sequence(options)
    for got, expected in zip(flat(twin.plain()(x)), flat(twin(x)), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_the_rnn_is_one_matrix_on_input_state_and_one() -> None:
    layer = make(nn.RNN, {})
    twin = AffineRNN(layer)
    assert {n: tuple(p.shape) for n, p in twin.named_parameters()} == {"weight_l0": (H, X + H + 1)}
    assert list(twin.state_dict()) == ["weight_l0"]
    x, h, one = noise(T, B, X), torch.zeros(B, H, dtype=torch.float64), torch.ones(B, 1)
    for t in range(T):
        h = torch.tanh(torch.cat((x[t], h, one.double()), dim=1) @ twin.weight_l0.T)
        torch.testing.assert_close(twin(x)[0][t], h)


def test_the_lstm_is_one_matrix_with_rows_ifgo() -> None:
    layer = make(nn.LSTM, {})
    twin = AffineLSTM(layer)
    shapes = {n: tuple(p.shape) for n, p in twin.named_parameters()}
    assert shapes == {"weight_l0": (4 * H, X + H + 1)}
    x, one = noise(T, B, X), torch.ones(B, 1, dtype=torch.float64)
    h = c = torch.zeros(B, H, dtype=torch.float64)
    theta = twin.weight_l0.detach()
    for t in range(T):
        z = torch.cat((x[t], h, one), dim=1) @ theta.T
        i, f, g, o = (z[:, k * H : (k + 1) * H] for k in range(4))
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        torch.testing.assert_close(twin(x)[0][t].detach(), h)


def test_the_gru_is_two_matrices_with_the_reset_gate_on_the_states_candidate() -> None:
    twin = AffineGRU(make(nn.GRU, {}))
    shapes = {n: tuple(p.shape) for n, p in twin.named_parameters()}
    assert shapes == {"weight_ih_l0": (3 * H, X + 1), "weight_hh_l0": (3 * H, H + 1)}
    x, one = noise(T, B, X), torch.ones(B, 1, dtype=torch.float64)
    h = torch.zeros(B, H, dtype=torch.float64)
    theta_x, theta_h = twin.weight_ih_l0.detach(), twin.weight_hh_l0.detach()
    for t in range(T):
        a = torch.cat((x[t], one), dim=1) @ theta_x.T
        b = torch.cat((h, one), dim=1) @ theta_h.T
        r, z = (a + b)[:, :H].sigmoid(), (a + b)[:, H : 2 * H].sigmoid()
        h = (1 - z) * (a[:, 2 * H :] + r * b[:, 2 * H :]).tanh() + z * h
        torch.testing.assert_close(twin(x)[0][t].detach(), h)


@pytest.mark.parametrize(("plain", "kind"), KINDS)
def test_a_layer_without_bias_has_no_last_column(plain: Any, kind: Any) -> None:
    with_bias, without = (kind(make(plain, {"bias": bias})) for bias in (True, False))
    for p, q in zip(with_bias.parameters(), without.parameters(), strict=True):
        assert p.shape[1] == q.shape[1] + 1


@pytest.mark.parametrize(("plain", "kind", "options"), CASES, ids=NAMES)
def test_gradients_and_hessian_vector_products_are_right(
    plain: Any, kind: Any, options: dict[str, Any]
) -> None:
    twin = kind(make(plain, options))
    params = list(twin.parameters())
    x = noise(2, 2, X)  # two steps, whichever axis comes first

    def loss(*values: Tensor) -> Tensor:
        names = [name for name, _ in twin.named_parameters()]
        output: Tensor = torch.func.functional_call(
            twin, dict(zip(names, values, strict=True)), (x,)
        )[0]
        return output.square().mean()

    v = [noise(*p.shape, seed=i) for i, p in enumerate(params)]
    grads = torch.autograd.grad(loss(*params), params, create_graph=True)
    products = torch.autograd.grad(grads, params, grad_outputs=v)

    def gradient_at(shift: float) -> tuple[Tensor, ...]:
        moved = [(p + shift * d).detach().requires_grad_() for p, d in zip(params, v, strict=True)]
        return torch.autograd.grad(loss(*moved), moved)

    step = 1e-5  # central differences: error step^2, rounding 1e-16 / step
    ahead, behind = gradient_at(step), gradient_at(-step)
    for hv, a, b in zip(products, ahead, behind, strict=True):
        torch.testing.assert_close(hv, (a - b) / (2 * step), rtol=1e-6, atol=1e-9)
        assert hv.abs().max() > 1e-5
    with torch.no_grad():
        ahead, behind = (
            loss(*(p + s * d for p, d in zip(params, v, strict=True))) for s in (step, -step)
        )
    slope = sum((g * d).sum() for g, d in zip(grads, v, strict=True))
    torch.testing.assert_close(slope.detach(), (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-9)


def test_dropout_acts_between_layers_in_training_only() -> None:
    options = {"num_layers": 2, "dropout": 0.5}
    layer = make(nn.LSTM, options)
    twin = AffineLSTM(layer)
    x = sequence(options)
    torch.manual_seed(0)
    first, second = twin(x)[0], twin(x)[0]
    assert not torch.equal(first, second)
    h, _ = twin(x)[1]
    torch.testing.assert_close(h[0], twin(x)[1][0][0])  # the first layer sees no dropout
    torch.testing.assert_close(twin.eval()(x)[0], layer.eval()(x)[0], rtol=0, atol=1e-12)
    assert twin.plain().dropout == 0.5


def test_mode_dtype_device_and_requires_grad_are_kept() -> None:
    for plain, kind in KINDS:
        layer = make(plain, {"num_layers": 2}, torch.bfloat16)
        layer.eval().to("meta")
        for name, p in layer.named_parameters():
            p.requires_grad_("l1" in name)
        twin = kind(layer)
        for module in (twin, twin.plain()):
            assert not module.training
            for name, p in module.named_parameters():
                assert (p.dtype, p.device.type) == (torch.bfloat16, "meta")
                assert p.requires_grad == ("l1" in name)


def test_what_cannot_be_wrapped_is_refused() -> None:
    with pytest.raises(ValueError, match="AffineLSTM got proj_size = 2; only 0 is supported"):
        AffineLSTM(make(nn.LSTM, {"proj_size": 2}))
    layer = make(nn.RNN, {})
    layer.bias_hh_l0.requires_grad_(False)
    with pytest.raises(ValueError, match="requires_grad False and True"):
        AffineRNN(layer)
    packed = nn.utils.rnn.pack_sequence([noise(T, X)])
    with pytest.raises(TypeError, match="AffineGRU got a PackedSequence"):
        AffineGRU(make(nn.GRU, {}))(packed)


@pytest.mark.parametrize(("plain", "kind"), KINDS)
def test_a_state_of_another_shape_is_refused(plain: Any, kind: Any) -> None:
    twin = kind(make(plain, {}))
    wrong = torch.zeros(1, 1, H, dtype=torch.float64)  # would broadcast over the batch
    with pytest.raises(ValueError, match=r"a state of shape \(1, 1, 4\); give \(1, 2, 4\)"):
        twin(noise(T, B, X), (wrong, wrong) if plain is nn.LSTM else wrong)
