"""Every option of the GPT: what it computes, and that the default is what it always was."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import psgd_lm.attention as attention_module
from psgd_lm.attention import Attention, rotate, rotation_of
from psgd_lm.gpt import GPT, SIZES, GPTConfig
from psgd_lm.language_model import token_losses
from psgd_optim.types import InputError

SMALL = GPTConfig(layers=2, heads=2, width=16, context=8)
MODERN = replace(
    SMALL,
    activation="relu2",
    norm="rms",
    positions="rotary",
    qk_norm=True,
    tied=False,
    softcap=15.0,
    vocab_multiple=8,
)
OPTIONS = {
    "default": SMALL,
    "gpt2": replace(SMALL, bias=True, activation="gelu-tanh"),
    "rms": replace(SMALL, norm="rms"),
    "rotary": replace(SMALL, positions="rotary"),
    "qk_norm": replace(SMALL, qk_norm=True),
    "untied": replace(SMALL, tied=False),
    "softcap": replace(SMALL, softcap=15.0),
    "padded": replace(SMALL, vocab_multiple=8),
    "modern": MODERN,
}
every_option = pytest.mark.parametrize("config", OPTIONS.values(), ids=OPTIONS)


def make(config, dtype=torch.float64):
    torch.manual_seed(0)
    model = GPT(config, 11).to(dtype)
    with torch.no_grad():  # far enough from 0 and 1 that no part can be left out unnoticed
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def tokens_of(rows=3, length=8):
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(1))


class FirstGPT(nn.Module):
    """The GPT before it had options; runs of that time must go on from their checkpoints."""

    def __init__(self, config, vocab_size):
        super().__init__()
        width, bias = config.width, config.bias
        self.heads = config.heads
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(config.context, width)
        self.blocks = nn.ModuleList()
        for _ in range(config.layers):
            block = nn.Module()
            block.attention_norm = nn.LayerNorm(width, bias=bias)
            block.attention = nn.Module()
            block.attention.query_key_value = nn.Linear(width, 3 * width, bias=bias)
            block.attention.project = nn.Linear(width, width, bias=bias)
            block.perceptron_norm = nn.LayerNorm(width, bias=bias)
            block.expand = nn.Linear(width, 4 * width, bias=bias)
            block.project = nn.Linear(4 * width, width, bias=bias)
            self.blocks.append(block)
        self.norm = nn.LayerNorm(width, bias=bias)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim >= 2:
                depth = 2 * config.layers if name.endswith("project.weight") else 1
                nn.init.normal_(parameter, std=0.02 / math.sqrt(depth))

    def forward(self, tokens):
        x = self.token_embedding(tokens) + self.position_embedding(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            heads = block.attention.query_key_value(block.attention_norm(x))
            heads = heads.unflatten(-1, (3 * self.heads, -1)).transpose(1, 2)
            mixed = F.scaled_dot_product_attention(*heads.chunk(3, dim=1), is_causal=True)
            x = x + block.attention.project(mixed.transpose(1, 2).flatten(2))
            x = x + block.project(F.gelu(block.expand(block.perceptron_norm(x))))
        return F.linear(self.norm(x), self.token_embedding.weight)


@pytest.mark.parametrize("bias", [False, True])
def test_the_default_is_bit_for_bit_the_first_gpt(bias):
    config = replace(SMALL, bias=bias)
    results = []
    for kind in (FirstGPT, GPT):
        torch.manual_seed(5)
        model = kind(config, 11)
        output = model(tokens_of())
        results.append((model.state_dict(), output if kind is FirstGPT else output.logits))
    (old, old_logits), (new, new_logits) = results
    assert list(old) == list(new)
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert torch.equal(old_logits, new_logits)


def test_attention_with_dropout_mixes_as_without_but_for_what_is_dropped(monkeypatch):
    torch.manual_seed(0)
    attention = Attention(8, 2, bias=True, dropout=0.25, qk_norm=False).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    expected = attention.eval()(x)[0]
    seen = []

    def keep_all(weights, dropout, *, training):
        seen.append((tuple(weights.shape), dropout, training))
        return weights

    monkeypatch.setattr(attention_module, "element_dropout", keep_all)
    torch.testing.assert_close(attention.train()(x)[0], expected, rtol=1e-12, atol=1e-12)
    assert seen == [((3, 2, 5, 5), 0.25, True)]
    monkeypatch.undo()
    assert not torch.equal(attention(x)[0], attention(x)[0])
    # Value 1 everywhere: a row's sum of what is left of its weights has mean 1.
    ones, many = torch.ones(1, 1, 5, 4), torch.randn(2000, 1, 5, 4)
    left = attention_module._mix_and_drop(many, many, ones.expand_as(many), 0.25)
    assert left.mean().item() == pytest.approx(1, abs=0.02)
    assert left[:, 0, 0].unique().numel() == 2  # the first position sees itself alone


def definition(model, tokens):
    """The logits from the formulas, one row, one head and one position at a time."""
    config, named = model.config, dict(model.named_parameters())
    size = config.width // config.heads

    def normalised(x, name):
        if config.norm == "layer":
            x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * named[f"{name}.weight"] + named.get(f"{name}.bias", 0.0)

    def linear(x, name):
        return x @ named[f"{name}.weight"].T + named.get(f"{name}.bias", 0.0)

    def activated(x):
        if config.activation == "relu2":
            return torch.where(x > 0, x**2, 0.0)
        if config.activation == "gelu":
            return x * (1 + torch.erf(x / math.sqrt(2))) / 2
        return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2

    def turned(x, position):
        if config.qk_norm:
            x = x / (x.square().mean() + 1e-5).sqrt()
        if config.positions == "rotary":
            pairs = torch.complex(x[: size // 2], x[size // 2 :])
            angles = position * 10_000 ** (-torch.arange(0, size, 2).double() / size)
            pairs = pairs * torch.polar(torch.ones_like(angles), angles)
            x = torch.cat([pairs.real, pairs.imag])
        return x

    def attention(x, name):
        parts = linear(x, f"{name}.query_key_value").split(config.width, dim=-1)
        out = []
        for t in range(len(x)):
            mixed = []
            for h in range(config.heads):
                query, keys, values = (part[:, h * size : (h + 1) * size] for part in parts)
                scores = [turned(query[t], t) @ turned(keys[s], s) for s in range(t + 1)]
                weights = (torch.stack(scores) / math.sqrt(size)).softmax(0)
                mixed.append(weights @ values[: t + 1])
            out.append(torch.cat(mixed))
        return linear(torch.stack(out), f"{name}.project")

    rows = []
    for row in tokens:
        x = named["token_embedding.weight"][row]
        if config.positions == "learned":
            x = x + named["position_embedding.weight"][: len(row)]
        for i in range(config.layers):
            at = f"blocks.{i}"
            x = x + attention(normalised(x, f"{at}.attention_norm"), f"{at}.attention")
            hidden = linear(normalised(x, f"{at}.perceptron_norm"), f"{at}.expand")
            x = x + linear(activated(hidden), f"{at}.project")
        head = named["token_embedding.weight" if config.tied else "head.weight"]
        logits = normalised(x, "norm") @ head.T
        if config.softcap:
            logits = config.softcap * torch.tanh(logits / config.softcap)
        rows.append(logits[:, : model.vocab_size])
    return torch.stack(rows)


@every_option
def test_logits_are_those_of_the_formulas(config):
    model, tokens = make(config), tokens_of()
    # Logits of up to 30, some hundred roundings of float64.
    torch.testing.assert_close(model(tokens).logits, definition(model, tokens), rtol=0, atol=1e-11)


@every_option
def test_a_text_read_in_pieces_has_the_logits_of_the_whole(config):
    model, tokens = make(config), tokens_of()
    memory, logits = model.empty_memory(3), []
    for piece in torch.split(tokens, [3, 1, 4], dim=1):
        output = model(piece, memory)
        memory = output.memory
        logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, 1), model(tokens).logits, rtol=0, atol=1e-11)


@every_option
def test_hessian_vector_products_are_exact(config):
    # relu2's second derivative jumps at 0, which no preactivation is near.
    model, tokens = make(config), tokens_of(2)
    parameters = list(model.parameters())
    vectors = [torch.randn_like(p) for p in parameters]

    def gradients(**options):
        loss = token_losses(model(tokens[:, :-1]).logits, tokens[:, 1:]).mean()
        return torch.autograd.grad(loss, parameters, **options)

    with model.twice_differentiable():
        products = torch.autograd.grad(gradients(create_graph=True), parameters, vectors)
    moved, step = [], 1e-6
    for sign in (1, -1):
        with torch.no_grad():
            for p, v in zip(parameters, vectors, strict=True):
                p.add_(v, alpha=sign * step)
        moved.append(gradients())
        with torch.no_grad():
            for p, v in zip(parameters, vectors, strict=True):
                p.sub_(v, alpha=sign * step)
    for product, high, low in zip(products, *moved, strict=True):
        # The central difference errs by step^2 times the fourth derivative and 1e-16 / step.
        torch.testing.assert_close(product, (high - low) / (2 * step), rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL, MODERN], ids=["default", "modern"])
def test_one_graph_without_a_memory(config):
    torch.compiler.reset()
    model, tokens = make(config, torch.float32), tokens_of()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens).logits, model(tokens).logits)


@every_option
def test_half_precision_is_close(config):
    model, tokens = make(config, torch.float32), tokens_of()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(tokens).logits
    # bfloat16 keeps 8 bits; a dozen roundings of logits of size 3 in a row.
    deviation = (half - model(tokens).logits).square().mean().sqrt()
    assert 0 < deviation < 0.1 * model(tokens).logits.std()


@every_option
def test_operations_are_those_that_torch_counts(config):
    model, tokens = make(config), tokens_of(3, config.context)
    with FlopCounterMode(display=False) as counter, model.twice_differentiable():
        model(tokens).logits.sum().backward()
    assert model.flops_per_token() == counter.get_total_flops() / tokens.numel()


def test_turned_products_depend_on_differences_of_positions_only():
    query, key = torch.randn(2, 1, 1, 1, 6, dtype=torch.float64)

    def product(at, other):
        turned = (
            rotate(x, rotation_of(torch.tensor([position]), 6, torch.float64))
            for x, position in ((query, at), (key, other))
        )
        return math.prod(turned).sum()

    torch.testing.assert_close(product(7, 4), product(1003, 1000))
    assert not torch.isclose(product(7, 4), product(4, 7))


def test_angles_stay_precise_in_half_precision():
    cos, _ = rotation_of(torch.arange(1000), 4, torch.bfloat16)
    torch.testing.assert_close(cos[:, 0], torch.arange(1000).double().cos().float())


def test_rows_of_the_padding_get_no_logits_and_no_gradient():
    model = make(MODERN)
    assert model.token_embedding.weight.shape[0] == model.head.weight.shape[0] == 16
    logits = model(tokens_of()).logits
    assert logits.shape[-1] == 11
    token_losses(logits, tokens_of()).mean().backward()
    assert (model.head.weight.grad[:11] != 0).any(1).all()
    assert (model.head.weight.grad[11:] == 0).all()


def test_zero_projections_make_every_block_the_identity():
    model = GPT(replace(SMALL, zero_projections=True, bias=True), 11)
    x = torch.randn(2, 4, 16)
    assert all(torch.equal(block(x)[0], x) for block in model.blocks)
    assert not torch.equal(GPT(SMALL, 11).blocks[0](x)[0], x)


@pytest.mark.parametrize(
    ("size", "vocab_size", "bias", "count"),
    [
        # OpenAI's, of the published weights.
        ("124m", 50_257, True, 124_439_808),
        ("355m", 50_257, True, 354_823_168),
        ("774m", 50_257, True, 774_030_080),
        ("1558m", 50_257, True, 1_557_611_200),
        # Embeddings (65 + context) D, blocks 12 D^2 + 2 D each, and the last norm.
        ("0.8m", 65, False, 129 * 128 + 4 * (12 * 128**2 + 256) + 128),
        ("1.6m", 65, False, 129 * 128 + 8 * (12 * 128**2 + 256) + 128),
        ("6.4m", 65, False, 321 * 256 + 8 * (12 * 256**2 + 512) + 256),
        ("10m", 65, False, 321 * 384 + 6 * (12 * 384**2 + 768) + 384),
    ],
)
def test_sizes_have_their_parameters(size, vocab_size, bias, count):
    with torch.device("meta"):
        model = GPT(replace(SIZES[size], bias=bias), vocab_size)
    assert model.parameter_count() == count
    assert count / 1e6 == pytest.approx(float(size[:-1]), rel=0.08)


def test_qk_norm_makes_attention_blind_to_the_size_of_queries():
    attention = Attention(8, 2, bias=False, dropout=0.0, qk_norm=True).double()
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    before = attention(x)[0]
    attention.query_key_value.weight.data[:16] *= 1000
    # The epsilon under the root is the only thing that sees the size.
    torch.testing.assert_close(attention(x)[0], before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "tanh"}, "activation tanh; give --model.activation gelu or gelu-tanh or"),
        ({"norm": "batch"}, "norm batch; give --model.norm layer or rms"),
        ({"positions": "sine"}, "positions sine; give --model.positions learned or rotary"),
        ({"softcap": -1.0}, "softcap -1.0; give --model.softcap 0 or more"),
        ({"softcap": math.nan}, "softcap nan"),
        ({"vocab_multiple": 0}, "vocab_multiple 0; give --model.vocab-multiple 1 or more"),
        ({"width": 6, "heads": 2, "positions": "rotary"}, "rotary positions with width 6 and"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        GPTConfig(**options)
