"""Everything that training changes: model, optimizer, scaler, and the memory carried along."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from psgd_lm.averaging import Averaging
from psgd_lm.batches import Batches, Streams, Windows
from psgd_lm.config import TrainConfig
from psgd_lm.gpt2_files import load_gpt2
from psgd_lm.language_model import LanguageModel, Output
from psgd_lm.models import build_model
from psgd_lm.objective import Objective
from psgd_lm.recurrent import LSTMConfig
from psgd_lm.routing import build_optimizer
from psgd_lm.stepping import Stepper
from psgd_lm.timing import PhaseTimer
from psgd_lm.tokens import Tokens
from psgd_optim.tools.choices import config_to_dict
from psgd_optim.tools.run_folder import first_difference
from psgd_optim.tools.runtime import random_state, set_random_state
from psgd_optim.tools.stepping import (
    check_clipping,
    needs_closure,
    needs_second_derivatives,
    takes_pairs,
)
from psgd_optim.types import InputError


class Trainee:
    """What a checkpoint holds of a run, beside its numbers.

    Args:
        config: The run.
        model: On its device.
        steps: Length of the run.

    Raises:
        InputError: If the settings do not go together.
    """

    def __init__(self, config: TrainConfig, model: LanguageModel, steps: int) -> None:
        self.model = model
        self.device = device = next(model.parameters()).device
        self.optimizer = build_optimizer(model, config.routes, config.seed)
        self.full_lrs = [group["lr"] for group in self.optimizer.param_groups]
        _check(config, model, self.optimizer)
        self.averaging = Averaging(config.average, steps)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
        timer = PhaseTimer(device)
        # Shares its parameters with the model.
        compiled: Callable[..., Output] | None = torch.compile(model) if config.compile else None
        self.objective = Objective(
            model,
            micro_batch=config.micro_batch,
            precision=config.precision,
            compiled=compiled,
            timer=timer,
        )
        self.stepper = Stepper(
            self.optimizer,
            self.objective,
            max_norm=config.grad_clip,
            scaler=self.scaler,
            timer=timer,
        )

    def set_lr_factor(self, factor: float) -> None:
        """Set all learning rates to a part of their full values."""
        for group, full in zip(self.optimizer.param_groups, self.full_lrs, strict=True):
            group["lr"] = full * factor

    def figures(self) -> dict[str, float]:
        """Return what the optimizer and the scaler tell of the last step; waits for the device."""
        metrics: Mapping[str, Tensor] = getattr(self.optimizer, "metrics", dict)()
        figures = {f"optim/{name}": float(value) for name, value in metrics.items()}
        if self.scaler.is_enabled():
            figures["optim/loss_scale"] = self.scaler.get_scale()
        return figures

    def state(self) -> dict[str, Any]:
        """Return everything that the next step depends on, and that a model is read back from."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "memories": self.objective.memories,
            "averaging": self.averaging.state_dict(),
            "random": random_state(self.device),
        }

    def load(self, content: Mapping[str, Any]) -> None:
        """Go back to what `state` returned, bit for bit."""
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        memories = content["memories"]
        self.objective.memories = memories and [
            tuple(x.to(self.device) for x in memory) for memory in memories
        ]
        self.averaging.load_state_dict(content["averaging"], self.model)
        set_random_state(self.device, content["random"])


def make_model(config: TrainConfig, vocab_size: int) -> LanguageModel:
    """Build a run's model as it starts.

    Args:
        config: The run.
        vocab_size: Tokens in the vocabulary.

    Returns:
        With fresh weights, or with those of the files that the run starts from, on the CPU.

    Raises:
        InputError: If the files are of another model.
    """
    model = build_model(config.model, vocab_size)
    if config.init_from is None:
        return model
    found = load_gpt2(config.init_from)
    theirs, ours = config_to_dict(found.config), config_to_dict(config.model)
    # Whoever trains on may drop out more or less.
    difference = first_difference({**theirs, "dropout": ours.get("dropout")}, ours)
    if difference:
        raise InputError(
            f"{config.init_from} holds a GPT with {difference}; give --model.* what the files have."
        )
    if found.vocab_size != vocab_size:
        raise InputError(
            f"{config.init_from} holds a GPT of {found.vocab_size} tokens, the text has "
            f"{vocab_size}; give --data.tokenizer gpt2."
        )
    model.load_state_dict(found.state_dict())
    return model


def make_batches(config: TrainConfig, tokens: Tokens, *, is_recurrent: bool) -> Batches:
    """Return the batches of a run: running text for a recurrent model, else windows.

    Args:
        config: The run.
        tokens: Of the training part, on the run's device.
        is_recurrent: Whether the model carries its memory along.

    Returns:
        The batches.

    Raises:
        InputError: If the model has no use for lengths that vary.
    """
    context, seed = config.model.context, config.seed
    if is_recurrent:
        return Streams(
            tokens,
            rows=config.rows,
            context=context,
            seed=seed,
            is_variable=config.variable_length,
        )
    if config.variable_length:
        raise InputError(
            "Got --variable-length with a model that carries no memory along; leave it out."
        )
    return Windows(tokens, context=context, batch_size=config.rows, seed=seed)


def _check(config: TrainConfig, model: LanguageModel, optimizer: torch.optim.Optimizer) -> None:
    """Refuse settings that cannot work together, before a run has written anything."""
    check_clipping(optimizer, config.grad_clip, "--grad-clip")
    if takes_pairs(optimizer):
        raise InputError(
            "Got an optimizer with the criterion curvature, which a language model does not give; "
            "give it the criterion newton."
        )
    if config.compile and model.is_recurrent:
        raise InputError(
            "Got --compile with a recurrent model, which torch.compile does not make faster; "
            "leave it out."
        )
    is_lstm_on_cpu = isinstance(config.model, LSTMConfig) and (
        next(model.parameters()).device.type == "cpu"
    )
    if config.precision == "float16" and is_lstm_on_cpu:
        raise InputError(
            "Got --precision float16 with an LSTM on a CPU, which few CPUs have a kernel for; give "
            "--precision bfloat16 or float32."
        )
    if not needs_closure(optimizer):
        return
    if config.precision == "float16":
        raise InputError(
            "Got --precision float16 with an optimizer that differentiates the loss itself, which "
            "its scaled gradients do not reach; give --precision bfloat16 or float32."
        )
    if config.precision == "bfloat16" and not needs_second_derivatives(optimizer):
        raise InputError(
            "Got --precision bfloat16 with Hessian-vector products by finite differences, which "
            "its rounding hides; give --precision float32 or exact products."
        )
