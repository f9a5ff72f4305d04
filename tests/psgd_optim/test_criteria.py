import pytest
import torch

from psgd_optim.criteria import GradientWhitening, MomentumWhitening, Whitening

GRAD, AVERAGE = torch.full((1, 5000), 2.0), torch.full((1, 5000), 3.0)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("kind", "expected"), [(GradientWhitening, GRAD), (MomentumWhitening, AVERAGE)]
)
def test_each_criterion_whitens_its_own_sample(
    kind: type[Whitening], expected: torch.Tensor
) -> None:
    probe = kind(damping=0.0).probe(GRAD, AVERAGE, rng(), needs_v=False)
    torch.testing.assert_close(probe.h, expected, rtol=0, atol=0)
    assert probe.v is None


def test_damping_is_noise_of_that_size_and_leaves_the_input_alone() -> None:
    grad = GRAD.clone()
    probe = GradientWhitening(damping=0.5).probe(grad, grad, rng(), needs_v=False)
    assert float((probe.h - GRAD).std()) == pytest.approx(0.5, rel=0.05)
    torch.testing.assert_close(grad, GRAD, rtol=0, atol=0)


def test_a_probe_vector_is_drawn_only_on_request_and_independent() -> None:
    probe = GradientWhitening(damping=1.0).probe(GRAD, GRAD, rng(), needs_v=True)
    assert probe.v is not None
    correlation = torch.corrcoef(torch.cat([probe.h - GRAD, probe.v]))[0, 1]
    assert abs(float(correlation)) < 0.05


def test_negative_damping_is_refused() -> None:
    with pytest.raises(ValueError, match="damping = -1"):
        GradientWhitening(damping=-1.0)
