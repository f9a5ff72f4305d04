"""S1-7, S3-2 to S3-5: sigmoid autoencoders, with ESGD and with Kronecker products."""

import functools
import math
from collections.abc import Sequence

import torch

from experiments.criteria import at_least, below
from experiments.experiment import Budget, Criterion, Experiment, Finding
from experiments.measurement import Measurement
from experiments.methods import KRON, adam, psgd, sgd
from experiments.problems.autoencoders import (
    CURVES_SIZES,
    MNIST_SIZES,
    THIN_MNIST_SIZES,
    THIN_SIZES,
    half_squares,
)
from experiments.problems.autoencoding import (
    Autoencoding,
    Recipe,
    SigmoidAutoencoder,
    curves_images,
    mnist_images,
    sigmoid_pixels,
)
from experiments.problems.diagonals import Looks, distances, dominance
from experiments.register.autoencoder_methods import OUR_CURVES, esgd, jacobi, plain_rmsprop
from experiments.results import Results, value_of
from experiments.training import Method, Race
from psgd_optim.clipping import ClipNorm

_BATCH = 200
_DAMPING = 1e-4
_COLUMNS = {"loss": "training cross entropy", "test_error": "test error, squares per pixel"}
_SGD, _RMSPROP, _JACOBI, _ESGD = "SGD", "RMSProp", "Jacobi SGD", "ESGD"
_NETWORK = (
    "sigmoid units with a linear code and logits as output (the paper leaves both open), 15 "
    "incoming weights from N(0, 1), batches of 200"
)
_RATES = (
    "Damping 1e-4, the largest that the paper tries, as ESGD is unsteady with 1e-5; of the "
    "paper's random search, rates of .01, .03 and .1 for SGD and ESGD, and of "
    "1e-4, 3e-4 and 1e-3 for RMSProp (torch's, decay .9) and Jacobi"
)


def make_curves(sizes: Sequence[int], count: int, seed: int, device: torch.device) -> Autoencoding:
    """Draw S3's autoencoder of curves."""
    return Autoencoding(_recipe(sizes), curves_images(count), seed, device)


def make_digits(sizes: Sequence[int], count: int, seed: int, device: torch.device) -> Autoencoding:
    """Draw S3's autoencoder of digits."""
    return Autoencoding(_recipe(sizes), mnist_images(count), seed, device)


def _recipe(sizes: Sequence[int]) -> Recipe:
    return Recipe(sizes=sizes, batch_size=_BATCH, network=SigmoidAutoencoder, decay=0.0)


def _methods(few: bool) -> dict[str, Method]:
    """Return the four methods with all rates, or with two each."""
    count = 2 if few else 3
    large, small = (0.03, 0.1, 0.01)[:count], (1e-3, 3e-4, 1e-4)[:count]
    return {
        _SGD: Method(build=sgd(), rates=large),
        _RMSPROP: plain_rmsprop(_DAMPING, small),
        _JACOBI: jacobi(_DAMPING, small),
        _ESGD: esgd(_DAMPING, large),
    }


def _race(
    make: functools.partial[Autoencoding], steps: int, epoch: int, *, few: bool = False
) -> Race:
    def without_case(case: str, seed: int, device: torch.device) -> Autoencoding:
        return make(seed, device)

    return Race(
        make=without_case,
        methods=_methods(few),
        steps=steps,
        seeds=1,
        target="loss",
        columns=_COLUMNS,
        evaluate_every=epoch,
    )


_LOWEST = tuple(below(_ESGD, name, "loss") for name in (_SGD, _RMSPROP, _JACOBI))


def _faster(method: str, rival: str, times: float) -> Criterion:
    """Return that a method gets to a rival's last loss in so many times fewer steps."""

    def check(results: Results) -> Finding:
        theirs, ours = (results.of(name)[0] for name in (rival, method))
        wanted = value_of(theirs, "loss")
        needed = next((step for step, loss in ours.outcome.curve if loss <= wanted), math.inf)
        told = f"{needed:g} steps to the loss after {theirs.key.steps}"
        return Finding(times * needed <= theirs.key.steps, told)

    return Criterion(f"{method} is {times:g} times as fast as {rival}", check)


def _closest(method: str) -> Criterion:
    def check(results: Results) -> Finding:
        near, far = (
            results.mean(method, name) for name in ("rmsprop_equilibration", "equilibration_jacobi")
        )
        return Finding(near < far, f"{near:.3g} against {far:.3g}")

    return Criterion("RMSProp is closer to equilibration than Jacobi is, over all looks", check)


_DISTANCES = {
    "rmsprop_equilibration": "RMSProp, equilibration",
    "rmsprop_jacobi": "RMSProp, Jacobi",
    "equilibration_jacobi": "equilibration, Jacobi",
}
_DOMINANCE = {
    "dominance": "dominance, %",
    "independent": "of independent entries, %",
    "loss": "training cross entropy",
}
_TRAINED = _methods(few=True)


def _distance_study(
    make: functools.partial[Autoencoding], looks: Looks, seeds: int = 1
) -> Measurement:
    function = functools.partial(distances, make, _TRAINED[_RMSPROP], looks)
    return Measurement(functions={_RMSPROP: function}, columns=_DISTANCES, seeds=seeds)


def _dominance_study(make: functools.partial[Autoencoding], looks: Looks) -> Measurement:
    functions = {
        name: functools.partial(dominance, make, method, looks) for name, method in _TRAINED.items()
    }
    return Measurement(functions=functions, columns=_DOMINANCE)


_DOMINANT = (
    *(at_least(name, "ratio", 10.0) for name in _TRAINED),
    *(below(_SGD, name, "dominance") for name in (_RMSPROP, _JACOBI, _ESGD)),
)

_KFAC_SIZES = (784, 1024, 1024, 1024, 196, 1024, 1024, 1024, 784)
_KFAC_THIN = (784, 128, 128, 32, 128, 128, 784)


def _make_pixels(
    sizes: Sequence[int], count: int, batch: int, case: str, seed: int, device: torch.device
) -> Autoencoding:
    recipe = Recipe(
        sizes=sizes, batch_size=batch, network=sigmoid_pixels, loss=half_squares, decay=0.0
    )
    return Autoencoding(recipe, mnist_images(count), seed, device)


def _pixels_race(make: functools.partial[Autoencoding], steps: int) -> Race:
    clip = (ClipNorm(100.0),)
    return Race(
        make=make,
        methods={
            "SGD": Method(build=sgd(), rates=(1.0, 3.0, 10.0)),
            "Adam": Method(build=adam, rates=(1e-3, 1e-2)),
            "PSGD Kronecker": Method(
                build=psgd(KRON, 0.1, init_scale=0.1, clip=clip), rates=(0.1, 0.2)
            ),
        },
        steps=steps,
        seeds=1,
        target="loss",
        columns={"loss": "training loss", "test_loss": "test loss"},
        evaluate_every=max(steps // 10, 1),
    )


_FIRST_ORDER_POOR = tuple(below("PSGD Kronecker", name, "loss") for name in ("SGD", "Adam"))

_S1_7 = Experiment(
    id="S1-7",
    title="The autoencoder of the comparison with KFAC",
    claim="First-order methods are poor; published as plots alone.",
    data=("mnist",),
    budgets={
        "quick": Budget(
            setting="Digits, 784-128-128-32-128-128-784 instead of 784-1024-1024-1024-196-...; "
            "3,000 images in batches of 500 instead of 10,000 in batches of 1,000, 300 steps "
            "instead of 5,000. With updates clipped at a root mean square of 0.1 instead of the "
            "published norm of 100, the rate of 0.1 ended at 24.86 after 500.",
            minutes=2.0,
            study=_pixels_race(functools.partial(_make_pixels, _KFAC_THIN, 3000, 500), 300),
            criteria=_FIRST_ORDER_POOR,
        ),
        "full": Budget(
            setting="The published network, first 10,000 images in batches of 1,000; 500 of 5,000 "
            "steps; test images are MNIST's own.",
            minutes=60.0,
            study=_pixels_race(functools.partial(_make_pixels, _KFAC_SIZES, 10000, 1000), 500),
            criteria=_FIRST_ORDER_POOR,
        ),
    },
)

_S3_2 = Experiment(
    id="S3-2",
    title="How alike preconditioners are",
    claim="Cosine distances on CURVES: RMSProp to equilibration about .05, both to Jacobi .2.",
    budgets={
        "quick": Budget(
            setting=f"784-100-50-25-6-... on 2,000 of our curves; {_NETWORK}; 200 steps of "
            "RMSProp, looks every 100 with 50 probes instead of 100.",
            minutes=0.1,
            study=_distance_study(
                functools.partial(make_curves, THIN_SIZES, 2000),
                Looks(every=100, steps=200, probes=50),
                seeds=3,
            ),
            criteria=(_closest(_RMSPROP),),
        ),
        "full": Budget(
            setting=f"The network of CURVES on 20,000 of our curves; {_NETWORK}; 50 epochs of "
            "RMSProp, looks every 10 with 100 probes.",
            minutes=25.0,
            study=_distance_study(
                functools.partial(make_curves, CURVES_SIZES, 20000),
                Looks(every=1000, steps=5000, probes=100),
            ),
            criteria=(_closest(_RMSPROP),),
        ),
    },
    obstacle=OUR_CURVES,
)

_S3_3 = Experiment(
    id="S3-3",
    title="Autoencoder of MNIST",
    claim="ESGD ends lowest, clearly so after 250 epochs, and is three times as fast as SGD.",
    data=("mnist",),
    budgets={
        "quick": Budget(
            setting=f"784-200-100-30-... on 4,000 images; {_NETWORK}; 15 epochs. {_RATES}.",
            minutes=0.7,
            study=_race(functools.partial(make_digits, THIN_MNIST_SIZES, 4000), 300, 20),
            criteria=(*_LOWEST, _faster(_ESGD, _SGD, 3.0)),
        ),
        "full": Budget(
            setting=f"The paper's network and images; {_NETWORK}; 10 epochs of some 1,000. "
            f"{_RATES}.",
            minutes=75.0,
            study=_race(functools.partial(make_digits, MNIST_SIZES, 60000), 3000, 300),
            criteria=(*_LOWEST, _faster(_ESGD, _SGD, 3.0)),
        ),
    },
    obstacle="A thousand epochs take a GPU.",
)

_S3_4 = Experiment(
    id="S3-4",
    title="Autoencoder of CURVES",
    claim="ESGD ends lowest, RMSProp and Jacobi close.",
    budgets={
        "quick": Budget(
            setting=f"784-100-50-25-6-... on 4,000 of our curves; {_NETWORK}; 20 epochs. "
            f"{_RATES}; two each.",
            minutes=0.4,
            study=_race(functools.partial(make_curves, THIN_SIZES, 4000), 400, 20, few=True),
            criteria=(*_LOWEST, below(_RMSPROP, _SGD, "loss")),
        ),
        "full": Budget(
            setting=f"The paper's network on 20,000 of our curves; {_NETWORK}; 100 epochs. "
            f"{_RATES}.",
            minutes=60.0,
            study=_race(functools.partial(make_curves, CURVES_SIZES, 20000), 10000, 100),
            criteria=(*_LOWEST, below(_RMSPROP, _SGD, "loss")),
        ),
    },
    obstacle=OUR_CURVES,
)

_S3_5 = Experiment(
    id="S3-5",
    title="Diagonal dominance of Hessians",
    claim="Above 15 % with every optimizer on MNIST, where independent entries have 0.1 % "
    "(printed as .01); larger with preconditioned ones than with SGD.",
    data=("mnist",),
    budgets={
        "quick": Budget(
            setting=f"784-200-100-30-... on 4,000 images; {_NETWORK}; after 200 steps, 100 probes "
            "on one batch, without the estimate's own noise.",
            minutes=0.3,
            study=_dominance_study(
                functools.partial(make_digits, THIN_MNIST_SIZES, 4000),
                Looks(every=1, steps=200, probes=100),
            ),
            criteria=_DOMINANT,
        ),
        "full": Budget(
            setting=f"The paper's network and images; {_NETWORK}; after 10 epochs, 100 probes on "
            "one batch, without the estimate's own noise.",
            minutes=15.0,
            study=_dominance_study(
                functools.partial(make_digits, MNIST_SIZES, 60000),
                Looks(every=1, steps=3000, probes=100),
            ),
            criteria=_DOMINANT,
        ),
    },
)

EXPERIMENTS = (_S1_7, _S3_2, _S3_3, _S3_4, _S3_5)
