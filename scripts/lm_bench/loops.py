"""The loops that are timed: ours, and that of nanoGPT around the model of a checkout of it.

A loop is a dictionary from an activity's name to a function that does it once, so that all loops
can be timed in turns.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from psgd_lm.config import TrainConfig
from psgd_lm.data import TextData
from psgd_lm.evaluate import evaluate
from psgd_lm.tokens import InMemory, Tokens
from psgd_lm.trainee import Trainee, make_batches, make_model
from psgd_optim.config import OptimizerConfig
from psgd_optim.types import InputError

TRAINING, EVALUATION = "training", "evaluation"
Loop = Mapping[str, Callable[[], None]]


def our_loop(
    config: TrainConfig, optim: OptimizerConfig, data: TextData, device: torch.device
) -> Loop:
    """Return a training step as `train` takes it, and an evaluation of one batch of text.

    Args:
        config: The run.
        optim: Its optimizer.
        data: Its text.
        device: Where it runs.

    Returns:
        The activities.
    """
    config = replace(config, optim=optim)
    torch.manual_seed(config.seed)
    model = make_model(config, data.tokenizer.vocab_size).to(device)
    batches = make_batches(config, data.train.to(device), is_recurrent=model.is_recurrent)
    trainee = Trainee(config, model, config.steps)
    text = piece_of(data.validation, config.rows * config.model.context + 1).to(device)
    lengths = data.tokenizer.byte_lengths()
    done = 0

    def step() -> None:
        nonlocal done
        trainee.set_lr_factor(config.schedule.factor(done, config.steps, []))
        float(trainee.stepper.take(batches.at(done)).loss)
        done += 1

    def evaluation() -> None:
        evaluate(model, text, lengths)

    return {TRAINING: step, EVALUATION: evaluation}


def piece_of(tokens: Tokens, count: int) -> InMemory:
    """Return the first tokens of a text, repeated if it is shorter."""
    ids = tokens.span(0, min(count, len(tokens)))
    return InMemory(ids.repeat(-(-count // len(ids)))[:count])


def nanogpt_loop(folder: Path, config: TrainConfig, data: TextData, device: torch.device) -> Loop:
    """Return nanoGPT's training step, and one batch of its estimate of the loss.

    The model is the checkout's own; the loop is written here after its `train.py`, which trains
    when it is imported: float32, one batch per step, not compiled.

    Args:
        folder: The checkout, with `model.py`.
        config: Sizes, batch and dropout.
        data: The text.
        device: Where it runs.

    Returns:
        The activities.

    Raises:
        InputError: If the folder has no such model.
    """
    model = _nanogpt_model(_load(folder / "model.py"), config, data).to(device)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), device.type)
    parts = {
        name: part.span(0, len(part)).numpy().astype(np.uint16)
        for name, part in (("train", data.train), ("val", data.validation))
    }
    block, rows = config.model.context, config.rows

    def batch(split: str) -> tuple[Tensor, Tensor]:
        ids = parts[split]
        starts = torch.randint(len(ids) - block, (rows,))
        x = [torch.from_numpy(ids[i : i + block].astype(np.int64)) for i in starts]
        y = [torch.from_numpy(ids[i + 1 : i + 1 + block].astype(np.int64)) for i in starts]
        return torch.stack(x).to(device), torch.stack(y).to(device)

    waiting = [batch("train")]

    def step() -> None:
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        _, loss = model(*waiting.pop())
        waiting.append(batch("train"))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(loss.detach())

    @torch.no_grad()
    def estimate() -> None:
        model.eval()
        _, loss = model(*batch("val"))
        float(loss)

    return {TRAINING: step, EVALUATION: estimate}


def _nanogpt_model(module: ModuleType, config: TrainConfig, data: TextData) -> Any:  # noqa: ANN401
    """Build the checkout's GPT with the sizes of ours."""
    sizes = config.model
    settings = module.GPTConfig(
        n_layer=sizes.layers,
        n_head=getattr(sizes, "heads", 1),
        n_embd=getattr(sizes, "width", 1),
        block_size=sizes.context,
        vocab_size=data.tokenizer.vocab_size,
        dropout=getattr(sizes, "dropout", 0.0),
        bias=False,
    )
    torch.manual_seed(config.seed)
    return module.GPT(settings)


def _load(path: Path) -> ModuleType:
    """Import a file by its path."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise InputError(f"There is no {path}; give --nanogpt the folder of a nanoGPT checkout.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
