"""S1-2: AlexNet, as far as it goes without ImageNet."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from experiments.criteria import at_least, at_most
from experiments.experiment import Budget, Experiment
from experiments.fit import fit
from experiments.measurement import Measurement
from experiments.methods import SCALING, TRUST_REGION, psgd
from experiments.problem import Problem, generator
from experiments.problems.alexnet import alexnet
from experiments.problems.images import seeded
from experiments.training import Method

_BUILD, _STEPS = "the whole model, not allocated", "fifty steps at a sixteenth of the width"
STATE = 69_350
"""Numbers of SCAN for the eight matrices, M + 2N - 1 each."""


def _count(seed: int, device: torch.device) -> Mapping[str, float]:
    with torch.device("meta"):
        model = alexnet()
    shapes = [tuple(matrix.shape) for matrix in model.parameters()]
    return {
        "matrices": float(len(shapes)),
        "numbers": float(sum(rows * columns for rows, columns in shapes)),
        "state": float(sum(SCALING.numel(shape) for shape in shapes)),
    }


class RandomImages(Problem):
    """A small AlexNet on eight random images, always the same ones, of eight classes."""

    def __init__(self, seed: int, device: torch.device) -> None:
        with seeded(seed):
            self.model: nn.Module = alexnet(1 / 16, image=67, classes=8).to(device)
        self.parameters = list(self.model.parameters())
        self._images = torch.randn(8, 3, 67, 67, generator=generator(seed)).to(device)
        self._labels = torch.arange(8, device=device)

    def loss(self, step: int) -> torch.Tensor:
        """Return the cross-entropy, the same in every step."""
        return F.cross_entropy(self.model(self._images), self._labels)

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Return the loss."""
        return {"loss": float(self.loss(0))}


def fall(seed: int, device: torch.device) -> Mapping[str, float]:
    """Return the loss before and after fifty steps, and the `share` of it that is left."""
    problem = RandomImages(seed, device)
    before = problem.evaluate()["loss"]
    # Q starts at the first sample's scale: from the paper's 0.1, fifty steps would get nowhere.
    build = psgd(SCALING, 0.01, clip=TRUST_REGION, init_scale=None)
    fit(problem, Method(build=build, rates=(0.1,)), 50, seed)
    after = problem.evaluate()["loss"]
    return {"before": before, "after": after, "share": after / before}


EXPERIMENTS = (
    Experiment(
        id="S1-2",
        title="AlexNet on ImageNet",
        claim="Newton SCAN reaches about 56 % top-1 accuracy in 40 epochs; momentum may need 90.",
        budgets={
            "quick": Budget(
                setting=(
                    "No ImageNet: the model is built and counted, and a small one learns eight "
                    "random images by heart, as far as fifty steps go."
                ),
                minutes=0.2,
                study=Measurement(
                    functions={_BUILD: _count, _STEPS: fall},
                    columns={
                        "matrices": "matrices",
                        "numbers": "weights",
                        "state": "SCAN's numbers",
                        "before": "loss before",
                        "after": "loss after",
                    },
                ),
                criteria=(
                    at_least(_BUILD, "matrices", 8.0),
                    at_most(_BUILD, "state", STATE),
                    at_most(_STEPS, "share", 0.9),
                ),
                tests_claim=False,
            )
        },
        obstacle="ImageNet is not to be had here, and 40 epochs took the paper's GPU two days.",
    ),
)
