import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from psgd_optim.affine import (
    Affine,
    AffineConv2d,
    AffineConvTranspose2d,
    AffineLinear,
    AffineLSTM,
    CellInputLSTM,
    from_affine,
    to_affine,
)


class Net(nn.Module):
    """A module with layers of every supported kind, others, and a layer that it uses twice."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.ConvTranspose2d(4, 3, 2, bias=False),
        )
        self.rnn = nn.RNN(3, 3, nonlinearity="relu")
        self.gru = nn.GRU(3, 3, bidirectional=True)
        self.lstm = nn.LSTM(6, 5, num_layers=2)
        self.blocks = nn.ModuleList([nn.ModuleDict({"in": nn.Linear(5, 5)}) for _ in range(2)])
        self.blocks.append(self.blocks[0])
        self.again = self.blocks[1]["in"]
        self.norm = nn.LayerNorm(5)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = self.image(x).flatten(2).transpose(1, 2)  # (B, T, 3)
        for layer in (self.rnn, self.gru, self.lstm):
            y = layer(y)[0]
        for block in self.blocks:
            y = torch.tanh(block["in"](y))
        out: Tensor = self.again(self.norm(y))
        return out


def image(dtype: torch.dtype = torch.float64) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(2, 2, 6, 5, generator=rng, dtype=dtype)


def test_every_supported_layer_is_replaced_and_nothing_else() -> None:
    net = Net()
    kept = [net.image[1], net.image[2], net.norm, net.blocks, net.blocks[0]]
    assert to_affine(net) is net
    assert not [m for m in net.modules() if type(m) in {
        nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.RNN, nn.GRU, nn.LSTM
    }]  # fmt: skip
    assert sum(isinstance(m, Affine) for m in net.modules()) == 7
    after = [net.image[1], net.image[2], net.norm, net.blocks, net.blocks[0]]
    assert all(old is new for old, new in zip(kept, after, strict=True))
    assert list(dict(net.named_children())) == list(dict(Net().named_children()))


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_outputs_are_equal(dtype: torch.dtype, atol: float) -> None:
    net = Net(dtype).eval()
    expected = net(image(dtype))
    torch.testing.assert_close(to_affine(net)(image(dtype)), expected, rtol=0, atol=atol)
    torch.testing.assert_close(from_affine(net)(image(dtype)), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_there_and_back_keeps_the_state_dict_bit_for_bit(dtype: torch.dtype) -> None:
    net = Net(dtype)
    before = copy.deepcopy(net.state_dict())
    shown = repr(net)
    from_affine(to_affine(net))
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert repr(net) == shown


def test_a_layer_that_is_used_twice_has_one_twin() -> None:
    net = to_affine(Net())
    assert net.blocks[1]["in"] is net.again
    assert net.blocks[2] is net.blocks[0]
    from_affine(net)
    assert net.blocks[1]["in"] is net.again
    assert isinstance(net.again, nn.Linear)


def test_the_state_dict_is_ordinary() -> None:
    net, other = to_affine(Net()), to_affine(Net())
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1)
    assert not torch.equal(net.eval()(image()), other.eval()(image()))
    names = {name for name, _ in net.named_parameters(remove_duplicate=False)}
    assert {name for name in net.state_dict() if not name.startswith("image.1.")} == {
        name for name in names if not name.startswith("image.1.")
    }
    other.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(net(image()), other(image()))


def test_a_layer_itself_is_returned_as_its_twin() -> None:
    layer = nn.Linear(3, 2)
    twin = to_affine(layer)
    assert isinstance(twin, AffineLinear)
    back = from_affine(twin)
    assert type(back) is nn.Linear
    assert torch.equal(back.weight, layer.weight)


def test_modules_of_no_known_kind_come_back_as_they_are() -> None:
    for module in (nn.Tanh(), nn.Embedding(3, 2), CellInputLSTM(2, 2)):
        before = dict(module.named_parameters())
        assert to_affine(module) is module
        assert from_affine(module) is module
        assert dict(module.named_parameters()) == before


def test_mode_and_requires_grad_are_kept() -> None:
    net = Net()
    net.image.eval()
    net.lstm.requires_grad_(False)
    for change in (to_affine, from_affine):
        change(net)
        assert not net.image[0].training
        assert net.lstm.training
        assert not any(p.requires_grad for p in net.lstm.parameters())
        assert all(p.requires_grad for p in net.gru.parameters())


def test_names_to_leave_are_left_with_all_that_is_in_them() -> None:
    net = Net()
    to_affine(net, leave=("image", "blocks.1"))
    assert type(net.image[0]) is nn.Conv2d
    assert type(net.again) is nn.Linear, "left wherever the module holds it"
    assert isinstance(net.blocks[0]["in"], AffineLinear)
    assert isinstance(net.lstm, AffineLSTM)
    from_affine(net, leave=["lstm"])
    assert isinstance(net.lstm, AffineLSTM)
    assert type(net.rnn) is nn.RNN
    with pytest.raises(ValueError, match=r"leave = \['lst'\], which names no submodule"):
        from_affine(net, leave=["lst"])


def test_layers_whose_weights_others_read_are_left_alone() -> None:
    class Special(nn.Linear):
        pass

    encoder = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0)
    model = nn.Sequential(nn.MultiheadAttention(4, 2), encoder, Special(4, 4))
    before = repr(model)
    assert repr(to_affine(model)) == before
    assert to_affine(encoder) is encoder


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(7, 3)
        self.hidden = nn.Linear(3, 3)
        self.decoder = nn.Linear(3, 7)
        self.decoder.weight = self.encoder.weight


def test_a_tied_parameter_is_refused_by_name_and_nothing_changes() -> None:
    model = Tied()
    with pytest.raises(ValueError, match=r"cannot replace decoder: .*encoder.weight is decoder.w"):
        to_affine(model)
    assert type(model.hidden) is nn.Linear
    to_affine(model, leave=("decoder",))
    assert isinstance(model.hidden, AffineLinear)
    assert model.decoder.weight is model.encoder.weight


def test_a_tied_matrix_is_refused_on_the_way_back() -> None:
    model = nn.Sequential(AffineLinear(nn.Linear(3, 3)), AffineLinear(nn.Linear(3, 3)))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"from_affine cannot replace 0: .*0.weight is 1.weight"):
        from_affine(model)


def hooked() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.register_forward_hook(lambda *_: None)
    return layer


def masked() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.register_buffer("mask", torch.ones(3, 3))
    return layer


def half_frozen() -> nn.Module:
    layer = nn.Conv2d(2, 2, 1)
    layer.bias.requires_grad_(False)
    return layer


REFUSED: list[tuple[Any, str]] = [
    (hooked, "it has hooks"),
    (masked, "it has mask, which would be lost"),
    (half_frozen, "requires_grad False and True"),
    (lambda: nn.LSTM(3, 4, proj_size=2), "proj_size = 2"),
    (lambda: nn.LazyLinear(3), "a lazy layer has no shape yet"),
    (lambda: nn.LazyConv2d(3, 2), "a lazy layer has no shape yet"),
    (lambda: nn.utils.spectral_norm(nn.Linear(3, 3)), "it has hooks"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_cannot_be_replaced_is_refused_by_name_and_nothing_changes(
    make: Any, message: str
) -> None:
    first = nn.Linear(3, 3)
    model = nn.Sequential(first, nn.ModuleDict({"bad": make()}))
    with pytest.raises(ValueError, match=f"to_affine cannot replace 1.bad: .*{message}") as caught:
        to_affine(model)
    assert "\n" not in str(caught.value)
    assert model[0] is first


def test_a_parametrized_layer_is_left_alone() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    assert to_affine(layer) is layer


def test_the_twins_can_be_copied_saved_and_called_with_other_parameters() -> None:
    net = to_affine(Net()).eval()
    expected = net(image())
    assert torch.equal(copy.deepcopy(net)(image()), expected)
    params = {name: 2 * p.detach() for name, p in net.named_parameters()}
    doubled = copy.deepcopy(net)
    with torch.no_grad():
        for p in doubled.parameters():
            p.mul_(2)
    # A shared layer has two names; functional_call keeps them tied.
    assert torch.equal(torch.func.functional_call(net, params, (image(),)), doubled(image()))


def test_training_through_the_twins_is_training_the_layers() -> None:
    # Plain gradient descent, where one bias stands for each map: the same steps.
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Tanh(), nn.Linear(60, 4)).double()
    twin = to_affine(copy.deepcopy(plain))
    assert isinstance(twin[0], AffineConv2d)
    for model in (plain, twin):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(image()).square().mean().backward()
            optimizer.step()
    back = from_affine(twin)
    for p, q in zip(back.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_every_twin_is_reached() -> None:
    kinds = {type(m) for m in to_affine(Net()).modules() if isinstance(m, Affine)}
    assert {AffineConv2d, AffineConvTranspose2d, AffineLinear, AffineLSTM} <= kinds
    assert len(kinds) == 6
