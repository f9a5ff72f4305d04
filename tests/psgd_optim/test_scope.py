"""Scopes: what shares a stack, which form gets what, and what a form then sees."""

import copy
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from psgd_optim import PSGD, Diagonal, Fitting, Kron, MomentumWhitening
from psgd_optim.criteria import GradientWhitening
from psgd_optim.scope import (
    DirectSum,
    Joint,
    Named,
    PerTensor,
    Scope,
    Split,
    as_scope,
    by_axes,
    by_name,
)

QUIET: dict[str, Any] = {  # no noise, so that block numbers do not matter
    "criterion": MomentumWhitening(damping=0.0),
    "fitting": Fitting(gate=1.0, precond_lr=0.3),
}


def named(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Named]:
    rng = torch.Generator().manual_seed(0)
    tensors = (torch.randn(s, generator=rng, dtype=dtype).requires_grad_() for s in shapes)
    return [(f"layer{i}.weight", p) for i, p in enumerate(tensors)]


def set_gradients(params: list[Tensor], step: int) -> None:
    rng = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=rng, dtype=torch.float64).to(p.dtype)


def run(optimizer: PSGD, params: list[Tensor], steps: range) -> None:
    for step in steps:
        set_gradients(params, step)
        optimizer.step()


def test_a_bare_form_stacks_equal_shapes_dtypes_and_devices() -> None:
    params = named((4, 3), (4, 1, 3), (3,)) + named((4, 3), dtype=torch.float32)
    arranged = as_scope(Kron()).arrange(params)
    assert [view.rows for view, _ in arranged] == [2, 1, 1]
    assert [view.shape for view, _ in arranged] == [(4, 3), (3,), (4, 3)]
    assert as_scope(PerTensor(Kron())) == as_scope(Kron())


def test_what_is_neither_form_nor_scope_is_refused() -> None:
    with pytest.raises(TypeError, match="give a form such as Kron"):
        as_scope(Kron)
    with pytest.raises(TypeError, match="give a form such as Kron"):
        DirectSum((by_axes(2), Kron), otherwise=Diagonal())  # type: ignore[arg-type]


# --- joint ---------------------------------------------------------------------------------------


def test_a_joint_form_steps_the_parameters_as_one_vector() -> None:
    params = [p for _, p in named((3, 2), (), (4,))]
    whole = torch.cat([p.detach().flatten() for p in params]).requires_grad_()
    form = Kron(max_skew=math.inf)
    optimizer = PSGD(params, 0.1, form=Joint(form), **QUIET)
    reference = PSGD([whole], 0.1, form=form, **QUIET)
    for step in range(4):
        set_gradients(params, step)
        whole.grad = torch.cat([p.grad.flatten() for p in params if p.grad is not None])
        optimizer.step()
        reference.step()
    joined = torch.cat([p.detach().flatten() for p in params])
    assert torch.equal(joined, whole.detach())
    assert optimizer.state[params[0]]["q0"].shape == (11, 11)
    assert not optimizer.state[params[1]]


def test_a_joint_form_takes_a_missing_gradient_as_zero_and_leaves_its_parameter() -> None:
    params = [p for _, p in named((3, 2), (4,))]
    twins = [p.detach().clone().requires_grad_() for p in params]
    optimizer = PSGD(params, 0.1, form=Joint(Diagonal()), weight_decay=0.1, **QUIET)
    reference = PSGD(twins, 0.1, form=Joint(Diagonal()), weight_decay=0.1, **QUIET)
    for step in range(3):
        set_gradients(params, step)
        set_gradients(twins, step)
        if step == 1:
            params[1].grad, twins[1].grad = None, torch.zeros_like(twins[1])
            before = params[1].detach().clone()
        optimizer.step()
        reference.step()
        if step == 1:
            assert torch.equal(params[1].detach(), before)
    assert torch.equal(params[0].detach(), twins[0].detach())
    assert torch.equal(optimizer.state[params[0]]["q"], reference.state[twins[0]]["q"])


def test_a_joint_form_makes_a_vector_for_every_dtype() -> None:
    params = named((3, 2), (4,)) + named((5,), dtype=torch.float32)
    arranged = Joint(Diagonal()).arrange(params)
    assert [view.shape for view, _ in arranged] == [(10,), (5,)]
    tensors = [p for _, p in params]
    run(PSGD(tensors, form=Joint(Diagonal())), tensors, range(2))
    assert [p.dtype for p in tensors] == [torch.float64, torch.float64, torch.float32]


# --- split ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (8, 3), (9, 1, 5), (), (2, 7, 3)])
@pytest.mark.parametrize("size", [1, 3, 4, 100])
def test_pieces_tile_a_parameter_exactly(shape: tuple[int, ...], size: int) -> None:
    (_, p), *_ = params = named(shape)
    count = torch.zeros_like(p).requires_grad_()
    for view, _ in Split(Kron(), size).arrange([("", count)]):
        assert max(view.shape) <= size
        with torch.no_grad():
            for box, row in zip(*view.pairs(torch.ones(view.rows, *view.shape)), strict=True):
                box.add_(row)
    assert torch.equal(count.detach(), torch.ones_like(p))
    sizes = [view.shape for view, _ in Split(Kron(), size).arrange(params)]
    for axis in zip(*sizes, strict=True):
        assert max(axis) - min(axis) <= 1


def test_a_split_form_equals_the_form_on_each_piece() -> None:
    p = named((7, 4))[0][1]
    cuts = [slice(0, 2), slice(2, 4), slice(4, 7)], [slice(0, 2), slice(2, 4)]
    boxes = list(itertools.product(*cuts))
    pieces = [p.detach()[box].clone().requires_grad_() for box in boxes]
    optimizer = PSGD([p], 0.1, form=Split(Diagonal(), 3), weight_decay=0.1, **QUIET)
    singles = [PSGD([x], 0.1, form=Diagonal(), weight_decay=0.1, **QUIET) for x in pieces]
    for step in range(4):
        set_gradients([p], step)
        assert p.grad is not None
        optimizer.step()
        for x, box, single in zip(pieces, boxes, singles, strict=True):
            x.grad = p.grad[box]
            single.step()
    for x, box in zip(pieces, boxes, strict=True):
        torch.testing.assert_close(p.detach()[box], x.detach(), rtol=1e-14, atol=1e-15)


def test_pieces_of_one_shape_share_a_stack_whatever_they_are_pieces_of() -> None:
    shapes = (4, 2), (2, 6), (2, 2)
    params = [p for _, p in named(*shapes)]
    alone = [p.detach().clone().requires_grad_() for p in params]
    ((view, _),) = Split(Diagonal(), 2).arrange([("", p) for p in params])
    assert (view.shape, view.counts) == ((2, 2), [2, 3, 1])
    together = PSGD(params, 0.1, form=Split(Diagonal(), 2), **QUIET)
    singles = [PSGD([p], 0.1, form=Split(Diagonal(), 2), **QUIET) for p in alone]
    for step in range(4):
        set_gradients(params, step)
        params[1].grad = None if step == 2 else params[1].grad
        for p, x in zip(params, alone, strict=True):
            x.grad = p.grad
        together.step()
        for single in singles:
            single.step()
    for p, x in zip(params, alone, strict=True):
        torch.testing.assert_close(p.detach(), x.detach(), rtol=1e-14, atol=1e-15)
    assert together.state[params[2]]["2x2/q"].shape == (2, 2)  # one piece has no axis of its own


def test_pieces_of_a_parameter_without_a_gradient_stay() -> None:
    params = [p for _, p in named((5, 4), (5, 4))]
    optimizer = PSGD(params, 0.1, form=Split(Kron(), 3), **QUIET)
    run(optimizer, params, range(2))
    held = copy.deepcopy(dict(optimizer.state[params[1]]))
    before = params[1].detach().clone()
    set_gradients(params, 2)
    params[1].grad = None
    optimizer.step()
    assert torch.equal(params[1].detach(), before)
    assert all(torch.equal(x, optimizer.state[params[1]][name]) for name, x in held.items())
    assert optimizer.state[params[0]]["2x2/step"].tolist() == [3, 3]


def test_split_parameters_need_not_be_contiguous() -> None:
    weight = torch.randn(4, 3, 3, 2, dtype=torch.float64, generator=torch.Generator())
    other = weight.clone().to(memory_format=torch.channels_last)
    results = []
    for p in (weight.requires_grad_(), other.requires_grad_()):
        run(PSGD([p], 0.1, form=Split(Kron(), 2), **QUIET), [p], range(3))
        results.append(p.detach())
    assert torch.equal(*results)
    assert not other.is_contiguous()


def test_a_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="whole number from 1 on"):
        Split(Kron(), 0)


# --- direct sums ---------------------------------------------------------------------------------


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def test_the_first_rule_that_holds_chooses_by_name() -> None:
    net = model()
    scope = DirectSum(
        (by_name("*.bias"), Diagonal()), (by_name("0.*"), Split(Kron(), 2)), otherwise=Kron()
    )
    optimizer = PSGD(net.named_parameters(), form=scope)
    net(torch.ones(2, 5)).square().sum().backward()
    optimizer.step()
    first, last = net[0], net[2]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    assert "q" in optimizer.state[first.bias] and "q" in optimizer.state[last.bias]
    assert "2x2/q0" in optimizer.state[first.weight]
    assert "q1" in optimizer.state[last.weight]


def test_rules_choose_by_the_number_of_axes_and_nest() -> None:
    inner = DirectSum((by_axes(0, 1), Diagonal()), otherwise=Kron())
    scope = DirectSum((by_axes(3), Joint(Diagonal())), otherwise=inner)
    arranged = scope.arrange(named((2, 3, 4), (2, 1, 3), (1, 4), (), (5, 2, 2)))
    found = [(view.shape, type(form).__name__) for view, form in arranged]
    assert found == [((44,), "Diagonal"), ((4,), "Diagonal"), ((1,), "Diagonal"), ((2, 3), "Kron")]


def test_a_parameter_group_brings_its_own_scope() -> None:
    params = [p for _, p in named((4, 3), (4, 3))]
    groups = [{"params": params[:1]}, {"params": params[1:], "form": Joint(Diagonal())}]
    optimizer = PSGD(groups, form=Split(Kron(), 2))
    run(optimizer, params, range(1))
    assert "2x1/q0" in optimizer.state[params[0]]
    assert optimizer.state[params[1]]["q"].shape == (12,)


def test_rules_by_name_need_names() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 3\) without a name; give .*named_parameters"):
        PSGD([named((4, 3))[0][1]], form=DirectSum((by_name("*"), Kron()), otherwise=Kron()))


SCOPES: list[Scope] = [
    PerTensor(Kron()),
    Joint(Diagonal()),
    Split(Kron(), 3),
    DirectSum((by_name("*bias"), Joint(Diagonal())), (by_axes(2), Kron()), otherwise=Diagonal()),
]


@pytest.mark.parametrize("scope", SCOPES, ids=lambda scope: type(scope).__name__)
def test_scopes_are_values_and_their_optimizers_can_be_copied(scope: Scope) -> None:
    assert pickle.loads(pickle.dumps(scope)) == scope
    for duplicate in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        net = model().double()
        params = list(net.parameters())
        criterion = GradientWhitening()
        optimizer = PSGD(net.named_parameters(), form=scope, criterion=criterion)
        run(optimizer, params, range(2))
        twin, twins = duplicate((optimizer, params))
        run(optimizer, params, range(2, 4))
        run(twin, twins, range(2, 4))
        assert all(torch.equal(x, y) for x, y in zip(params, twins, strict=True))


@pytest.mark.parametrize("form", [Kron(max_skew=math.inf), Split(Kron(max_skew=math.inf), 3)])
def test_stacks_that_leave_a_cpus_caches_are_made_smaller(
    form: Kron | Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = ((7, 3), (7, 3), (3, 4), (7, 3))  # pieces of two shapes, some of them shared
    joint, apart = ([p for _, p in named(*shapes)] for _ in range(2))
    quiet = {**QUIET, "criterion": GradientWhitening()}  # with noise, that depends on the stacks

    monkeypatch.setattr("psgd_optim.scope.MOST_STACKED", 40)
    first = PSGD(apart, 0.1, form=form, **quiet)
    run(first, apart, range(3))
    sizes = [block.view.rows * math.prod(block.view.shape) for block in first._store]
    assert max(sizes) <= 42 and len(sizes) > len({p.shape for p in apart})
    for p, q in zip(joint, apart, strict=True):
        p.data.copy_(q.detach())
    resumed = PSGD(joint, 0.1, form=form, **quiet)
    resumed.load_state_dict(first.state_dict())
    run(first, apart, range(3, 6))
    run(resumed, joint, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(joint, apart, strict=True))


@pytest.mark.parametrize(
    ("shapes", "size"),
    [(((9, 4), (10, 4), (12, 4)), 4), (((33, 16), (35, 16), (12, 16), (16, 11)), 16)],
)
def test_pieces_that_connect_stacks_are_stacked_again_as_they_were(
    shapes: tuple[tuple[int, int], ...], size: int
) -> None:
    """Pieces of two shapes, each in a stack with those of others: the noise depends on both."""
    first = [p for _, p in named(*shapes)]
    fitting = Fitting(precond_lr=0.3, gate=1.0)
    optimizer = PSGD(first, 0.1, form=Split(Kron(), size), fitting=fitting)
    run(optimizer, first, range(3))
    second = [p.detach().clone().requires_grad_() for p in first]
    resumed = PSGD(second, 0.1, form=Split(Kron(), size), fitting=fitting)
    resumed.load_state_dict(optimizer.state_dict())
    assert [b.view.counts for b in resumed._store] == [b.view.counts for b in optimizer._store]
    run(optimizer, first, range(3, 6))
    run(resumed, second, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(first, second, strict=True))
