"""Recurrent models against their formulas, and their two ways of running against each other."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from psgd_lm.dropouts import weight_dropout
from psgd_lm.language_model import token_losses
from psgd_lm.models import build_model
from psgd_lm.recurrent import AWD_LSTM, GRUConfig, LSTMConfig, RecurrentModel
from psgd_optim.types import InputError

SIZES = {"layers": 2, "embedding": 6, "hidden": 8, "context": 5}
DROPOUTS = {
    "embedding_dropout": 0.2,
    "input_dropout": 0.4,
    "hidden_dropout": 0.25,
    "output_dropout": 0.4,
    "weight_dropout": 0.5,
}
PENALTIES = {"activation_penalty": 2.0, "change_penalty": 1.0}
CELLS = (LSTMConfig, GRUConfig)
every_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
tied_or_not = pytest.mark.parametrize("tied", [True, False])


def make(cell, **options):
    torch.manual_seed(0)
    model = build_model(cell(**SIZES, **options), 11).double()
    for parameter in model.parameters():  # far enough from 0 that no part can be left out
        parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def tokens_of(rows=3, length=6):
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(1))


def loss_of(model, tokens, memory=None):
    torch.manual_seed(2)  # the same dropouts in every call
    output = model(tokens[:, :-1], memory)
    loss = token_losses(output.logits, tokens[:, 1:]).mean()
    return loss if output.penalty is None else loss + output.penalty


def definition(model, tokens):
    """The logits from the formulas, one row and one token at a time, without dropout."""
    named = dict(model.named_parameters())
    is_lstm = isinstance(model.config, LSTMConfig)
    rows = []
    for row in tokens:
        states = [[torch.zeros(size, dtype=torch.float64)] * 2 for size in model.config.sizes[1:]]
        logits = []
        for token in row:
            x = named["embedding.weight"][token]
            for i, state in enumerate(states):
                w = {name: named[f"layers.{i}.cell.{name}_l0"] for name in NAMES}
                h, c = state
                a = w["weight_ih"] @ x + w["bias_ih"]
                b = w["weight_hh"] @ h + w["bias_hh"]
                if is_lstm:
                    i_gate, f_gate, g, o_gate = (a + b).chunk(4)
                    c = torch.sigmoid(f_gate) * c + torch.sigmoid(i_gate) * torch.tanh(g)
                    h = torch.sigmoid(o_gate) * torch.tanh(c)
                else:
                    (r_a, z_a, n_a), (r_b, z_b, n_b) = a.chunk(3), b.chunk(3)
                    z = torch.sigmoid(z_a + z_b)
                    h = (1 - z) * torch.tanh(n_a + torch.sigmoid(r_a + r_b) * n_b) + z * h
                state[:] = h, c
                x = h
            if model.config.tied:
                logits.append(named["embedding.weight"] @ x + named["head_bias"])
            else:
                logits.append(named["head.weight"] @ x + named["head.bias"])
        rows.append(torch.stack(logits))
    return torch.stack(rows)


NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
# Sums of up to 8 products in another order, in float64.
TIGHT = {"rtol": 1e-12, "atol": 1e-13}


@every_cell
@tied_or_not
def test_logits_are_those_of_the_formulas(cell, tied):
    model, tokens = make(cell, tied=tied), tokens_of()
    expected = definition(model, tokens)
    torch.testing.assert_close(model(tokens).logits, expected, **TIGHT)
    with model.twice_differentiable():
        torch.testing.assert_close(model(tokens).logits, expected, **TIGHT)


@every_cell
@pytest.mark.parametrize("dropouts", [{}, {**DROPOUTS, **PENALTIES}], ids=["plain", "awd"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_both_ways_of_running_have_the_same_derivatives(cell, dropouts, dtype):
    """On a CPU torch's own layer has second derivatives too; on CUDA only the unfused one."""
    model, tokens = make(cell, **dropouts).to(dtype), tokens_of()
    parameters = list(model.parameters())
    vectors = [torch.randn_like(p) for p in parameters]

    def derivatives():
        loss = loss_of(model, tokens, model.empty_memory(3))
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        return [loss, *gradients, *torch.autograd.grad(gradients, parameters, vectors)]

    fused = derivatives()
    with model.twice_differentiable():
        unfused = derivatives()
    for one, other in zip(fused, unfused, strict=True):
        # Sums of up to 8 products in another order, through 5 steps and 2 layers, three times.
        torch.testing.assert_close(one, other, rtol=0, atol=1e4 * torch.finfo(dtype).eps)


@every_cell
def test_hessian_vector_products_are_exact(cell):
    model, tokens = make(cell, **DROPOUTS, **PENALTIES), tokens_of()
    parameters = list(model.parameters())
    vectors = [torch.randn_like(p) for p in parameters]
    with model.twice_differentiable():
        gradients = torch.autograd.grad(loss_of(model, tokens), parameters, create_graph=True)
        products = torch.autograd.grad(gradients, parameters, vectors)
    step, moved = 1e-6, []
    for sign in (1, -2):
        with torch.no_grad():
            for p, v in zip(parameters, vectors, strict=True):
                p.add_(v, alpha=sign * step)
        moved.append(torch.autograd.grad(loss_of(model, tokens), parameters))
    for product, high, low in zip(products, *moved, strict=True):
        # The central difference errs by step^2 times a fourth derivative and 1e-16 / step.
        torch.testing.assert_close(product, (high - low) / (2 * step), rtol=1e-5, atol=1e-8)


def test_the_context_ends_also_after_an_error():
    model = make(LSTMConfig)
    with pytest.raises(KeyError), model.twice_differentiable():
        assert not model._fused
        raise KeyError
    assert model._fused


@every_cell
@pytest.mark.parametrize("fused", [True, False])
def test_weight_dropout_acts_and_dropped_entries_get_no_gradient(cell, fused):
    """The mask is known from its seed: nothing else is dropped in this model."""
    model, tokens = make(cell, weight_dropout=0.5), tokens_of()
    model._fused = fused
    weights = [layer.cell.weight_hh_l0 for layer in model.layers]
    before = [weight.detach().clone() for weight in weights]
    torch.manual_seed(2)
    masks = [weight_dropout(torch.ones_like(w), 0.5, training=True) for w in weights]
    loss_of(model, tokens).backward()
    for weight, mask, old in zip(weights, masks, before, strict=True):
        assert 0.3 < (mask == 0).double().mean() < 0.7
        assert torch.equal(weight.grad == 0, mask == 0)
        assert torch.equal(weight, old)
    assert not torch.equal(model(tokens).logits, model(tokens).logits)
    loss = loss_of(model, tokens)
    model.eval()
    assert torch.equal(model(tokens).logits, model(tokens).logits)
    with torch.no_grad():
        for weight, mask in zip(weights, masks, strict=True):
            weight.mul_(mask)
    torch.testing.assert_close(loss, loss_of(model, tokens), **TIGHT)


@every_cell
@pytest.mark.parametrize("dropout", DROPOUTS)
def test_every_dropout_acts_in_training_only(cell, dropout):
    model, tokens = make(cell, **{dropout: DROPOUTS[dropout]}), tokens_of()
    assert not torch.equal(model(tokens).logits, model(tokens).logits)
    model.eval()
    assert torch.equal(model(tokens).logits, make(cell)(tokens).logits)


@pytest.mark.parametrize("penalties", [{name: value} for name, value in PENALTIES.items()], ids=str)
def test_penalties_are_those_of_awd_lstm(penalties):
    """alpha of the outputs after dropout, beta of their changes before it, last layer only."""
    model, tokens = make(LSTMConfig, **penalties, output_dropout=0.5), tokens_of()
    seen = []
    model.layers[-1].register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    torch.manual_seed(4)
    penalty = model(tokens).penalty
    raw = seen[0]
    torch.manual_seed(4)
    dropped = raw * torch.empty(3, 1, 6, dtype=torch.float64).bernoulli_(0.5) / 0.5
    changes = [(raw[:, t + 1] - raw[:, t]) ** 2 for t in range(5)]
    expected = {
        "activation_penalty": 2.0 * (dropped**2).sum() / dropped.numel(),
        "change_penalty": 1.0 * torch.stack(changes).mean(),
    }
    torch.testing.assert_close(penalty, expected[next(iter(penalties))])
    assert penalty.requires_grad
    assert model.eval()(tokens).penalty is None


def test_the_penalty_of_one_token_is_finite():
    model = make(LSTMConfig, **PENALTIES)
    assert model(tokens_of(2, 1)).penalty.isfinite()
    assert make(LSTMConfig)(tokens_of()).penalty is None


@every_cell
@pytest.mark.parametrize("fused", [True, False])
def test_a_text_read_in_pieces_has_the_logits_of_the_whole(cell, fused):
    model, tokens = make(cell).eval(), tokens_of()
    model._fused = fused
    memory, logits = model.empty_memory(3), []
    for piece in torch.split(tokens, [3, 1, 2], dim=1):
        output = model(piece, memory)
        memory = output.memory
        logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, 1), model(tokens).logits, **TIGHT)
    parts = 2 if cell is LSTMConfig else 1
    assert [tuple(part.shape) for part in memory] == [(3, 8)] * parts + [(3, 6)] * parts
    assert model(tokens).memory is None


def test_gradients_go_through_the_memory_until_it_is_detached():
    model, tokens = make(LSTMConfig), tokens_of()
    memory = model(tokens, model.empty_memory(3)).memory
    assert all(part.requires_grad for part in memory)


def test_rows_do_not_see_each_other():
    model, tokens = make(LSTMConfig).eval(), tokens_of()
    torch.testing.assert_close(model(tokens[1:2]).logits, model(tokens).logits[1:2], **TIGHT)


@every_cell
def test_a_sparse_gradient_is_the_dense_one_of_the_words_seen(cell):
    tokens = tokens_of()
    dense, sparse = (make(cell, tied=False, sparse_embedding=s, **DROPOUTS) for s in (False, True))
    for model in (dense, sparse):
        loss_of(model, tokens).backward()
    gradient = sparse.embedding.weight.grad
    assert gradient.is_sparse
    torch.testing.assert_close(gradient.to_dense(), dense.embedding.weight.grad)
    assert set(gradient.coalesce().indices()[0].tolist()) == set(tokens[:, :-1].unique().tolist())


def test_awd_lstm_has_its_24_million_parameters():
    with torch.device("meta"):
        model = RecurrentModel(AWD_LSTM, 10_000)
    assert model.parameter_count() == 24_221_600  # what its authors' program prints
    assert model.config.sizes == [400, 1150, 1150, 400]
    assert replace(AWD_LSTM, tied=False).sizes == [400, 1150, 1150, 1150]
    assert replace(AWD_LSTM, layers=1).sizes == [400, 400]


@tied_or_not
def test_initial_values_are_those_of_awd_lstm(tied):
    torch.manual_seed(0)
    model = RecurrentModel(LSTMConfig(layers=1, embedding=64, tied=tied), 200)
    weights = [model.embedding.weight] + ([] if tied else [model.head.weight])
    for weight in weights:
        assert weight.abs().max() <= 0.1
        assert weight.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.05)
    assert (model.head_bias if tied else model.head.bias).count_nonzero() == 0
    hidden = 64 if tied else 256
    bound = model.layers[0].cell.weight_hh_l0.abs().max().item() * math.sqrt(hidden)
    assert 0.98 < bound <= 1


@every_cell
@tied_or_not
def test_operations_are_those_that_torch_counts(cell, tied):
    model, tokens = make(cell, tied=tied), tokens_of(3, 5)
    # Torch does not count a fused layer. From the second window on the state has a gradient too.
    memory = tuple(part.requires_grad_() for part in model.empty_memory(3))
    with FlopCounterMode(display=False) as counter, model.twice_differentiable():
        model(tokens, memory).logits.sum().backward()
    assert model.flops_per_token() == counter.get_total_flops() / tokens.numel()


# Torch leaves its own layers out of the graphs, and looks at the `grad` of what they return.
@pytest.mark.filterwarnings("ignore:.*grad attribute of a Tensor that is not a leaf")
@every_cell
@pytest.mark.parametrize("options", [{}, {**DROPOUTS, **PENALTIES}], ids=["plain", "awd"])
def test_compiled_models_give_the_same(cell, options):
    torch.compiler.reset()
    model, tokens = make(cell, **options), tokens_of()
    parameters = list(model.parameters())
    compiled = torch.compile(model, backend="aot_eager")
    expected, found = (
        torch.autograd.grad(loss_of(run, tokens), parameters) for run in (model, compiled)
    )
    torch.testing.assert_close(found, expected, **TIGHT)


@every_cell
@pytest.mark.parametrize("fused", [True, False])
def test_half_precision_is_close(cell, fused):
    model, tokens = make(cell, **DROPOUTS, **PENALTIES).float(), tokens_of()
    model._fused = fused
    losses = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            memory = model(tokens, model.empty_memory(3)).memory
            losses.append(loss_of(model, tokens, tuple(part.detach() for part in memory)))
    # bfloat16 keeps 8 bits: single roundings of 0.4 %, some of which add up. The states that the
    # two begin with differ by other dropouts.
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.2)


@pytest.mark.gpu
@every_cell
@pytest.mark.parametrize("dropouts", [{}, {"weight_dropout": 0.5}], ids=["whole", "dropped"])
def test_cudnn_has_the_gradients_of_the_unfused_cell(cell, dropouts):
    """Without a warning, which would be an error here, and then twice."""
    model, tokens = make(cell, **dropouts).float().cuda(), tokens_of().cuda()
    parameters = list(model.parameters())
    fused = torch.autograd.grad(loss_of(model, tokens), parameters)
    with model.twice_differentiable():
        unfused = torch.autograd.grad(loss_of(model, tokens), parameters, create_graph=True)
        torch.autograd.grad(sum(g.sum() for g in unfused), parameters)
    for one, other in zip(fused, unfused, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-4)  # TF32 in cuDNN


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers 0; give --model.layers 1 or more"),
        ({"weight_dropout": 1.0}, r"weight_dropout 1.0; give --model.weight-dropout in \[0, 1\)"),
        ({"change_penalty": -1.0}, "change_penalty -1.0; give --model.change-penalty 0 or more"),
        ({"sparse_embedding": True}, "sparse embedding that is tied .* give --model.no-tied or"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        GRUConfig(**options)
