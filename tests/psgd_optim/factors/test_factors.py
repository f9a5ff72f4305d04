import pytest
import torch

from psgd_optim.factors.base import Factor, SymmetricFactor
from psgd_optim.factors.diagonal import DIAGONAL
from psgd_optim.factors.matrix import GENERAL, TRIANGULAR
from psgd_optim.factors.normalisation import NORMALISATION
from tests import reference
from tests.reference import unfold

FACTORS = [GENERAL, TRIANGULAR, DIAGONAL, NORMALISATION]
SYMMETRIC = [GENERAL, DIAGONAL]
SHAPES = [(3, 40), (40, 3), (3, 2), (2, 3, 4), (1, 3)]
DTYPES = [torch.float64, torch.complex128]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(factor: Factor, n: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return a member of the pattern away from the identity, with a positive real diagonal."""
    q = factor.init(n, torch.tensor([1.0, 2.0], dtype=dtype))
    noise = 0.2 * torch.randn(q.shape, generator=generator(0), dtype=dtype)
    if factor is DIAGONAL:
        return q + noise.abs()
    if factor is NORMALISATION:
        noise[:, 0] = noise[:, 0].abs().to(dtype)
        noise[:, 1, -1] = 0
        return q + noise
    noise = noise.triu() if factor is TRIANGULAR else noise
    diagonal = noise.diagonal(dim1=1, dim2=2)
    return q + noise - torch.diag_embed(diagonal) + torch.diag_embed(diagonal.abs())


def sample(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 1) -> torch.Tensor:
    return torch.randn(2, *shape, generator=generator(seed), dtype=dtype)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_are_those_of_the_matrix(
    factor: Factor, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = sample(shape, dtype)
    for axis, n in enumerate(shape):
        q = moved(factor, n, dtype)
        m = factor.matrix(q)
        wanted = {
            factor.multiply: m,
            factor.multiply_adjoint: m.mH,
            factor.solve_adjoint: torch.linalg.inv(m.mH),
            factor.precondition: m.mH @ m,
        }
        for product, matrix in wanted.items():
            y = product(q, x, axis)
            assert y.shape == x.shape
            for row in range(2):
                expected = matrix[row] @ unfold(x[row], axis)
                torch.testing.assert_close(unfold(y[row], axis), expected)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_is_the_projected_difference(factor: Factor, dtype: torch.dtype) -> None:
    x, y = sample((4, 6), dtype), sample((4, 6), dtype, 2)
    for axis, n in enumerate((4, 6)):
        q = moved(factor, n, dtype)
        start = factor.start(q, 32, generator(3))
        gradient = factor.gradient(factor.gram(x, axis), factor.gram(y, axis), start)
        mask = reference.pattern_mask(factor.name, n)
        for row in range(2):
            grams = [unfold(z[row], axis) @ unfold(z[row], axis).mH for z in (x, y)]
            e = torch.where(mask, grams[0] - grams[1], 0)
            m = factor.matrix(q)[row]
            torch.testing.assert_close(factor.matrix(gradient.left(q))[row], e @ m)
            torch.testing.assert_close(factor.matrix(gradient.right(q))[row], m @ e)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sizes_of_a_normalisation_gradient(n: int, dtype: torch.dtype) -> None:
    x, y = sample((n, 6), dtype), sample((n, 6), dtype, 2)
    gradient = NORMALISATION.gradient(NORMALISATION.gram(x, 0), NORMALISATION.gram(y, 0), None)
    mask = reference.pattern_mask("normalisation", n)
    for row in range(2):
        t1, t2 = (z[row] @ z[row].mH for z in (x, y))
        e, s = torch.where(mask, t1 - t2, 0), t1 + t2
        norm = float(torch.linalg.matrix_norm(e, 2))
        assert float(gradient.max_entry()[row]) == pytest.approx(float(e.abs().max()))
        assert float(gradient.frobenius_norm()[row]) == pytest.approx(float(e.norm()))
        assert norm <= float(gradient.spectral_norm()[row]) * (1 + 1e-12) <= 2.0001 * norm
        pairs = [s[[j, -1]][:, [j, -1]] for j in range(n - 1)] or [s]
        largest = max(float(torch.linalg.matrix_norm(pair, 2)) for pair in pairs)
        assert largest <= float(gradient.curvature()[row]) * (1 + 1e-12) <= 2.0001 * largest


@pytest.mark.parametrize("factor", SYMMETRIC)
def test_a_number_stands_for_a_multiple_of_the_identity(factor: Factor) -> None:
    x = sample((4, 6), torch.float64, 2)
    q, t1 = moved(factor, 4), factor.gram(x, 0)
    start = factor.start(q, 32, generator(3))
    identity = factor.init(4, torch.full((2,), 1.5, dtype=torch.float64))
    number, matrix = factor.gradient(t1, 1.5, start), factor.gradient(t1, identity, start)
    torch.testing.assert_close(number.left(q), matrix.left(q))
    # Only the matrix' norm is an estimate.
    torch.testing.assert_close(number.curvature(), matrix.curvature(), rtol=0.05, atol=0)


@pytest.mark.parametrize("factor", SYMMETRIC)
def test_congruence_root_and_hermitian_part(factor: SymmetricFactor) -> None:
    q, x = moved(factor, 4), sample((4, 6), torch.float64)
    m, t = factor.matrix(q), factor.gram(x, 0)
    full = torch.diag_embed(t) if t.ndim == 2 else t
    inner = factor.congruence(q, t)
    inner = torch.diag_embed(inner) if inner.ndim == 2 else inner
    torch.testing.assert_close(inner, m @ full @ m.mH)
    by_number = factor.congruence(q, 1.5)
    by_number = torch.diag_embed(by_number) if by_number.ndim == 2 else by_number
    torch.testing.assert_close(by_number, 1.5 * m @ m.mH)
    part = factor.matrix(factor.hermitian(q))
    torch.testing.assert_close(part, 0.5 * (m + m.mH))
    root = factor.root(q)
    torch.testing.assert_close(root @ root, part)
    torch.testing.assert_close(root, root.mH)


@pytest.mark.parametrize("factor", [GENERAL, TRIANGULAR])
def test_a_dense_factor_without_random_rows_is_refused(factor: Factor) -> None:
    with pytest.raises(ValueError, match="random rows that draw"):
        factor.gradient(torch.eye(3)[None], torch.eye(3)[None], None)


def test_normalisation_needs_both_terms() -> None:
    with pytest.raises(TypeError, match="terms of both h and v"):
        NORMALISATION.gradient(torch.ones(1, 2, 3), 1.0, None)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_numel_is_the_size_of_the_pattern(factor: Factor, n: int) -> None:
    assert factor.numel(n) == int(reference.pattern_mask(factor.name, n).sum())


def test_a_singular_matrix_is_no_error() -> None:
    solved = GENERAL.solve_adjoint(torch.zeros(1, 3, 3), torch.ones(1, 3), 0)
    assert not bool(solved.isfinite().all())
