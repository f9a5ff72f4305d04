"""The models by name: as configurations, from saved ones, and built."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from psgd_lm.gpt import GPT, GPTConfig
from psgd_lm.language_model import LanguageModel
from psgd_lm.recurrent import GRUConfig, LSTMConfig, RecurrentModel
from psgd_optim.tools.names import closest
from psgd_optim.types import InputError

ModelConfig = GPTConfig | LSTMConfig | GRUConfig
"""The settings of any model."""

MODELS: dict[str, ModelConfig] = {
    GPTConfig.name: GPTConfig(),
    LSTMConfig.name: LSTMConfig(),
    GRUConfig.name: GRUConfig(),
}
"""Every model by its name, with its default settings."""


def build_model(config: ModelConfig, vocab_size: int) -> LanguageModel:
    """Build a model with fresh weights, drawn from torch's global generator.

    Args:
        config: Of any model.
        vocab_size: Tokens in the vocabulary.

    Returns:
        The model, in training mode, on torch's default device.
    """
    if isinstance(config, GPTConfig):
        return GPT(config, vocab_size)
    return RecurrentModel(config, vocab_size)


def model_config_from_dict(saved: Mapping[str, Any]) -> ModelConfig:
    """Read a configuration back.

    Args:
        saved: The fields and the `name`, as `config_to_dict` nests them.

    Returns:
        The configuration.

    Raises:
        InputError: If the name or a field is not known.
    """
    settings = dict(saved)
    # Runs from before there was more than one model do not name it.
    name = settings.pop("name", GPTConfig.name)
    if name not in MODELS:
        raise InputError(f"There is no model {name!r}; {closest(name, list(MODELS))}")
    known = [field.name for field in fields(MODELS[name])]
    if unknown := settings.keys() - set(known):
        first = min(unknown)
        raise InputError(f"The model {name} has no setting {first!r}; {closest(first, known)}")
    return type(MODELS[name])(**settings)
