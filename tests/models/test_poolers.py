"""Each pooler against a slow float64 reference that follows its formula state by state."""

import math

import pytest
import torch
from torch import nn

from tests.conftest import POOLER_TYPES, SENTENCES, assert_close_to


RRELU_SLOPE = 11 / 48


def normalized(x):
    """Mean 0 and variance 1 over the coordinates."""
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt()


def reference_layer_attention(
    hidden_states, mask, state_dict, divisor, slope=RRELU_SLOPE, residual=None, normalize=False, output=torch.tanh
):
    """methods of Oh et al. 2022, one sentence, one query and one key at a time, in float64."""
    weights = {name: value.double() for name, value in state_dict.items()}

    def rrelu(x):
        return torch.where(x >= 0, x, slope * x)

    embeddings = []
    for sentence in range(mask.shape[0]):
        tokens = int(mask[sentence].sum())
        first = [state[sentence, 0].double() for state in hidden_states]
        mean = [state[sentence, :tokens].double().sum(dim=0) / tokens for state in hidden_states]
        start = {None: 0, "mean": mean[-1], "cls": first[-1]}[residual]
        if normalize:
            first, mean = [normalized(c) for c in first], [normalized(a) for a in mean]
        total = torch.zeros_like(first[0])
        for c in first:
            query = rrelu(weights["query.weight"] @ c)
            scores = [(query @ rrelu(weights["key.weight"] @ a) / divisor).item() for a in mean]
            normaliser = sum(math.exp(score) for score in scores)
            for score, a in zip(scores, mean, strict=True):
                total += math.exp(score) / normaliser * rrelu(weights["value.weight"] @ a)
        mixed = total / len(hidden_states)
        joined = torch.cat([first[-1], mixed])
        embeddings.append(start + output(weights["projection.weight"] @ joined + weights["projection.bias"]))
    return torch.stack(embeddings)


@pytest.mark.parametrize(
    ("options", "states"),
    [
        ({}, [0, 1, 2, 3]),
        ({"pooler_scaling": "sqrt_hidden_size"}, [0, 1, 2, 3]),
        ({"pooler_layers": [1, -1]}, [1, 3]),
        ({"pooler_layers": [0, 2]}, [0, 2]),
        ({"projection_dim": 10}, [0, 1, 2, 3]),
    ],
)
def test_layer_attention_equals_the_formula(tiny_model, tokenizer, options, states):
    model = tiny_model(**options).double()
    for module in (model.pooler.query, model.pooler.key, model.pooler.value, model.pooler.projection):
        nn.init.normal_(module.weight, std=0.3)  # far from the linear range of softmax and tanh
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
    divisor = math.sqrt(32) if options.get("pooler_scaling") else len(states)
    expected = reference_layer_attention(
        [output.hidden_states[state] for state in states], batch["attention_mask"], model.pooler.state_dict(), divisor
    )
    torch.testing.assert_close(output.pooler_output, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("residual", ["mean", "cls", None])
@pytest.mark.parametrize(
    ("options", "output"),
    [
        ({}, None),
        ({"pooler_normalize_inputs": True}, None),
        ({"pooler_output_activation": "sigmoid"}, torch.sigmoid),
    ],
)
def test_layer_attention_with_a_residual_equals_its_formula(tiny_model, tokenizer, residual, options, output):
    model = tiny_model(pooler_residual=residual, **options).double()
    for weight in model.pooler.parameters():
        nn.init.normal_(weight, std=0.3)
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        got = model(**batch, output_hidden_states=True)
    expected = reference_layer_attention(
        got.hidden_states,
        batch["attention_mask"],
        model.pooler.state_dict(),
        divisor=4,
        residual=residual,
        normalize="pooler_normalize_inputs" in options,
        output=output or (torch.tanh if residual is None else lambda x: x),
    )
    torch.testing.assert_close(got.pooler_output, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("pooler_type", "given", "residual"),
    [
        ("weighted_layers", None, None),
        ("weighted_layers", "mean", "mean"),
        ("weighted_layers", "cls", "cls"),
        ("residual_layers", None, "mean"),
        ("residual_layers", "cls", "cls"),
    ],
)
@pytest.mark.parametrize("normalize", [False, True])
def test_weighted_and_residual_layers_equal_their_formula(
    tiny_model, tokenizer, pooler_type, given, residual, normalize
):
    model = tiny_model(pooler_type=pooler_type, pooler_residual=given, pooler_normalize_inputs=normalize)
    nn.init.normal_(model.double().pooler.layer_weights)
    weights = model.pooler.layer_weights.detach().clone()
    if residual is None:
        nn.init.constant_(model.pooler.scale, 1.7)
        weights = 1.7 * weights.exp() / weights.exp().sum()
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        got = model(**batch, output_hidden_states=True, output_layer_attentions=True)
    for sentence, tokens in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
        states = [state[sentence, :tokens] for state in got.hidden_states]
        mean = [state.mean(dim=0) for state in states]
        expected = {None: 0, "mean": mean[-1], "cls": states[-1][0]}[residual]
        for weight, x in zip(weights, mean, strict=True):
            expected = expected + weight * (normalized(x) if normalize else x)
        torch.testing.assert_close(got.pooler_output[sentence], expected, atol=1e-12, rtol=0)
    if residual is not None:
        weights[-1] += 1
    torch.testing.assert_close(got.layer_attentions[0], weights.abs() / weights.abs().sum())


@pytest.mark.parametrize("pooler_type", ["layer_attention", "residual_layers", "weighted_layers"])
@pytest.mark.parametrize("residual", ["mean", "cls"])
@pytest.mark.parametrize("options", [{}, {"pooler_normalize_inputs": True}])
def test_a_new_residual_pooler_is_the_plain_one_exactly(minilm, minilm_tokenizer, pooler_type, residual, options):
    from modeling_layerpool import LayerPoolBertModel

    plain = LayerPoolBertModel.from_pretrained(minilm, pooler_type=residual)
    model = LayerPoolBertModel.from_pretrained(minilm, pooler_type=pooler_type, pooler_residual=residual, **options)
    expected = plain.encode(list(SENTENCES), minilm_tokenizer)
    assert (model.encode(list(SENTENCES), minilm_tokenizer) == expected).all()
    # ... and learns from the first step on.
    model.train()(
        **minilm_tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    ).pooler_output.square().sum().backward()
    moving = {name for name, weight in model.pooler.named_parameters() if weight.grad.abs().sum() > 0}
    assert moving == (
        {"projection.weight", "projection.bias"} if pooler_type == "layer_attention" else {"layer_weights"}
    )


def test_a_trained_residual_pooler_comes_back_from_its_folder(tiny_model, tmp_path):
    model = tiny_model(pooler_residual="mean")
    nn.init.normal_(model.pooler.projection.weight)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again.pooler.projection.weight, model.pooler.projection.weight)
    assert again.config.pooler_residual == "mean"


def test_layer_attention_equals_the_formula_on_real_weights(minilm, minilm_tokenizer):
    from modeling_layerpool import LayerPoolBertModel

    torch.manual_seed(0)
    model = LayerPoolBertModel.from_pretrained(minilm).eval()
    batch = minilm_tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
    expected = reference_layer_attention(
        output.hidden_states, batch["attention_mask"], model.pooler.state_dict(), divisor=7
    )
    assert_close_to(output.pooler_output.double(), expected)


def test_layer_attention_gradients_equal_those_of_the_formula(tiny_model):
    pooler = tiny_model(pooler_activation="relu").pooler.double()
    states = torch.randn(4, 5, 2, 32, dtype=torch.float64, requires_grad=True)  # (n, b, first and mean, h)
    embedding, _ = pooler(list(states))
    loss_weight = torch.randn_like(embedding)
    parameters = [states, *pooler.parameters()]
    fast = torch.autograd.grad((embedding * loss_weight).sum(), parameters)

    rows = []
    for sentence in range(5):
        first, mean = states[:, sentence, 0], states[:, sentence, 1]
        mixed = 0
        for c in first:
            query = torch.relu(pooler.query.weight @ c)
            scores = torch.stack([query @ torch.relu(pooler.key.weight @ a) / 4 for a in mean])
            for alpha, a in zip(scores.softmax(dim=0), mean, strict=True):
                mixed = mixed + alpha * torch.relu(pooler.value.weight @ a) / 4
        joined = torch.cat([first[-1], mixed])
        rows.append(torch.tanh(pooler.projection.weight @ joined + pooler.projection.bias))
    slow = torch.autograd.grad((torch.stack(rows) * loss_weight).sum(), parameters)
    for got, expected in zip(fast, slow, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-8)


def test_the_activation_is_random_in_training_and_fixed_otherwise(tiny_model):
    pooler = tiny_model().pooler
    negative = [torch.full((3, 2, 32), -1.0)] * 4
    pooler.train()
    assert not torch.equal(pooler(negative)[0], pooler(negative)[0])
    pooler.eval()
    assert torch.equal(pooler(negative)[0], pooler(negative)[0])
    slopes = pooler.train().activation(torch.full((10000,), -1.0)).neg()
    assert slopes.min() >= 1 / 8
    assert slopes.max() <= 1 / 3
    assert abs(slopes.mean() - RRELU_SLOPE) < 0.005


@pytest.mark.parametrize("pooler_type", ["weighted_layers", "cls", "mean", "mean_first_last", "mean_last_two"])
@pytest.mark.parametrize("last", [3, 2])
def test_the_plain_poolers_equal_their_formulas(tiny_model, tokenizer, pooler_type, last):
    model = tiny_model(pooler_type=pooler_type, pooler_layers=list(range(last + 1))).double()
    if pooler_type == "weighted_layers":
        nn.init.normal_(model.pooler.layer_weights)
        nn.init.constant_(model.pooler.scale, 1.7)
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
        states = output.hidden_states
        mask = batch["attention_mask"].unsqueeze(-1)
        mean = [(state * mask).sum(dim=1) / mask.sum(dim=1) for state in states]
        if pooler_type == "weighted_layers":
            scores = model.pooler.layer_weights.exp()
            weighted = sum(score / scores.sum() * x for score, x in zip(scores, mean, strict=True)) * 1.7
        expected = {
            "cls": lambda: states[last][:, 0],
            "mean": lambda: mean[last],
            "mean_first_last": lambda: (mean[0] + mean[last]) / 2,
            "mean_last_two": lambda: (mean[last - 1] + mean[last]) / 2,
            "weighted_layers": lambda: weighted,
        }[pooler_type]()
    torch.testing.assert_close(output.pooler_output, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("options", [{}, {"pooler_layers": [1, -1]}, {"projection_dim": 10}])
def test_concat_layers_equals_its_formula(tiny_model, tokenizer, tmp_path, options):
    model = tiny_model(pooler_type="concat_layers", **options).double()
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
        for sentence, tokens in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
            means = [output.hidden_states[state][sentence, :tokens].mean(dim=0) for state in model.pooler.states]
            expected = torch.cat([normalized(x) for x in means])
            if "projection_dim" in options:
                expected = model.pooler.projection.weight @ expected + model.pooler.projection.bias
            torch.testing.assert_close(output.pooler_output[sentence], expected, atol=1e-12, rtol=0)
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).embedding_dim == output.pooler_output.shape[1]


@pytest.mark.parametrize(
    "options",
    [{}, {"pooler_layers": [1, -1]}, {"projection_dim": 10}, {"pooler_queries": 1}, {"pooler_layers": [-1]}],
)
def test_attentive_layers_equal_their_formula(tiny_model, tokenizer, tmp_path, options):
    model = tiny_model(pooler_type="attentive_layers", **options).double()
    pooler = model.pooler
    nn.init.normal_(pooler.state_embeddings)
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True, output_layer_attentions=True)
        for sentence, tokens in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
            values, keys = [], []
            for position, state in enumerate(pooler.states):
                vectors = output.hidden_states[state][sentence, :tokens]
                for kind, vector in enumerate((vectors[0], vectors.mean(dim=0))):
                    values.append(normalized(vector))
                    keys.append(values[-1] + pooler.state_embeddings[position, kind])
            mixed, weights = [], [0.0] * len(pooler.states)
            for query in pooler.queries:
                scores = [math.exp(query @ key / math.sqrt(32)) for key in keys]
                mixed.append(sum(score / sum(scores) * value for score, value in zip(scores, values, strict=True)))
                for index, score in enumerate(scores):
                    weights[index // 2] += score / sum(scores) / len(pooler.queries)
            expected = torch.cat(mixed)
            if "projection_dim" in options:
                expected = pooler.projection.weight @ expected + pooler.projection.bias
            torch.testing.assert_close(output.pooler_output[sentence], expected, atol=1e-12, rtol=0)
            torch.testing.assert_close(
                output.layer_attentions[sentence], torch.tensor(weights, dtype=torch.float64), atol=1e-12, rtol=0
            )
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.embedding_dim == output.pooler_output.shape[1]
    assert torch.equal(again.pooler.queries, pooler.queries)


def test_layer_dropout_leaves_out_whole_states_but_never_all(tiny_model):
    pooler = tiny_model(pooler_type="attentive_layers", pooler_layer_dropout=0.75).pooler
    states = list(torch.randn(4, 2000, 2, 32))
    torch.testing.assert_close(pooler(states)[1] > 0, torch.ones(2000, 4, dtype=torch.bool))
    embedding, weights = pooler.train()(states)
    assert embedding.isfinite().all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2000))
    assert abs((weights == 0).double().mean() - (0.75 - 0.75**4)) < 0.02  # less the texts that would lose all
    pooler.layer_dropout.p = 0.0
    torch.testing.assert_close(pooler(states)[1], pooler.eval()(states)[1])


def test_weighted_layers_start_as_the_mean_over_the_layers(tiny_model):
    pooler = tiny_model(pooler_type="weighted_layers").pooler
    states = list(torch.randn(4, 5, 32))
    torch.testing.assert_close(pooler(states)[0], torch.stack(states).mean(dim=0))


@pytest.mark.parametrize("pooler_type", POOLER_TYPES)
def test_layer_attentions_are_weights_over_the_states_read(tiny_model, tokenizer, pooler_type):
    model = tiny_model(pooler_type=pooler_type)
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    output = model(**batch, output_layer_attentions=True)
    assert output.layer_attentions.shape == (3, len(model.pooler.states))
    torch.testing.assert_close(output.layer_attentions.sum(dim=1), torch.ones(3))
    assert model(**batch).layer_attentions is None


@pytest.mark.parametrize("pooler_type", POOLER_TYPES)
def test_projection_dim_is_the_width_of_the_embedding(tiny_model, tokenizer, pooler_type):
    model = tiny_model(pooler_type=pooler_type, projection_dim=10)
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    assert model(**batch).pooler_output.shape == (3, 10)
    assert model.encode(list(SENTENCES), tokenizer).shape == (3, 10)


@pytest.mark.parametrize("pooler_type", ["layer_attention", "hire"])
@pytest.mark.parametrize("activation", ["gelu", "tanh", "relu", "rrelu"])
def test_the_activation_is_the_one_that_is_named(tiny_model, activation, pooler_type):
    pooler = tiny_model(pooler_type=pooler_type, pooler_activation=activation).pooler
    expected = {
        "gelu": nn.functional.gelu,
        "tanh": torch.tanh,
        "relu": torch.relu,
        "rrelu": lambda x: nn.functional.leaky_relu(x, RRELU_SLOPE),
    }[activation]
    x = torch.linspace(-2, 2, 7)
    torch.testing.assert_close(pooler.activation(x), expected(x))
