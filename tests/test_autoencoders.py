"""The autoencoder problems, and K-BFGS on a small one."""

import pytest
import torch
from experiments.problems.autoencoders import (
    CURVES_SIZES,
    FACES_SIZES,
    MNIST_SIZES,
    Autoencoder,
    curves,
    half_squares,
    mean_loss,
    pixel_entropy,
    pixel_error,
    shuffled_batches,
    smooth_fields,
)
from torch import nn

from psgd_optim.peers import KBFGS, KFAC, LimitedMemory
from psgd_optim.peers.likelihoods import bernoulli
from psgd_optim.tools.stepping import take_step


@pytest.mark.parametrize(
    ("sizes", "count"),
    [(MNIST_SIZES, 2_837_314), (FACES_SIZES, 7_537_655), (CURVES_SIZES, 842_340)],
)
def test_models_have_the_papers_sizes_and_a_linear_code(sizes, count):
    with torch.device("meta"):
        model = Autoencoder(sizes)
    assert sum(p.numel() for p in model.parameters()) == count
    layers = list(model)
    code = next(i for i, x in enumerate(layers) if getattr(x, "out_features", 0) == min(sizes))
    assert isinstance(layers[code + 1], nn.Linear) and isinstance(layers[-1], nn.Linear)
    assert sum(isinstance(x, nn.ReLU) for x in layers) == len(sizes) - 3


def test_losses_are_sums_over_pixels_and_means_over_images():
    z, x = torch.tensor([[0.0, 2.0], [-1.0, 1.0]]), torch.tensor([[0.5, 1.0], [0.0, 0.25]])
    p = z.sigmoid()
    wanted = -(x * p.log() + (1 - x) * (1 - p).log()).sum() / 2
    torch.testing.assert_close(pixel_entropy(z, x), wanted)
    torch.testing.assert_close(half_squares(z, x), torch.tensor((0.25 + 1 + 1 + 0.5625) / 4))


def test_reported_figures_do_not_depend_on_parts():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 3), torch.rand(1500, 3)
    penalty = 0.5 * 0.1 * sum(float(p.square().sum().detach()) for p in model.parameters())
    wanted = float(pixel_entropy(model(x), x).detach()) + penalty
    assert mean_loss(model, x, pixel_entropy, 0.1) == pytest.approx(wanted, rel=1e-5)
    errors = (model(x).sigmoid() - x).square().mean(), (model(x) - x).square().mean()
    assert pixel_error(model, x, pixel_entropy) == pytest.approx(float(errors[0].detach()))
    assert pixel_error(model, x, half_squares) == pytest.approx(float(errors[1].detach()))


def test_an_epoch_sees_every_image_once_in_an_order_of_its_own():
    images, generator = torch.arange(10.0)[:, None], torch.Generator().manual_seed(0)
    first, second = (torch.cat(list(shuffled_batches(images, 5, generator))) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort(dim=0).values, images)
    assert len(list(shuffled_batches(images, 4, generator))) == 2


def test_curves_are_strokes_that_a_seed_repeats():
    x = curves(300, 1)
    assert x.shape == (300, 784) and x.min() >= 0 and 0.9 < x.max() <= 1
    assert torch.equal(x, curves(300, 1)) and not torch.equal(x, curves(300, 2))
    assert 0.03 < x.mean() < 0.05  # measured when the recipe was made: 0.039
    assert (x < 0.05).float().mean() > 0.88


def test_a_curve_is_bright_at_its_points_and_nowhere_far_away():
    control = 3 + 22 * torch.rand(1, 3, 2, generator=torch.Generator().manual_seed(4))
    t = torch.linspace(0, 1, 64)[:, None]
    along = (1 - t) ** 2 * control[0, 0] + 2 * t * (1 - t) * control[0, 1] + t**2 * control[0, 2]
    image, grid = (
        curves(1, 4).view(28, 28),
        torch.cartesian_prod(torch.arange(28), torch.arange(28)),
    )
    nearest = torch.cdist(grid.float(), along).amin(dim=1)
    wanted = torch.exp(-nearest.square() / (2 * 0.7**2)).view(28, 28)
    torch.testing.assert_close(image, wanted, rtol=0, atol=1e-3)


def test_fields_are_smooth_and_standardised():
    x = smooth_fields(50, 0)
    assert x.shape == (50, 625)
    torch.testing.assert_close(x.mean(dim=1), torch.zeros(50), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.var(dim=1, correction=0), torch.ones(50))
    assert x.view(50, 25, 25).diff(dim=1).square().mean() < 0.1


def test_kronecker_methods_pass_momentum_sgd_on_small_curves():
    images = curves(600, 0)

    def train(make):
        torch.manual_seed(0)
        model = Autoencoder((784, 50, 6, 50, 784))
        optimizer, generator = make(model), torch.Generator().manual_seed(0)
        for _ in range(6):
            for x in shuffled_batches(images, 100, generator):
                take_step(optimizer, model.parameters(), lambda x=x: pixel_entropy(model(x), x), 0)
        return mean_loss(model, images, pixel_entropy)

    sgd = train(lambda m: torch.optim.SGD(m.parameters(), 0.03, momentum=0.9, dampening=0.9))
    assert train(lambda m: KBFGS(m, 0.3, damping=0.3)) < sgd
    kept = LimitedMemory(20)
    assert train(lambda m: KBFGS(m, 0.3, damping=0.3, inverse=kept)) < sgd
    assert train(lambda m: KFAC(m, 1.0, damping=3.0, sampled_loss=bernoulli)) < sgd
