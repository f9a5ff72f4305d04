"""GPT-2 in Hugging Face's layout, against its forward pass written out here."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from psgd_lm.gpt import GPT, GPTConfig
from psgd_lm.gpt2_files import load_gpt2, save_gpt2
from psgd_optim.types import InputError

LAYERS, HEADS, WIDTH, CONTEXT, VOCAB = 2, 3, 12, 7, 13
SETTINGS = {
    "model_type": "gpt2",
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_embd": WIDTH,
    "n_positions": CONTEXT,
    "n_ctx": CONTEXT,
    "vocab_size": VOCAB,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "resid_pdrop": 0.1,
    "summary_type": "cls_index",
}


def random_weights():
    torch.manual_seed(0)
    shapes = {"wte.weight": (VOCAB, WIDTH), "wpe.weight": (CONTEXT, WIDTH)}
    for i in range(LAYERS):
        linear = {
            "attn.c_attn": (WIDTH, 3 * WIDTH),
            "attn.c_proj": (WIDTH, WIDTH),
            "mlp.c_fc": (WIDTH, 4 * WIDTH),
            "mlp.c_proj": (4 * WIDTH, WIDTH),
        }
        for name, shape in linear.items():
            shapes |= {f"h.{i}.{name}.weight": shape, f"h.{i}.{name}.bias": shape[1:]}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"h.{i}.{name}.{kind}": (WIDTH,) for kind in ("weight", "bias")}
    shapes |= {"ln_f.weight": (WIDTH,), "ln_f.bias": (WIDTH,)}
    return {name: 0.5 * torch.randn(shape) for name, shape in shapes.items()}


def write(folder, tensors, **settings):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**SETTINGS, **settings}))
    return folder


def forward(weights, tokens, head=None, activation="gelu_new"):
    """GPT-2's logits of one row of tokens, in float64."""
    w = {name: tensor.double() for name, tensor in weights.items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def conv1d(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x):
        if activation == "gelu":
            return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    count, size = len(tokens), WIDTH // HEADS
    x = w["wte.weight"][tokens] + w["wpe.weight"][:count]
    for i in range(LAYERS):
        q, k, v = conv1d(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn").split(WIDTH, dim=1)
        heads = []
        for h in range(HEADS):
            part = slice(h * size, (h + 1) * size)
            scores = q[:, part] @ k[:, part].T / math.sqrt(size)
            scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -torch.inf)
            heads.append(scores.softmax(dim=1) @ v[:, part])
        x = x + conv1d(torch.cat(heads, dim=1), f"h.{i}.attn.c_proj")
        hidden = gelu(conv1d(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc"))
        x = x + conv1d(hidden, f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ (w["wte.weight"] if head is None else head.double()).T


TOKENS = torch.tensor([3, 0, 12, 5, 5, 7, 1])


def check_logits(model, expected):
    logits = model.double().eval()(TOKENS[None]).logits[0]
    # The weights are the same float32 numbers; sums in float64 differ in their order.
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_a_gpt2_has_the_logits_of_its_formulas(tmp_path, prefix, activation):
    weights = random_weights()
    tensors = {prefix + name: tensor for name, tensor in weights.items()}
    # Masks that old files hold, and the head that some hold a second time.
    tensors[f"{prefix}h.0.attn.bias"] = torch.ones(1, 1, CONTEXT, CONTEXT).tril()
    tensors[f"{prefix}h.1.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = weights["wte.weight"].clone()
    model = load_gpt2(write(tmp_path, tensors, activation_function=activation))
    assert model.config.dropout == 0.1
    check_logits(model, forward(weights, TOKENS, activation=activation))


def test_an_untied_head_is_read(tmp_path):
    weights, head = random_weights(), torch.randn(VOCAB, WIDTH)
    folder = write(tmp_path, {**weights, "lm_head.weight": head}, tie_word_embeddings=False)
    check_logits(load_gpt2(folder), forward(weights, TOKENS, head))


def test_half_precision_files_are_read_as_float32(tmp_path):
    halves = {name: tensor.half() for name, tensor in random_weights().items()}
    model = load_gpt2(write(tmp_path, halves))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    check_logits(model, forward(halves, TOKENS))


def test_reading_draws_no_random_number(tmp_path):
    folder = write(tmp_path, random_weights())
    before = torch.get_rng_state()
    load_gpt2(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_was_read_trains(tmp_path):
    model = load_gpt2(write(tmp_path, random_weights()))
    model(TOKENS[None]).logits.sum().backward()
    assert all(p.is_leaf and p.grad is not None for p in model.parameters())


SMALL = GPTConfig(layers=LAYERS, heads=HEADS, width=WIDTH, context=CONTEXT)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True, "activation": "gelu-tanh"},
        {"tied": False},
        {"vocab_multiple": 8, "tied": False, "bias": True},
    ],
    ids=str,
)
def test_a_model_written_and_read_again_has_the_same_logits(tmp_path, options):
    torch.manual_seed(0)
    model = GPT(replace(SMALL, **options), VOCAB).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    save_gpt2(model, tmp_path / "out")
    again = load_gpt2(tmp_path / "out").eval()
    assert torch.equal(again(TOKENS[None]).logits, model(TOKENS[None]).logits)
    expected = replace(model.config, bias=True, vocab_multiple=1)
    assert again.config == expected


def test_what_is_written_has_the_layout_and_the_logits_of_gpt2(tmp_path):
    model = GPT(replace(SMALL, bias=True, activation="gelu-tanh"), VOCAB).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    save_gpt2(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {name: t.shape for name, t in tensors.items()} == {
        f"transformer.{name}": t.shape for name, t in random_weights().items()
    }
    weights = {name.removeprefix("transformer."): t for name, t in tensors.items()}
    check_logits(model, forward(weights, TOKENS))
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["architectures"] == ["GPT2LMHeadModel"]
    assert settings["activation_function"] == "gelu_new"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama'; name a model of model_type 'gpt2'"),
        ({"n_head": "many"}, "n_head 'many'; a GPT-2 has a whole number above 0"),
        ({"n_inner": 40}, "n_inner 40; only 48 is supported"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon 1e-06; only 1e-05 is supported"),
        ({"scale_attn_weights": False}, "scale_attn_weights False; only True"),
        ({"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx True; only False"),
        ({"activation_function": "relu"}, "activation_function 'relu'; supported: gelu_new"),
        ({"attn_pdrop": 0.2}, "different embd_pdrop, attn_pdrop, resid_pdrop; only equal"),
        ({"n_layer": 3}, "lacks h.2.ln_1.weight; restore both"),
        ({"n_layer": 1}, "has h.1.attn.c_attn.bias, which is no part of a GPT-2"),
        ({"vocab_size": 14}, r"wte.weight as torch.float32 .* \(13, 12\), .* floats of \(14, 12\)"),
    ],
)
def test_an_unsupported_gpt2_is_refused_in_one_line(tmp_path, settings, message):
    folder = write(tmp_path, random_weights(), **settings)
    with pytest.raises(InputError, match=message) as caught:
        load_gpt2(folder)
    assert "\n" not in str(caught.value)


def test_what_is_no_gpt2_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json and model\.safetensors; name"):
        load_gpt2(tmp_path / "missing")
    write(tmp_path, random_weights())
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match="is no safetensors file, or damaged"):
        load_gpt2(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not readable JSON"):
        load_gpt2(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="model_type None"):
        load_gpt2(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "rms"},
        {"positions": "rotary"},
        {"qk_norm": True},
        {"softcap": 15.0},
        {"activation": "relu2"},
    ],
    ids=str,
)
def test_a_model_with_parts_that_gpt2_lacks_is_not_written(tmp_path, options):
    (name,) = options
    with pytest.raises(InputError, match=f"Got a GPT with {name} .*--model.{name[:2]}"):
        save_gpt2(GPT(replace(SMALL, **options), VOCAB), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_a_model_is_left_alone(tmp_path):
    folder = write(tmp_path, random_weights())
    with pytest.raises(InputError, match=r"config\.json is there already; name another folder"):
        save_gpt2(GPT(SMALL, VOCAB), folder)
