import pytest
import torch

from psgd_optim.clipping import (
    Clip,
    ClipElement,
    ClipNorm,
    ClipRMS,
    Limit,
    MatchRMS,
    TrustRegion,
)
from psgd_optim.updates import Update


def updates(scale: float, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [scale * torch.randn(2, *s, generator=rng, dtype=dtype) for s in ((4, 3), (5,))]


def clip(kind: Clip, stacks: list[torch.Tensor]) -> None:
    kind.clip_([Update(x) for x in stacks])


def rms(x: torch.Tensor) -> torch.Tensor:
    return x.abs().square().flatten(1).mean(dim=1).sqrt()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_rms_limits_each_parameter_on_its_own(dtype: torch.dtype) -> None:
    clipped = updates(5.0, dtype)
    clipped[0][0] *= 1e-3  # below the limit: must stay
    before = [x.clone() for x in clipped]
    clip(ClipRMS(1.1), clipped)
    torch.testing.assert_close(clipped[0][0], before[0][0], rtol=0, atol=0)
    torch.testing.assert_close(rms(clipped[1]), torch.full((2,), 1.1, dtype=torch.float64))
    torch.testing.assert_close(clipped[1] / rms(clipped[1])[:, None],
                               before[1] / rms(before[1])[:, None])  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_element_limits_the_modulus_and_keeps_the_phase(dtype: torch.dtype) -> None:
    clipped, before = updates(3.0, dtype), updates(3.0, dtype)
    clip(ClipElement(2.0), clipped)
    for new, old in zip(clipped, before, strict=True):
        torch.testing.assert_close(new.abs(), old.abs().clamp(max=2.0))
        torch.testing.assert_close(new / new.abs(), old / old.abs())


def test_norm_limits_all_parameters_together() -> None:
    clipped, before = updates(3.0), updates(3.0)
    clip(ClipNorm(2.0), clipped)
    joint = torch.cat([x.flatten() for x in clipped]).norm()
    torch.testing.assert_close(joint, torch.tensor(2.0, dtype=torch.float64))
    ratios = [(new / old).mean() for new, old in zip(clipped, before, strict=True)]
    torch.testing.assert_close(ratios[0], ratios[1])


@pytest.mark.parametrize("kind", [ClipRMS, ClipElement, ClipNorm])
def test_small_and_zero_updates_are_left_alone(kind: type[Limit]) -> None:
    for scale in (1e-3, 0.0):
        clipped = updates(scale)
        clip(kind(1.0), clipped)
        torch.testing.assert_close(clipped, updates(scale), rtol=0, atol=0)
    clip(kind(1.0), [])


@pytest.mark.parametrize("kind", [ClipRMS, ClipElement, ClipNorm, TrustRegion])
@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_limits_not_above_zero_are_refused(kind: type[Limit], limit: float) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__} got the limit"):
        kind(limit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(20))
def test_p19_a_step_is_never_longer_than_lr_times_the_limit(dtype: torch.dtype, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    size = 10 ** (6 * torch.rand(3, generator=rng) - 3)
    clipped = [
        (s * torch.randn(*shape, generator=rng) / torch.rand(*shape, generator=rng)).to(dtype)
        for s, shape in zip(size.tolist(), [(2, 4, 3), (1, 7), (3, 1)], strict=True)
    ]
    before = [x.clone() for x in clipped]
    lr, limit = 0.03, 1.7
    clip(ClipNorm(limit), clipped)
    change = lr * torch.cat([x.flatten() for x in clipped]).double().norm()
    assert change <= lr * limit * (1 + 4 * torch.finfo(dtype).eps)  # rounding of the factor
    joint = torch.cat([x.flatten() for x in before]).double().norm()
    for new, old in zip(clipped, before, strict=True):
        expected = old if joint <= limit else old * (limit / joint).to(dtype)
        torch.testing.assert_close(new, expected)


def test_p19_the_limit_acts_in_place_and_is_no_op_up_to_the_limit() -> None:
    x = torch.tensor([[3.0, 4.0]])
    storage = x.data_ptr()
    clip(ClipNorm(5.0), [x])  # exactly at the limit
    assert x.tolist() == [[3.0, 4.0]]
    clip(ClipNorm(2.5), [x])
    assert x.tolist() == [[1.5, 2.0]]
    assert x.data_ptr() == storage
    zero = torch.zeros(2, 3)
    clip(ClipNorm(1e-30), [zero])  # 0 / 0 would be undefined
    assert not zero.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1.0, 1e30])
def test_match_rms_gives_every_parameter_the_same_size(dtype: torch.dtype, scale: float) -> None:
    new, old = updates(1.0, dtype), updates(1.0, dtype)
    for x in new:
        x.mul_(scale)
    clip(MatchRMS(0.3), new)
    # 1e-40 is a subnormal number of single precision: it has 16 bits left.
    rtol = 1e-3 if scale == 1e-40 and dtype == torch.float32 else 1e-6
    for x, y in zip(new, old, strict=True):
        torch.testing.assert_close(rms(x), torch.full_like(rms(x), 0.3), rtol=rtol, atol=0)
        torch.testing.assert_close(
            x, 0.3 * y / rms(y).view(-1, *(1,) * (y.ndim - 1)), rtol=rtol, atol=rtol
        )


def test_match_rms_leaves_zero_updates_zero_and_sees_each_row_alone() -> None:
    x = torch.zeros(3, 5)
    x[1, 2] = -1e-20
    storage = x.data_ptr()
    clip(MatchRMS(), [x])
    assert not x[0].any() and not x[2].any()
    assert x[1].tolist() == pytest.approx([0, 0, -0.2 * 5**0.5, 0, 0])
    assert x.data_ptr() == storage
    clip(MatchRMS(), [])


@pytest.mark.parametrize("shape", [(12, 4), (4, 12)])
def test_match_rms_is_muons_rule_on_an_orthogonal_update(shape: tuple[int, int]) -> None:
    rng = torch.Generator().manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=rng, dtype=torch.float64),
                               full_matrices=False)  # fmt: skip
    update = (u @ v)[None].clone()
    clip(MatchRMS(), [update])
    torch.testing.assert_close(update[0], 0.2 * max(shape) ** 0.5 * (u @ v))


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan")])
def test_targets_not_above_zero_are_refused(target: float) -> None:
    with pytest.raises(ValueError, match="MatchRMS got the target"):
        MatchRMS(target)


def test_a_scale_is_an_entry_of_the_clip_sequence() -> None:
    for kind in (MatchRMS, ClipNorm):
        assert issubclass(kind, Clip)
    assert not issubclass(MatchRMS, Limit)
    x = torch.full((1, 4), 7.0)
    for one in (ClipElement(2.0), MatchRMS(0.2)):
        clip(one, [x])
    torch.testing.assert_close(x, torch.full((1, 4), 0.2))


def measured(scale: float, dtype: torch.dtype = torch.float64) -> list[Update]:
    """Return updates `u = P m` with `P = 4 I`: `m^T u = |u|^2 / 4`."""
    return [Update(x, lengths=x.flatten(1).norm(dim=1) / 2) for x in updates(scale, dtype)]


def moved(updated: list[Update]) -> float:
    """Return `u^T P^-1 u / 2` for the same."""
    return sum(float(update.rows.abs().square().sum()) for update in updated) / 8


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("radius", [1e-12, 0.3])
def test_trust_region_moves_the_model_by_its_radius(dtype: torch.dtype, radius: float) -> None:
    changed, before = measured(3.0, dtype), updates(3.0, dtype)
    TrustRegion(radius).clip_(changed)
    assert moved(changed) == pytest.approx(radius, rel=1e-12)
    ratios = [(new.rows / old).flatten() for new, old in zip(changed, before, strict=True)]
    torch.testing.assert_close(torch.cat(ratios), ratios[0][:1].expand(sum(map(len, ratios))))
    assert sum(float(x.lengths().square().sum()) for x in changed) == pytest.approx(2 * radius)


def test_trust_region_leaves_alone_what_is_inside_and_zeros() -> None:
    for scale in (1e-3, 0.0):
        changed = measured(scale)
        TrustRegion(1.0).clip_(changed)
        for new, old in zip(changed, updates(scale), strict=True):
            torch.testing.assert_close(new.rows, old, rtol=0, atol=0)
    TrustRegion(1.0).clip_([])


def test_trust_region_knows_of_clips_before_it() -> None:
    changed = measured(3.0)
    for one in (ClipRMS(0.5), ClipNorm(1.0), TrustRegion(1e-3)):
        one.clip_(changed)
    assert moved(changed) == pytest.approx(1e-3, rel=1e-12)


def test_trust_region_refuses_updates_that_nobody_has_measured() -> None:
    with pytest.raises(ValueError, match="needs_lengths = True"):
        clip(TrustRegion(1.0), updates(1.0))
