"""The models of the benchmark, each with batches of random data.

Shapes: `B` samples or windows, `T` tokens in a window, `V` words, `D` the width of an embedding.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psgd_lm.gpt import GPT, GPTConfig
from psgd_lm.language_model import Output, token_losses
from psgd_rl.actor_critic import Critic, GaussianActor

BATCHES = 4
"""Different batches that a run goes through again and again."""

Named = list[tuple[str, nn.Parameter]]
"""Parameters with their names."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model and what it is trained on.

    Args:
        name: As in `MODELS`.
        batch: The batch, in words.
        model: The parameters.
        loss: Returns the loss of a batch, by its number below `BATCHES`.
        autocast: Whether the forward pass is in bfloat16 where torch deems it safe.
    """

    name: str
    batch: str
    model: nn.Module
    loss: Callable[[int], Tensor]
    autocast: bool = False

    @property
    def named(self) -> Named:
        """The trained parameters, by name; shared ones once."""
        return list(self.model.named_parameters())

    @property
    def device(self) -> torch.device:
        """Where all of it is."""
        return self.named[0][1].device

    def backward(self, number: int) -> None:
        """Set the gradients of a batch, one after the other as the number grows."""
        self.model.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self.loss(number % BATCHES)
        loss.backward()  # type: ignore[no-untyped-call]


class WordLSTM(nn.Module):
    """The small word-level LSTM of the Penn Treebank literature: two layers, an untied head.

    Args:
        vocab_size: Words.
        width: Of the embedding and of both layers.
    """

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, words: Tensor) -> Output:
        """Map words (B, T) to the logits of the next ones, (B, T, V)."""
        hidden, _ = self.lstm(self.embedding(words))  # (B, T, D)
        return Output(self.head(hidden))


class SmallConvNet(nn.Module):
    """Three 3x3 convolutions with pooling, and a linear head, for 32x32 images in 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, 32, 64, 128)
        pairs = itertools.pairwise(sizes)
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairs)
        self.head = nn.Linear(128 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, 32, 32) to logits (B, 10)."""
        for convolution in self.convolutions:
            x = F.max_pool2d(F.relu(convolution(x)), 2)
        logits: Tensor = self.head(x.flatten(1))
        return logits


class ActorAndCritic(nn.Module):
    """Both networks of PPO on HalfCheetah: 17 observations, 6 actions, two layers of 64."""

    def __init__(self) -> None:
        super().__init__()
        start = torch.Generator().manual_seed(0)
        self.actor = GaussianActor(
            (17, 64, 64, 6), log_std=0.0, log_std_bounds=(-5.0, 2.0), generator=start
        )
        self.critic = Critic((17, 64, 64, 1), generator=start)

    def loss(self, observation: Tensor, action: Tensor, target: Tensor) -> Tensor:
        """Return a loss with the gradients of PPO's shapes.

        Args:
            observation: (B, 17).
            action: (B, 6).
            target: (B,), the advantage and the return.

        Returns:
            0-dimensional.
        """
        log_std = self.actor.log_std
        score = (action - self.actor(observation)) * torch.exp(-log_std)  # (B, 6)
        policy: Tensor = target * (0.5 * score.square() + log_std).sum(dim=1)
        value: Tensor = (self.critic(observation) - target).square()
        return (policy + value).mean()


def _language_model(
    name: str, model: nn.Module, vocab_size: int, shape: tuple[int, int], device: torch.device
) -> Workload:
    """Return a model of tokens with batches (B, T)."""
    batch, length = shape
    tokens = torch.randint(vocab_size, (BATCHES, batch, length + 1)).to(device)
    model = model.to(device)

    def loss(number: int) -> Tensor:
        window = tokens[number]
        return token_losses(model(window[:, :-1]).logits, window[:, 1:]).mean()

    return Workload(name=name, batch=f"{batch} x {length} tokens", model=model, loss=loss)


def _gpt(
    name: str,
    device: torch.device,
    *,
    config: GPTConfig,
    vocab_size: int = 65,
    batches: tuple[int, int] = (12, 12),
) -> Workload:
    """Return a GPT; its batch is the first number on a CPU, the second on CUDA."""
    batch = batches[device.type == "cuda"]
    model = GPT(config, vocab_size)
    return _language_model(name, model, vocab_size, (batch, config.context), device)


def _lstm(name: str, device: torch.device) -> Workload:
    return _language_model(name, WordLSTM(10_000, 200), 10_000, (20, 20), device)


def _mlp(name: str, device: torch.device) -> Workload:
    model = ActorAndCritic().to(device)
    observations = torch.randn(BATCHES, 64, 17).to(device)
    actions = torch.randn(BATCHES, 64, 6).to(device)
    targets = torch.randn(BATCHES, 64).to(device)

    def loss(number: int) -> Tensor:
        return model.loss(observations[number], actions[number], targets[number])

    return Workload(name=name, batch="64 samples", model=model, loss=loss)


def _conv(name: str, device: torch.device) -> Workload:
    model = SmallConvNet().to(device)
    images = torch.randn(BATCHES, 64, 3, 32, 32).to(device)
    classes = torch.randint(10, (BATCHES, 64)).to(device)

    def loss(number: int) -> Tensor:
        return F.cross_entropy(model(images[number]), classes[number])

    return Workload(name=name, batch="64 images of 32 x 32", model=model, loss=loss)


_SMALL = GPTConfig(layers=4, heads=4, width=128, context=64)
_MIDDLE = GPTConfig(layers=6, heads=6, width=384, context=256)
_GPT2 = GPTConfig(layers=12, heads=12, width=768, context=1024)

MODELS: Mapping[str, Callable[[str, torch.device], Workload]] = {
    "gpt-0.8m": partial(_gpt, config=_SMALL),
    "gpt-10m": partial(_gpt, config=_MIDDLE),
    "gpt2-124m": partial(_gpt, config=_GPT2, vocab_size=50_304, batches=(1, 16)),
    "lstm-ptb": _lstm,
    "mlp-64": _mlp,
    "conv": _conv,
}
"""What makes each model, given its name and device."""


def make_workload(name: str, device: torch.device, autocast: bool = False) -> Workload:
    """Return a model with fresh weights and data, drawn from torch's global generator."""
    return dataclasses.replace(MODELS[name](name, device), autocast=autocast)
