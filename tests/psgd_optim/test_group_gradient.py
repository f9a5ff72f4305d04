import pytest
import torch
from torch import Tensor

from psgd_optim import linalg
from psgd_optim.forms.kron import Kron
from psgd_optim.geometry import QUAD
from psgd_optim.group_gradient import (
    FactorGradient,
    GramNorm,
    MatrixGradient,
    ThinGradient,
    VectorGradient,
)
from psgd_optim.rank_two_gradient import RankTwoGradient, UpperGradient
from psgd_optim.types import Probe

B = 3
DTYPES = [torch.float64, torch.complex128]


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(B, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def outer(x: Tensor) -> Tensor:
    return x.unsqueeze(2) @ x.conj().unsqueeze(1)


def rank_two(n: int, dtype: torch.dtype, v: bool) -> tuple[RankTwoGradient, Tensor, Tensor]:
    """Return the gradient with `T1` and `T2` written out."""
    a = draw(n, dtype=dtype)
    b = draw(n, dtype=dtype, seed=1) if v else None
    t2 = torch.eye(n, dtype=dtype).expand(B, n, n) if b is None else outer(b)
    return RankTwoGradient(a, b), outer(a), t2


def matrix(n: int, dtype: torch.dtype, v: bool) -> tuple[MatrixGradient, Tensor, Tensor]:
    x, start = draw(n, 2 * n, dtype=dtype), draw(32, n, seed=2)
    t1 = x @ x.mH
    if not v:
        return MatrixGradient(t1, 1.5, start), t1, 1.5 * torch.eye(n, dtype=dtype).expand(B, n, n)
    y = draw(n, 2 * n, dtype=dtype, seed=1)
    return MatrixGradient(t1, y @ y.mH, start), t1, y @ y.mH


def check_products(gradient: FactorGradient, e: Tensor, q: Tensor) -> None:
    torch.testing.assert_close(gradient.left(q), e @ q)
    torch.testing.assert_close(gradient.right(q), q @ e)


@pytest.mark.parametrize("v", [False, True])
@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rank_two_products_and_exact_sizes(dtype: torch.dtype, n: int, v: bool) -> None:
    gradient, t1, t2 = rank_two(n, dtype, v)
    q, e = draw(n, n, dtype=dtype, seed=3), t1 - t2
    check_products(gradient, e, q)
    check_products(UpperGradient(gradient), e.triu(), q)
    torch.testing.assert_close(gradient.max_entry(), e.abs().amax(dim=(1, 2)))
    torch.testing.assert_close(gradient.spectral_norm(), torch.linalg.matrix_norm(e, 2))
    torch.testing.assert_close(gradient.frobenius_norm(), torch.linalg.matrix_norm(e))
    # |a|^2 + |b|^2, and exact where one term is the identity
    curvature = torch.linalg.matrix_norm(t1, 2) + torch.linalg.matrix_norm(t2, 2)
    torch.testing.assert_close(gradient.curvature(), curvature)


@pytest.mark.parametrize("case", ["equal", "orthogonal", "zero"])
def test_the_rank_two_norm_at_its_corners(case: str) -> None:
    a = torch.tensor([[3.0, 0.0, 0.0]], dtype=torch.float64)
    b = {"equal": a, "orthogonal": a.roll(1, 1), "zero": 0 * a}[case]
    norm = {"equal": 0.0, "orthogonal": 9.0, "zero": 9.0}[case]
    assert float(RankTwoGradient(a, b).spectral_norm()) == pytest.approx(norm)


@pytest.mark.parametrize("v", [False, True])
@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_matrix_products_and_sizes(dtype: torch.dtype, n: int, v: bool) -> None:
    gradient, t1, t2 = matrix(n, dtype, v)
    q, e = draw(n, n, dtype=dtype, seed=3), t1 - t2
    check_products(gradient, e, q)
    check_products(UpperGradient(gradient), e.triu(), q)
    torch.testing.assert_close(gradient.max_entry(), e.abs().amax(dim=(1, 2)))
    torch.testing.assert_close(gradient.frobenius_norm(), torch.linalg.matrix_norm(e))
    # The estimate is 0.84 to 1 of the norm (linalg.spectral_norm_bound).
    for estimate, m in ((gradient.spectral_norm(), e), (gradient.curvature(), t1 + t2)):
        ratio = estimate / torch.linalg.matrix_norm(m, 2)
        assert bool((ratio > 0.8).all())
        assert bool((ratio < 1 + 1e-12).all())


@pytest.mark.parametrize("size", ["max_entry", "spectral_norm", "frobenius_norm", "curvature"])
def test_a_triangle_has_the_sizes_of_the_whole(size: str) -> None:
    whole = matrix(4, torch.float64, True)[0]
    torch.testing.assert_close(getattr(UpperGradient(whole), size)(), getattr(whole, size)())


@pytest.mark.parametrize("number", [False, True])
def test_vector_products_and_sizes(number: bool) -> None:
    t1, q = draw(4).square(), draw(4, seed=3)
    t2 = 0.5 if number else draw(4, seed=1).square()
    gradient, e = VectorGradient(t1, t2), t1 - t2
    torch.testing.assert_close(gradient.left(q), e * q)
    torch.testing.assert_close(gradient.right(q), e * q)
    torch.testing.assert_close(gradient.max_entry(), e.abs().amax(dim=1))
    torch.testing.assert_close(gradient.spectral_norm(), e.abs().amax(dim=1))
    torch.testing.assert_close(gradient.frobenius_norm(), e.norm(dim=1))
    torch.testing.assert_close(gradient.curvature(), (t1 + t2).amax(dim=1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_a_thin_gradient_is_the_matrix_gradient_of_its_gram_matrix(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 2, generator=rng, dtype=dtype)
    q = torch.randn(2, 7, 7, generator=rng, dtype=dtype)
    start = torch.randn(2, 32, 7, generator=rng, dtype=torch.float64)
    small = GramNorm(x.mH @ x, start[:, :, :2])
    thin, whole = ThinGradient(x, 2.0, small, start), MatrixGradient(x @ x.mH, 2.0, start)
    step = torch.tensor([0.01, 0.05], dtype=torch.float64)
    hermitian = q + q.mH
    torch.testing.assert_close(thin.left(q), whole.left(q))
    torch.testing.assert_close(thin.right(q), whole.right(q))
    torch.testing.assert_close(thin.sandwich(hermitian, step), whole.sandwich(hermitian, step))
    sandwich = thin.sandwich(hermitian, step)
    assert torch.equal(sandwich, sandwich.mH)
    torch.testing.assert_close(thin.max_entry(), whole.max_entry())
    torch.testing.assert_close(thin.spectral_norm(), whole.spectral_norm())
    torch.testing.assert_close(thin.frobenius_norm(), whole.frobenius_norm())
    exact = torch.linalg.matrix_norm(x @ x.mH, 2) + 2.0
    torch.testing.assert_close(thin.curvature(), exact, rtol=0.02, atol=0)


def test_both_sides_of_a_matrix_share_one_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    bound = linalg.spectral_norm_bound

    def counted(a: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        seen.append(tuple(a.shape))
        return bound(a, *args, **kwargs)

    monkeypatch.setattr("psgd_optim.linalg.spectral_norm_bound", counted)
    form = Kron(max_skew=float("inf"), geometry=QUAD)  # no rotation, which takes norms of its own
    for shape in ((9, 3), (3, 9), (3, 3)):
        seen.clear()
        state = form.init(shape, torch.ones(2), torch.empty(0))
        draws = form.draw(state, torch.Generator().manual_seed(0))
        form.update(state, Probe(h=torch.randn(2, *shape)), draws, 0.1)
        assert seen == [(2, 3, 3)]
        torch.testing.assert_close(state["l0"] - shape[1], state["l1"] - shape[0])
