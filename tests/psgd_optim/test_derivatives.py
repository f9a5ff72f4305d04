"""Errors of second derivatives name the way out; sums and surroundings do what they say."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psgd_optim.curvature import Exact, FiniteDifference
from psgd_optim.derivatives import Surroundings, difference_size, losses
from psgd_optim.types import InputError


class OnceOnly(torch.autograd.Function):
    """A square whose derivative can be taken once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class Detached(torch.autograd.Function):
    """A square that returns its derivative without a graph, in silence."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (2 * x * grad).detach()


class Attention(nn.Module):
    """Two linear layers around attention in torch's default kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(1, 4, 8)).square().sum()


def evaluate(loss: Callable[[], Any], module: nn.Module | None = None, *params: Tensor) -> Any:
    names = {} if module is None else {p: f"parameter {n}" for n, p in module.named_parameters()}
    params = params or tuple(names)
    return Exact().evaluate(loss, params, {p: torch.ones_like(p) for p in params}, names)


def test_fused_attention_names_the_switch_and_the_layer_before_it() -> None:
    net = Attention()
    with pytest.raises(InputError, match=r"after parameter qkv\.bias: .*SDPBackend\.MATH") as info:
        evaluate(lambda: net(torch.ones(1, 4, 8)), net)
    assert "FiniteDifference()" in str(info.value)
    assert "\n" not in str(info.value)

    def with_the_switch() -> Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return net(torch.ones(1, 4, 8))

    assert len(evaluate(with_the_switch, net).products) == 4


def test_a_compiled_module_is_refused_and_named() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    compiled = torch.compile(net[0], backend="aot_eager")
    x = torch.ones(2, 3)
    with pytest.raises(InputError, match=r"after parameter 0\.bias: .*call the uncompiled module"):
        evaluate(lambda: net[1](compiled(x)).square().sum(), net)


class Scaled(nn.Module):
    """A linear layer behind a square that torch cannot differentiate twice."""

    def __init__(self, square: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.net = nn.Linear(3, 1)
        self.square = square

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * self.square(self.scale)).square().sum()


def test_a_gradient_without_a_graph_is_refused_and_named() -> None:
    net = Scaled(Detached.apply)
    with pytest.raises(InputError, match=r"parameter scale, of shape \(3,\), has no graph"):
        evaluate(lambda: net(torch.ones(2, 3)), net)


def test_a_function_for_one_derivative_is_refused_and_named() -> None:
    # torch itself leaves its part of H v out, in silence: only the graph shows it.
    net = Scaled(OnceOnly.apply)
    message = "after parameter scale: an autograd function has no second derivative"
    with pytest.raises(InputError, match=message):
        evaluate(lambda: net(torch.ones(2, 3)), net)


def test_recurrent_modules_work_on_the_cpu() -> None:
    torch.manual_seed(0)
    net = nn.LSTM(2, 3).double()
    x = torch.randn(4, 1, 2, dtype=torch.float64)
    found = evaluate(lambda: net(x)[0].square().sum(), net)
    held = {p: p.detach().clone() for p in net.parameters()}
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(held[p] + sign * 1e-5)
        sides.append(torch.autograd.grad(net(x)[0].square().sum(), list(net.parameters())))
    for p, ahead, behind in zip(net.parameters(), *sides, strict=True):
        torch.testing.assert_close(
            found.products[p], (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-9
        )  # fmt: skip


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "a NoneType"),
        (1.0, "a float"),
        (torch.ones(2, requires_grad=True) * 1, r"shape \(2,\) with a graph"),
        (torch.ones(()), r"shape \(\) without a graph"),
        ([torch.ones(())], r"shape \(\) without a graph"),
        ([], "gave no loss"),
    ],
)
def test_what_is_no_loss_is_refused(result: Any, message: str) -> None:
    a = torch.ones(2, requires_grad=True)
    with pytest.raises(InputError, match=message):
        evaluate(lambda: result, None, a)


def test_a_closure_that_calls_backward_is_told_so() -> None:
    a = torch.ones(2, requires_grad=True)

    def closure() -> Tensor:
        loss = (a**3).sum()
        loss.backward()
        return loss

    with pytest.raises(InputError, match=r"call no backward\(\) in the closure"):
        evaluate(closure, None, a)


def test_other_errors_pass_through() -> None:
    a = torch.ones(2, requires_grad=True)

    def closure() -> Tensor:
        raise RuntimeError("attention, please")

    with pytest.raises(RuntimeError, match=r"^attention, please$"):
        evaluate(closure, None, a)


def test_parameters_that_the_loss_does_not_use_have_no_gradient() -> None:
    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    found = evaluate(lambda: (a**3).sum(), None, a, b)
    assert list(found.grads) == list(found.products) == [a]
    found = evaluate(lambda: (b**3).sum(), None, a)
    assert (found.grads, found.products, float(found.loss)) == ({}, {}, 2.0)


def test_one_graph_is_alive_at_a_time() -> None:
    a = torch.ones(2, requires_grad=True)
    seen: list[weakref.ref[Tensor]] = []

    def closure() -> Iterator[Tensor]:
        for _ in range(3):
            assert all(ref() is None for ref in seen), "an older loss is still held"
            loss = (a**3).sum()
            seen.append(weakref.ref(loss))
            yield loss
            del loss

    FiniteDifference().evaluate(closure, [a], {a: torch.ones(2)})
    seen.clear()
    found = evaluate(closure, None, a)
    assert len(seen) == 3
    torch.testing.assert_close(found.products[a], torch.full((2,), 18.0))


def test_a_loss_of_one_element_is_returned_without_axes() -> None:
    a = torch.ones(2, requires_grad=True)
    assert evaluate(lambda: (a**2).sum().view(1), None, a).loss.shape == ()
    assert [x.shape for x in losses(lambda: [(a**2).sum().view(1, 1)])] == [(1, 1)]


def test_the_size_of_differences_follows_the_coarsest_dtype() -> None:
    single, double = torch.ones(1), torch.ones(1, dtype=torch.float64)
    assert difference_size([single, double]) == pytest.approx(3.4527e-4, rel=1e-4)
    assert difference_size([double]) == pytest.approx(1.49e-8, rel=1e-2)
    with pytest.raises(InputError, match=r"half precision.*Newton\(source=Exact"):
        difference_size([single, torch.ones(1, dtype=torch.bfloat16)])


class Counter(nn.Module):
    """Counts its calls in one buffer in place, and in one that it replaces."""

    in_place: Tensor
    replaced: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("in_place", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.in_place += 1
        self.replaced = self.replaced + 1
        return x


def test_surroundings_put_back_random_numbers_and_buffers() -> None:
    module = Counter()
    module(torch.ones(1))
    before = Surroundings([], module)
    first = torch.rand(3)
    module(torch.ones(1))
    before.restore()
    assert float(module.in_place) == float(module.replaced) == 1
    assert torch.equal(torch.rand(3), first)
