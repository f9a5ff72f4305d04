"""The checks that every preconditioner form inherits: a form's test supplies a row of facts."""

import copy
import re

import pytest
import torch
from torch import Tensor

from psgd_optim.forms.base import Preconditioner
from psgd_optim.step_size import FrobeniusNorm, MaxEntry, Normaliser, SpectralNorm
from psgd_optim.types import Probe, State
from tests import reference

REAL, COMPLEX = torch.float64, torch.complex128
B = 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def is_bound(name: str) -> bool:
    """Whether a state entry is the divisor of a step, `l`, `l0` or `l_name`, not part of `Q`."""
    return re.fullmatch(r"l(\d+|_\w+)?", name) is not None


class FormContract:
    """Subclass as `TestSomeForm`; a new form writes the first members and inherits the rest."""

    shapes: tuple[tuple[int, ...], ...] = ((5, 4), (7,), (1,), (2, 1), (3, 4, 2))

    def make(self, **settings: object) -> Preconditioner:
        raise NotImplementedError

    def expected_update(
        self, state: State, row: int, probe: Probe, rate: float
    ) -> dict[str, Tensor | float]:
        """Return row `row` of the updated state from the slow reference."""
        raise NotImplementedError

    def expected_numel(self, shape: tuple[int, ...]) -> int:
        raise NotImplementedError

    # Relative error that a fit to pairs h = H v may leave, with a second-order normaliser and with
    # a first-order one, whose last steps do not vanish (design, section 9, protocol FIT).
    fit_error = 1e-6
    first_order_fit_error = 0.02
    # Largest rate at which heavy-tailed samples keep Q in its group.
    largest_rate = 0.9

    # Numbers of updates of a fit: enough for the errors above, few enough for the clock.
    newton_steps = 400
    first_order_steps = 400
    whitening_steps = 400
    wrong_steps = 100  # away from the fit, that errors grow without end

    # Shapes of the fits and of the heavy tails, for a form that is not for every order.
    fit_shapes: tuple[tuple[int, ...], ...] = ((4, 3), (5,))
    tail_shapes: tuple[tuple[int, ...], ...] = ((4, 3), (2, 2), (6,))

    # Covariances that the form can represent, so that a fit can be exact.
    def hessians(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        raise NotImplementedError

    def moments(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return second moments whose inverse root the form can represent."""
        return self.hessians(shape, dtype)

    @pytest.fixture
    def exact_norms(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("psgd_optim.linalg.spectral_norm_bound", reference.exact_norm)

    def stored(self, state: State) -> int:
        """Return how many numbers of `Q` a row holds, zeros outside of its pattern not counted."""
        return sum(x[0].numel() for name, x in state.items() if not is_bound(name))

    def fresh(self, shape: tuple[int, ...], dtype: torch.dtype = REAL, scale: float = 1.0) -> State:
        scales = torch.full((B,), scale, dtype=torch.float64)
        return self.make().init(shape, scales, torch.empty(0, dtype=dtype))

    def probe(
        self, shape: tuple[int, ...], dtype: torch.dtype = REAL, seed: int = 0, v: bool = False
    ) -> Probe:
        rng = generator(seed)
        h = torch.randn(B, *shape, generator=rng, dtype=dtype)
        return self.paired(h, rng, v)

    def paired(self, h: Tensor, rng: torch.Generator, v: bool = False) -> Probe:
        """Return the sample, with an independent probe where the form or the caller wants one."""
        if not (v or self.make().needs_v):
            return Probe(h=h)
        return Probe(h=h, v=torch.randn(h.shape, generator=rng, dtype=h.dtype))

    def moved(self, shape: tuple[int, ...], dtype: torch.dtype = REAL, times: int = 3) -> State:
        form, state = self.make(), self.fresh(shape, dtype, scale=1.5)
        for seed in range(times):
            draws = form.draw(state, generator(seed))
            form.update(state, self.probe(shape, dtype, seed), draws, 0.3)
        return state

    @pytest.mark.parametrize("dtype", [REAL, COMPLEX])
    def test_init_is_a_scaled_identity(self, dtype: torch.dtype) -> None:
        for shape in self.shapes:
            q = self.make().to_dense(self.fresh(shape, dtype, scale=2.5))
            eye = torch.eye(q.shape[-1], dtype=q.dtype).expand_as(q)
            torch.testing.assert_close(q, 2.5 * eye)

    @pytest.mark.parametrize("dtype", [REAL, COMPLEX])
    def test_apply_is_the_dense_product(self, dtype: torch.dtype) -> None:
        """P15."""
        for shape in self.shapes:
            state, x = self.moved(shape, dtype), self.probe(shape, dtype, 9).h
            q = self.make().to_dense(state).to(dtype)
            expected = (q.mH @ q @ x.flatten(1)[..., None])[..., 0].view_as(x)
            torch.testing.assert_close(self.make().apply(state, x), expected)

    @pytest.mark.parametrize("v", [False, True])
    @pytest.mark.parametrize("dtype", [REAL, COMPLEX])
    @pytest.mark.usefixtures("exact_norms")
    def test_update_equals_the_slow_reference(self, dtype: torch.dtype, v: bool) -> None:
        form = self.make()
        for shape in self.shapes:
            state, probe = self.moved(shape, dtype), self.probe(shape, dtype, 5, v)
            before = copy.deepcopy(state)
            form.update(state, probe, form.draw(state, generator()), 0.4)
            q = form.to_dense(state)
            for row in range(B):
                expected = self.expected_update(before, row, probe, 0.4)
                dense = expected.pop("dense")
                assert isinstance(dense, Tensor)
                torch.testing.assert_close(q[row], dense.to(q.dtype), rtol=1e-10, atol=1e-12)
                for name, value in expected.items():
                    wanted = torch.as_tensor(value, dtype=state[name].dtype)
                    torch.testing.assert_close(state[name][row], wanted, rtol=1e-12, atol=0)

    def test_rows_do_not_interact(self) -> None:
        form = self.make()
        for shape in self.shapes:
            state, probe = self.moved(shape), self.probe(shape, REAL, 5)
            draws = form.draw(state, generator())
            alone = [{name: x[i : i + 1].clone() for name, x in state.items()} for i in range(B)]
            form.update(state, probe, draws, 0.4)
            for i, single in enumerate(alone):
                own = {name: x[i : i + 1] for name, x in draws.items()}
                v = None if probe.v is None else probe.v[i : i + 1]
                form.update(single, Probe(h=probe.h[i : i + 1], v=v), own, 0.4)
                for name, x in single.items():
                    torch.testing.assert_close(x[0], state[name][i], rtol=1e-12, atol=1e-13)

    def test_arguments_are_left_unchanged(self) -> None:
        form = self.make()
        for shape in self.shapes:
            state, probe = self.moved(shape), self.probe(shape, REAL, 5, v=True)
            draws = form.draw(state, generator())
            before = copy.deepcopy((probe.h, probe.v, draws))
            form.update(state, probe, draws, 0.4)
            held = copy.deepcopy(state)
            form.apply(state, probe.h)
            torch.testing.assert_close((probe.h, probe.v, draws), before, rtol=0, atol=0)
            torch.testing.assert_close(state, held, rtol=0, atol=0)

    def test_equal_draws_give_equal_bits(self) -> None:
        first, second = self.moved((5, 4)), self.moved((5, 4))
        torch.testing.assert_close(first, second, rtol=0, atol=0)

    def test_rate_zero_keeps_the_preconditioner_of_its_row(self) -> None:
        form = self.make()
        for shape in self.shapes:
            state = self.moved(shape)
            x = self.probe(shape, REAL, 8).h
            before = form.apply(state, x)
            rates = torch.tensor([0.0, 0.4, 0.0], dtype=REAL)
            form.update(state, self.probe(shape), form.draw(state, generator()), rates)
            after = form.apply(state, x)
            torch.testing.assert_close(after[[0, 2]], before[[0, 2]], rtol=1e-3, atol=1e-4)
            assert not torch.allclose(after[1], before[1], rtol=1e-3, atol=1e-3)

    def newton_error(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        sign: float = 1.0,
        normaliser: Normaliser | None = None,
        steps: int | None = None,
    ) -> float:
        """Fit to pairs h = H v with an annealed step; return the largest error of P H = I."""
        form = self.make() if normaliser is None else self.make(normaliser=normaliser)
        state, rng = self.fresh(shape, dtype), generator(1)
        hessian = self.hessians(shape, dtype)
        steps = steps or self.newton_steps
        for t in range(steps):
            v = torch.randn(B, *shape, generator=rng, dtype=dtype)
            h = (hessian @ v.flatten(1)[..., None])[..., 0].view_as(v)
            second_order = normaliser is None
            fall = 1 - t / steps if second_order else 0.005 ** (t / steps)
            rate = sign * (self.largest_rate if second_order else 0.2) * fall
            form.update(state, Probe(h=h, v=v), form.draw(state, rng), rate)
        q = form.to_dense(state).to(dtype)
        product = q.mH @ q @ hessian
        eye = torch.eye(product.shape[-1], dtype=dtype)
        return float((product - eye).norm(dim=(1, 2)).max() / product.shape[-1] ** 0.5)

    @pytest.mark.parametrize("dtype", [REAL, COMPLEX])
    def test_newton_pairs_fit_the_inverse_hessian(self, dtype: torch.dtype) -> None:
        """P3 on a group: `P H = I` for pairs of a positive definite `H`."""
        # Complex arithmetic does not depend on the order of the tensor: one shape is enough.
        for shape in self.fit_shapes[: 1 if dtype is COMPLEX else None]:
            assert self.newton_error(shape, dtype) < self.fit_error

    @pytest.mark.parametrize("normaliser", [MaxEntry(), SpectralNorm(), FrobeniusNorm()])
    def test_first_order_normalisers_fit_too(self, normaliser: Normaliser) -> None:
        try:
            self.make(normaliser=normaliser)
        except ValueError as refusal:
            assert type(normaliser).__name__ in str(refusal)
            return
        steps = self.first_order_steps
        error = self.newton_error((4, 3), REAL, normaliser=normaliser, steps=steps)
        assert error < self.first_order_fit_error

    def test_the_fit_fails_when_the_step_has_the_wrong_sign(self) -> None:
        error = self.newton_error((4, 3), REAL, sign=-1.0, steps=self.wrong_steps)
        assert not error < 0.5  # nan counts as failed

    def test_whitening_fits_the_inverse_root_of_the_second_moment(self) -> None:
        """P5, of the mean of four repeats, which halves the noise of so few samples."""
        assert self.whitening_error(self.whitening_steps) < 0.08  # as the design bounds one

    def whitening_error(self, steps: int) -> float:
        """Fit to samples of a second moment; return the largest error of a mean P."""
        form, rng, repeats = self.make(), generator(2), 4
        state = form.init((4, 3), torch.ones(repeats * B), torch.empty(0, dtype=REAL))
        moments = self.moments((4, 3), REAL)
        roots = torch.linalg.cholesky(moments).repeat(repeats, 1, 1)
        for t in range(steps):
            z = torch.randn(repeats * B, 12, 1, generator=rng, dtype=REAL)
            probe = self.paired((roots @ z).view(-1, 4, 3), rng)
            form.update(state, probe, form.draw(state, rng), 0.6 * 0.003 ** (t / steps))
        q = form.to_dense(state)
        means = (q.mT @ q).view(repeats, B, 12, 12).mean(dim=0)
        wanted = torch.stack([reference.inverse_square_root(m) for m in moments])
        return float(((means - wanted).norm(dim=(1, 2)) / wanted.norm(dim=(1, 2))).max())

    def test_the_criterion_falls_on_a_fixed_quadratic(self) -> None:
        form, state, rng = self.make(), self.fresh((4, 3)), generator(3)
        hessian = self.hessians((4, 3), REAL)

        def criterion() -> Tensor:
            q = form.to_dense(state)
            p = q.mT @ q
            terms = hessian @ p @ hessian + torch.linalg.inv(p)
            return terms.diagonal(dim1=1, dim2=2).sum(dim=1)

        before = criterion()
        for _ in range(100):
            v = torch.randn(B, 4, 3, generator=rng, dtype=REAL)
            h = (hessian @ v.flatten(1)[..., None])[..., 0].view_as(v)
            form.update(state, Probe(h=h, v=v), form.draw(state, rng), 0.3)
        assert bool((criterion() < before).all())

    def test_heavy_tailed_samples_keep_q_in_its_group(self) -> None:
        """P9, with tails of the Cauchy distribution, and any scale."""
        form, rng = self.make(), generator(4)
        for shape in self.tail_shapes:
            state = self.fresh(shape)
            for _ in range(200):
                z = torch.randn(B, *shape, generator=rng, dtype=REAL)
                tail = torch.randn(B, *shape, generator=rng, dtype=REAL).abs() + 1e-3
                power = 10 ** (4 * torch.rand((), generator=rng, dtype=REAL) - 2)
                probe = self.paired(power * z / tail, rng)
                form.update(state, probe, form.draw(state, rng), self.largest_rate)
            dense = form.to_dense(state)
            assert bool(dense.isfinite().all())
            assert bool((torch.linalg.det(dense) > 0).all())

    def test_a_sample_too_large_to_square_leaves_its_row_alone(self) -> None:
        form = self.make()
        for shape in self.shapes:
            state = form.init(shape, torch.ones(B), torch.empty(0))
            probe = self.probe(shape, torch.float32)
            form.update(state, probe, form.draw(state, generator()), 0.3)
            before = copy.deepcopy(state)
            probe.h.mul_(3)  # an average of one sample twice would not move
            probe.h[1] = 1e30
            form.update(state, probe, form.draw(state, generator()), 0.3)
            assert all(bool(x.isfinite().all()) for x in state.values())
            q, old = form.to_dense(state), form.to_dense(before)
            torch.testing.assert_close(q[1], old[1])
            assert not torch.allclose(q[0], old[0], rtol=1e-3)

    def test_zero_samples_leave_finite_numbers(self) -> None:
        form = self.make()
        for shape in self.shapes:
            state = self.fresh(shape)
            nothing = torch.zeros(B, *shape, dtype=REAL)
            for probe in (self.paired(nothing, generator()), Probe(h=nothing, v=nothing)):
                form.update(state, probe, form.draw(state, generator()), self.largest_rate)
                assert all(bool(x.isfinite().all()) for x in state.values())

    def test_state_is_flat_with_a_leading_block_axis(self) -> None:
        for dtype in (torch.float32, torch.bfloat16, REAL):
            for shape in self.shapes:
                state = self.fresh(shape, dtype)
                wanted = torch.promote_types(dtype, torch.float32)
                assert all(type(x) is Tensor for x in state.values())
                assert all(x.shape[0] == B and x.is_contiguous() for x in state.values())
                assert {x.dtype for x in state.values()} == {wanted}

    def test_numel_is_what_is_stored(self) -> None:
        """P16."""
        for shape in self.shapes:
            stored = self.stored(self.fresh(shape))
            assert self.make().numel(shape) == stored == self.expected_numel(shape)

    def test_bfloat16_state_stays_bfloat16_and_follows_single_precision(self) -> None:
        coarse, fine = self.make(dtype=torch.bfloat16), self.make()
        like = torch.empty(0, dtype=torch.float32)
        ones = torch.ones(B)
        states = [form.init((5, 4), ones, like) for form in (coarse, fine)]
        for seed in range(20):
            probe = self.probe((5, 4), torch.float32, seed)
            for form, state in zip((coarse, fine), states, strict=True):
                form.update(state, probe, form.draw(state, generator(seed)), 0.3)
        for name, x in states[0].items():
            assert x.dtype == (torch.float32 if is_bound(name) else torch.bfloat16)
        x = self.probe((5, 4), torch.float32, 99).h
        applied = [form.apply(s, x) for form, s in zip((coarse, fine), states, strict=True)]
        assert applied[0].dtype == torch.float32
        # 20 updates, each rounded to 8 bits: 20 * 2^-9 * 2 factors * 2 (P is quadratic), about 16 %
        assert float((applied[0] - applied[1]).norm() / applied[1].norm()) < 0.16

    def test_update_and_apply_are_one_graph(self) -> None:
        torch.compiler.reset()  # graphs of other forms count against the limit of recompilations
        form, state = self.make(), self.moved((5, 4))
        eager = copy.deepcopy(state)
        probe, draws = self.probe((5, 4)), form.draw(state, generator())

        def step(state: State, probe: Probe, draws: State, rate: Tensor) -> Tensor:
            form.update(state, probe, draws, rate)
            return form.apply(state, probe.h)

        rate = torch.tensor(0.4, dtype=REAL)
        compiled = torch.compile(step, fullgraph=True, backend="eager")
        first, second = compiled(state, probe, draws, rate), step(eager, probe, draws, rate)
        torch.testing.assert_close((first, state), (second, eager), rtol=0, atol=0)
