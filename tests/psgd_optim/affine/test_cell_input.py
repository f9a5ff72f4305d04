import math
from typing import Any

import pytest
import torch
from torch import Tensor

from psgd_optim.affine import CellInputLSTM, PeepholeLSTM

X, H, T, B = 2, 3, 4, 2


def make(kind: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(X, H, std=0.5, **options).double()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def dot(theta: Tensor, j: int, u: list[float]) -> float:
    return sum(a * b for a, b in zip(theta[j].tolist(), u, strict=True))


def slow(module: Any, x: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
    """Evaluate the formulas number by number, for one sequence x (T, X)."""
    outputs = []
    for row in x.tolist():
        old = [*row, *h.tolist(), *c.tolist(), 1.0]

        if isinstance(module, CellInputLSTM):
            i, f, g, o = ([dot(module.weight, k * H + j, old) for j in range(H)] for k in range(4))
            f = [value + 1 for value in f]
        else:
            parts = (module.weight_i, module.weight_f, module.weight_c)
            i, f, g = ([dot(theta, j, old) for j in range(H)] for theta in parts)
        c = torch.tensor(
            [sigmoid(f[j]) * c[j].item() + sigmoid(i[j]) * math.tanh(g[j]) for j in range(H)],
            dtype=torch.float64,
        )
        if isinstance(module, PeepholeLSTM):
            new = [*row, *h.tolist(), *c.tolist(), 1.0]
            o = [dot(module.weight_o, j, new) for j in range(H)]
        h = torch.tensor([sigmoid(o[j]) * math.tanh(c[j]) for j in range(H)], dtype=torch.float64)
        outputs.append(h)
    return [torch.stack(outputs), h, c]


@pytest.mark.parametrize("kind", [CellInputLSTM, PeepholeLSTM])
def test_it_is_the_formula_number_by_number(kind: Any) -> None:
    module = make(kind)
    x, h, c = noise(T, B, X), noise(B, H, seed=1), noise(B, H, seed=2)
    for state in (None, (h, c)):
        output, (h_end, c_end) = module(x, state)
        for b in range(B):
            start = (torch.zeros(H),) * 2 if state is None else (h[b], c[b])
            expected = slow(module, x[:, b], *start)
            for got, want in zip((output[:, b], h_end[b], c_end[b]), expected, strict=True):
                torch.testing.assert_close(got.detach(), want)


def test_the_sizes_are_those_of_the_papers_experiment() -> None:
    shapes = {name: tuple(p.shape) for name, p in PeepholeLSTM(2, 30).named_parameters()}
    assert shapes == dict.fromkeys(("weight_i", "weight_f", "weight_o", "weight_c"), (30, 63))
    # With the output layer's 31 numbers: the 7591 of the delayed-XOR experiment.
    assert sum(p.numel() for p in PeepholeLSTM(2, 30).parameters()) + 31 == 7591
    assert CellInputLSTM(2, 30).weight.shape == (120, 63)


def test_the_initial_values_have_the_standard_deviation_and_the_forget_bias_is_one() -> None:
    torch.manual_seed(0)
    module = PeepholeLSTM(20, 30)
    assert torch.equal(module.weight_f[:, -1], torch.ones(30))
    for name, p in module.named_parameters():
        body = p[:, :-1] if name == "weight_f" else p
        # 2400 numbers: the sample's deviation is within 1.5 %, 5 of them.
        assert body.std().item() == pytest.approx(0.1, rel=0.08)
        assert abs(body.mean().item()) < 0.01
    torch.manual_seed(0)
    assert CellInputLSTM(20, 30, std=0.01).weight.std().item() == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("kind", [CellInputLSTM, PeepholeLSTM])
def test_gradients_and_hessians_are_right(kind: Any) -> None:
    module = make(kind)
    names = [name for name, _ in module.named_parameters()]

    def outputs(*values: Tensor) -> Tensor:
        call = torch.func.functional_call(
            module, dict(zip(names, values, strict=True)), (noise(2, 1, X),)
        )
        return call[0]

    values = tuple(p.detach().clone().requires_grad_() for p in module.parameters())
    assert torch.autograd.gradcheck(outputs, values, fast_mode=True)
    assert torch.autograd.gradgradcheck(outputs, values, fast_mode=True)


@pytest.mark.parametrize("kind", [CellInputLSTM, PeepholeLSTM])
@pytest.mark.parametrize("bad", [(0, 3, 0.1), (2, 0, 0.1), (2, 3, -0.1)])
def test_bad_sizes_are_refused(kind: Any, bad: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__} got input_size"):
        kind(bad[0], bad[1], std=bad[2])
