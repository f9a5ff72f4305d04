import pytest
import torch

from psgd_optim.penalty import l2_penalty


def parameters() -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=rng, dtype=torch.float64).requires_grad_()
        for shape in ((3, 2), (4,), ())
    ]


def test_it_is_half_the_strength_times_the_squared_norm() -> None:
    ps = parameters()
    norm = torch.cat([p.flatten() for p in ps]).norm()
    torch.testing.assert_close(l2_penalty(ps, 0.3), 0.15 * norm.square())


def test_it_adds_its_strength_to_gradient_and_curvature() -> None:
    ps = parameters()
    grads = torch.autograd.grad(l2_penalty(ps, 0.3), ps, create_graph=True)
    v = [torch.ones_like(p) for p in ps]
    products = torch.autograd.grad(grads, ps, grad_outputs=v)
    for p, g, hv in zip(ps, grads, products, strict=True):
        torch.testing.assert_close(g, 0.3 * p)
        torch.testing.assert_close(hv, torch.full_like(p, 0.3))


def test_complex_parameters_have_a_real_penalty_and_curvature_at_zero() -> None:
    p = torch.tensor([3 + 4j, 0], dtype=torch.complex128, requires_grad=True)
    loss = l2_penalty([p], 2.0)
    assert loss.dtype == torch.float64
    assert loss.item() == 25
    (grad,) = torch.autograd.grad(loss, p, create_graph=True)
    torch.testing.assert_close(grad, 2 * p)
    v = torch.tensor([1j, 1 + 1j], dtype=torch.complex128)
    (product,) = torch.autograd.grad(grad, p, grad_outputs=v)
    torch.testing.assert_close(product, 2 * v)


def test_half_precision_is_summed_in_single() -> None:
    # 300^2 overflows half precision.
    p = torch.full((10,), 300.0, dtype=torch.float16, requires_grad=True)
    loss = l2_penalty([p, torch.zeros(2, dtype=torch.float64)], 1.0)
    assert loss.item() == 450_000
    loss.backward()
    assert p.grad is not None and p.grad.dtype == torch.float16
    assert p.grad.tolist() == [300.0] * 10


@pytest.mark.parametrize("strength", [-0.1, float("nan")])
def test_a_negative_strength_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match="l2_penalty got the strength"):
        l2_penalty(parameters(), strength)


def test_no_parameters_are_refused() -> None:
    ps = iter(parameters())
    l2_penalty(ps, 0.1)
    with pytest.raises(ValueError, match="l2_penalty got no parameters"):
        l2_penalty(ps, 0.1)  # an iterator that has run out
