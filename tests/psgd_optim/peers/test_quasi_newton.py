"""Quasi-Newton updates: Theorem 1, double damping, the compact memory against the recursion."""

import pytest
import torch
from torch import Tensor

from psgd_optim import InputError
from psgd_optim.peers.quasi_newton import (
    DenseBFGS,
    DoubleDamping,
    InverseHessian,
    LimitedMemory,
    SecantPair,
    bfgs_inverse,
    shows_curvature,
    update_inverse,
)

NONE = torch.zeros((), dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def positive(n: int, seed: int) -> Tensor:
    a = normal(n, n + 3, seed=seed)
    return a @ a.mT / n + 0.1 * torch.eye(n, dtype=torch.float64)


def recursion(h: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """The BFGS update as it is printed."""
    rho = 1 / (s @ y)
    left = torch.eye(len(s), dtype=s.dtype) - rho * torch.outer(s, y)
    return left @ h @ left.mT + rho * torch.outer(s, s)


def broyden(h: Tensor, s: Tensor, y: Tensor, phi: float) -> Tensor:
    """A member of the Broyden family, S4 equation 11."""
    hy = h @ y
    sigma, rho = 1 / (y @ hy), 1 / (s @ y)
    v = rho * s - sigma * hy
    dfp = h - sigma * torch.outer(hy, hy) + rho * torch.outer(s, s)
    return dfp + phi * (y @ hy) * torch.outer(v, v)


# --- P25: Theorem 1 ------------------------------------------------------------------------------


@pytest.mark.parametrize("phi", [0.0, 0.3, 1.0])
def test_hessian_action_inverts_a_matrix_after_a_rank_one_change(phi):
    for seed in range(10):
        a, x, c = positive(9, seed), normal(9, seed=seed + 50), 0.1 + seed
        h = torch.linalg.inv(a)
        new = a + c * torch.outer(x, x)
        s = h @ x
        y = new @ s
        wanted = torch.linalg.inv(new)
        torch.testing.assert_close(broyden(h, s, y, phi), wanted, rtol=0, atol=1e-12)
        if phi == 1:
            ours = update_inverse(h, SecantPair(s, y), h @ y, x.norm())
            torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-12)


def test_the_update_is_the_printed_one_and_exactly_symmetric():
    h, s = positive(8, 1), normal(8, seed=2)
    y = positive(8, 3) @ s
    new = bfgs_inverse(h, s, y, h @ y)
    torch.testing.assert_close(new, recursion(h, s, y), rtol=0, atol=1e-12)
    symmetric = bfgs_inverse(0.5 * (h + h.mT), s, y, h @ y)
    assert torch.equal(symmetric, symmetric.mT)
    torch.testing.assert_close(new @ y, s)


# --- P26: double damping -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_damped_pairs_keep_the_inverse_positive_and_bounded(seed):
    damping = DoubleDamping(inverse_ratio=0.2, step_ratio=0.5)
    mu1, mu2 = damping.inverse_ratio, damping.step_ratio
    h, met = positive(6, seed), 0
    for k in range(30):
        s, y = normal(2, 6, seed=1000 * seed + k) * torch.tensor([[3.0], [0.7]])
        first = DoubleDamping(mu1, 1e-300).damp(s, y, h @ y)  # the second damping does nothing
        slack = 1e-12 * (1 + y @ h @ y)
        assert first.s @ y >= mu1 * (y @ h @ y) - slack
        pair = damping.damp(s, y, h @ y)
        sy = pair.s @ pair.y
        assert sy >= mu2 * (pair.s @ pair.s) * (1 - 1e-12)
        hy = h @ pair.y
        new = bfgs_inverse(h, pair.s, pair.y, hy)
        assert torch.linalg.eigvalsh(new)[0] > 0
        if pair.y @ hy <= sy / mu1:
            met += 1
            norm, root = torch.linalg.matrix_norm(h, 2), torch.linalg.matrix_norm(h, 2).sqrt()
            bound = (root + (mu1 * mu2) ** -0.5) ** 2 + 1 / mu2
            assert torch.linalg.matrix_norm(new, 2) <= bound * (1 + 1e-9)
            b, new_b = (torch.linalg.matrix_norm(torch.linalg.inv(x), 2) for x in (h, new))
            assert new_b <= b * (1 + 1 / mu1) * (1 + 1e-9)
            assert norm > 0
        h = new
    assert met >= 5  # else the bounds were not looked at


def test_damping_matches_the_algorithm_by_hand_where_curvature_is_negative():
    s, y, h = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0]), torch.eye(2)
    # s^T y = -1 < 0.2: theta = 0.8 / 2, and s = 0.4 - 0.6 = -0.2; then s^T y = 0.2 >= 0.5 * 0.04.
    pair = DoubleDamping(0.2, 0.5).damp(s, y, h @ y)
    torch.testing.assert_close(pair.s, torch.tensor([-0.2, 0.0]))
    assert torch.equal(pair.y, y)
    s = torch.tensor([1.0, 0.0])
    pair = DoubleDamping(0.2, 0.9).damp(s, 0.5 * s, 0.5 * s)
    # s^T y = 0.5 < 0.9: theta = 0.1 / 0.5, y = 0.2 * 0.5 + 0.8 = 0.9.
    torch.testing.assert_close(pair.y, 0.9 * s)
    assert torch.equal(pair.s, s)


def test_a_pair_that_needs_no_damping_is_left_alone():
    s = normal(5)
    pair = DoubleDamping(0.2, 0.5).damp(s, 2 * s, 2 * s)
    assert torch.equal(pair.s, s) and torch.equal(pair.y, 2 * s)


@pytest.mark.parametrize(("mu1", "mu2"), [(0.0, 1.0), (1.0, 1.0), (0.2, 0.0), (0.2, 1.1)])
def test_ratios_outside_their_range_are_refused(mu1, mu2):
    with pytest.raises(InputError, match="give a number in"):
        DoubleDamping(mu1, mu2)


# --- gates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("inverse", [DenseBFGS(), LimitedMemory(4)])
@pytest.mark.parametrize(
    ("s", "y", "norm"),
    [
        (1.0, -1.0, 0.0),
        (0.0, 0.0, 0.0),
        (1.0, 1e-5, 1.0),
        (1e200, 1e200, 0.0),
        (1.0, float("nan"), 0.0),
    ],
)
def test_pairs_that_a_gate_refuses_leave_the_state_bit_for_bit(inverse, s, y, norm):
    state = inverse.initial(normal(3))
    first = SecantPair(normal(3), 2 * normal(3))
    state = inverse.update(state, first, inverse.apply(state, first.y), NONE)
    e = torch.eye(3, dtype=torch.float64)[0]
    pair = SecantPair(s * e, y * e)
    gradient = torch.tensor(norm, dtype=torch.float64)
    after = inverse.update(state, pair, inverse.apply(state, pair.y), gradient)
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)


def test_the_slope_that_a_pair_must_show_grows_with_the_gradient():
    s, y = torch.tensor([2.0]), torch.tensor([1e-3])  # s^T y = 2e-3, 1e-4 |s|^2 = 4e-4
    assert shows_curvature(s, y, torch.tensor(4.9))
    assert not shows_curvature(s, y, torch.tensor(5.1))


# --- P27: the compact memory ---------------------------------------------------------------------


def pairs(n: int, count: int, seed: int = 3) -> list[SecantPair]:
    hessian = positive(n, seed)
    return [
        SecantPair(s, hessian @ s + 0.02 * normal(n, seed=500 + i))
        for i, s in enumerate(normal(count, n, seed=seed + 1))
    ]


def fed(inverse: InverseHessian, some: list[SecantPair]) -> dict[str, Tensor]:
    state = inverse.initial(some[0].s)
    for pair in some:
        state = inverse.update(state, pair, inverse.apply(state, pair.y), NONE)
    return state


@pytest.mark.parametrize("count", [0, 1, 3, 5, 6, 13])
def test_the_memory_is_the_recursion_over_the_pairs_that_it_has(count):
    some, n, memory = pairs(7, 13)[:count], 7, LimitedMemory(5)
    state = fed(memory, some) if some else memory.initial(normal(n))
    h = torch.eye(n, dtype=torch.float64)
    for s, y in some[-5:]:
        assert s @ y > 0
        h = recursion(h, s, y)
    x = normal(n, 4, seed=9)
    torch.testing.assert_close(memory.apply(state, x), h @ x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(memory.apply(state, x[:, 0]), h @ x[:, 0], rtol=1e-10, atol=1e-10)


def test_the_inverse_of_the_triangle_is_kept_through_evictions():
    state, some = fed(LimitedMemory(5), pairs(7, 13)), pairs(7, 13)[-5:]
    s, y = (torch.stack(x, dim=1) for x in zip(*some, strict=True))
    assert torch.equal(state["steps"], s) and torch.equal(state["changes"], y)
    wanted = torch.linalg.inv(torch.triu(s.mT @ y))
    torch.testing.assert_close(state["triangle_inverse"], wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state["change_products"], y.mT @ y)
    torch.testing.assert_close(state["pair_products"], (s.mT @ y).diagonal())


def test_dense_and_compact_agree_while_nothing_is_forgotten():
    some, x = pairs(6, 8), normal(6, 3, seed=1)
    dense, compact = (
        inverse.apply(fed(inverse, some), x) for inverse in (DenseBFGS(), LimitedMemory(8))
    )
    torch.testing.assert_close(compact, dense, rtol=1e-10, atol=1e-10)


def test_a_memory_without_room_is_refused():
    with pytest.raises(InputError, match=r"Got memory = 0; give an integer of at least 1"):
        LimitedMemory(0)


# --- P28 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("inverse", [DenseBFGS(), LimitedMemory(3)])
def test_the_sign_of_pairs_does_not_matter_at_all(inverse):
    damping, x = DoubleDamping(0.2, 0.5), normal(6, 2, seed=4)
    found = []
    for sign in (1, -1):
        state = inverse.initial(normal(6))
        for k in range(8):
            s, y = normal(2, 6, seed=k)
            s, y = sign * s, sign * y
            pair = damping.damp(s, y, inverse.apply(state, y))
            state = inverse.update(state, pair, inverse.apply(state, pair.y), NONE)
        found.append(inverse.apply(state, x))
    assert torch.equal(*found)
    assert not torch.equal(found[0], x)
