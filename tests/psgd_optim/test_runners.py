"""Compiled steps: how many graphs there are, and that they do what eager steps do."""

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager

from psgd_optim import (
    PSGD,
    Cautious,
    Diagonal,
    Fitting,
    Hyperball,
    Kron,
    MatchRMS,
    Newton,
    Split,
    runners,
)
from psgd_optim.averages import Nesterov
from psgd_optim.clipping import ClipJointRMS, TrustRegion
from psgd_optim.criteria import GradientWhitening, UnbiasedFisher
from psgd_optim.curvature import Given
from psgd_optim.forms.low_rank import LowRank
from psgd_optim.forms.touched_rows import TouchedRows
from psgd_optim.geometry import EQ
from psgd_optim.schedules import Adaptive, Anneal
from psgd_optim.scope import Joint
from psgd_optim.types import State

SHAPES = [(4, 3), (4, 3), (1,)]
# The same operations in float64, but for products with masks that are all true, sums in another
# order and scaled norms; twenty steps multiply rounding errors of 1e-16 by far less than this.
SAME = {"rtol": 1e-10, "atol": 0.0}
Graphs = list[torch.fx.GraphModule]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    """Record every graph that is compiled, recompilations included, and run it without inductor."""
    made: Graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        made.append(graph)
        return aot_eager(graph, inputs)  # type: ignore[no-untyped-call]

    patched = partial(runners.compile_function, backend=backend)
    monkeypatch.setattr(runners, "compile_function", patched)
    torch.compiler.reset()
    yield made
    torch.compiler.reset()


def optimizer_of(shapes: list[tuple[int, ...]], **settings: Any) -> PSGD:
    random = torch.Generator().manual_seed(1)
    params = [torch.randn(s, generator=random, dtype=torch.float64) for s in shapes]
    return PSGD([p.requires_grad_() for p in params], **{"lr": 0.01, **settings})


def values(optimizer: PSGD) -> list[Tensor]:
    return [p.detach() for p in optimizer.param_groups[0]["params"]]


def take_steps(optimizer: PSGD, steps: range, broken: int = -1, missing: int = -1) -> None:
    """Step on gradients that are a function of the step; some may be not finite, or not there."""
    params = optimizer.param_groups[0]["params"]
    for step in steps:
        random = torch.Generator().manual_seed(step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=random, dtype=p.dtype) * 10 ** (step % 3)
        if step == broken:
            params[0].grad.view(-1)[0] = math.nan
        if step == missing:
            params[0].grad = None
        optimizer.step()


def every_third(step: int) -> float:
    return float(step % 3 == 0)


@pytest.mark.slow
def test_two_graphs_serve_all_shapes_rates_and_decays(graphs: Graphs) -> None:
    shapes = [(n,) for n in range(1, 13)]  # torch gives up after 8 graphs of one function
    fitting = Fitting(precond_lr=Anneal(0.7, 0.1, flat=0), gate=every_third)
    eager, compiled = (
        optimizer_of(shapes, form=Diagonal(), fitting=fitting, compile=is_on)
        for is_on in (False, True)
    )
    for step in range(20):
        for optimizer in (eager, compiled):
            settings = {"lr": 0.01 / (1 + step), "momentum": 0.9 - 0.02 * step}
            optimizer.param_groups[0].update(settings, weight_decay=0.1 * step)
            take_steps(optimizer, range(step, step + 1))
    torch.testing.assert_close(values(compiled), values(eager), **SAME)
    assert len(graphs) == 2  # with and without a fit


def test_clips_decay_and_figures_are_in_the_graph(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = optimizer_of(SHAPES, form=Diagonal(), weight_decay=Cautious(0.1), compile=True)
    take_steps(optimizer, range(2))

    def not_here(*args: Any) -> None:
        raise AssertionError("A compiled step did something outside of its graph.")

    for path in (
        "joint_step.clip_and_move",
        "joint_step.precondition_all",
        "clipping.ClipRMS.clip_",
    ):
        monkeypatch.setattr(f"psgd_optim.{path}", not_here)
    monkeypatch.setattr("psgd_optim.updates.row_norms", not_here)
    before = [x.clone() for x in values(optimizer)]
    take_steps(optimizer, range(2, 4))
    assert not any(torch.equal(x, y) for x, y in zip(before, values(optimizer), strict=True))
    assert float(optimizer.metrics()["update_rms"]) > 0
    assert len(graphs) == 1


def test_an_lr_that_is_a_tensor_can_change_too(graphs: Graphs) -> None:
    found = []
    for compiled in (False, True):
        lr = torch.tensor(0.01, dtype=torch.float64)
        optimizer = optimizer_of(
            SHAPES, lr=lr, form=Diagonal(), weight_decay=0.1, clip=(), compile=compiled
        )
        for step in range(6):
            lr.fill_(0.01 / (1 + step))
            take_steps(optimizer, range(step, step + 1))
        found.append(values(optimizer))
    torch.testing.assert_close(found[1], found[0], **SAME)
    assert len(graphs) == 1


@pytest.mark.slow
def test_blocks_that_fit_in_different_steps_have_graphs_of_their_own(graphs: Graphs) -> None:
    shapes = [(n,) for n in range(1, 13)]
    fitting = Fitting(gate=0.5, spread=True)
    eager, compiled = (
        optimizer_of(shapes, form=Diagonal(), fitting=fitting, compile=is_on)
        for is_on in (False, True)
    )
    for optimizer in (eager, compiled):
        take_steps(optimizer, range(20))
    torch.testing.assert_close(values(compiled), values(eager), **SAME)
    assert len(graphs) == 2 * len(shapes)


def test_equal_plans_share_a_graph(graphs: Graphs) -> None:
    params = [torch.ones(3, dtype=torch.float64).requires_grad_() for _ in range(8)]
    groups = [{"params": [p]} for p in params]  # 8 blocks, each of its own group
    fitting = Fitting(gate=0.5, spread=True, init_scale=1.0)
    optimizer = PSGD(groups, 0.01, form=Diagonal(), fitting=fitting, compile=True)
    for step in range(12):
        for p in params:
            p.grad = torch.full_like(p, 1.0 + step)
        optimizer.step()
    assert len(graphs) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"form": Kron(geometry=EQ), "momentum": Nesterov(0.8)},
        {"form": Kron(dtype=torch.bfloat16)},
        {"form": Joint(LowRank()), "weight_decay": Hyperball()},
        {
            "form": Split(Kron(), 3),
            "weight_decay": Cautious(0.1),
            "clip": (MatchRMS(), ClipJointRMS(0.1)),
        },
        {"momentum": Nesterov(0.8), "clip": (TrustRegion(1e-3),)},
        {
            "form": Diagonal(),
            "criterion": GradientWhitening(),
            "momentum": 0.0,
            "fitting": Fitting(precond_lr=Adaptive(), gate=every_third),
        },
        {
            "criterion": UnbiasedFisher(batch_size=4),
            "fitting": Fitting(gate=every_third, update_first=False),
        },
    ],
    ids=[
        "default",
        "eq-nesterov",
        "bfloat16",
        "low-rank",
        "pieces",
        "region",
        "adaptive",
        "fisher-late",
    ],
)
def test_compiled_steps_equal_eager_ones(graphs: Graphs, settings: dict[str, Any]) -> None:
    settings = {"fitting": Fitting(gate=every_third)} | settings
    eager, compiled = (optimizer_of(SHAPES, compile=is_on, **settings) for is_on in (False, True))
    for optimizer in (eager, compiled):
        take_steps(optimizer, range(20), broken=11, missing=14)
    torch.testing.assert_close(values(compiled), values(eager), **SAME)
    for name, figure in eager.metrics().items():
        torch.testing.assert_close(compiled.metrics()[name], figure)
    # The step without the first gradient lacks one of two blocks, or of one: at most one set more.
    assert 2 <= len(graphs) <= 3


@pytest.mark.slow
def test_what_the_operator_consists_of_is_part_of_the_plan(graphs: Graphs) -> None:
    # (12, 2): Q^H Q is formed for 12 rows only once it is used 6 times.
    settings: dict[str, Any] = {
        "form": Kron(max_skew=math.inf),
        "fitting": Fitting(gate=lambda step: float(step % (2 if step < 4 else 16) == 0)),
    }
    eager, compiled = (
        optimizer_of([(12, 2)], compile=is_on, **settings) for is_on in (False, True)
    )
    found: list[State] = []
    for optimizer in (eager, compiled):
        take_steps(optimizer, range(64))
        take_steps(optimizer, range(64, 84))  # from 64 on, it is used 8 times
        block = next(iter(optimizer._store))
        assert block._prepared is not None
        uses, _, operator = block._prepared  # what the last fit has left
        assert (uses, set(operator)) == (8.0, {"p0", "p1"})
        found.append(operator)
    torch.testing.assert_close(found[1], found[0], **SAME)
    torch.testing.assert_close(values(compiled), values(eager), **SAME)
    assert len(graphs) == 4


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(graphs: Graphs) -> None:
    optimizer = optimizer_of(
        SHAPES, form=Diagonal(), compile=True, fitting=Fitting(gate=every_third)
    )
    take_steps(optimizer, range(6))
    before = [x.clone() for x in values(optimizer)]
    take_steps(optimizer, range(6, 7), broken=6)
    moved = [not torch.equal(x, y) for x, y in zip(before, values(optimizer), strict=True)]
    assert moved == [False, True, True]
    assert int(optimizer.metrics()["skipped"]) == 1
    assert len(graphs) == 2


@pytest.mark.parametrize("first", [False, True])
def test_a_run_goes_on_with_or_without_graphs(graphs: Graphs, first: bool) -> None:
    fitting = Fitting(gate=every_third)
    whole = optimizer_of(SHAPES, form=Diagonal(), fitting=fitting)
    take_steps(whole, range(20))
    begun = optimizer_of(SHAPES, form=Diagonal(), fitting=fitting, compile=first)
    take_steps(begun, range(10))
    saved = begun.state_dict()
    going = optimizer_of(SHAPES, form=Diagonal(), fitting=fitting, compile=not first)
    for p, q in zip(going.param_groups[0]["params"], values(begun), strict=True):
        p.data.copy_(q)
    going.load_state_dict(saved)
    take_steps(going, range(10, 20))
    torch.testing.assert_close(values(going), values(whole), **SAME)
    theirs, mine = whole.state_dict(), going.state_dict()
    assert theirs["param_groups"] == mine["param_groups"]
    assert layout(theirs) == layout(mine)


def layout(state_dict: dict[str, Any]) -> dict[Any, Any]:
    return {
        place: {name: (x.shape, x.dtype) for name, x in row.items()}
        for place, row in state_dict["state"].items()
    }


@pytest.mark.parametrize("remade", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_compile_again(graphs: Graphs, remade: Callable[[PSGD], PSGD]) -> None:
    optimizer = optimizer_of([(3,)], compile=True, form=Diagonal())
    take_steps(optimizer, range(3))
    assert len(graphs) == 1
    other = remade(optimizer)
    take_steps(optimizer, range(3, 6))
    assert len(graphs) == 1
    take_steps(other, range(3, 6))
    assert len(graphs) == 2
    torch.testing.assert_close(values(other), values(optimizer), rtol=0, atol=0)


def test_sparse_rows_and_pairs_are_stepped_without_a_graph(graphs: Graphs) -> None:
    table = torch.ones(6, 3, dtype=torch.float64).requires_grad_()
    sparse = PSGD([table], 0.01, form=TouchedRows(), compile=True)
    for step in range(3):
        grad = torch.full((2, 3), 1.0 + step, dtype=torch.float64)
        rows = torch.tensor([[0, 2]])
        table.grad = torch.sparse_coo_tensor(rows, grad, (6, 3), check_invariants=True)
        sparse.step()
    newton = optimizer_of([(3,)], criterion=Newton(source=Given()), compile=True)
    params = newton.param_groups[0]["params"]
    for _ in range(3):
        params[0].grad = torch.ones_like(params[0])
        v = torch.ones_like(params[0])
        newton.step(pair=([v], [2 * v]))
    assert graphs == []
    assert table[0, 0] != 1
    assert table[1, 0] == 1


@pytest.mark.slow
# torch's own, in its code generator
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_with_the_real_compiler() -> None:
    eager, compiled = (
        optimizer_of([(4, 3), (5,)], compile=is_on, fitting=Fitting(gate=every_third))
        for is_on in (False, True)
    )
    for optimizer in (eager, compiled):
        take_steps(optimizer, range(20))
    # Sums in the order of vector units: as with the other backend, far more than rounding needs.
    torch.testing.assert_close(values(compiled), values(eager), **SAME)


def test_a_fit_cannot_be_in_the_graph_and_beside_the_next_pass() -> None:
    with pytest.raises(ValueError, match="leave one of them out"):
        PSGD([torch.ones(2)], fitting=Fitting(overlap=True), compile=True)


@pytest.mark.parametrize("momenta", [(0.0, 0.9), (0.9, 0.0)])
def test_groups_that_remember_different_things_have_graphs_of_their_own(
    graphs: Graphs, momenta: tuple[float, float]
) -> None:
    found = []
    for compiled in (False, True):
        rng = torch.Generator().manual_seed(0)
        params = [torch.ones(3, 2, dtype=torch.float64, requires_grad=True) for _ in momenta]
        groups = [{"params": [p], "momentum": m} for p, m in zip(params, momenta, strict=True)]
        fitting = Fitting(gate=0.5, spread=True, init_scale=1.0)
        criterion = GradientWhitening()
        optimizer = PSGD(
            groups, 0.1, form=Diagonal(), criterion=criterion, fitting=fitting, compile=compiled
        )
        for _ in range(12):
            for p in params:
                p.grad = torch.randn(p.shape, generator=rng, dtype=p.dtype)
            optimizer.step()
        found.append([p.detach() for p in params])
    for eager, graph in zip(*found, strict=True):
        torch.testing.assert_close(eager, graph, rtol=1e-10, atol=1e-10)
