import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from modeling_layerpool.common.errors import InputError
from modeling_layerpool.evaluation import average_by_length, layer_weights, weighs_layers
from tests.conftest import SENTENCES


TEXTS = [*SENTENCES, "", *(f"{'word ' * count}end" for count in (30, 3, 12))]


def alone(model, tokenizer, *text):
    """The weights of one text, by a padded call of its own."""
    inputs = tokenizer(*text, return_tensors="pt", truncation=True)
    with torch.inference_mode():
        return model.pool(**inputs, output_layer_attentions=True).layer_attentions[0].numpy()


@pytest.mark.parametrize("pooler_type", ["layer_attention", "weighted_layers", "hire", "mean_last_two"])
def test_the_weights_are_those_of_each_text_alone(tiny_model, tokenizer, pooler_type):
    model = tiny_model(pooler_type=pooler_type, initializer_range=0.5).double()  # weights of scores up to 60
    weights, lengths = layer_weights(model, tokenizer, TEXTS, max_tokens_per_batch=20)
    assert weights.shape == (len(TEXTS), len(model.pooler.states))
    assert weights.dtype == np.float32
    assert lengths.tolist() == [len(ids) for ids in tokenizer(TEXTS)["input_ids"]]
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    for text, row in zip(TEXTS, weights, strict=True):
        np.testing.assert_allclose(row, alone(model, tokenizer, text), atol=1e-6)


@pytest.mark.parametrize("encoder", ["roberta", "deberta_v2", "modernbert"])
def test_other_encoders_have_weights_too(tiny, tokenizer_of, encoder):
    model, tokenizer = tiny(encoder, initializer_range=0.5).double(), tokenizer_of[encoder]
    weights, _ = layer_weights(model, tokenizer, TEXTS)
    for text, row in zip(TEXTS, weights, strict=True):
        np.testing.assert_allclose(row, alone(model, tokenizer, text), atol=1e-6)


def test_a_classifier_of_pairs_has_weights_for_each_pair(tiny, tokenizer):
    model = tiny("bert", classifier=True, initializer_range=0.5).double()
    pairs = [("a cat sleeps", "it rains"), (TEXTS[1], TEXTS[4])]
    weights, lengths = layer_weights(model, tokenizer, pairs)
    for pair, row, length in zip(pairs, weights, lengths, strict=True):
        np.testing.assert_allclose(row, alone(model, tokenizer, *pair), atol=1e-6)
        assert length == len(tokenizer(*pair)["input_ids"])


def test_the_mode_of_the_model_is_restored_and_its_noise_is_off(tiny_model, tokenizer):
    model = tiny_model(initializer_range=0.5)
    expected, _ = layer_weights(model, tokenizer, TEXTS)
    model.train()
    weights, _ = layer_weights(model, tokenizer, TEXTS)
    assert model.training
    np.testing.assert_array_equal(weights, expected)


def test_a_text_is_cut_where_the_model_cuts_it(tiny_model, tokenizer):
    model = tiny_model(max_position_embeddings=10)
    _, lengths = layer_weights(model, tokenizer, ["word " * 40, "one"])
    assert lengths.tolist() == [10, 3]


def test_weights_are_averaged_by_length():
    weights = np.array([[1, 0], [0.5, 0.5], [0, 1], [0.2, 0.8]])
    averages = average_by_length(weights, np.array([8, 9, 16, 300]))
    assert list(averages) == ["up to 8 (1 text)", "9 to 16 (2 texts)", "over 256 (1 text)"]
    np.testing.assert_allclose(list(averages.values()), [[1, 0], [0.25, 0.75], [0.2, 0.8]])


def test_only_learned_weights_are_worth_seeing(tiny_model):
    for pooler_type in ("layer_attention", "weighted_layers", "hire"):
        assert weighs_layers(tiny_model(pooler_type=pooler_type))
    assert not weighs_layers(tiny_model(pooler_type="mean_first_last"))
    assert not weighs_layers(tiny_model(pooler_layers=[-1]))


def test_what_has_no_weights_is_one_sentence(tiny_config, tiny_model, tokenizer):
    plain = BertModel(BertConfig(**tiny_config))
    assert not weighs_layers(plain)
    with pytest.raises(InputError, match=r"^BertModel has no pooler over its hidden states"):
        layer_weights(plain, tokenizer, TEXTS)
    with pytest.raises(InputError, match=r"^no texts"):
        layer_weights(tiny_model(), tokenizer, [])
