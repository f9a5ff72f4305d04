import torch

from psgd_optim.geometry import Q0_5EQ1_5
from tests import reference

# The update against its slow reference, in every plan, is in forms/contract.py.


def test_a_matrix_move_keeps_the_determinant_positive() -> None:
    rng = torch.Generator().manual_seed(0)
    start = torch.randn(1, 32, 5, generator=rng, dtype=torch.float64)
    for _ in range(200):
        q = reference.random_spd(5, rng, torch.float64)[None]
        x = torch.randn(1, 5, 5, generator=rng, dtype=torch.float64)
        d = x @ x.mT - torch.eye(5)
        step = 0.9 / torch.linalg.matrix_norm(d, 2)
        q = Q0_5EQ1_5.move_matrix(q, d, step, start)
        assert float(torch.linalg.slogdet(q)[0]) == 1


def test_a_diagonal_move_is_the_diagonal_of_the_matrix_move() -> None:
    rng = torch.Generator().manual_seed(0)
    q = torch.rand(1, 4, generator=rng, dtype=torch.float64) + 0.5
    d = torch.randn(1, 4, generator=rng, dtype=torch.float64)
    step = torch.tensor([0.1], dtype=torch.float64)
    matrix = reference.rotate(q[0].diag() - 0.1 * d[0].diag() @ q[0].diag())
    torch.testing.assert_close(Q0_5EQ1_5.move_diagonal(q, d, step)[0], matrix.diagonal())
