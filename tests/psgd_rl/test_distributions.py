"""Distributions over actions against torch.distributions."""

import numpy as np
import pytest
import torch
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal, kl_divergence

from psgd_rl.distributions import Categorical, CategoricalSampler, Gaussian, GaussianSampler


def gaussians(seed):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    log_std = torch.randn(4, generator=generator, dtype=torch.float64)
    ours = Gaussian(mean=mean, log_std=log_std)
    return ours, Independent(Normal(mean, log_std.exp()), 1)


def categoricals(seed):
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Categorical(logits=logits), TorchCategorical(logits=logits)


@pytest.mark.parametrize("make", [gaussians, categoricals])
def test_equals_torchs(make):
    torch.manual_seed(0)
    (old, old_peer), (new, new_peer) = make(0), make(1)
    action = old_peer.sample()
    near = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(new.log_probability(action), new_peer.log_prob(action), **near)
    entropy = new.entropy().expand(50)
    torch.testing.assert_close(entropy, new_peer.entropy(), **near)
    torch.testing.assert_close(old.kl(new), kl_divergence(old_peer, new_peer), **near)
    torch.testing.assert_close(old.kl(old), torch.zeros(50, dtype=torch.float64), **near)


@pytest.mark.parametrize(
    "sampler", [GaussianSampler(np.ones(3, np.float32)), CategoricalSampler(3)]
)
def test_noise_drawn_at_once_is_that_drawn_step_by_step(sampler):
    one, two = np.random.default_rng(0), np.random.default_rng(0)
    whole = sampler.noise(one, (5, 2))
    np.testing.assert_array_equal(whole, [sampler.noise(two, (2,)) for _ in range(5)])
    assert (whole.dtype, whole.shape) == (np.float32, (5, 2, 3))
