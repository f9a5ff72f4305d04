import json
import sys
import types
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from psgd_optim import InputError
from psgd_optim.config import PeerConfig, build


class Plain(torch.optim.Optimizer):
    """Gradient descent without weight decay, of a package that is not installed."""

    def __init__(self, params, lr, betas=(0.1, 0.2)) -> None:
        if len(betas) != 2:
            raise RuntimeError("two betas,\nplease")
        super().__init__(params, {"lr": lr, "betas": betas})

    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data.sub_(p.grad, alpha=group["lr"])


@pytest.fixture(autouse=True)
def _package() -> Iterator[None]:
    module = types.ModuleType("a_peer")
    module.Plain = Plain  # type: ignore[attr-defined]
    sys.modules["a_peer"] = module
    yield
    del sys.modules["a_peer"]


def test_any_installed_optimizer_is_built_by_name() -> None:
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone()
    optimizer = build(model.named_parameters(), PeerConfig(target="a_peer.Plain", lr=0.5))
    assert type(optimizer) is Plain
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert torch.equal(model.weight.detach(), before - 0.5)


def test_settings_are_json_and_lists_become_tuples() -> None:
    config = PeerConfig(
        target="torch.optim.AdamW",
        weight_decay=0.1,
        settings=json.dumps({"betas": [0.8, 0.95], "amsgrad": True}),
    )
    optimizer = build(nn.Linear(4, 3).named_parameters(), config)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)
    assert optimizer.param_groups[0]["amsgrad"] is True


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "not_installed.SOAP"}, "Cannot import 'not_installed' .* install its package"),
        ({"target": "SOAP"}, "Cannot import 'SOAP'"),
        ({"target": "a_peer.Plian"}, r"a_peer.Plian is no torch.optim.Optimizer"),
        ({"target": "torch.nn.Linear"}, "is no torch.optim.Optimizer"),
        ({"target": "torch.optim.LBFGS"}, "from a closure"),
        ({"target": "a_peer.Plain", "weight_decay": 0.1}, "takes no weight_decay, and got 0.1"),
        ({"target": "a_peer.Plain", "settings": '{"beta": 1}'}, "unexpected keyword .*beta"),
        ({"target": "a_peer.Plain", "settings": '{"betas": [1]}'}, "two betas, please"),
        ({"settings": "{"}, "no JSON"),
        ({"settings": "[1]"}, "give a JSON object"),
        ({"settings": '{"lr": 1}'}, "flags of their own"),
        ({"lr": 0.0}, "lr = 0.0"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        PeerConfig(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_pytorch_optimizer_is_a_peer_where_it_is_installed() -> None:
    pytest.importorskip("pytorch_optimizer")
    config = PeerConfig(
        target="pytorch_optimizer.SOAP", lr=1e-2, settings='{"precondition_frequency": 2}'
    )
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone()
    optimizer = build(model.named_parameters(), config)
    for _ in range(3):
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
    assert not torch.equal(before, model.weight.detach())
