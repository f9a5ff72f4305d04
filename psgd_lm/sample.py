"""Text written by a model, one token at a time, with what it keeps of the text instead of the text.

A recurrent model reads the prompt and goes on. A GPT's keys and values fill up at one context: its
window then begins again with the last half of the context, so that a token has between half and
all of a context before it, and costs one pass over one token but for one in half a context.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from psgd_lm.candidates import Candidates, draw
from psgd_lm.language_model import LanguageModel, Memory, Output
from psgd_lm.saved_run import SavedRun, load_run
from psgd_lm.stops import until_stop
from psgd_lm.tokenizer import Tokenizer
from psgd_optim.types import InputError

CHECK_EVERY = 16
"""Tokens between two looks whether all samples have met a stop string."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How to sample text from a run."""

    prompt: str = ""
    """Text to go on from; nothing begins a new line."""
    prompt_file: Path | None = None
    """UTF-8 file with the prompt."""
    tokens: int = 500
    """Most tokens to write."""
    samples: int = 1
    """Texts to write; the second is what --seed plus one writes, and so on."""
    temperature: float = 0.8
    """Below 1 prefers likely tokens, 1 follows the model, 0 always takes the likeliest."""
    top_k: int = 0
    """Choose among this many likeliest tokens only; 0 among all."""
    top_p: float = 1.0
    """Choose among the fewest likeliest tokens that together have this probability; 1 among all."""
    min_p: float = 0.0
    """Choose among tokens with at least this part of the likeliest one's probability; 0 among
    all."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens that were there; 1 for none."""
    stop: tuple[str, ...] = ()
    """Strings before which a text ends."""
    seed: int = 0
    """Seed of the choices."""
    best: bool = False
    """Use the checkpoint with the lowest evaluation instead of the last one."""
    device: str = "auto"
    """auto (CUDA if there is one), cpu, cuda, cuda:1 ..."""

    def __post_init__(self) -> None:
        for name, least in (("tokens", 0), ("seed", 0), ("samples", 1)):
            if not getattr(self, name) >= least:
                raise InputError(
                    f"Got {name} {getattr(self, name)}; give --{name} {least} or more."
                )
        if self.seed + self.samples > 2**63:
            raise InputError(f"Got seed {self.seed}; give --seed less than 2^63.")
        if "" in self.stop:
            raise InputError("Got an empty --stop; give strings of one character or more.")
        if self.prompt and self.prompt_file:
            raise InputError("Got --prompt and --prompt-file; give one of them.")
        self.candidates()

    def candidates(self) -> Candidates:
        """Return how probabilities are made."""
        return Candidates(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
        )


def read_prompt(config: SampleConfig) -> str:
    """Return the text to go on from.

    Args:
        config: Holds it, or names its file.

    Returns:
        The prompt, with the file's last line end if it has one.

    Raises:
        InputError: If the file cannot be read or is not UTF-8.
    """
    if config.prompt_file is None:
        return config.prompt
    try:
        return config.prompt_file.read_bytes().decode()
    except OSError as error:
        raise InputError(
            f"Cannot read {config.prompt_file} ({error.strerror}); give --prompt-file a text file."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{config.prompt_file} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start}; convert it."
        ) from error


def sample_run(run_dir: Path, config: SampleConfig) -> Iterator[str]:
    """Write one text with a run's model.

    The prompt is checked at once; the text comes as the iterator is read.

    Args:
        run_dir: The run's folder.
        config: How to sample.

    Returns:
        Pieces of text, without the prompt.
    """
    run, prompt = _load(run_dir, config)
    tokens = (int(row) for row in sample_tokens(run.model, prompt, config, rows=1))
    return until_stop(run.tokenizer.stream(tokens, read_prompt(config)), config.stop)


def sample_texts(run_dir: Path, config: SampleConfig) -> list[str]:
    """Write several texts with a run's model, all at once.

    Args:
        run_dir: The run's folder.
        config: How to sample, and how many.

    Returns:
        The texts, without the prompt.
    """
    text = read_prompt(config)
    run, prompt = _load(run_dir, config)
    steps = sample_tokens(run.model, prompt, config, rows=config.samples)
    written = torch.empty(config.samples, 0, dtype=torch.int64)
    while True:
        new = list(islice(steps, CHECK_EVERY))
        written = torch.cat([written, *(step[:, None].cpu() for step in new)], dim=1)
        texts, all_ended = _decode(run.tokenizer, written, text, config.stop)
        if len(new) < CHECK_EVERY or all_ended:
            return texts


def _decode(
    tokenizer: Tokenizer, written: Tensor, prompt: str, stops: tuple[str, ...]
) -> tuple[list[str], bool]:
    """Return the text of every row up to its stop, and whether every row met one."""
    whole = ["".join(tokenizer.stream(row.tolist(), prompt)) for row in written]
    texts = ["".join(until_stop([text], stops)) for text in whole]
    return texts, all(len(text) < len(full) for text, full in zip(texts, whole, strict=True))


def _load(run_dir: Path, config: SampleConfig) -> tuple[SavedRun, Tensor]:
    """Read the run, and encode the prompt, (n,) with n > 0."""
    text = read_prompt(config)
    run = load_run(run_dir, best=config.best, device=config.device)
    prompt = run.tokenizer.encode(text)
    if not len(prompt):
        prompt = torch.tensor([run.tokenizer.start_token])
    return run, prompt.to(run.device)


def sample_tokens(
    model: LanguageModel, prompt: Tensor, config: SampleConfig, *, rows: int
) -> Iterator[Tensor]:
    """Draw tokens one after the other.

    Args:
        model: In evaluation mode.
        prompt: (n,) int64, n > 0.
        config: How many tokens, and how to choose them.
        rows: Texts to write side by side.

    Yields:
        The next token of every text, (rows,) int64.
    """
    # One generator per text: a text does not depend on how many others are written with it.
    generators = [
        torch.Generator(prompt.device).manual_seed(config.seed + row) for row in range(rows)
    ]
    candidates = config.candidates()
    reader = _Reader(model)
    seen = torch.zeros(rows, model.vocab_size, dtype=torch.bool, device=prompt.device)
    seen[:, prompt] = True
    chosen = prompt[-1:]
    for step in range(config.tokens):
        with torch.inference_mode():
            logits = reader.begin(prompt, rows) if step == 0 else reader.read(chosen[:, None])
            chosen = draw(candidates.probabilities(logits, seen), generators)
            seen.scatter_(1, chosen[:, None], True)
        yield chosen


class _Reader:
    """A model and what it keeps of the texts it has read.

    Args:
        model: In evaluation mode.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.memory: Memory = ()
        self.window = torch.empty(0, dtype=torch.int64)  # (B, T), what a GPT's memory is of

    def begin(self, prompt: Tensor, rows: int) -> Tensor:
        """Read the prompt once for all texts; return the logits after it, (rows, V)."""
        self.memory = self.model.empty_memory(1)
        if self.model.is_recurrent:
            # In parts, for the logits of a long prompt may not fit into memory.
            for part in torch.split(prompt[None], self.model.context, dim=1):
                logits = self._forward(part)
        else:
            self.window = prompt[None, -self.model.context :]
            logits = self._forward(self.window)
        self.window = self.window.expand(rows, -1)
        self.memory = tuple(part.expand(rows, *part.shape[1:]) for part in self.memory)
        return logits.expand(rows, -1)

    def read(self, tokens: Tensor) -> Tensor:
        """Read on, (B, 1) int64; return the logits after it, (B, V)."""
        if self.model.is_recurrent:
            return self._forward(tokens)
        self.window = torch.cat([self.window, tokens], dim=1)
        if self.window.shape[1] > self.model.context:
            self.window = self.window[:, -max(1, self.model.context // 2) :]
            self.memory = self.model.empty_memory(len(tokens))
            return self._forward(self.window)
        return self._forward(tokens)

    def _forward(self, tokens: Tensor) -> Tensor:
        output: Output = self.model(tokens, self.memory)
        if output.memory is not None:
            self.memory = output.memory
        return output.logits[:, -1]
