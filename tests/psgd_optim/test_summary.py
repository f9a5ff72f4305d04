import pytest
import torch

from psgd_optim import (
    PSGD,
    BlockTriangular,
    Dense,
    Diagonal,
    Fitting,
    Kron,
    LowRank,
    Permutation,
    Preconditioner,
    SparseLU,
    TouchedRows,
)
from psgd_optim.criteria import Newton
from psgd_optim.curvature import GradientDifference
from psgd_optim.decay import Hyperball
from psgd_optim.schedules import Adaptive
from psgd_optim.scope import Joint, Scope, Split
from psgd_optim.summary import _human


def gpt2_shapes() -> list[torch.Tensor]:
    layer = [(2304, 768), (768, 768), (3072, 768), (768, 3072), (768,), (768,)]
    shapes = [(50304, 768), (1024, 768)] + 12 * layer
    return [torch.empty(shape, device="meta") for shape in shapes]


def test_the_plan_of_a_124m_gpt_is_printed_without_memory() -> None:
    params = [p.requires_grad_() for p in gpt2_shapes()]
    optimizer = PSGD(params)
    table = optimizer.summary()
    assert "Kron(3072 diagonal, 768 dense)" in table
    assert "Kron(50304 diagonal, 768 dense)" in table
    assert not optimizer.state
    # 12 (2 * 768^2 [square] + 3 * (768^2 + long side)) + embeddings + vectors
    square, long = 768**2, (2304 + 3072 + 3072)
    embeddings = square + 50304 + square + 1024
    numbers = 12 * (2 * square + 3 * square + long) + embeddings + 24 * 768
    assert f"{numbers:,}" in table.splitlines()[-1]


def test_the_bytes_are_those_that_the_first_step_allocates() -> None:
    params = [torch.randn(s, requires_grad=True) for s in [(6, 4), (6, 4), (3,), ()]]
    other = [torch.randn(5, 2, dtype=torch.float64, requires_grad=True)]
    optimizer = PSGD([{"params": params}, {"params": other, "form": Diagonal()}])
    table = optimizer.summary()
    for p in params + other:
        p.grad = torch.ones_like(p)
    optimizer.step()
    last = table.splitlines()[-1]
    assert f" {total_bytes(optimizer)} B " in last
    assert f" {kept_bytes(optimizer)} B " in last


def kept_bytes(optimizer: PSGD) -> int:
    """Return the bytes of what is kept beside the state when fits are rare."""
    total = 0
    for block in optimizer._store:
        held = {x.data_ptr() for x in block.state.values()}
        kept = block.operator(64.0).values()
        total += sum(x.untyped_storage().nbytes() for x in kept if x.data_ptr() not in held)
    return total


def total_bytes(optimizer: PSGD) -> int:
    return sum(
        x.numel() * x.element_size()
        for state in optimizer.state.values()
        for name, x in state.items()
        if name not in ("clock", "stack")
    )


@pytest.mark.parametrize("form", [Kron(), Joint(Kron()), Split(Kron(dtype=torch.bfloat16), 3)])
def test_max_memory_is_exact_whatever_is_remembered(form: Kron | Scope) -> None:
    params = [torch.randn(s, requires_grad=True) for s in [(6, 4), (6, 4), (3,), ()]]

    def build(limit: float) -> PSGD:
        fitting = Fitting(max_memory=limit, init_scale=1.0, precond_lr=Adaptive())
        criterion = Newton(source=GradientDifference())
        return PSGD(
            params, form=form, criterion=criterion, weight_decay=Hyperball(), fitting=fitting
        )

    optimizer = build(float("inf"))
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    held = total_bytes(optimizer) + kept_bytes(optimizer)
    assert build(held).state == {}
    with pytest.raises(ValueError, match="The plan takes"):
        build(held - 1)


def test_a_plan_that_is_too_large_names_its_three_largest_and_allocates_nothing() -> None:
    params = [p.requires_grad_() for p in gpt2_shapes()]
    params.append(torch.empty(10**6, 10**6, device="meta", requires_grad=True))
    form = Kron(max_size=float("inf"), max_skew=float("inf"))
    with pytest.raises(ValueError, match="The plan takes") as info:
        # The dense factors alone would take 8 TB, more than any machine that runs this has.
        PSGD(params, form=form, fitting=Fitting(max_memory=10 * 2**30))
    text = str(info.value)
    assert "of state, max_memory is 10 GiB: " in text
    offenders = text.split("10 GiB: ")[1].split("; ")
    assert [x.split(" takes ")[0] for x in offenders[:3]] == [
        "1 x Kron(1000000 dense, 1000000 dense)",
        "1 x Kron(50304 dense, 768 dense)",
        "12 x Kron(3072 dense, 768 dense)",
    ]
    assert "\n" not in text
    assert "give those parameters a smaller form" in text


def test_sizes_have_three_digits_and_a_unit() -> None:
    sizes = [0, 999, 1000, 1023, 1536, 10 * 2**20, 1000 * 2**20, 3 * 2**40, 5000 * 2**40]
    assert [_human(size) for size in sizes] == [
        "0 B", "999 B", "0.977 KiB", "0.999 KiB", "1.5 KiB", "10 MiB", "0.977 GiB", "3 TiB",
        "4.88 PiB",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "form",
    [
        Joint(LowRank(rank=20)),
        Joint(SparseLU(rank=20)),
        Joint(Permutation()),
        Joint(BlockTriangular()),
        Dense(),
        TouchedRows(),
        Split(Kron(max_skew=float("inf")), 256),
    ],
)
def test_a_plan_takes_no_memory_in_any_form(form: Preconditioner | Scope) -> None:
    # The state would take terabytes.
    params = [torch.empty(2**20, 2**10, device="meta", requires_grad=True)]
    with pytest.raises(ValueError, match="max_memory is 1 MiB"):
        PSGD(params, form=form, fitting=Fitting(max_memory=2**20))


def test_products_that_no_step_forms_are_not_counted() -> None:
    p = [torch.empty(1024, 64, device="meta", requires_grad=True)]
    form = Kron(max_skew=float("inf"))
    always, rarely = (
        PSGD(p, form=form, fitting=Fitting(gate=gate)).summary().splitlines()[-1].split()
        for gate in (1.0, 0.03)
    )
    assert always[4:6] == ["16", "KiB"]  # of the short side alone
    assert rarely[4:6] == ["4.02", "MiB"]
