"""Sparse gradients through the optimizer: what moves, what keeps its bits, what it costs."""

import copy
import io
import itertools
import warnings
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from psgd_optim.averages import Nesterov, fold_in_zeros
from psgd_optim.axis_plan import AxisPlan
from psgd_optim.clipping import ClipNorm, ClipRMS
from psgd_optim.criteria import Criterion, Fisher, GradientWhitening, Newton, UnbiasedFisher
from psgd_optim.criteria import MomentumWhitening as Momentum
from psgd_optim.decay import Cautious, Decay, Decoupled, Hyperball
from psgd_optim.factors.diagonal import DIAGONAL
from psgd_optim.factors.matrix import GENERAL, TRIANGULAR
from psgd_optim.fitting import Fitting
from psgd_optim.forms.kron import Kron
from psgd_optim.forms.touched_rows import TouchedRows
from psgd_optim.geometry import EQ
from psgd_optim.optimizer import PSGD
from psgd_optim.row_fit import ExactRows, LazyRows, RowFit
from psgd_optim.schedules import Adaptive
from psgd_optim.scope import DirectSum, Joint, Split, by_name
from tests import reference, reference_touched
from tests.reference_touched import Rules

FITS = [LazyRows(), ExactRows(damping=0.0)]
ROWS, COLUMNS = 7, 3
BATCHES: list[list[int]] = [[1, 4, 4], [4], [0, 1, 6, 0], [2], [1, 4], [6, 6, 6], [3, 1], [4, 2]]
EVERY = Fitting(precond_lr=0.3, gate=1.0)


def embedding(
    rows: int = ROWS, columns: int = COLUMNS, dtype: torch.dtype = torch.float64
) -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(rows, columns, sparse=True, dtype=dtype)


def gradient(t: int, tokens: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a sparse gradient that is not coalesced: one row per token, repeats included."""
    values = torch.randn(
        len(tokens), COLUMNS, generator=torch.Generator().manual_seed(t), dtype=torch.float64
    )
    index = torch.tensor([list(tokens)])
    return torch.sparse_coo_tensor(index, values.to(dtype), (ROWS, COLUMNS), check_invariants=True)


def dense(t: int, tokens: Sequence[int]) -> Tensor:
    """Return the same gradient, densified without the package's help."""
    values = gradient(t, tokens)._values()
    return torch.zeros(ROWS, COLUMNS, dtype=values.dtype).index_add(0, torch.tensor(tokens), values)


def run(
    optimizer: PSGD, weight: Tensor, batches: Sequence[Sequence[int]] = BATCHES, first: int = 0
) -> None:
    for t, tokens in enumerate(batches, start=first):
        weight.grad = gradient(t, tokens, weight.dtype)
        optimizer.step()


def oracle(
    weight: Tensor, rows: RowFit, momentum: float, whitens_momentum: bool, lr: float, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the weight and P's row factor after all batches, by dense recursions."""
    w = weight.detach().clone()
    q = torch.full((ROWS,), scale**0.5, dtype=torch.float64)
    columns = torch.eye(COLUMNS, dtype=torch.float64) * scale**0.5
    bounds = (0.0, 0.0)
    average, counts = torch.zeros_like(w), [0] * ROWS
    for t, tokens in enumerate(BATCHES):
        grad, touched = dense(t, tokens), sorted(set(tokens))
        for i in range(ROWS):  # every row that has started folds in its zeros, too
            if counts[i] or i in touched:
                average[i] = reference_touched.fold_in(average[i], counts[i], grad[i], momentum)
                counts[i] += 1
        index = torch.tensor(touched)
        h = average[index] if whitens_momentum else grad[index]
        q, columns, bounds = reference_touched.update(
            q, columns, bounds, (h, None), index, 0.3, Rules(exact=isinstance(rows, ExactRows))
        )
        p = q.square()[index, None] * average[index] @ columns.T @ columns
        w[index] -= lr * p
    return w, q


@pytest.mark.parametrize("rows", FITS)
@pytest.mark.parametrize("criterion", [Momentum(damping=0), GradientWhitening(damping=0)])
def test_p21_a_run_equals_the_densified_oracle(
    rows: RowFit, criterion: Criterion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P21 and the catch-up: averages as if zeros had been folded in, by a dense recursion."""
    monkeypatch.setattr("psgd_optim.linalg.spectral_norm_bound", reference.exact_norm)
    weight = embedding().weight
    whitens_momentum = isinstance(criterion, Momentum)
    wanted, q = oracle(weight, rows, 0.6, whitens_momentum, lr=0.1, scale=0.7)
    optimizer = PSGD(
        [weight],
        lr=0.1,
        form=TouchedRows(rows=rows),
        criterion=criterion,
        momentum=0.6,
        clip=(),
        fitting=Fitting(precond_lr=0.3, gate=1.0, init_scale=0.7),
    )
    run(optimizer, weight)
    # The averages' weights are in single precision: 2^-24 in each of 8 steps.
    torch.testing.assert_close(weight.detach(), wanted, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(optimizer.state[weight]["q0"], q, rtol=1e-6, atol=0)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.6, 0.9, 0.99])
def test_zeros_fold_in_at_once_as_one_by_one(decay: float) -> None:
    for steps, missed in itertools.product((0, 1, 2, 8, 9, 10, 11, 200), (0, 1, 2, 7, 150)):
        average = torch.ones((), dtype=torch.float64)
        for t in range(steps, steps + missed) if steps else ():
            average = reference_touched.fold_in(average, t, torch.zeros(()), decay)
        count = torch.tensor([float(steps)], dtype=torch.float64)
        after, factor = fold_in_zeros(count, torch.tensor([float(missed)]).double(), decay)
        assert float(factor) == pytest.approx(float(average), rel=1e-12)
        assert float(after) == (steps + missed if steps else 0)


@pytest.mark.parametrize("rows", FITS)
@pytest.mark.parametrize("decay", [0.1, Cautious(0.1)])
def test_p21_untouched_rows_keep_their_bits(rows: RowFit, decay: float | Decay) -> None:
    weight = embedding(dtype=torch.float32).weight
    optimizer = PSGD(
        [weight], form=TouchedRows(rows=rows), lr=0.1, weight_decay=decay, fitting=EVERY
    )
    run(optimizer, weight, BATCHES[:3])
    before = weight.detach().clone()
    state = copy.deepcopy(dict(optimizer.state[weight]))
    run(optimizer, weight, [[2, 5, 2]], first=3)
    touched, untouched = [2, 5], [0, 1, 3, 4, 6]
    after = optimizer.state[weight]
    assert torch.equal(weight.detach()[untouched], before[untouched])
    assert bool((weight.detach()[touched] != before[touched]).all())
    for name in ("momentum", "row_step", "row_clock"):
        assert torch.equal(after[name][untouched], state[name][untouched])
        assert bool((after[name][touched] != state[name][touched]).any())
    lazy = isinstance(rows, LazyRows)
    assert torch.equal(after["q0"][untouched], state["q0"][untouched]) == lazy


@pytest.mark.parametrize("rows", FITS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"criterion": GradientWhitening(), "momentum": 0.0},
        {"criterion": Fisher(), "momentum": Nesterov(0.9)},
        {"weight_decay": Cautious(0.2)},
        {"clip": (ClipRMS(0.5), ClipNorm(1.0))},
        {"fitting": Fitting(precond_lr=Adaptive(0.01, 0.5), gate=1.0)},
        {"fitting": Fitting(update_first=False)},
    ],
)
def test_all_rows_touched_in_every_step_is_the_dense_run(
    rows: RowFit, settings: dict[str, object]
) -> None:
    first, second = embedding().weight, embedding().weight
    plan = AxisPlan((DIAGONAL, GENERAL))
    sparse = PSGD([first], lr=0.1, form=TouchedRows(rows=rows), **settings)
    kron = PSGD([second], lr=0.1, form=Kron(plan=plan), **settings)
    everything = [*range(ROWS), 2, 2, 5]
    for t in range(12):
        first.grad, second.grad = gradient(t, everything), dense(t, everything)
        sparse.step()
        kron.step()
        torch.testing.assert_close(first.detach(), second.detach(), rtol=1e-9, atol=1e-11)
    for name in ("step", "momentum"):
        if name in kron.state[second]:
            torch.testing.assert_close(sparse.state[first][name], kron.state[second][name])


def test_repeated_rows_and_their_order_do_not_matter() -> None:
    runs = []
    for summed in (False, True):
        weight = embedding().weight
        optimizer = PSGD([weight], form=TouchedRows(), lr=0.1)
        for t, tokens in enumerate(BATCHES):
            grad = gradient(t, tokens)
            weight.grad = grad.coalesce() if summed else grad
            optimizer.step()
        runs.append(weight.detach())
    assert torch.equal(*runs)


@pytest.mark.parametrize("rows", FITS)
def test_gradients_stay_sparse(rows: RowFit, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a sparse tensor was made dense")

    monkeypatch.setattr(Tensor, "to_dense", refuse)
    weight = embedding().weight
    run(PSGD([weight], form=TouchedRows(rows=rows)), weight)


def sizes_made(call: Callable[[], object]) -> int:
    """Return the largest number of elements of any tensor that an operation returns."""

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            in_place = func._schema.is_mutable or any(r.alias_info for r in func._schema.returns)
            found = result if isinstance(result, list | tuple) else [result]
            for x in found:
                if isinstance(x, Tensor) and x.layout == torch.strided and not in_place:
                    Watch.largest = max(Watch.largest, x.numel())
            return result

    with Watch():
        call()
    return Watch.largest


@pytest.mark.parametrize("rows", FITS)
def test_two_million_rows_cost_what_the_touched_ones_do(rows: RowFit) -> None:
    count = 2_000_000
    table = nn.Embedding(count, 8, sparse=True, _weight=torch.zeros(count, 8))
    optimizer = PSGD(table.parameters(), form=TouchedRows(rows=rows), fitting=EVERY)
    tokens = torch.tensor([3, 1_999_999, 77, 3])
    for _ in range(2):
        optimizer.zero_grad()
        (1 - table(tokens)).square().sum().backward()
        optimizer.step()
    optimizer.zero_grad()
    (1 - table(tokens)).square().sum().backward()
    largest = sizes_made(optimizer.step)
    # Row starts (32 x 8) are the largest of a lazy step; an exact one makes numbers per row.
    assert largest <= (256 if isinstance(rows, LazyRows) else count)
    assert int((table.weight != 0).any(dim=1).sum()) == 3


def test_a_dense_gradient_steps_every_row_and_warns_once() -> None:
    table = embedding()
    out = nn.Linear(COLUMNS, ROWS, bias=False, dtype=torch.float64)
    out.weight = table.weight  # tied
    tied, plain = PSGD(table.parameters(), form=TouchedRows(), lr=0.1), []
    other = embedding().weight
    kron = PSGD([other], form=Kron(plan=AxisPlan((DIAGONAL, GENERAL))), lr=0.1)
    for step in range(3):
        tied.zero_grad()
        out(table(torch.tensor([1, 2]))).square().sum().backward()
        other.grad = table.weight.grad.clone()
        if step == 0:
            with pytest.warns(UserWarning, match=r"dense gradient .* \(7, 3\), as tied weights"):
                tied.step()
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                tied.step()
        kron.step()
        plain.append(other.detach().clone())
    torch.testing.assert_close(table.weight.detach(), plain[-1])


def test_dense_and_sparse_gradients_may_alternate() -> None:
    first, second = embedding().weight, embedding().weight
    kwargs = {"form": TouchedRows(), "lr": 0.1}
    mixed, sparse = PSGD([first], **kwargs), PSGD([second], **kwargs)
    everything = list(range(ROWS))
    for t, tokens in enumerate((everything, [1, 3], everything, [2], everything)):
        second.grad = gradient(t, tokens)
        first.grad = dense(t, tokens) if len(tokens) == ROWS else gradient(t, tokens)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mixed.step()
        sparse.step()
    assert torch.equal(first.detach(), second.detach())


def test_a_gradient_without_rows_counts_as_none() -> None:
    weight = embedding().weight
    optimizer = PSGD([weight], form=TouchedRows(), lr=0.1, weight_decay=0.1)
    run(optimizer, weight, [[]])
    assert int(optimizer.state[weight]["step"]) == 0
    run(optimizer, weight, BATCHES[:2])
    before, state = weight.detach().clone(), copy.deepcopy(dict(optimizer.state[weight]))
    run(optimizer, weight, [[]])
    assert torch.equal(weight.detach(), before)
    names = [name for name in state if name not in ("clock", "stack")]
    assert all(torch.equal(optimizer.state[weight][name], state[name]) for name in names)


def test_a_gradient_that_is_not_finite_moves_nothing_but_catches_up() -> None:
    first, second = embedding().weight, embedding().weight
    # Without a fit: its bounds see a skipped step as one of zeros, whatever the form.
    rules = {"form": TouchedRows(), "lr": 0.1, "fitting": Fitting(precond_lr=0.0)}
    good, bad = (PSGD([w], **rules) for w in (first, second))
    run(good, first, BATCHES[:2])
    run(bad, second, BATCHES[:2])
    before = second.detach().clone()
    second.grad = gradient(2, [1, 2]).coalesce()
    second.grad.values()[0, 0] = float("nan")
    bad.step()
    assert bool(second.grad.values()[0, 0].isnan())  # the gradient is the caller's
    assert int(bad.metrics()["skipped"]) == 1
    assert torch.equal(second.detach(), before)
    # Row 1 has folded in the zeros it missed, row 2 has not started; from here on all is the same.
    run(good, first, BATCHES[2:], first=2)
    run(bad, second, BATCHES[2:], first=2)
    torch.testing.assert_close(second.detach(), first.detach(), rtol=1e-6, atol=1e-8)


def test_bfloat16_rows_follow_single_precision() -> None:
    weights = [embedding(dtype=d).weight for d in (torch.bfloat16, torch.float32)]
    weights[1].data.copy_(weights[0].data)
    for weight in weights:
        optimizer = PSGD([weight], form=TouchedRows(), lr=0.05)
        run(optimizer, weight)
        state = optimizer.state[weight]
        dtypes = {x.dtype for name, x in state.items() if name not in ("clock", "stack")}
        assert dtypes == {torch.float32}
    # A step rounds to 8 bits, the gradients too, at entries of about 1.
    torch.testing.assert_close(weights[0].float(), weights[1], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("rows", FITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_has_the_same_bits(rows: RowFit, dtype: torch.dtype) -> None:
    whole = embedding(dtype=dtype).weight
    make = {"form": TouchedRows(rows=rows), "lr": 0.1}
    first = PSGD([whole], **make)
    run(first, whole, BATCHES[:4])
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    resumed = whole.detach().clone().requires_grad_()
    second = PSGD([resumed], **make)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    run(first, whole, BATCHES[4:], first=4)
    run(second, resumed, BATCHES[4:], first=4)
    assert torch.equal(whole.detach(), resumed.detach())
    for name, x in first.state[whole].items():
        assert torch.equal(x, second.state[resumed][name]), name


@pytest.mark.parametrize(
    "form", [TouchedRows(), TouchedRows(columns=TRIANGULAR, geometry=EQ), TouchedRows(rows=FITS[1])]
)
def test_training_an_embedding_lowers_the_loss(form: TouchedRows) -> None:
    torch.manual_seed(1)
    table, target = nn.Embedding(40, 4, sparse=True), torch.randn(40, 4)
    head = nn.Linear(4, 4)
    scope = DirectSum((by_name("0.*"), form), otherwise=Kron())
    model = nn.Sequential(table, head)
    optimizer = PSGD(model.named_parameters(), form=scope, lr=0.03)
    every = torch.arange(40)

    def loss(tokens: Tensor) -> Tensor:
        return (model(tokens) - target[tokens]).square().mean()

    before = float(loss(every).detach())
    rng = torch.Generator().manual_seed(2)
    for _ in range(200):
        optimizer.zero_grad()
        loss(torch.randint(40, (16,), generator=rng)).backward()
        assert table.weight.grad.is_sparse
        optimizer.step()
    assert float(loss(every).detach()) < 0.2 * before


def test_two_embeddings_of_one_shape_do_not_share_their_rows() -> None:
    weights = [embedding().weight, embedding().weight]
    together, alone = PSGD(weights, form=TouchedRows(), lr=0.1), embedding().weight
    single = PSGD([alone], form=TouchedRows(), lr=0.1)
    for t, tokens in enumerate(BATCHES):
        weights[0].grad, weights[1].grad = gradient(t, tokens), gradient(90 + t, [5, 6])
        alone.grad = gradient(t, tokens)
        together.step()
        single.step()
    assert torch.equal(weights[0].detach(), alone.detach())


def test_rows_of_length_one_are_not_squeezed() -> None:
    for shape in ((5, 1), (1, 4), (1, 1)):
        weight = torch.ones(shape, requires_grad=True)
        optimizer = PSGD([weight], form=TouchedRows(), lr=0.1)
        values = torch.ones(1, shape[1])
        weight.grad = torch.sparse_coo_tensor(
            torch.tensor([[0]]), values, shape, check_invariants=True
        )
        optimizer.step()
        assert bool((weight.detach()[0] < 1).all()) and bool((weight.detach()[1:] == 1).all())
        assert "TouchedRows" in optimizer.summary()


@pytest.mark.parametrize("criterion", [Newton(), UnbiasedFisher(batch_size=4)])
def test_criteria_that_need_all_rows_are_refused(criterion: Criterion) -> None:
    name = type(criterion).__name__
    with pytest.raises(ValueError, match=f"form TouchedRows with {name}"):
        PSGD([embedding().weight], form=TouchedRows(), criterion=criterion)
    weight = embedding().weight.requires_grad_(False)
    optimizer = PSGD([weight], form=TouchedRows(), criterion=criterion)
    weight.requires_grad_()
    with pytest.raises(ValueError, match=f"form TouchedRows with {name}"):
        optimizer.summary()


def test_a_decay_that_needs_all_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="form TouchedRows with Hyperball"):
        PSGD([embedding().weight], form=TouchedRows(), weight_decay=Hyperball())
    PSGD([embedding().weight], form=TouchedRows(), weight_decay=Decoupled(0.1))


def test_scopes_that_mix_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="Joint got the form TouchedRows"):
        Joint(TouchedRows())
    with pytest.raises(ValueError, match="Split got the form TouchedRows"):
        Split(TouchedRows(), size=4)


def test_other_sparse_gradients_are_refused_before_anything_moves() -> None:
    weight = embedding().weight
    optimizer = PSGD([weight], form=TouchedRows())
    weight.grad = dense(0, [1, 2]).to_sparse()  # sparse in both axes
    with pytest.raises(TypeError, match=r"TouchedRows got a torch\.sparse_coo gradient"):
        optimizer.step()
    weight = embedding().weight
    weight.grad = gradient(0, [1])
    with pytest.raises(TypeError, match="sparse=False, or give it the form TouchedRows"):
        PSGD([weight], form=Kron()).step()
