"""The models by name: as configurations, from saved ones, and built."""

from collections.abc import Mapping
from typing import Any

from psgd_lm.gpt import GPT, GPTConfig
from psgd_lm.language_model import LanguageModel

ModelConfig = GPTConfig
"""The settings of any model."""

MODELS: dict[str, ModelConfig] = {config.name: config for config in (GPTConfig(),)}
"""Every model by its name, with its default settings."""


def build_model(config: ModelConfig, vocab_size: int) -> LanguageModel:
    """Build a model with fresh weights, drawn from torch's global generator.

    Args:
        config: Of any model.
        vocab_size: Tokens in the vocabulary.

    Returns:
        The model, in training mode, on torch's default device.
    """
    return GPT(config, vocab_size)


def model_config_from_dict(saved: Mapping[str, Any]) -> ModelConfig:
    """Read a configuration back.

    Args:
        saved: The fields and the `name`, as `config_to_dict` nests them.

    Returns:
        The configuration.
    """
    settings = dict(saved)
    return type(MODELS[settings.pop("name", GPTConfig.name)])(**settings)
