"""RoBERTa: the same poolers and the same forward pass, with positions that start behind the padding index."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AutoConfig,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaModel,
)

from modeling_layerpool import LayerPoolRobertaConfig, LayerPoolRobertaForSequenceClassification, LayerPoolRobertaModel
from modeling_layerpool.common.checkpoints import load_layerpool
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.models.modeling_layerpool_packing import pack_sentences
from tests.conftest import POOLER_TYPES, SENTENCES, assert_close_to


PADDING = 1
# Token ids with a padding token inside a sentence, which a text that says "<pad>" gives.
TOKENS = [[0, *range(10, 18), 2], [0, 2], [0, 30, PADDING, 31, PADDING, 32, 2], [0, *range(40, 75), 2], [0, 7, 2]]


def padded(sentences, side="right"):
    ids, masks = (
        torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill, padding_side=side)
        for rows, fill in (
            ([torch.tensor(sentence) for sentence in sentences], PADDING),
            ([torch.ones(len(sentence), dtype=torch.long) for sentence in sentences], 0),
        )
    )
    return {"input_ids": ids, "attention_mask": masks}


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_encoder_computes_what_roberta_computes(tiny, side):
    model = tiny("roberta")
    library = RobertaModel(RobertaConfig(**model.config.to_diff_dict()), add_pooling_layer=False).eval()
    library.load_state_dict(model.roberta.state_dict())
    batch = padded(TOKENS, side)
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
        expected = library(**batch, output_hidden_states=True)
    assert torch.equal(output.last_hidden_state, expected.last_hidden_state)
    for got, state in zip(output.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(got, state)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pooler_type", POOLER_TYPES)
def test_packed_equals_padded(tiny, pooler_type, attention):
    model = tiny("roberta", pooler_type=pooler_type)
    model.set_attn_implementation(attention)
    packed = pack_sentences(TOKENS, pad_token_id=PADDING, row_length=40)
    assert len(packed["input_ids"]) < len(TOKENS)
    with torch.no_grad():
        expected = model(**padded(TOKENS)).pooler_output
        got = model(**packed).pooler_output
    assert_close_to(got, expected, 1e-5 if pooler_type == "hire" else 2e-6)


def test_the_filling_of_free_places_does_not_matter(tiny):
    model = tiny("roberta")
    with torch.no_grad():
        expected = model(**pack_sentences(TOKENS, pad_token_id=PADDING, row_length=40)).pooler_output
        got = model(**pack_sentences(TOKENS, pad_token_id=3, row_length=40)).pooler_output
    assert_close_to(got, expected)


def test_packed_embeddings_in_place_of_token_ids(tiny):
    model = tiny("roberta")
    tokens = [sentence for sentence in TOKENS if PADDING not in sentence]  # which embeddings cannot tell
    packed = pack_sentences(tokens, pad_token_id=PADDING)
    embedded = model.roberta.embeddings.word_embeddings(packed.pop("input_ids"))
    with torch.no_grad():
        got = model(inputs_embeds=embedded, **packed).pooler_output
        assert_close_to(got, model(**padded(tokens)).pooler_output)


@pytest.mark.parametrize("with_positions", [True, False])
def test_one_flat_row_as_sentence_transformers_sends_it(tiny, with_positions):
    model = tiny("roberta")
    tokens = [sentence for sentence in TOKENS if PADDING not in sentence]
    flat = torch.tensor([[token for sentence in tokens for token in sentence]])
    lengths = torch.tensor([0, *map(len, tokens)]).cumsum(0).int()
    # It adds RoBERTa's offset itself; positions that are given are taken as they are.
    positions = torch.tensor([[place + PADDING + 1 for sentence in tokens for place in range(len(sentence))]])
    with torch.no_grad():
        got = model(flat, cu_seq_lens_q=lengths, position_ids=positions if with_positions else None).pooler_output
        assert_close_to(got, model(**padded(tokens)).pooler_output)


def test_the_positions_are_used_to_the_last_one(tiny, roberta_tokenizer):
    model = tiny("roberta", max_position_embeddings=34)
    assert model.max_tokens == 32
    sentence = [0, *range(5, 35), 2]
    assert len(sentence) == 32
    with torch.no_grad():
        got = model(**pack_sentences([sentence], pad_token_id=PADDING)).pooler_output
        assert_close_to(got, model(**padded([sentence])).pooler_output)
    long, cut = model.encode(["word " * 100, "word " * 30], roberta_tokenizer)
    assert_close_to(long, cut)


@pytest.mark.parametrize("pooler_type", ["layer_attention", "hire"])
def test_encode_equals_the_forward_pass(tiny, roberta_tokenizer, pooler_type):
    model = tiny("roberta", pooler_type=pooler_type)
    sentences = [*SENTENCES, "", "word " * 40, "a <pad> number"]
    batch = roberta_tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).pooler_output.numpy()
    assert_close_to(model.encode(sentences, roberta_tokenizer), expected, 1e-5)


# --- checkpoints ---


def roberta_layouts(tmp_path, tiny_config):
    """Checkpoints as they are about: of the bare encoder, of the language model, of a classifier, with old names."""
    sizes = {**tiny_config, "vocab_size": 100, "type_vocab_size": 1, "max_position_embeddings": 66}
    config, multilingual = RobertaConfig(**sizes), XLMRobertaConfig(**sizes)
    models = {
        "bare": RobertaModel(config),
        "language model": RobertaForMaskedLM(config),
        "classifier": RobertaForSequenceClassification(config),
        "old names": RobertaForMaskedLM(config),
        "bare xlm-roberta": XLMRobertaModel(multilingual),
        "xlm-roberta": XLMRobertaForMaskedLM(multilingual),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    weights = load_file(tmp_path / "old names" / "model.safetensors")
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in weights.items()
    }
    # Conversions of the time left these two in many files.
    old |= {
        "roberta.embeddings.position_ids": torch.arange(66).unsqueeze(0),
        "roberta.pooler.dense.weight": torch.zeros(32, 32),
    }
    save_file(old, tmp_path / "old names" / "model.safetensors", metadata={"format": "pt"})
    return {name: (tmp_path / name, getattr(model, "roberta", model)) for name, model in models.items()}


@pytest.mark.parametrize("pooler_type", ["layer_attention", "hire", "mean"])
@pytest.mark.parametrize("model_class", [LayerPoolRobertaModel, LayerPoolRobertaForSequenceClassification])
def test_from_any_roberta_layout_only_our_own_parts_are_new(tmp_path, tiny_config, model_class, pooler_type):
    for name, (folder, roberta) in roberta_layouts(tmp_path, tiny_config).items():
        model, info = model_class.from_pretrained(folder, pooler_type=pooler_type, output_loading_info=True)
        own = {key for key in model.state_dict() if not key.startswith("roberta.")}
        assert info["missing_keys"] == own, name
        assert {key.split(".")[0] for key in own} <= {"pooler", "classifier"}
        assert not info["unexpected_keys"], name
        assert not info["mismatched_keys"], name
        expected = roberta.state_dict()
        for key, weight in model.roberta.state_dict().items():
            assert torch.equal(weight, expected[key]), (name, key)


@pytest.mark.parametrize("config_class", [RobertaConfig, XLMRobertaConfig])
def test_the_encoders_own_configuration_survives(tmp_path, config_class):
    plain = config_class(vocab_size=99, pad_token_id=5, bos_token_id=6, eos_token_id=7, layer_norm_eps=1e-5)
    plain.save_pretrained(tmp_path / "plain")
    opened = LayerPoolRobertaConfig.from_pretrained(tmp_path / "plain", pooler_layers=[0, -1])
    opened.save_pretrained(tmp_path / "ours")
    again = AutoConfig.from_pretrained(tmp_path / "ours")
    assert type(again) is LayerPoolRobertaConfig
    for config in (opened, again):
        assert config.model_type == "layerpool_roberta"
        assert config.pooler_layers == [0, -1]
        for field, value in plain.to_dict().items():
            assert field in ("model_type", "_name_or_path") or getattr(config, field) == value, field


@pytest.mark.parametrize("task", ["embedding", "sequence-classification"])
@pytest.mark.parametrize("name", ["language model", "classifier", "xlm-roberta"])
def test_load_layerpool_opens_them(tmp_path, tiny_config, roberta_tokenizer, task, name):
    folder, roberta = roberta_layouts(tmp_path, tiny_config)[name]
    roberta_tokenizer.save_pretrained(folder)
    model, tokenizer = load_layerpool(str(folder), task=task, pooler_type="mean")
    assert (
        type(model)
        is {
            "embedding": LayerPoolRobertaModel,
            "sequence-classification": LayerPoolRobertaForSequenceClassification,
        }[task]
    )
    assert tokenizer.pad_token_id == model.config.pad_token_id == PADDING
    assert model.max_tokens == 64
    assert torch.equal(model.roberta.embeddings.word_embeddings.weight, roberta.embeddings.word_embeddings.weight)


def test_an_encoder_that_is_not_known_is_refused_by_name(tmp_path):
    AlbertConfig().save_pretrained(tmp_path)
    known = "bert, roberta, xlm-roberta, distilbert, electra, mpnet, deberta-v2, modernbert"
    with pytest.raises(InputError, match=f"a model of type 'albert'; use one of {known}, or of this package"):
        load_layerpool(str(tmp_path))
    with pytest.raises(ValueError, match=r"type 'albert', but .* opens 'roberta', 'xlm-roberta' and 'layerpool_rob"):
        LayerPoolRobertaConfig.from_pretrained(tmp_path)
