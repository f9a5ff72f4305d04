"""Text written by a model, one token at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from psgd_lm.language_model import LanguageModel
from psgd_lm.saved_run import load_run
from psgd_optim.types import InputError


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How to sample text from a run."""

    prompt: str = ""
    """Text to go on from; nothing begins a new line."""
    tokens: int = 500
    """Tokens to write."""
    temperature: float = 0.8
    """Below 1 prefers likely tokens, 1 follows the model, 0 always takes the likeliest."""
    top_k: int = 0
    """Choose among this many likeliest tokens only; 0 among all."""
    seed: int = 0
    """Seed of the choices."""
    best: bool = False
    """Use the checkpoint with the lowest evaluation instead of the last one."""
    device: str = "auto"
    """auto (CUDA if there is one), cpu, cuda, cuda:1 ..."""

    def __post_init__(self) -> None:
        for name in ("tokens", "temperature", "top_k", "seed"):
            if not getattr(self, name) >= 0:
                flag = name.replace("_", "-")
                raise InputError(f"Got {name} {getattr(self, name)}; give --{flag} 0 or more.")
        if self.seed >= 2**63:
            raise InputError(f"Got seed {self.seed}; give --seed less than 2^63.")


def sample_run(run_dir: Path, config: SampleConfig) -> Iterator[str]:
    """Write text with a run's model.

    The prompt is checked at once; the text comes as the iterator is read.

    Args:
        run_dir: The run's folder.
        config: How to sample.

    Returns:
        Pieces of text, without the prompt.
    """
    run = load_run(run_dir, best=config.best, device=config.device)
    prompt = run.tokenizer.encode(config.prompt)
    if not len(prompt):
        prompt = torch.tensor([run.tokenizer.start_token])
    return run.tokenizer.stream(sample_tokens(run.model, prompt.to(run.device), config))


def sample_tokens(model: LanguageModel, prompt: Tensor, config: SampleConfig) -> Iterator[int]:
    """Draw tokens one after the other.

    Args:
        model: In evaluation mode.
        prompt: (n,) int64, n > 0; of a long one the model sees the last context.
        config: How many tokens, and how to choose them.

    Yields:
        Token ids.
    """
    generator = torch.Generator(prompt.device).manual_seed(config.seed)
    tokens = prompt[-model.context :]
    for _ in range(config.tokens):
        with torch.inference_mode():
            logits = model(tokens[None]).logits[0, -1]  # (V,)
            token = choose(logits, config.temperature, config.top_k, generator)
            tokens = torch.cat([tokens, token])[-model.context :]
        yield int(token)


def choose(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> Tensor:
    """Draw one token.

    Args:
        logits: (V,).
        temperature: Divides the logits; 0 takes the largest.
        top_k: Number of largest logits to choose among; 0 for all.
        generator: Makes the choice.

    Returns:
        (1,) int64.
    """
    if temperature == 0:
        return logits.argmax(keepdim=True)
    if 0 < top_k < len(logits):
        smallest = logits.topk(top_k).values[-1]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    # With the largest logit at 0, even a tiny temperature overflows to -inf only, never to NaN.
    scaled = (logits.double() - logits.max()) / temperature
    probabilities = scaled.nan_to_num(nan=0.0).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator)
