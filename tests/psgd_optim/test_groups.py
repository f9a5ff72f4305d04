"""Groups: torch sees numbers, the optimizer keeps the objects."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from psgd_optim import PSGD, Diagonal, Fitting, Kron
from psgd_optim.averages import Nesterov
from psgd_optim.clipping import Clip
from psgd_optim.criteria import GradientWhitening, Newton, UnbiasedFisher
from psgd_optim.curvature import GradientDifference
from psgd_optim.decay import Cautious, Decoupled, Hyperball
from psgd_optim.groups import allocate_group, check_group, take_apart, told_names
from psgd_optim.schedules import Adaptive
from psgd_optim.scope import Joint, PerTensor
from psgd_optim.updates import Update


def group(**settings: Any) -> dict[str, Any]:
    return {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, "form": Kron(), **settings}


def test_objects_are_taken_out_and_numbers_stay() -> None:
    before = group(momentum=Nesterov(0.8), weight_decay=Cautious(0.2), form=Joint(Diagonal()))
    numbers, parts = take_apart(before)
    assert numbers == {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.2, "layout": "Joint(Diagonal)"}
    assert (parts.scope, parts.decay, parts.nesterov) == (Joint(Diagonal()), Cautious(0.2), True)
    assert isinstance(before["momentum"], Nesterov)
    numbers, parts = take_apart(group(weight_decay=0.3))
    assert (parts.scope, parts.decay, parts.nesterov) == (PerTensor(Kron()), Decoupled(0.3), False)


def test_a_group_keeps_what_the_optimizer_was_given_unless_it_says_otherwise() -> None:
    params = [torch.ones(2, requires_grad=True) for _ in range(3)]
    groups = [
        {"params": params[:1]},
        {"params": params[1:2], "weight_decay": 0.5},
        {"params": params[2:], "weight_decay": Hyperball(), "momentum": 0.1},
    ]
    optimizer = PSGD(groups, weight_decay=Cautious(0.2), momentum=Nesterov(0.7))
    found = [(parts.decay, parts.nesterov) for parts in optimizer._group_parts]
    assert found == [(Cautious(0.2), True), (Decoupled(0.5), True), (Hyperball(), False)]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.2, 0.5, 0.0]
    for loaded in (optimizer.state_dict(),):
        optimizer.load_state_dict(loaded)
    assert [(parts.decay, parts.nesterov) for parts in optimizer._group_parts] == found


def test_a_group_that_is_refused_leaves_no_trace() -> None:
    params = [torch.ones(2, 3, requires_grad=True) for _ in range(2)]
    optimizer = PSGD(params[:1], fitting=Fitting(max_memory=200))
    for bad in (
        {"params": params[1:], "form": Kron},
        {"params": params[1:], "lr": -1.0},
        {"params": [torch.ones(90, 90, requires_grad=True)]},
    ):
        with pytest.raises((TypeError, ValueError)):
            optimizer.add_param_group(bad)
        assert len(optimizer.param_groups) == len(optimizer._group_parts) == 1
    optimizer.add_param_group({"params": params[1:]})
    assert len(optimizer.param_groups) == 2


def test_numbers_are_checked() -> None:
    for bad, message in (
        ({"lr": float("nan")}, "lr = nan"),
        ({"momentum": -0.1}, "momentum = -0.1"),
        ({"momentum": float("nan")}, "momentum = nan"),
    ):
        with pytest.raises(ValueError, match=message):
            check_group(group(**bad), GradientWhitening())
    with pytest.raises(TypeError, match="lr = None"):
        check_group(group(lr=None), GradientWhitening())
    check_group(group(lr=torch.tensor(0.1), momentum=0), GradientWhitening())


def test_blocks_keep_what_each_part_wants_to_remember() -> None:
    p = torch.ones(2, 3, requires_grad=True)
    numbers, parts = take_apart(group(params=[p], weight_decay=Hyperball()))

    def extra(criterion: Any, **changes: Any) -> set[str]:
        fitting = Fitting(precond_lr=Adaptive()) if changes.pop("adaptive", False) else Fitting()
        made = allocate_group(numbers | changes, parts, criterion, fitting, lambda p: True)
        return set(made[0].extra)

    assert extra(GradientWhitening()) == {"momentum", "radius"}
    assert extra(GradientWhitening(), momentum=0, adaptive=True) == {"whitened", "radius"}
    assert extra(UnbiasedFisher(batch_size=2), momentum=0) == {"mean_grad", "radius"}
    pairs = Newton(source=GradientDifference())
    assert extra(pairs, momentum=0) == {"last_param", "last_grad", "radius"}


def test_parameters_are_told_by_name_or_number() -> None:
    a, b, c = (torch.ones(1) for _ in range(3))
    groups = [{"params": [a], "param_names": ["layer.weight"]}, {"params": [b, c]}]
    assert list(told_names(groups).values()) == [
        "parameter layer.weight", "parameter 1", "parameter 2",
    ]  # fmt: skip


@pytest.mark.parametrize("graph", ["compile", "capturable"])
def test_clips_that_may_change_are_refused_in_a_graph(graph: str) -> None:
    @dataclass
    class Mine(Clip):
        limit: float = 1.0

        def clip_(self, updates: Sequence[Update]) -> None: ...

    params = [torch.ones(2, requires_grad=True)]
    PSGD(params, clip=(Mine(),))
    settings: dict[str, Any] = {graph: True}
    with pytest.raises(TypeError, match=r"no hash.* make it a frozen dataclass"):
        PSGD(params, clip=(Mine(),), **settings)
