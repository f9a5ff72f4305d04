"""What the papers' theorems say, as the largest errors of identities in double precision.

Every function takes a seed and a device, and returns figures that a theorem says are zero, but for
rounding, unless its docstring says otherwise. Shape legend: `n` is the size of a space.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from experiments.problem import generator
from experiments.problems.conditioning import condition_number
from psgd_optim.forms.base import Preconditioner
from psgd_optim.forms.dense import Dense
from psgd_optim.forms.low_rank import LowRank
from psgd_optim.forms.permutation import Permutation
from psgd_optim.peers import estimate_hessian_diagonal
from psgd_optim.peers.quasi_newton import (
    DenseBFGS,
    DoubleDamping,
    LimitedMemory,
    SecantPair,
    bfgs_inverse,
    update_inverse,
)
from psgd_optim.permutation_groups import BUTTERFLY, KLEIN, X_MATRIX, Cyclic, PermutationGroup
from psgd_optim.types import Probe, State

_REAL = torch.float64
_N = 8
_DRAWS = 50
Figures = Mapping[str, float]


def group_closure(group: PermutationGroup, seed: int, device: torch.device) -> Figures:
    """Return what lies outside of a group's pattern in products and inverses of its members.

    Source: S2, Theorem 3.1.
    """
    form, draw = Permutation(group=group), _drawing(seed, device)

    def member(numbers: Callable[[Tensor], Tensor]) -> Tensor:
        state = _fresh(form, device)
        return form.to_dense({**state, "q": numbers(state["q"])})[0]

    outside = member(torch.ones_like) == 0
    drawn = functools.partial(member, lambda q: draw(*q.shape))
    pairs = [(drawn(), drawn()) for _ in range(_DRAWS)]
    return {
        "product": _largest([(a @ b)[outside] for a, b in pairs]),
        "inverse": _largest([_scaled_inverse(a)[outside] for a, _ in pairs]),
    }


def low_rank_group(seed: int, device: torch.device) -> Figures:
    """Return the errors of products and inverses of `I + U V'` with a common `V`.

    Source: S2, Theorem 3.3: `U1 + U2 + U1 V'U2` and `-U (I + V'U)^-1` are members' too.
    """
    draw, products, inverses = _drawing(seed, device), [], []
    for _ in range(_DRAWS):
        u1, u2, v = 0.3 * draw(3, _N, 3)
        q1, q2 = _low_rank(u1, v), _low_rank(u2, v)
        products.append(q1 @ q2 - _low_rank(u1 + u2 + u1 @ v.mT @ u2, v))
        small = torch.eye(3, dtype=_REAL, device=device) + v.mT @ u1
        product = q1 @ _low_rank(-torch.linalg.solve(small, u1, left=False), v)
        inverses.append(product - torch.eye(_N, dtype=_REAL, device=device))
    return {"product": _largest(products), "inverse": _largest(inverses)}


def low_rank_spectrum(seed: int, device: torch.device) -> Figures:
    """Return errors of the two eigenvalues' sum and product, and the extremes that they take.

    Source: S2, Theorem 3.2, for `Q = I + u v'`: their product is `(1 + u'v)^2`, and their sum
    `2 + 2 u'v + |u|^2 |v|^2`. `smallest` and `largest` show that they come near 0 and grow.
    """
    draw, errors, extremes = _drawing(seed, device), [], []
    for k in range(_DRAWS):
        u, v = draw(2, _N, 1)
        # u'v from -1, where Q is singular, up to 100; what of u is across v stays as drawn.
        wanted = 10 ** (2 - k / 10) - 1
        u += (wanted - (u * v).sum()) / v.square().sum() * v
        q = _low_rank(u, v)
        values = torch.linalg.eigvalsh(q.mT @ q)
        two = values[(values - 1).abs().argsort()[-2:]]
        along = (u * v).sum()
        total = 2 + 2 * along + u.square().sum() * v.square().sum()
        errors += [(two.prod() - (1 + along) ** 2) / total, (two.sum() - total) / total]
        extremes.append(values)
    found = torch.cat(extremes)
    return {
        "spectrum": _largest(errors),
        "smallest": float(found.min()),
        "largest": float(found.max()),
    }


def whitening_limit(seed: int, device: torch.device) -> Figures:
    """Return how far a fitted `Q` is from the root of `|H|^-1`, relative; no identity, but a limit.

    Source: S2, Theorem A.1, with the geometry that keeps `Q` symmetric.
    """
    hessian = _indefinite(seed, device)
    form = Dense()
    state = _fitted(form, hessian, 0.0, 4000, seed)
    wanted = _power(hessian, -0.5)
    return {"limit": float((form.to_dense(state)[0] - wanted).norm() / wanted.norm())}


def noisy_limit(noise: float, seed: int, device: torch.device, steps: int = 10_000) -> Figures:
    """Return how far `P`, fitted to `h = H v + noise`, is from its limit, relative.

    Source: S0 section III, S1 (7) and S2 section A: `P = (H^2 + noise^2 I)^-1/2`, which is at most
    `|H|^-1`; `excess` is the largest eigenvalue of their difference, negative where it holds.
    """
    hessian = _indefinite(seed, device)
    form = Dense()
    q = form.to_dense(_fitted(form, hessian, noise, steps, seed))[0]
    p, eye = q.mT @ q, torch.eye(_N, dtype=_REAL, device=device)
    wanted = _power(hessian @ hessian + noise**2 * eye, -0.5)
    above = torch.linalg.eigvalsh(p - _power(hessian, -1.0))[-1]
    return {"limit": float((p - wanted).norm() / wanted.norm()), "excess": float(above)}


def equilibration(seed: int, device: torch.device) -> Figures:
    """Return errors of S3's statements on `|H|`, and of its estimators.

    Source: S3, Theorem 1: `|H|^-1` makes the condition number 1, and Lemmas 1 and 2. `lemma` is
    by how much `x'Hx` exceeds `x'|H|x`, which should not be positive; `descent`, by how much the
    loss after a step of `|H|^-1 g` exceeds that after `H^-1 g`; `diagonal`, the error of the
    diagonals of a diagonal matrix, for which one probe is exact.
    """
    draw, eye = _drawing(seed, device), torch.eye(_N, dtype=_REAL, device=device)
    found: dict[str, list[Tensor]] = {"condition": [], "norm": [], "lemma": [], "descent": []}
    for k in range(_DRAWS):
        hessian, x = _indefinite(seed + k, device), draw(_N)
        size = _power(hessian, 1.0)
        root = _power(hessian, -0.5)
        scaled = root @ hessian @ root
        ones = torch.ones(_N, dtype=_REAL, device=device)
        found["condition"].append(torch.tensor(condition_number(scaled, ones) - 1))
        found["norm"].append((hessian @ x).norm() - (size @ x).norm())
        found["lemma"].append((x @ hessian @ x - x @ size @ x).clamp(min=0))
        newton, saddle_free = (
            (eye - inverse @ hessian) @ x
            for inverse in (torch.linalg.inv(hessian), _power(hessian, -1.0))
        )
        gain = saddle_free @ hessian @ saddle_free - newton @ hessian @ newton
        found["descent"].append(gain.clamp(min=0))
    return {**{name: _largest(e) for name, e in found.items()}, "diagonal": _diagonal(draw)}


def hessian_action(seed: int, device: torch.device) -> Figures:
    """Return the error of the inverse after `A + c x x'`. Source: S4, Theorem 1."""
    draw, errors = _drawing(seed, device), []
    for k in range(_DRAWS):
        a, x = _positive(draw), draw(_N)
        h, new = torch.linalg.inv(a), a + (0.1 + k) * torch.outer(x, x)
        s = h @ x
        y = new @ s
        ours = update_inverse(h, SecantPair(s, y), h @ y, x.norm())
        errors.append(ours - torch.linalg.inv(new))
    return {"error": _largest(errors)}


def double_damping(seed: int, device: torch.device) -> Figures:
    """Return by how much damped pairs and updates break their bounds, relative; at most 0.

    Source: S4, Algorithm 3 and the lemma on the norms of `B` and `H` after an update. `met` is the
    share of random pairs for which the lemma says something.
    """
    mu1, mu2 = 0.2, 0.5
    draw, broken, met = _drawing(seed, device), [-1.0], 0
    for _ in range(_DRAWS):
        h, s, y = _positive(draw), 3 * draw(_N), 0.7 * draw(_N)
        first = DoubleDamping(mu1, 1e-300).damp(s, y, h @ y)  # without the second damping
        broken.append(mu1 * float(y @ h @ y) / float(first.s @ first.y) - 1)
        pair = DoubleDamping(mu1, mu2).damp(s, y, h @ y)
        sy, hy = float(pair.s @ pair.y), h @ pair.y
        broken.append(mu2 * float(pair.s @ pair.s) / sy - 1)
        new = bfgs_inverse(h, pair.s, pair.y, hy)
        if float(pair.y @ hy) > sy / mu1:
            continue  # the second damping may break the first one's bound
        met += 1
        norm, inverse = _norm(h), _norm(torch.linalg.inv(h))
        broken.append(_norm(new) / ((norm**0.5 + (mu1 * mu2) ** -0.5) ** 2 + 1 / mu2) - 1)
        broken.append(_norm(torch.linalg.inv(new)) / (inverse * (1 + 1 / mu1)) - 1)
    return {"broken": max(broken), "met": met / _DRAWS}


def compact_memory(seed: int, device: torch.device) -> Figures:
    """Return the error of the compact form against as many BFGS updates of the identity.

    Source: S4, section 3. The pairs are more than the memory has place for, so that old ones go.
    """
    draw, kept = _drawing(seed, device), 5
    compact, full = LimitedMemory(kept), DenseBFGS()
    curvature, zero = _positive(draw), torch.zeros((), dtype=_REAL, device=device)
    pairs = [SecantPair(s, curvature @ s) for s in draw(12, _N)]
    like = pairs[0].s
    state, x = compact.initial(like), draw(_N, 3)
    errors: list[Tensor] = []
    for count, pair in enumerate(pairs, start=1):
        state = compact.update(state, pair, compact.apply(state, pair.y), zero)
        slow = full.initial(like)
        for old in pairs[max(0, count - kept) : count]:
            slow = full.update(slow, old, full.apply(slow, old.y), zero)
        errors.append(compact.apply(state, x) - full.apply(slow, x))
    return {"error": _largest(errors)}


S2_GROUPS: Mapping[str, PermutationGroup] = {
    "X-matrix": X_MATRIX,
    "butterfly": BUTTERFLY,
    "Klein": KLEIN,
    "four shifts": Cyclic(size=4),
}


def _fresh(form: Preconditioner, device: torch.device) -> State:
    """Return the state of `Q = I`."""
    like = torch.empty(0, dtype=_REAL, device=device)
    return form.init((_N,), torch.ones(1, device=device), like)


def _low_rank(u: Tensor, v: Tensor) -> Tensor:
    """Return `I + U V'`, (n, n), by the form's own account."""
    form = LowRank(rank=u.shape[1])
    state = _fresh(form, u.device)
    return form.to_dense({**state, "pair": torch.stack([u, v])[None]})[0]


def _fitted(form: Preconditioner, hessian: Tensor, noise: float, steps: int, seed: int) -> State:
    """Return the state after fits to `H v` and noise, at a rate that falls.

    Every cycle of `n` probes has `mean(v v') = I` exactly, and so is the noise's.
    """
    rng = torch.Generator().manual_seed(seed)
    state = _fresh(form, hessian.device)
    for step in range(steps):
        if step % _N == 0:
            cycles = torch.randn(2, _N, _N, generator=rng, dtype=_REAL).to(hessian.device)
            vs, noises = _N**0.5 * torch.linalg.qr(cycles).Q
        v = vs[step % _N]
        probe = Probe(h=(hessian @ v + noise * noises[step % _N])[None], v=v[None])
        form.update(state, probe, form.draw(state, rng), 0.4 * 0.005 ** (step / steps))
    return state


def _drawing(seed: int, device: torch.device) -> Callable[..., Tensor]:
    """Return a function of a shape that draws normal numbers."""
    rng = generator(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=_REAL).to(device)

    return draw


def _indefinite(seed: int, device: torch.device) -> Tensor:
    """Return a symmetric matrix with eigenvalues of both signs, of modulus 0.5 to 3."""
    basis = torch.linalg.qr(_drawing(seed, device)(_N, _N)).Q
    values = torch.linspace(0.5, 3, _N, dtype=_REAL, device=device)
    signs = torch.tensor([1.0, -1.0] * (_N // 2), dtype=_REAL, device=device)
    matrix: Tensor = (basis * (signs * values)) @ basis.mT
    return matrix


def _positive(draw: Callable[..., Tensor]) -> Tensor:
    a: Tensor = draw(_N, _N + 3)
    matrix: Tensor = a @ a.mT / _N + 0.1 * torch.eye(_N, dtype=_REAL, device=a.device)
    return matrix


def _power(symmetric: Tensor, power: float) -> Tensor:
    """Return a power of the modulus of a matrix."""
    values, vectors = torch.linalg.eigh(symmetric)
    matrix: Tensor = (vectors * values.abs().pow(power)) @ vectors.mT
    return matrix


def _scaled_inverse(matrix: Tensor) -> Tensor:
    """Return the inverse by its largest entry: a nearly singular matrix has a large one."""
    inverse = torch.linalg.inv(matrix)
    scaled: Tensor = inverse / inverse.abs().max()
    return scaled


def _diagonal(draw: Callable[..., Tensor]) -> float:
    values = draw(_N)
    theta = torch.zeros_like(values).requires_grad_()
    estimate = estimate_hessian_diagonal(
        lambda: 0.5 * (values * theta.square()).sum(), [theta], probes=2
    )
    found = (estimate.diagonal[theta] - values, estimate.row_squares[theta] - values.square())
    return _largest(found)


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))


def _largest(errors: Sequence[Tensor]) -> float:
    return max(float(error.abs().max()) for error in errors)
