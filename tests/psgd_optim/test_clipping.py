import pytest
import torch

from psgd_optim.clipping import Clip, ClipElement, ClipNorm, ClipRMS


def updates(scale: float, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [scale * torch.randn(2, *s, generator=rng, dtype=dtype) for s in ((4, 3), (5,))]


def rms(x: torch.Tensor) -> torch.Tensor:
    return x.abs().square().flatten(1).mean(dim=1).sqrt()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_rms_limits_each_parameter_on_its_own(dtype: torch.dtype) -> None:
    clipped = updates(5.0, dtype)
    clipped[0][0] *= 1e-3  # below the limit: must stay
    before = [x.clone() for x in clipped]
    ClipRMS(1.1).clip_(clipped)
    torch.testing.assert_close(clipped[0][0], before[0][0], rtol=0, atol=0)
    torch.testing.assert_close(rms(clipped[1]), torch.full((2,), 1.1, dtype=torch.float64))
    torch.testing.assert_close(clipped[1] / rms(clipped[1])[:, None],
                               before[1] / rms(before[1])[:, None])  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_element_limits_the_modulus_and_keeps_the_phase(dtype: torch.dtype) -> None:
    clipped, before = updates(3.0, dtype), updates(3.0, dtype)
    ClipElement(2.0).clip_(clipped)
    for new, old in zip(clipped, before, strict=True):
        torch.testing.assert_close(new.abs(), old.abs().clamp(max=2.0))
        torch.testing.assert_close(new / new.abs(), old / old.abs())


def test_norm_limits_all_parameters_together() -> None:
    clipped, before = updates(3.0), updates(3.0)
    ClipNorm(2.0).clip_(clipped)
    joint = torch.cat([x.flatten() for x in clipped]).norm()
    torch.testing.assert_close(joint, torch.tensor(2.0, dtype=torch.float64))
    ratios = [(new / old).mean() for new, old in zip(clipped, before, strict=True)]
    torch.testing.assert_close(ratios[0], ratios[1])


@pytest.mark.parametrize("kind", [ClipRMS, ClipElement, ClipNorm])
def test_small_and_zero_updates_are_left_alone(kind: type[Clip]) -> None:
    for scale in (1e-3, 0.0):
        clipped = updates(scale)
        kind(1.0).clip_(clipped)
        torch.testing.assert_close(clipped, updates(scale), rtol=0, atol=0)
    kind(1.0).clip_([])


@pytest.mark.parametrize("kind", [ClipRMS, ClipElement, ClipNorm])
@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_limits_not_above_zero_are_refused(kind: type[Clip], limit: float) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__} got the limit"):
        kind(limit)
