"""GPT-2 in Hugging Face's layout, read and written: `config.json` beside `model.safetensors`.

There the matrices of linear layers lie transposed, (inputs, outputs), and every name may begin
with `transformer.`; the causal masks that some files hold are no weights.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from psgd_lm.gpt import GPT, GPTConfig
from psgd_optim.tools.run_folder import write_json
from psgd_optim.types import InputError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_PREFIX = "transformer."
_MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
_DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
_SIZES = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50_257}
"""What a `config.json` means where it leaves out a size."""
_FIXED = {
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
"""Options with the only value that our GPT can have."""
_ACTIVATIONS = {"gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh", "gelu": "gelu"}
_PARTS = {
    "ln_1": "attention_norm",
    "attn.c_attn": "attention.query_key_value",
    "attn.c_proj": "attention.project",
    "ln_2": "perceptron_norm",
    "mlp.c_fc": "expand",
    "mlp.c_proj": "project",
}
"""The parts of a block, in their layout and in ours."""


def load_gpt2(folder: Path) -> GPT:
    """Read a GPT-2.

    Args:
        folder: With `config.json` and `model.safetensors`.

    Returns:
        The model in float32, on the CPU, in training mode.

    Raises:
        InputError: If the folder holds no GPT-2, one with options that our GPT does not have, or
            damaged weights.
    """
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise InputError(
            f"{folder} has no {CONFIG} and {WEIGHTS}; name a folder with a GPT-2 in Hugging "
            "Face's layout, its weights in one safetensors file."
        )
    config, vocab_size = _read_config(folder / CONFIG)
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
        model = GPT(config, vocab_size)
    found = _read_weights(folder / WEIGHTS, is_tied=config.tied)
    state = {}
    for name, theirs, is_transposed in _names(config):
        shape = model.get_parameter(name).shape
        if theirs not in found:
            raise InputError(f"{folder / WEIGHTS} lacks {theirs}; restore both files.")
        tensor = found.pop(theirs)
        tensor = tensor.T if is_transposed else tensor
        if tensor.shape != shape or not tensor.is_floating_point():
            raise InputError(
                f"{folder / WEIGHTS} has {theirs} as {tensor.dtype} of (outputs, inputs) "
                f"{tuple(tensor.shape)}, {CONFIG} asks for floats of {tuple(shape)}; restore both."
            )
        state[name] = tensor.float().contiguous()
    if found:
        raise InputError(
            f"{folder / WEIGHTS} has {min(found)}, which is no part of a GPT-2; name another model."
        )
    model.load_state_dict(state, assign=True)
    return model


def save_gpt2(model: GPT, folder: Path) -> None:
    """Write a GPT as a GPT-2 that `transformers` reads; `load_gpt2` gives equal logits.

    Biases that the model does not have are zero in the file; rows of padding are left out.

    Args:
        model: With the parts that GPT-2 has.
        folder: Created where missing.

    Raises:
        InputError: If the model has a part that GPT-2 does not have, or the folder a model.
    """
    config = model.config
    _check_parts(config)
    for name in (CONFIG, WEIGHTS):
        if (folder / name).exists():
            raise InputError(f"{folder / name} is there already; name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    tensors = {}
    for name, theirs, is_transposed in _names(config):
        tensor = state.get(name)
        if tensor is None:  # a bias: as many zeros as its weight has outputs
            tensor = torch.zeros(len(state[name.removesuffix("bias") + "weight"]))
        if name in ("token_embedding.weight", "head.weight"):
            tensor = tensor[: model.vocab_size]
        tensor = tensor.T if is_transposed else tensor
        prefix = "" if theirs.startswith("lm_head") else _PREFIX
        tensors[prefix + theirs] = tensor.to("cpu", torch.float32).contiguous()
    partial = folder / f"{WEIGHTS}.partial"
    save_file(tensors, partial, metadata={"format": "pt"})  # transformers asks for the format
    partial.replace(folder / WEIGHTS)
    write_json(folder / CONFIG, _settings(config, model.vocab_size))


def _read_config(path: Path) -> tuple[GPTConfig, int]:
    """Return the model's configuration and vocabulary size."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not readable JSON ({error}); restore it.") from error
    kind = found.get("model_type") if isinstance(found, dict) else None
    if kind != "gpt2":
        raise InputError(f"{path} is of model_type {kind!r}; name a model of model_type 'gpt2'.")
    sizes = {name: found.get(name, default) for name, default in _SIZES.items()}
    for name, value in sizes.items():
        if type(value) is not int or value < 1:
            raise InputError(f"{path} has {name} {value!r}; a GPT-2 has a whole number above 0.")
    fixed = {**_FIXED, "n_inner": 4 * sizes["n_embd"]}
    for name, value in fixed.items():
        if found.get(name) not in (None, value):
            raise InputError(f"{path} has {name} {found[name]!r}; only {value!r} is supported.")
    activation = found.get("activation_function", "gelu_new")
    if activation not in _ACTIVATIONS:
        allowed = ", ".join(_ACTIVATIONS)
        raise InputError(f"{path} has activation_function {activation!r}; supported: {allowed}.")
    dropouts = {found.get(name, 0.1) for name in _DROPOUTS}
    if len(dropouts) > 1:
        names = ", ".join(_DROPOUTS)
        raise InputError(f"{path} has different {names}; only equal ones are supported.")
    config = GPTConfig(
        layers=sizes["n_layer"],
        heads=sizes["n_head"],
        width=sizes["n_embd"],
        context=sizes["n_positions"],
        dropout=dropouts.pop(),
        bias=True,
        activation=_ACTIVATIONS[activation],  # type: ignore[arg-type]  # checked by GPTConfig
        tied=bool(found.get("tie_word_embeddings", True)),
    )
    return config, sizes["vocab_size"]


def _read_weights(path: Path, *, is_tied: bool) -> dict[str, Tensor]:
    """Return the tensors of a file by their names without prefix, less what is no weight."""
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is no safetensors file, or damaged ({error}).") from error
    named = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    if is_tied:
        named.pop("lm_head.weight", None)  # some files hold the embedding a second time
    return {name: tensor for name, tensor in named.items() if not _MASKS.fullmatch(name)}


def _names(config: GPTConfig) -> Iterator[tuple[str, str, bool]]:
    """Yield our name and theirs of every parameter, and whether it is transposed there."""
    yield "token_embedding.weight", "wte.weight", False
    yield "position_embedding.weight", "wpe.weight", False
    for i in range(config.layers):
        for theirs, ours in _PARTS.items():
            is_linear = not theirs.startswith("ln")
            yield f"blocks.{i}.{ours}.weight", f"h.{i}.{theirs}.weight", is_linear
            yield f"blocks.{i}.{ours}.bias", f"h.{i}.{theirs}.bias", False
    yield "norm.weight", "ln_f.weight", False
    yield "norm.bias", "ln_f.bias", False
    if not config.tied:
        yield "head.weight", "lm_head.weight", False


def _check_parts(config: GPTConfig) -> None:
    """Refuse what a GPT-2 cannot have."""
    wanted = {"norm": "layer", "positions": "learned", "qk_norm": False, "softcap": 0.0}
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise InputError(
                f"Got a GPT with {name} {getattr(config, name)}; a GPT-2 file can only say "
                f"{value}: train a model with --model.{name.replace('_', '-')} {value}."
            )
    if config.activation not in _ACTIVATIONS.values():
        raise InputError(
            f"Got a GPT with activation {config.activation}; a GPT-2 file is written for gelu "
            "and gelu-tanh: train a model with --model.activation gelu-tanh."
        )


def _settings(config: GPTConfig, vocab_size: int) -> Mapping[str, Any]:
    """Return the content of `config.json`."""
    theirs = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_embd": config.width,
        "n_positions": config.context,
        "n_inner": None,
        "vocab_size": vocab_size,
        "activation_function": theirs[config.activation],
        "tie_word_embeddings": config.tied,
        **dict.fromkeys(_DROPOUTS, config.dropout),
        **_FIXED,
    }
