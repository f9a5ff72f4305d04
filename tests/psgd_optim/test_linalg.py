import pytest
import torch

from psgd_optim import linalg
from tests import reference

SHAPES = [(5,), (4, 3), (3, 4, 2), (2, 3, 2, 4)]


def stack(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.complex128):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_mode_operations_equal_their_unfoldings(shape: tuple[int, ...]) -> None:
    x = stack(shape)
    for axis, n in enumerate(shape):
        m, d = stack((n, n), 1), stack((n,), 2)
        product = linalg.mode_product(m, x, axis)
        scaled = linalg.mode_scale(d, x, axis)
        for row in range(2):
            unfolded = reference.unfold(x[row], axis)
            torch.testing.assert_close(reference.unfold(product[row], axis), m[row] @ unfolded)
            torch.testing.assert_close(
                reference.unfold(scaled[row], axis), d[row][:, None] * unfolded
            )
            gram = unfolded @ unfolded.mH
            torch.testing.assert_close(linalg.mode_gram(x, axis)[row], gram)
            torch.testing.assert_close(
                linalg.mode_gram_diagonal(x, axis)[row], gram.diagonal().real
            )


@pytest.mark.parametrize("n", [1, 2, 16, 64, 200])
@pytest.mark.parametrize("kind", ["psd", "skew"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_the_norm_bound_is_tight_from_below(n: int, kind: str, dtype: torch.dtype) -> None:
    x = stack((n, n), n, dtype)
    a = x @ x.mH if kind == "psd" else x - x.mH
    start = stack((32, n), 3, torch.float32)
    ratio = linalg.spectral_norm_bound(a, start) / torch.linalg.matrix_norm(a, 2)
    if n == 1 and kind == "skew" and not dtype.is_complex:
        return  # a real skew 1 x 1 matrix is zero
    assert bool((ratio <= 1 + 1e-5).all())
    assert bool((ratio >= 0.8).all())


@pytest.mark.parametrize("n", [64, 256, 512])
def test_the_norm_bound_finds_a_spread_eigenvector_among_ones(n: int) -> None:
    """The worst case known: no entry and no row tells of the largest eigenvalue."""
    u = stack((n, 1), 5, torch.float32)
    u = u / u.norm(dim=1, keepdim=True)
    for size in (1.15, 1.25, 1.5, 2.0):
        a = torch.eye(n) + (size - 1) * u @ u.mT
        ratio = linalg.spectral_norm_bound(a, stack((32, n), 6, torch.float32)) / size
        assert bool((ratio <= 1 + 1e-5).all())
        assert bool((ratio >= 0.84).all())


def test_the_norm_bound_is_at_least_the_largest_entry() -> None:
    a = torch.linspace(0.9, 1.0, 8).diag()[None]  # a power iteration cannot part these
    bound = linalg.spectral_norm_bound(a, stack((2, 8), 2, torch.float32)[:1])
    assert float(bound) >= 1.0


def test_the_norm_bound_of_zero_is_zero() -> None:
    bound = linalg.spectral_norm_bound(torch.zeros(2, 5, 5), stack((32, 5), 0, torch.float32))
    torch.testing.assert_close(bound, torch.zeros(2))


def test_the_norm_bound_scales_over_the_whole_range() -> None:
    x = stack((8, 8), 0, torch.float32)
    start = stack((32, 8), 1, torch.float32)
    base = linalg.spectral_norm_bound(x @ x.mH, start)
    for scale in (1e-30, 1e30):
        bound = linalg.spectral_norm_bound(x @ x.mH * scale, start)
        torch.testing.assert_close(bound, base * scale)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_rotations_symmetrise_and_keep_the_gram_matrix(dtype: torch.dtype) -> None:
    n = 8
    symmetric = torch.stack([
        reference.random_spd(n, torch.Generator().manual_seed(s), dtype) for s in (0, 1)
    ])
    small = 0.3 * stack((n, n), 5, dtype)
    q = torch.linalg.matrix_exp(small - small.mH) @ symmetric
    start = stack((32, n), 6, torch.float64)
    gram, rotated = q.mH @ q, q
    for _ in range(60):
        rotated = linalg.rotate_towards_psd_(rotated.clone(), start)
    asymmetry = (rotated - rotated.mH).norm() / rotated.norm()
    assert float(asymmetry) < 1e-3
    # Each step is unitary to a^4 / 4 <= 6e-5 relative; steps shrink as Q becomes symmetric.
    assert float((rotated.mH @ rotated - gram).norm() / gram.norm()) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_third_order_rotations_symmetrise_and_keep_the_gram_matrix(dtype: torch.dtype) -> None:
    n = 8
    symmetric = reference.random_spd(n, torch.Generator().manual_seed(0), dtype)[None]
    small = 0.05 * stack((n, n), 5, dtype)
    q = torch.linalg.matrix_exp(small - small.mH) @ symmetric
    start = stack((32, n), 6, torch.float64)
    rotated = linalg.rotate_onto_psd_(q.clone(), start, turns=40)
    assert bool(((rotated - rotated.mH).abs() < 1e-3 * rotated.abs().amax(dim=(1, 2))[0]).all())
    gram = q.mH @ q
    # unitary to a^6 / 64 <= 2.2e-5 in a step of angle 1/3; angles shrink quickly
    assert float((rotated.mH @ rotated - gram).norm() / gram.norm()) < 1e-4
    again = linalg.rotate_onto_psd_(rotated.clone(), start)
    torch.testing.assert_close(again, rotated, rtol=0, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_fold_undoes_unfold(shape: tuple[int, ...]) -> None:
    x = stack(shape)
    for axis in range(len(shape)):
        columns = linalg.unfold(x, axis)
        torch.testing.assert_close(columns[0], reference.unfold(x[0], axis))
        torch.testing.assert_close(linalg.fold(columns, x.shape, axis), x, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_hermitian_roots(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    a = torch.stack([reference.random_spd(4, rng, dtype) for _ in range(2)])
    skew = stack((4, 4), 1, dtype)
    root = linalg.hermitian_root(a + skew - skew.mH)
    torch.testing.assert_close(root @ root, a)
    a[0] = torch.nan
    torch.testing.assert_close(linalg.hermitian_root(a)[1], root[1])
    assert not bool(linalg.hermitian_root(a)[0].isfinite().any())


def test_a_symmetric_matrix_is_not_rotated() -> None:
    q = torch.eye(4).expand(2, 4, 4)
    start = stack((32, 4), 0, torch.float32)
    torch.testing.assert_close(linalg.rotate_towards_psd_(q.clone(), start), q, rtol=0, atol=0)


def test_lift_keeps_what_is_precise_enough() -> None:
    x = torch.zeros(2)
    assert linalg.lift(x) is x
    assert linalg.lift(x.bfloat16()).dtype == torch.float32
    assert linalg.lift(x.double()).dtype == torch.float64


def test_masks_are_none_where_the_host_knows_that_all_rows_are_in() -> None:
    yes, no = torch.tensor([True, True]), torch.tensor([True, False])
    assert linalg.known(yes) is None and linalg.known(no) is no
    assert linalg.surely(yes.view(2, 1)) and not linalg.surely(no.view(1, 2))
    assert not linalg.surely(yes.to("meta"))  # it would have to wait for a device
    assert linalg.both(None, None) is None and linalg.both(None, no) is no
    assert linalg.both(no, None, ~no).tolist() == [False, False]  # type: ignore[union-attr]
    x = torch.tensor([[1.0], [torch.nan]])
    assert linalg.keep_rows(None, x) is x
    assert linalg.keep_rows(no, x).tolist() == [[1], [0]]
    assert linalg.keep_rows(no, x, -x.nan_to_num()).tolist() == [[1], [0]]


@pytest.mark.parametrize("value", [1e30, -1e38, torch.inf, -torch.inf, torch.nan])
def test_finite_rows_are_found_whatever_their_squares_are(value: float) -> None:
    x = torch.ones(3, 4)
    x[1, 2] = value
    is_finite = abs(value) < torch.inf
    found = linalg.finite_rows(x)
    assert (found is None) == is_finite
    assert found is None or found.tolist() == [True, False, True]
    peaks = linalg.row_peaks(x)
    assert peaks[0] == 1 and bool(peaks.isfinite()[1]) == is_finite
