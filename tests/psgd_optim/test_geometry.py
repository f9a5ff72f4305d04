import pickle

import pytest
import torch

from psgd_optim.geometry import (
    EQ,
    PRO4P,
    Q0_5EQ1_5,
    QEP,
    QEQ,
    QUAD,
    QUAD4P,
    Frame,
    Geometry,
)
from psgd_optim.group_gradient import MatrixGradient, VectorGradient
from tests import reference

# The update against its slow reference, in every geometry, is in forms/.

ALL = [EQ, QEP, QEQ, Q0_5EQ1_5, QUAD, QUAD4P, PRO4P]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradient_at(rng: torch.Generator, start: torch.Tensor) -> MatrixGradient:
    x = torch.randn(1, 5, 5, generator=rng, dtype=torch.float64)
    return MatrixGradient(x @ x.mT, 1.0, start)


@pytest.mark.parametrize("geometry", ALL)
def test_a_matrix_move_keeps_the_determinant_positive(geometry: Geometry) -> None:
    rng = generator()
    start = torch.randn(1, 32, 5, generator=rng, dtype=torch.float64)
    for _ in range(50):
        q = reference.random_spd(5, rng, torch.float64)[None]
        gradient = gradient_at(rng, start)
        step = 0.9 / torch.linalg.matrix_norm(gradient.difference, 2)
        q = geometry.move(q, gradient, step, start)
        assert float(torch.linalg.slogdet(q)[0]) == 1


@pytest.mark.parametrize("geometry", ALL)
def test_a_diagonal_move_is_the_diagonal_of_the_matrix_move(geometry: Geometry) -> None:
    rng = generator()
    q = torch.rand(1, 4, generator=rng, dtype=torch.float64) + 0.5
    t = torch.rand(1, 4, generator=rng, dtype=torch.float64)
    step = torch.tensor([0.1], dtype=torch.float64)
    matrix = reference.step(geometry.name, q[0].diag(), (t[0] - 1).diag(), 0.1)
    moved = geometry.move(q, VectorGradient(t, 1.0), step, None)
    torch.testing.assert_close(moved[0], matrix.diagonal())
    assert bool((moved > 0).all())


@pytest.mark.parametrize("geometry", [QUAD, QUAD4P])
def test_sandwiches_stay_hermitian_and_positive_definite(geometry: Geometry) -> None:
    rng = generator(1)
    start = torch.randn(1, 32, 5, generator=rng, dtype=torch.float64)
    q = torch.eye(5, dtype=torch.float64)[None]
    for _ in range(200):
        gradient = gradient_at(rng, start)
        q = geometry.move(q, gradient, 0.5 / gradient.curvature(), start)
        q = q / q.norm()
        torch.testing.assert_close(q, q.mH, rtol=0, atol=0)
    assert bool((torch.linalg.eigvalsh(q) > 0).all())


def test_pro4p_keeps_p_close_to_the_hermitian_cone() -> None:
    rng = generator(2)
    start = torch.randn(1, 32, 5, generator=rng, dtype=torch.float64)
    p = reference.random_spd(5, rng, torch.float64)[None]
    for _ in range(50):
        gradient = gradient_at(rng, start)
        p = PRO4P.move(p, gradient, 0.1 / gradient.curvature(), start)
        # Rotations stop at 1e-3; two per step may leave a few times that at this rate.
        assert float((p - p.mH).abs().max() / p.abs().max()) < 5e-3


def test_frames_and_contents_are_those_of_the_table() -> None:
    assert [g.name for g in ALL if g.frame is Frame.LEFT] == ["EQ"]
    assert [g.name for g in ALL if g.frame is Frame.BOTH] == ["QEP"]
    assert [g.name for g in ALL if g.fits_p] == ["QUAD4P", "PRO4P"]
    assert [g.name for g in ALL if g.rotate is not None] == ["Q0.5EQ1.5", "PRO4P"]


@pytest.mark.parametrize("geometry", ALL)
def test_geometries_survive_pickling(geometry: Geometry) -> None:
    assert pickle.loads(pickle.dumps(geometry)) == geometry
