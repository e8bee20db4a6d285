"""HIRE against a slow reference that follows the formulas position by position, and what its GRUs must keep."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from modeling_layerpool import LayerPoolBertModel
from modeling_layerpool.models.modeling_layerpool_hire import _read_both_ways
from modeling_layerpool.models.modeling_layerpool_packing import PackedSentences, PaddedSentences, pack_sentences
from tests.conftest import SENTENCES, assert_close_to


def gru_cell(weights, suffix, x, state):
    """One step of one direction: reset gate, update gate, new state."""
    from_input = (weights[f"weight_ih_{suffix}"] @ x + weights[f"bias_ih_{suffix}"]).chunk(3)
    from_state = (weights[f"weight_hh_{suffix}"] @ state + weights[f"bias_hh_{suffix}"]).chunk(3)
    reset = torch.sigmoid(from_input[0] + from_state[0])
    update = torch.sigmoid(from_input[1] + from_state[1])
    new = torch.tanh(from_input[2] + reset * from_state[2])
    return (1 - update) * new + update * state


def bidirectional_gru(gru, inputs):
    """The outputs at each position, and the final states of all depths and directions."""
    weights = dict(gru.named_parameters())
    finals = []
    for layer in range(gru.num_layers):
        directions = []
        for suffix, positions in (
            (f"l{layer}", range(len(inputs))),
            (f"l{layer}_reverse", range(len(inputs) - 1, -1, -1)),
        ):
            state = inputs[0].new_zeros(gru.hidden_size)
            outputs = {}
            for position in positions:
                state = outputs[position] = gru_cell(weights, suffix, inputs[position], state)
            finals.append(state)
            directions.append(outputs)
        inputs = [torch.cat([directions[0][p], directions[1][p]]) for p in range(len(inputs))]
    return inputs, torch.cat(finals)


def reference_hire(pooler, states, mask, activation=torch.relu):
    """Yang and Zhao's formulas, one sentence at a time; `states` are n tensors `(b, t, h)`."""
    embeddings, all_weights = [], []
    for sentence in range(mask.shape[0]):
        real = [state[sentence][mask[sentence].bool()] for state in states]  # n of (tokens, h)
        importance = []
        for state in real:
            _, extracted = bidirectional_gru(pooler.extractor, list(state))
            importance.append(activation(pooler.importance.weight[0] @ extracted + pooler.importance.bias[0]))
        weights = torch.stack(importance).softmax(dim=0)
        complement = sum(weight * state for weight, state in zip(weights, real, strict=True))
        last = real[-1]
        fused = torch.cat([last, complement, last + complement, last * complement], dim=1)
        outputs, _ = bidirectional_gru(pooler.fusion, list(fused))
        embeddings.append(pooler.projection(outputs[0]))
        all_weights.append(weights)
    return torch.stack(embeddings), torch.stack(all_weights)


@pytest.fixture
def hire_model(tiny_model):
    def make(**options):
        model = tiny_model(pooler_type="hire", **options)
        # So that the weights of the layers differ.
        nn.init.normal_(model.pooler.importance.weight, std=1.0)
        nn.init.constant_(model.pooler.importance.bias, 3.0)
        return model

    return make


@pytest.mark.parametrize(
    ("options", "states", "width"),
    [
        ({}, [0, 1, 2, 3], 64),
        ({"pooler_gru_size": 10}, [0, 1, 2, 3], 20),
        ({"pooler_gru_layers": 1}, [0, 1, 2, 3], 64),
        ({"pooler_layers": [1, -1], "pooler_gru_layers": 3, "pooler_gru_size": 7}, [1, 3], 14),
        ({"pooler_layers": [0, 2], "projection_dim": 10}, [0, 2], 10),
        ({"pooler_activation": "gelu"}, [0, 1, 2, 3], 64),
    ],
)
def test_hire_equals_the_formulas(hire_model, tokenizer, options, states, width):
    model = hire_model(**options).double()
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True, output_layer_attentions=True)
        read = [output.hidden_states[state] for state in states]
        activation = nn.functional.gelu if options.get("pooler_activation") else torch.relu
        embedding, weights = reference_hire(model.pooler, read, batch["attention_mask"], activation)
    assert weights.std(dim=1).max() > 1e-3
    assert output.pooler_output.shape == (3, width)
    assert model.embedding_dim == width
    torch.testing.assert_close(output.pooler_output, embedding, atol=1e-12, rtol=0)
    torch.testing.assert_close(output.layer_attentions, weights, atol=1e-12, rtol=0)


def test_the_importance_of_all_states_starts_open(hire_model, minilm):
    # Here, and from a checkpoint: a shut ReLU would let no gradient through to the first GRU.
    assert LayerPoolBertModel(hire_model().config).pooler.importance.bias.item() == 1
    assert LayerPoolBertModel.from_pretrained(minilm, pooler_type="hire").pooler.importance.bias.item() == 1


def test_hire_and_its_gradients_equal_the_formulas_in_float64(hire_model):
    pooler = hire_model(pooler_gru_size=6).pooler.double()
    states = torch.randn(4, 3, 5, 32, dtype=torch.float64, requires_grad=True)  # (n, b, t, h)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    sentences = PaddedSentences(mask)
    fast, _ = pooler([pooler.reduce(state, sentences) for state in states])
    slow, _ = reference_hire(pooler, list(states), mask)
    torch.testing.assert_close(fast, slow, atol=1e-10, rtol=0)
    loss_weight = torch.randn_like(fast)
    inputs = [states, *pooler.parameters()]
    gradients = [
        torch.autograd.grad((embedding * loss_weight).sum(), inputs, allow_unused=True, materialize_grads=True)
        for embedding in (fast, slow)
    ]
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("lengths", [[9, 9, 4, 1], [1], [3, 2], [5, 5, 5]])
def test_the_steps_on_a_cpu_are_those_of_torchs_gru(depth, lengths):
    gru = nn.GRU(6, 5, depth, bidirectional=True).double()
    packed = pack_sequence([torch.randn(length, 6, dtype=torch.float64) for length in lengths])
    data = packed.data.requires_grad_()
    output, final = _read_both_ways(gru, data, packed.batch_sizes)
    expected_output, expected_final = gru(PackedSequence(data, packed.batch_sizes))
    torch.testing.assert_close(output, expected_output.data, atol=1e-12, rtol=0)
    torch.testing.assert_close(final, expected_final, atol=1e-12, rtol=0)
    inputs = [data, *gru.parameters()]
    got = torch.autograd.grad(output.square().sum() + final.sum(), inputs)
    expected = torch.autograd.grad(expected_output.data.square().sum() + expected_final.sum(), inputs)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


def test_every_weight_that_the_first_token_depends_on_gets_a_gradient(tiny_model, tokenizer):
    # At its start, too, where a ReLU that is shut for all states would let none through to the first GRU.
    for seed in range(5):
        torch.manual_seed(seed)
        model = tiny_model(pooler_type="hire").train()
        output = model(**pack_sentences(tokenizer(list(SENTENCES))["input_ids"], pad_token_id=0)).pooler_output
        (output * torch.randn_like(output)).sum().backward()
        still = [name for name, parameter in model.pooler.named_parameters() if not parameter.grad.any()]
        # The top forward direction has read nothing before the first token.
        assert still == ["fusion.weight_hh_l1"]


def test_a_sentence_does_not_depend_on_its_batch(hire_model, tokenizer):
    model = hire_model()
    sentences = [*SENTENCES, "", "word " * 60, "?"]
    with torch.no_grad():
        alone = torch.cat([model(**tokenizer([s], return_tensors="pt")).pooler_output for s in sentences])
        without_mask = torch.cat(
            [model(tokenizer([s], return_tensors="pt")["input_ids"]).pooler_output for s in sentences]
        )
        for side in ("right", "left"):
            batch = tokenizer(sentences, padding=True, padding_side=side, return_tensors="pt")
            if side == "left":  # BERT counts positions from the left edge, wherever the sentence is
                batch["position_ids"] = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
            together = model(**batch).pooler_output
            assert_close_to(together, alone, 1e-5)
    assert_close_to(without_mask, alone)


def test_padding_may_lie_anywhere(hire_model):
    pooler = hire_model().pooler
    states = torch.randn(4, 1, 3, 32)  # (n, b, t, h)
    holes = torch.randn(4, 1, 7, 32)
    places = [1, 2, 5]
    holes[:, :, places] = states
    mask = torch.zeros(1, 7)
    mask[:, places] = 1
    packed = PackedSentences(torch.tensor([[-1, 0, 0, 0, -1, -1, -1]]), torch.tensor([1]))
    expected, _ = pooler([pooler.reduce(state, PaddedSentences(None)) for state in states])
    got, _ = pooler([pooler.reduce(state, PaddedSentences(mask)) for state in holes])
    torch.testing.assert_close(got, expected)
    in_a_row = torch.nn.functional.pad(states, (0, 0, 1, 3))
    got, _ = pooler([pooler.reduce(state, packed) for state in in_a_row])
    torch.testing.assert_close(got, expected)


def test_hire_is_saved_and_opened_with_its_width(hire_model, tokenizer, tmp_path):
    model = hire_model(pooler_gru_size=10)
    model.save_pretrained(tmp_path)
    again, info = LayerPoolBertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert again.config.projection_dim == again.embedding_dim == 20
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).pooler_output, model(**batch).pooler_output)


def test_the_grus_start_as_torch_starts_them(minilm):
    model, info = LayerPoolBertModel.from_pretrained(minilm, pooler_type="hire", output_loading_info=True)
    assert info["missing_keys"] == {f"pooler.{name}" for name in model.pooler.state_dict()}
    for gru in (model.pooler.extractor, model.pooler.fusion):
        for weight in gru.parameters():
            assert weight.abs().max() <= 384**-0.5
            assert weight.std().item() == pytest.approx(384**-0.5 / 3**0.5, rel=0.1)
    # Opened from a checkpoint, the network computes with the weights that it shows.
    states = torch.randn(7, 1, 4, 384)
    with torch.no_grad():
        before, _ = model.pooler([(state, PaddedSentences(None)) for state in states])
        model.pooler.fusion.weight_ih_l0.zero_()
        after, _ = model.pooler([(state, PaddedSentences(None)) for state in states])
    assert not torch.equal(after, before)


@pytest.mark.long
def test_compiled_it_gives_the_same(hire_model, tokenizer):
    model = hire_model(pooler_layers=[0, 1])
    compiled = torch.compile(model, backend="aot_eager")
    packed = pack_sentences(tokenizer(list(SENTENCES))["input_ids"], pad_token_id=0)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**packed).pooler_output, model(**packed).pooler_output)
