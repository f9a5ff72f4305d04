import math

import pytest
import torch
from torch.nn import functional as F

from psgd_lm.gpt import GPT, GPTConfig
from psgd_lm.language_model import token_losses
from psgd_optim.types import InputError


def test_logits_have_one_row_per_position(tiny_model):
    assert tiny_model(torch.zeros(3, 5, dtype=torch.int64)).logits.shape == (3, 5, 11)


def test_future_tokens_do_not_change_past_logits(tiny_model):
    tokens = torch.randint(11, (2, 8))
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    before, after = tiny_model(tokens).logits, tiny_model(changed).logits
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_past_tokens_change_later_logits(tiny_model):
    tokens = torch.randint(11, (1, 8))
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 11
    assert not torch.allclose(tiny_model(tokens).logits[:, 7], tiny_model(changed).logits[:, 7])


@pytest.mark.parametrize("bias", [False, True])
def test_parameter_count_follows_the_formula(bias):
    layers, width, context, vocab = 3, 12, 7, 11
    config = GPTConfig(layers=layers, heads=2, width=width, context=context, bias=bias)
    weights = (vocab + context) * width + layers * (12 * width**2 + 2 * width) + width
    biases = layers * (3 + 1 + 4 + 1 + 2) * width + width
    expected = weights + (biases if bias else 0)
    assert GPT(config, vocab).parameter_count() == expected


def test_head_is_the_embedding(tiny_model):
    seen = []
    tiny_model.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    tokens = torch.randint(10, (1, 8))
    logits = tiny_model(tokens).logits
    weight = tiny_model.token_embedding.weight
    assert torch.equal(logits, seen[0] @ weight.T)
    # Token 10 is no input, so only the head can give its row a gradient.
    logits[..., 10].sum().backward()
    assert (weight.grad[10] != 0).any()


def test_initial_loss_is_that_of_guessing():
    torch.manual_seed(0)
    model = GPT(GPTConfig(), vocab_size=65)
    tokens = torch.randint(65, (8, 65))
    loss = token_losses(model(tokens[:, :-1]).logits, tokens[:, 1:]).mean()
    assert loss.item() == pytest.approx(math.log(65), abs=0.1)


def test_initial_sizes_are_those_of_gpt2():
    torch.manual_seed(0)
    model = GPT(GPTConfig(layers=8, width=256, bias=True), vocab_size=200)
    parameters = dict(model.named_parameters())
    assert parameters["token_embedding.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    projection = parameters["blocks.0.attention.project.weight"]
    assert projection.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert all((p == 0).all() for name, p in parameters.items() if name.endswith("bias"))
    assert (parameters["norm.weight"] == 1).all()


def test_attention_equals_its_definition(tiny_model):
    attention = tiny_model.blocks[0].attention.double()
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    query, key, value = F.linear(x, attention.query_key_value.weight).chunk(3, dim=-1)
    heads = []
    for one in range(2):
        q, k, v = (part[..., 8 * one : 8 * one + 8] for part in (query, key, value))
        scores = (q @ k.mT / math.sqrt(8)).masked_fill(
            torch.ones(6, 6, dtype=torch.bool).triu(1), -torch.inf
        )
        heads.append(scores.softmax(-1) @ v)
    expected = F.linear(torch.cat(heads, -1), attention.project.weight)
    torch.testing.assert_close(attention(x)[0], expected)


def test_dropout_acts_in_training_only():
    model = GPT(GPTConfig(layers=1, heads=1, width=8, context=4, dropout=0.5), vocab_size=5)
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    assert not torch.equal(model(tokens).logits, model(tokens).logits)
    model.eval()
    assert torch.equal(model(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"layers": 0}, "layers 0; give --model.layers 1 or more"),
        (
            {"width": 10, "heads": 3},
            "width 10 and heads 3; .*change --model.width or --model.heads",
        ),
        ({"dropout": 1.0}, r"dropout 1.0; give --model.dropout in \[0, 1\)"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        GPTConfig(**sizes)


PIECES = [[1] * 8, [5, 1, 1, 1], [1, 4, 3], [8], [3, 0, 5]]


def with_memory(model, tokens, pieces):
    """The logits of a text that is read in pieces, and the memory after it."""
    memory, logits = model.empty_memory(len(tokens)), []
    for piece in torch.split(tokens, pieces, dim=1):
        output = model(piece, memory)
        memory = output.memory
        logits.append(output.logits)
    return torch.cat(logits, dim=1), memory


@pytest.mark.parametrize("pieces", PIECES, ids=str)
@pytest.mark.parametrize(
    # Sums of up to 16 products of unit size, in another order.
    ("dtype", "tolerance"),
    [(torch.float64, 1e-14), (torch.float32, 1e-6)],
    ids=str,
)
def test_reading_in_pieces_gives_the_logits_of_the_whole(tiny_model, pieces, dtype, tolerance):
    model = tiny_model.to(dtype)
    tokens = torch.randint(11, (3, 8))
    logits, memory = with_memory(model, tokens, pieces)
    torch.testing.assert_close(logits, model(tokens).logits, rtol=0, atol=tolerance)
    assert [part.shape for part in memory] == [(3, 2, 8, 8)] * 4


def test_no_memory_is_returned_unless_one_was_given(tiny_model):
    assert tiny_model(torch.zeros(1, 2, dtype=torch.int64)).memory is None


def test_a_memory_beyond_the_context_is_refused(tiny_model):
    tokens = torch.zeros(1, 5, dtype=torch.int64)
    memory = tiny_model(tokens, tiny_model.empty_memory(1)).memory
    with pytest.raises(ValueError, match="5 tokens after 5; the context holds 8: begin again"):
        tiny_model(tokens, memory)
