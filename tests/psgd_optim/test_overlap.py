"""Fits beside the main program: the same bits as fits after the step, whenever they happen."""

import copy
import gc
import pickle
import threading
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from psgd_optim import PSGD, Diagonal, Fitting, GradientWhitening, Kron
from psgd_optim.averages import Nesterov
from psgd_optim.background import Job
from psgd_optim.criteria import Criterion, Fisher, Newton, UnbiasedFisher
from psgd_optim.curvature import Exact, FiniteDifference, Given, GradientDifference, LossSource
from psgd_optim.decay import Hyperball
from psgd_optim.forms.base import Preconditioner
from psgd_optim.forms.block_triangular import BlockTriangular
from psgd_optim.forms.closed_diagonal import ClosedDiagonal
from psgd_optim.forms.dense import Dense
from psgd_optim.forms.low_rank import LowRank
from psgd_optim.forms.permutation import Permutation
from psgd_optim.forms.sparse_lu import SparseLU
from psgd_optim.forms.touched_rows import TouchedRows
from psgd_optim.geometry import EQ
from psgd_optim.row_fit import ExactRows
from psgd_optim.schedules import Adaptive
from psgd_optim.scope import DirectSum, Joint, Scope, Split, by_axes

SHAPES = [(5, 4), (5, 1, 4), (5, 4), (4,), ()]
FORMS: dict[str, Preconditioner | Scope] = {
    "kron": Kron(),
    "kron-EQ": Kron(geometry=EQ),
    "kron-bf16": Kron(dtype=torch.bfloat16),
    "diagonal": Diagonal(),
    "closed-diagonal": ClosedDiagonal(),
    "dense": Joint(Dense()),
    "low-rank": Joint(LowRank(rank=2)),
    "sparse-lu": Joint(SparseLU(rank=2)),
    "permutation": Joint(Permutation()),
    "arrow": Joint(BlockTriangular(splits=(10,))),
    "split": Split(Kron(), 3),
    "sum": DirectSum((by_axes(2), Split(Kron(), 4)), otherwise=Joint(Diagonal())),
}
CRITERIA: dict[str, Criterion] = {
    "gradient": GradientWhitening(),
    "fisher": Fisher(),
    "unbiased": UnbiasedFisher(batch_size=4),
    "exact": Newton(),
    "finite": Newton(source=FiniteDifference()),
    "differences": Newton(damping=0.1, source=GradientDifference()),
    "given": Newton(source=Given()),
}


class Late:
    """A background that does nothing until it must: what a fit reads has changed if it can."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []

    def run(self, jobs: Iterable[Job]) -> None:
        self._jobs = list(jobs)

    def join(self) -> None:
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.work()


@pytest.fixture(params=["thread", "late"])
def moment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """When the fits happen: as soon as the thread comes to it, or as late as they may."""
    if request.param == "late":
        monkeypatch.setattr("psgd_optim.optimizer.Background", Late)
    return str(request.param)


def parameters() -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=rng).requires_grad_() for s in SHAPES]


def loss_of(params: list[Tensor], step: int) -> Tensor:
    rng = torch.Generator().manual_seed(100 + step)
    terms = [(p - torch.randn(p.shape, generator=rng)).square().sum() for p in params]
    return torch.stack(terms).sum() + 0.1 * sum(p.pow(4).sum() for p in params)


def run(optimizer: PSGD, params: list[Tensor], steps: range) -> list[dict[str, Tensor]]:
    """Step, with gradients that are missing or not finite at times; return the metrics."""
    metrics = []
    source = optimizer.criterion.pairs
    for step in steps:
        pair = None
        if isinstance(source, LossSource):
            optimizer.step(lambda step=step: loss_of(params, step))  # type: ignore[misc]
        else:
            optimizer.zero_grad(set_to_none=False)
            loss_of(params, step).backward()
            if step % 5 == 3 or step < 2:
                params[1].grad = None  # one of a stack of three, which starts late
            if step % 7 == 4:
                params[2].grad[0] = torch.nan
            if isinstance(source, Given) and optimizer.fits_next:
                pair = [p.detach() + 1 for p in params], [3 * p.detach() for p in params]
            optimizer.step(pair=pair)
        metrics.append(optimizer.metrics())
        with torch.no_grad():  # nothing of this is the fit's any more
            for x in [*params, *(x for xs in pair or () for x in xs)]:
                x.mul_(0.99)
                if x.grad is not None:
                    x.grad.fill_(1e3)
    return metrics


def assert_same_bits(first: Any, second: Any) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


def trained(steps: int = 30, **settings: Any) -> tuple[Any, ...]:
    params = parameters()
    fitting = {"init_scale": 0.3, "gate": 0.6, "precond_lr": 0.3, **settings.pop("fitting", {})}
    optimizer = PSGD(params, 0.02, fitting=Fitting(**fitting), **settings)
    metrics = run(optimizer, params, range(steps))
    return [p.detach() for p in params], metrics, optimizer.state_dict()["state"]


def assert_overlap_changes_no_bit(**settings: Any) -> None:
    fitting = settings.pop("fitting", {})
    expected = trained(fitting={"update_first": False, **fitting}, **settings)
    found = trained(fitting={"overlap": True, **fitting}, **settings)
    assert_same_bits(found, expected)


@pytest.mark.usefixtures("moment")
@pytest.mark.parametrize("gate", [0.5, 1.0])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_takes_the_steps_of_a_fit_after_the_step(form: str, gate: float) -> None:
    assert_overlap_changes_no_bit(form=FORMS[form], fitting={"gate": gate})


@pytest.mark.usefixtures("moment")
@pytest.mark.parametrize("form", ["kron-EQ", "sum"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_takes_them_too(criterion: str, form: str) -> None:
    assert_overlap_changes_no_bit(form=FORMS[form], criterion=CRITERIA[criterion])


@pytest.mark.usefixtures("moment")
@pytest.mark.parametrize(
    "settings",
    [
        {"weight_decay": Hyperball()},
        {"momentum": Nesterov(0.8)},
        {"momentum": 0.0, "criterion": GradientWhitening()},
        {"fitting": {"precond_lr": Adaptive()}},
        {"fitting": {"init_scale": None}},
        {"fitting": {"spread": True}},
        {"fitting": {"init_scale": None}, "criterion": Newton(), "momentum": 0.0},
    ],
)
def test_other_parts_take_them_too(settings: dict[str, Any]) -> None:
    assert_overlap_changes_no_bit(**settings)


def sparse_run(optimizer: PSGD, table: nn.Embedding) -> None:
    for step in range(30):
        tokens = torch.randint(9, (6,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad(set_to_none=False)
        (table(tokens) - 1).square().sum().backward()
        grad = table.weight.grad = table.weight.grad.coalesce()
        optimizer.step()
        grad.indices().fill_(0)
        grad.values().fill_(1e3)
        table.weight.grad = None


@pytest.mark.usefixtures("moment")
@pytest.mark.parametrize("precond_lr", [0.3, Adaptive()])
@pytest.mark.parametrize("form", [TouchedRows(), TouchedRows(rows=ExactRows())])
def test_sparse_rows_take_them_too(form: TouchedRows, precond_lr: Any) -> None:
    found = []
    for order in ({"update_first": False}, {"overlap": True}):
        torch.manual_seed(0)
        table = nn.Embedding(9, 3, sparse=True)
        fitting = Fitting(gate=0.7, precond_lr=precond_lr, **order)
        optimizer = PSGD(table.parameters(), 0.02, form=form, fitting=fitting)
        sparse_run(optimizer, table)
        found.append((table.weight.detach(), optimizer.state_dict()["state"]))
    assert_same_bits(found[1], found[0])


@pytest.mark.usefixtures("moment")
@pytest.mark.parametrize("form", ["kron", "sum"])
def test_whoever_looks_at_the_state_sees_the_fit(form: str) -> None:
    fittings = [
        Fitting(gate=1.0, **order) for order in ({"update_first": False}, {"overlap": True})
    ]
    params, others = parameters(), parameters()
    expected = PSGD(params, 0.02, form=FORMS[form], fitting=fittings[0])
    optimizer = PSGD(others, 0.02, form=FORMS[form], fitting=fittings[1])
    for first in range(0, 12, 4):
        run(expected, params, range(first, first + 4))
        run(optimizer, others, range(first, first + 4))
        saved = copy.deepcopy(optimizer.state_dict())
        run(optimizer, others, range(1))  # a step that the load undoes while its fit is running
        with torch.no_grad():
            for p, q in zip(others, params, strict=True):
                p.copy_(q)
        optimizer.load_state_dict(saved)
        assert_same_bits(optimizer.state_dict()["state"], expected.state_dict()["state"])
    run(optimizer, others, range(20, 21))
    twin, twins = copy.deepcopy((optimizer, others))
    other, mine = pickle.loads(pickle.dumps((optimizer, others)))
    for each, theirs in ((expected, params), (twin, twins), (other, mine), (optimizer, others)):
        run(each, theirs, range(20 if each is expected else 21, 25))
        assert_same_bits(
            (theirs, each.state_dict()["state"]), (params, expected.state_dict()["state"])
        )


@pytest.mark.usefixtures("moment")
def test_a_load_of_what_a_fit_still_writes_to_waits_for_it() -> None:
    found = []
    for order in ({"update_first": False}, {"overlap": True}):
        params = parameters()
        optimizer = PSGD(params, 0.02, fitting=Fitting(gate=1.0, **order))
        run(optimizer, params, range(3))
        views = optimizer.state_dict()
        run(optimizer, params, range(3, 4))
        optimizer.load_state_dict(views)
        found.append(optimizer.state_dict()["state"])
    assert_same_bits(found[1], found[0])


def test_a_step_returns_while_its_fit_is_still_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, gate, names = Diagonal.update, threading.Event(), []

    def slow(self: Diagonal, *args: Any) -> None:
        assert gate.wait(20)
        names.append(threading.current_thread().name)
        fit(self, *args)

    monkeypatch.setattr(Diagonal, "update", slow)
    params = parameters()
    optimizer = PSGD(params, form=Diagonal(), fitting=Fitting(gate=1.0, overlap=True))
    run(optimizer, params, range(1))
    assert not names
    gate.set()
    optimizer.state_dict()
    assert names == ["psgd-fit_0"] * 3  # one for each shape


def test_a_closed_gate_starts_no_thread() -> None:
    params, before = parameters(), set(threading.enumerate())
    optimizer = PSGD(params, fitting=Fitting(gate=0.0, overlap=True))
    run(optimizer, params, range(3))
    assert not set(threading.enumerate()) - before


def test_an_error_in_a_fit_is_raised_by_the_next_step_and_leaves_nothing_half_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fit = Diagonal.update
    fails = False

    def sometimes(self: Diagonal, state: Any, probe: Any, draws: Any, rate: Any) -> None:
        if fails and probe.h.shape[1:] == (4,):
            raise ArithmeticError("no fit today")
        fit(self, state, probe, draws, rate)

    monkeypatch.setattr(Diagonal, "update", sometimes)
    settings: Any = {"form": Diagonal(), "criterion": GradientWhitening()}
    params, others = parameters(), parameters()
    expected = PSGD(params, fitting=Fitting(gate=1.0, update_first=False), **settings)
    optimizer = PSGD(others, fitting=Fitting(gate=1.0, overlap=True), **settings)
    run(expected, params, range(4))
    run(optimizer, others, range(3))
    optimizer.state_dict()
    held = {name: optimizer.state[others[3]][name].clone() for name in ("q", "l")}
    fails = True
    run(optimizer, others, range(3, 4))  # all of this step but one fit
    moved = [p.detach().clone() for p in others]
    assert_same_bits(moved, [p.detach() for p in params])
    with pytest.raises(ArithmeticError, match="no fit today") as caught:
        run(optimizer, others, range(4, 5))
    assert "sometimes" in [entry.name for entry in caught.traceback]
    assert_same_bits([p.detach() for p in others], moved)
    fails = False
    wanted = expected.state_dict()["state"]
    wanted[3] = {**wanted[3], **held}
    assert_same_bits(optimizer.state_dict()["state"], wanted)
    run(optimizer, others, range(4, 6))


def test_the_thread_ends_with_the_optimizer() -> None:
    before = set(threading.enumerate())
    params = parameters()
    optimizer = PSGD(params, fitting=Fitting(gate=1.0, overlap=True))
    run(optimizer, params, range(2))
    (thread,) = set(threading.enumerate()) - before
    del optimizer
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("order", [{"update_first": True}, {"overlap": True}])
def test_the_fixed_point_is_that_of_a_fit_before_the_step(order: dict[str, bool]) -> None:
    """`P H = I` for pairs of a fixed `H`, while the step goes to the minimum."""
    root = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hessian = root @ root.mT + torch.eye(6, dtype=torch.float64)
    x = torch.ones(6, dtype=torch.float64).requires_grad_()
    optimizer = PSGD(
        [x],
        0.1,
        form=Dense(),
        criterion=Newton(damping=0.0, source=Exact()),
        momentum=0.0,
        fitting=Fitting(gate=1.0, precond_lr=lambda t: 0.9 * (1 - t / 600), seed=1, **order),
    )
    for _ in range(600):
        optimizer.step(lambda: 0.5 * x @ hessian @ x)
    optimizer.state_dict()
    form, state = Dense(), {n: v[None] for n, v in optimizer.state[x].items() if n in ("q", "l")}
    q = form.to_dense(state)[0]
    error = (q.mT @ q @ hessian - torch.eye(6, dtype=torch.float64)).norm() / 6**0.5
    assert float(error) < 1e-6  # as FormContract bounds the fit of pairs
    assert float(x.detach().norm()) < 1e-12


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["kron", "sum"])
def test_a_side_stream_changes_no_bit(form: str) -> None:
    found = []
    for order in ({"update_first": False}, {"overlap": True}):
        params = [p.detach().cuda().requires_grad_() for p in parameters()]
        fitting = Fitting(gate=0.6, **order)
        optimizer = PSGD(params, 0.02, form=FORMS[form], fitting=fitting)
        for step in range(30):
            rng = torch.Generator("cuda").manual_seed(step)
            for p in params:
                p.grad = torch.randn(p.shape, generator=rng, device="cuda")
            optimizer.step()
            for p in params:
                p.grad.fill_(1e3)
        found.append(([p.detach() for p in params], optimizer.state_dict()["state"]))
    assert_same_bits(found[1], found[0])
