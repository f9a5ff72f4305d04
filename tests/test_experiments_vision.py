"""The vision experiments: models, data, mini-batches, and what is measured beside training."""

import functools
import math

import pytest
import torch
from experiments.data import Labelled, cifar10, mnist
from experiments.experiment import Budget
from experiments.fit import fit
from experiments.measurement import Measurement
from experiments.methods import (
    KRON,
    SCALING,
    adam,
    annealed,
    cosine,
    low_rank,
    penalised,
    psgd,
    sgd,
)
from experiments.problem import Problem, generator
from experiments.problems.alexnet import EnergyNorm, alexnet
from experiments.problems.batches import Batches
from experiments.problems.cifar import conv_autoencoder, crop_and_flip, leaky_cnn, shift_and_zoom
from experiments.problems.confidence import Forgetting, entropy, margin, spearman
from experiments.problems.corruption import (
    blurred_until,
    class_pattern,
    imbalanced,
    noisy_labels,
    sieved_loss,
)
from experiments.problems.images import Classification, Reconstruction, Task, seeded
from experiments.problems.lenet import lenet5, nested_digits, tanh_cnn
from experiments.problems.logistic import LimitedMemoryBFGS, QuadraticLogits, halved, redraw
from experiments.problems.resnet import SoftLeakyReLU, resnet
from experiments.register import alexnet as alexnet_register
from experiments.register import cifar, digits, lenet_study, logistic
from experiments.register import resnet as resnet_register
from experiments.results import Results
from experiments.training import Method, Race

from psgd_optim.types import InputError

CPU = torch.device("cpu")
MODULES = (digits, cifar, alexnet_register, resnet_register, lenet_study, logistic)
EXPERIMENTS = [experiment for module in MODULES for experiment in module.EXPERIMENTS]


def numbers(model):
    return sum(p.numel() for p in model.parameters())


def made_up(count, edge=8, channels=1, seed=0):
    draw = generator(seed)
    images = torch.randint(256, (count, channels, edge, edge), generator=draw, dtype=torch.uint8)
    return Labelled(images, torch.randint(10, (count,), generator=draw))


@pytest.fixture
def real():
    """Load real images, or skip where they are not."""

    def load(source, part):
        try:
            return source(part)
        except InputError as error:
            pytest.skip(str(error))

    return load


@pytest.mark.parametrize(
    ("make", "shape", "count"),
    [
        (lenet5, (1, 28, 28), 44_426),
        (tanh_cnn, (1, 32, 32), 36_074),
        (leaky_cnn, (3, 32, 32), 418_858),
        (resnet, (3, 32, 32), 11_173_962),
        (functools.partial(QuadraticLogits, 784), (1, 28, 28), 6_154_400),
        (alexnet, (3, 227, 227), 62_378_344),
    ],
)
def test_classifiers_have_the_papers_numbers(make, shape, count):
    with torch.device("meta"):
        model = make()
        assert model(torch.empty(2, *shape)).shape[0] == 2
    assert numbers(model) == count


def test_autoencoder_has_the_papers_numbers():
    with torch.device("meta"):
        model = conv_autoencoder()
        assert model(torch.empty(2, 3, 32, 32)).shape == (2, 3, 32, 32)
    assert numbers(model) == 68_771


def test_matrices_have_the_papers_shapes():
    assert [tuple(p.shape) for p in lenet5().parameters()] == [
        (6, 26),
        (16, 151),
        (120, 257),
        (84, 121),
        (10, 85),
    ]
    with torch.device("meta"):
        shapes = [tuple(p.shape) for p in alexnet().parameters()]
    assert shapes[0] == (96, 11 * 11 * 3 + 1)
    assert shapes[4:] == [(256, 3457), (4096, 6 * 6 * 256 + 1), (4096, 4097), (1000, 4097)]
    assert sum(m + 2 * n - 1 for m, n in shapes) == alexnet_register.STATE
    assert sum(SCALING.numel(shape) for shape in shapes) == alexnet_register.STATE


def test_a_network_without_shortcuts_has_no_projections():
    with torch.device("meta"):
        with_them, without = resnet(), resnet(has_shortcuts=False)
    projections = sum(a * b + 2 * b for a, b in ((64, 128), (128, 256), (256, 512)))
    assert numbers(with_them) - numbers(without) == projections


def test_shortcuts_pass_the_input():
    with seeded(0):
        model = resnet(2, (1, 1)).eval()
    first = model[3]
    for p in first.body.parameters():
        torch.nn.init.zeros_(p)
    x = torch.rand(2, 2, 8, 8) + 0.1
    torch.testing.assert_close(first(x), x)


def test_soft_leaky_relu_has_two_slopes_and_a_second_derivative():
    x = torch.tensor([-2.0, -1e-3, 0.0, 1e-3, 3.0], dtype=torch.float64, requires_grad=True)
    y = SoftLeakyReLU()(x)
    torch.testing.assert_close(y[[0, 4]], x[[0, 4]] * x.new_tensor([0.02, 1.0]), atol=1e-6, rtol=0)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    torch.testing.assert_close(slope[2].item(), 0.51)
    (bend,) = torch.autograd.grad(slope.sum(), x)
    assert bend.isfinite().all()


def test_energy_norm_is_its_formula():
    x = torch.randn(2, 6, 3, 3, dtype=torch.float64)
    for image, found in zip(x, EnergyNorm()(x), strict=True):
        energy = sum(channel**2 for channel in image) / 6
        torch.testing.assert_close(found, image / (2 + 5e-4 * energy) ** 0.75)


def test_logits_are_those_of_outer_products():
    model = QuadraticLogits(6, classes=3).double()
    torch.nn.init.normal_(model.weight)
    x = torch.rand(5, 1, 2, 3, dtype=torch.float64)
    rows = [torch.cat([v, torch.outer(v, v).flatten()]) for v in x.flatten(1)]
    torch.testing.assert_close(model(x), torch.stack(rows) @ model.weight.T)


def test_bfgs_lowers_a_quadratic():
    class Bowl(Problem):
        def __init__(self):
            self.parameters = [torch.ones(4, requires_grad=True)]

        def loss(self, step):
            return (self.parameters[0] * torch.arange(1.0, 5)).square().sum()

        def evaluate(self):
            return {"loss": float(self.loss(0).detach())}

    problem = Bowl()
    method = Method(
        build=lambda p, lr, seed: LimitedMemoryBFGS(p.parameters, lr, max_iter=10), rates=(0.5,)
    )
    fit(problem, method, 4)
    assert problem.evaluate()["loss"] < 1e-4


def test_digits_have_their_shapes(real):
    train, test = real(mnist, "train"), real(mnist, "t10k")
    assert train.images.shape == (60000, 1, 28, 28)
    assert test.images.shape == (10000, 1, 28, 28)
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert train.labels.bincount().tolist()[:3] == [5923, 6742, 5958]


def test_small_photographs_have_their_shapes(real):
    test = real(cifar10, "test2k")
    assert test.images.shape == (2000, 3, 32, 32)
    assert test.images.dtype == torch.uint8
    assert test.labels[:5].tolist() == [3, 8, 8, 0, 6]


@pytest.mark.parametrize("source", [mnist, cifar10])
def test_missing_data_name_the_variable(source, monkeypatch, tmp_path):
    monkeypatch.setenv("PSGD_DATA", str(tmp_path))
    with pytest.raises(InputError, match="in the variable PSGD_DATA") as caught:
        source.__wrapped__("train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mnist/train-images-idx3-ubyte.gz"])
def test_damaged_data_are_refused(name, monkeypatch, tmp_path):
    monkeypatch.setenv("PSGD_DATA", str(tmp_path))
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(b"\x00\x00")
    with pytest.raises(InputError, match="give the original one"):
        mnist.__wrapped__("train")


def test_batches_cover_an_epoch_once():
    batches = Batches(10, 4, seed=3)
    assert batches.per_epoch == 3
    epochs = [[batches.indices(step) for step in range(first, first + 3)] for first in (0, 3)]
    for epoch in epochs:
        assert sorted(torch.cat(epoch).tolist()) == list(range(10))
    assert torch.cat(epochs[0]).tolist() != torch.cat(epochs[1]).tolist()
    again = Batches(10, 4, seed=3)
    assert again.indices(4).tolist() == epochs[1][1].tolist()
    assert again.indices(1).tolist() == epochs[0][1].tolist()
    with pytest.raises(InputError, match="give 1 or more"):
        Batches(0, 4, seed=0)


def test_a_step_has_one_loss_and_another_seed_another_one():
    def make(seed):
        with seeded(0):
            model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        # All images in every batch, so that nothing but the noise is another one.
        task = Task(train=made_up(20), test=made_up(5), batch_size=20, augment=redraw)
        return Classification(model, task, seed, CPU)

    problem, twin, other = make(1), make(1), make(2)
    first, second, again = (float(problem.loss(step).detach()) for step in (0, 1, 0))
    assert first == again
    assert abs(first - second) > 1e-4
    assert float(twin.loss(1).detach()) == second
    assert abs(float(other.loss(0).detach()) - first) > 1e-4


def test_figures_are_those_of_the_images():
    weight = torch.zeros(10, 4)
    weight[3, 0] = 1.0  # class 3 where the first pixel is white
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 10, bias=False))
    torch.nn.init.zeros_(model[1].weight)
    images = torch.tensor([[255, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.uint8).view(2, 1, 2, 2)
    data = Labelled(images, torch.tensor([3, 3]))
    problem = Classification(model, Task(train=data, test=data, batch_size=2), 0, CPU)
    with torch.no_grad():
        model[1].weight.copy_(weight)
    figures = problem.evaluate()
    assert figures["error"] == 50.0
    assert figures["distance"] == 1.0
    expected = (math.log(1 + 9 / math.e) + math.log(10)) / 2
    assert figures["loss"] == pytest.approx(expected)
    problem.penalty = 4.0
    assert problem.loss(0).item() == pytest.approx(expected + 2.0)


def test_reconstruction_is_a_mean_over_pixels():
    data = made_up(6, channels=3)
    problem = Reconstruction(
        torch.nn.Conv2d(3, 3, 1), Task(train=data, test=data, batch_size=6), 0, CPU
    )
    for p in problem.parameters:
        torch.nn.init.zeros_(p)
    expected = float((data.images.double() / 255).square().mean())
    figures = problem.evaluate()
    assert figures["loss"] == pytest.approx(expected, rel=1e-5)
    assert figures["test_loss"] == figures["loss"]
    assert float(problem.loss(0).detach()) == pytest.approx(expected, rel=1e-5)


def test_digits_are_nested_in_their_background():
    data = made_up(40, edge=28)
    task = nested_digits(data, data, 40)
    x = task.scale(data.images)
    assert x.shape == (40, 1, 32, 32)
    torch.testing.assert_close(x[:, :, 2:30, 2:30], data.images / 127.5 - 1)
    moved = task.augment(x, 0, generator(0))
    places = set()
    for image, original in zip(moved[:, 0], data.images[:, 0] / 127.5 - 1, strict=True):
        found = [
            (i, j)
            for i in range(5)
            for j in range(5)
            if torch.allclose(image[i : i + 28, j : j + 28], original)
        ]
        assert len(found) == 1
        places.update(found)
    assert {i for i, _ in places} == {j for _, j in places} == set(range(5))
    assert any(i != j for i, j in places)


def test_crops_are_windows_of_the_padded_image_mirrored_or_not():
    x = torch.rand(12, 2, 8, 8)
    moved = crop_and_flip(x, 0, generator(1))
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    mirrors = set()
    for image, around in zip(moved, padded, strict=True):
        windows = [around[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
        found = [
            mirrored
            for window in windows
            for mirrored in (False, True)
            if torch.equal(image, window.flip(2) if mirrored else window)
        ]
        assert len(found) == 1
        mirrors.update(found)
    assert mirrors == {False, True}


def test_zoom_keeps_the_shape_and_the_range():
    x = torch.rand(4, 3, 8, 8)
    y = shift_and_zoom(x, 0, generator(0))
    assert y.shape == x.shape
    assert x.amin() <= y.amin() <= y.amax() <= x.amax()
    assert not torch.allclose(x, y)


def test_halved_images_are_means_of_four_pixels():
    images = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    expected = torch.tensor([[2.5, 4.5], [10.5, 12.5]]) / 255
    torch.testing.assert_close(halved(images)[0, 0], expected)


def test_redrawn_pixels_have_their_values_as_means():
    x = torch.full((20000,), 0.3)
    drawn = redraw(x, 0, generator(0))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert float(drawn.mean()) == pytest.approx(0.3, abs=0.015)


def test_half_of_the_classes_are_rare():
    data = Labelled(made_up(200).images, torch.arange(200) % 10)
    counts = imbalanced(data, seed=0).labels.bincount(minlength=10)
    assert sorted(counts.tolist()) == [2] * 5 + [20] * 5


def test_wrong_labels_are_as_many_as_asked_for():
    data = made_up(4000)
    noisy = noisy_labels(data, seed=0)
    assert float((noisy.labels != data.labels).float().mean()) == pytest.approx(0.6, abs=0.03)
    assert torch.equal(noisy.labels, noisy_labels(data, seed=0).labels)
    # Images decide: two copies of an image that lose their label get nearly always the same one.
    image = data.images[:1].expand(500, -1, -1, -1)
    wrong = noisy_labels(Labelled(image, torch.zeros(500, dtype=torch.long)), 0).labels
    counts = wrong[wrong != 0].bincount()
    assert counts.max() > 0.9 * counts.sum()


def test_a_pattern_is_one_per_class_and_faint():
    flat = Labelled(torch.full((20, 1, 4, 4), 128, dtype=torch.uint8), torch.arange(20) % 10)
    added = class_pattern(flat, 0, size=8.0).images.int() - 128
    assert set(added.unique().tolist()) == {-8, 8}
    assert torch.equal(added[:10], added[10:])
    assert not torch.equal(added[0], added[1])


def test_blur_ends():
    x = torch.rand(2, 3, 16, 16)
    change = blurred_until(3, lambda images, step, noise: images)
    assert torch.equal(change(x, 3, generator(0)), x)
    blurred = change(x, 2, generator(0))
    assert blurred.shape == x.shape
    assert blurred.var() < 0.3 * x.var()


def test_sieve_leaves_out_what_is_unlikely():
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1])  # the second one looks mislabelled
    prior = torch.tensor([0.25, 0.75], dtype=torch.float64)
    loss = sieved_loss(prior, (10, 20), sieve=15, strength=2.0)
    good, bad = (float(x) for x in -logits[0].log_softmax(0))
    usual = 0.25 * good + 0.75 * bad
    assert float(loss(logits, labels, 5)) == pytest.approx((good + bad) / 2)
    assert float(loss(logits, labels, 14)) == pytest.approx((good + bad) / 2 - 0.8 * usual)
    assert float(loss(logits, labels, 30)) == pytest.approx(good - 2 * usual)  # of the one kept


def test_confidence_is_rewarded_up_to_the_floor():
    loss = sieved_loss(torch.full((2,), 0.5), (0, 1), sieve=10)
    sure = torch.tensor([[1e6, 0.0], [1e6, 0.0]])
    # All of class 0, both labels too: nothing for the label, and twice the mean of 0 and -log 1e-8.
    assert float(loss(sure, torch.tensor([0, 0]), 5)) == pytest.approx(math.log(1e-8), rel=1e-5)
    assert float(loss(sure, torch.tensor([1, 1]), 20)) == 0.0  # nothing is left of the batch


def test_entropy_and_margin_of_known_softmaxes():
    logits = torch.tensor([[0.0, 0, 0, 0], [math.log(3.0), 0, -50, -50]])
    expected = [math.log(4), -0.75 * math.log(0.75) - 0.25 * math.log(0.25)]
    torch.testing.assert_close(entropy(logits), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(margin(logits), torch.tensor([0.0, 0.5], dtype=torch.float64))
    assert entropy(torch.tensor([[1e4, 0.0]])).item() == 0.0


def test_forgetting_counts_falls_from_right_to_wrong():
    seen = Forgetting(4)
    for right in ([1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 0, 0], [0, 1, 0, 1]):
        seen.see(torch.tensor(right, dtype=torch.bool))
    assert seen.events().tolist() == [2, 0, 0, 1]
    assert seen.scores().tolist() == [2, 0, 3, 1]  # the third one was never learned


def test_rank_correlation_of_known_samples():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert spearman(x, x.exp()) == pytest.approx(1.0)
    assert spearman(x, -x) == pytest.approx(-1.0)
    # Ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3: 4.5 / sqrt(4.5 * 5).
    assert spearman(torch.tensor([1, 5, 5, 9]), x) == pytest.approx(4.5 / math.sqrt(22.5))
    assert spearman(x, torch.ones(4)) == 0.0
    with pytest.raises(InputError, match="give"):
        spearman(x, x[:2])


@pytest.mark.parametrize(
    "build",
    [
        penalised(psgd(KRON, 0.01), 1e-3),
        psgd(low_rank(2), annealed(0.1, 0.01, 5), init_scale=None, momentum=0.9),
        sgd(0.9),
        adam,
    ],
)
def test_methods_lower_the_loss_of_a_small_problem(build):
    data = made_up(16)
    with seeded(0):
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10, bias=False))
    problem = Classification(model, Task(train=data, test=data, batch_size=16), 0, CPU)
    before = problem.evaluate()["loss"]
    counted = []
    fit(problem, Method(build=build, rates=(0.1,), schedule=cosine), 10, 0, counted.append)
    assert problem.evaluate()["loss"] < 0.9 * before
    assert counted == list(range(1, 11))


def test_a_penalty_is_for_classifications_alone():
    problem = Reconstruction(
        torch.nn.Conv2d(1, 1, 1), Task(train=made_up(2), test=made_up(2), batch_size=2), 0, CPU
    )
    with pytest.raises(InputError, match="leave it away"):
        penalised(sgd(), 1e-3)(problem, 0.1, 0)


@pytest.mark.slow
def test_a_small_alexnet_learns():
    assert alexnet_register.fall(0, CPU)["share"] < 0.9


def test_the_error_before_a_change_is_not_the_last_one(real, monkeypatch):
    test = real(cifar10, "test2k").take(slice(1000))
    real(cifar10, "train10k")
    answers = iter((3, 5))

    @torch.no_grad()
    def always_answers_one_class(problem, method, steps, seed):
        weight, bias = problem.parameters[-2:]
        weight.zero_()
        bias.copy_(10.0 * (torch.arange(10) == next(answers)))

    monkeypatch.setattr(resnet_register, "fit", always_answers_one_class)
    figures = resnet_register.one_after_the_other("SGD", "SGD", 0, CPU)
    counts = test.labels.bincount()
    assert counts[3] != counts[5]
    assert figures["error_between"] == pytest.approx(100 - float(counts[3]) / 10)
    assert figures["error"] == pytest.approx(100 - float(counts[5]) / 10)
    assert figures["loss_before"] == pytest.approx(math.log(10), rel=0.1)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.id)
def test_registered_experiments_can_be_asked_for_their_runs(experiment):
    assert experiment.budgets or experiment.obstacle
    for budget in experiment.budgets.values():
        assert isinstance(budget, Budget)
        assert isinstance(budget.study, Race | Measurement)
        study = budget.study
        keys = study.next_keys(Results([], study.target))
        assert {key.method for key in keys} == set(study.labels)
        assert all(key.rate is None or key.rate in study.rates_of(key.method) for key in keys)
        assert 0 < len(set(keys)) == len(keys) <= study.total
        assert budget.criteria
