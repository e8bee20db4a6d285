"""Every encoder: the library's hidden states, all poolers, packed input, its own checkpoints, other libraries."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
)

import modeling_layerpool
from modeling_layerpool.common.checkpoints import MODELS, load_layerpool
from modeling_layerpool.models.modeling_layerpool_packing import pack_sentences
from modeling_layerpool.training.mlm_head import MaskedLanguageHead
from tests.conftest import ENCODERS, OWN_SETTINGS, POOLER_TYPES, SENTENCES, assert_close_to
from tests.processes import run_without_the_package


@pytest.fixture(params=ENCODERS)
def encoder(request):
    return request.param


@pytest.fixture
def sentences(encoder, tokenizer_of):
    """Token ids of sentences of different lengths, one of them without a word."""
    return tokenizer_of[encoder]([*SENTENCES, "", "word " * 30])["input_ids"]


def padded(model, sentences):
    rows = [torch.tensor(sentence) for sentence in sentences]
    pad = {"batch_first": True, "padding_value": model.config.pad_token_id}
    ids = torch.nn.utils.rnn.pad_sequence(rows, **pad)
    lengths = torch.tensor([len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths.unsqueeze(1)).long()}


def plain_config(model):
    """The library's configuration of the encoder alone."""
    fields = model.config.to_diff_dict()
    fields.pop("model_type")
    return AutoConfig.for_model(type(model.config).encoder_model_types[0], **fields)


def test_the_encoder_computes_what_the_library_computes(tiny, encoder, sentences):
    model = tiny(encoder)
    library = AutoModel.from_config(plain_config(model)).eval()
    library.load_state_dict(model.base_model.state_dict(), strict=False)
    batch = padded(model, sentences)
    with torch.no_grad():
        got = model(**batch, output_hidden_states=True)
        expected = library(**batch, output_hidden_states=True)
    assert torch.equal(got.last_hidden_state, expected.last_hidden_state)
    for one, other in zip(got.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("state", range(4))
def test_the_pooler_reads_the_librarys_hidden_states_also_where_layers_are_left_out(tiny, encoder, sentences, state):
    if (encoder, state) == ("deberta_v2", 0):
        pytest.skip("the library's DeBERTa-v2 does not run without layers: refused, see below")
    whole = tiny(encoder)
    model = tiny(encoder, pooler_type="mean", pooler_layers=[state])
    kept = model.load_state_dict(whole.state_dict(), strict=False)
    assert not kept.missing_keys
    batch = padded(model, sentences)
    with torch.no_grad():
        expected = whole(**batch, output_hidden_states=True).hidden_states[state]
        got = model(**batch)
    mask = batch["attention_mask"].unsqueeze(-1)
    torch.testing.assert_close(got.pooler_output, (expected * mask).sum(1) / mask.sum(1))
    torch.testing.assert_close(got.last_hidden_state, expected)


def padded_left(model, sentences):
    batch = padded(model, sentences)
    lengths = [len(sentence) for sentence in sentences]
    return {
        name: torch.stack([row.roll(len(row) - length) for row, length in zip(rows, lengths, strict=True)])
        for name, rows in batch.items()
    }


# What of the first token or of the order of the tokens an embedding reads.
READERS = [
    {"pooler_type": "cls"},
    {"pooler_type": "mean"},
    {"pooler_type": "layer_attention"},
    {"pooler_type": "layer_attention", "pooler_residual": "cls"},
    {"pooler_type": "weighted_layers", "pooler_residual": "cls"},
    {"pooler_type": "hire"},
]


@pytest.mark.parametrize("options", READERS, ids=lambda options: "-".join(options.values()))
def test_left_padding_changes_nothing_where_positions_do_not_count_it(tiny, encoder, sentences, options):
    model = tiny(encoder, initializer_range=0.2, **options)
    inputs = padded_left(model, sentences)
    assert (inputs["attention_mask"][:, 0] == 0).any()
    if encoder in ("bert", "distilbert", "electra"):
        # Here transformers counts the padding on the left, unless positions are given.
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    expected = model.encode_token_ids(sentences)
    with torch.no_grad():
        for dtype in (torch.long, torch.bool, torch.float32):
            got = model(**inputs | {"attention_mask": inputs["attention_mask"].to(dtype)}).pooler_output
            assert_close_to(got, expected, 1e-5 if options["pooler_type"] == "hire" else 2e-6)


def test_the_first_token_of_a_left_padded_row_is_read_whatever_its_position(tiny, encoder, sentences):
    model = tiny(encoder, initializer_range=0.2, pooler_type="cls")
    inputs = padded_left(model, sentences)
    with torch.no_grad():
        output = model(**inputs)
    first = inputs["input_ids"].shape[1] - inputs["attention_mask"].sum(1)
    assert first.any()
    expected = output.last_hidden_state[torch.arange(len(sentences)), first]
    torch.testing.assert_close(output.pooler_output, expected, atol=0, rtol=0)


@pytest.mark.parametrize("pooler_type", POOLER_TYPES)
def test_packed_equals_padded(tiny, encoder, sentences, pooler_type):
    model = tiny(encoder, pooler_type=pooler_type)
    packed = pack_sentences(sentences, pad_token_id=model.config.pad_token_id, row_length=48)
    assert len(packed["input_ids"]) < len(sentences)
    with torch.no_grad():
        expected = model(**padded(model, sentences)).pooler_output
        got = model(**packed).pooler_output
        alone = torch.cat([model(input_ids=torch.tensor([sentence])).pooler_output for sentence in sentences])
    assert_close_to(got, expected, 1e-5 if pooler_type == "hire" else 2e-6)
    assert_close_to(got, alone, 1e-5 if pooler_type == "hire" else 2e-6)


def test_packed_input_is_right_under_eager_attention_too(tiny, encoder, sentences):
    model = tiny(encoder)
    model.set_attn_implementation("eager")
    packed = pack_sentences(sentences, pad_token_id=model.config.pad_token_id, row_length=48)
    with torch.no_grad():
        expected = model(**padded(model, sentences)).pooler_output
        assert_close_to(model(**packed).pooler_output, expected)


def test_packed_input_goes_to_flash_attention_as_one_flat_row(tiny, encoder, sentences, flash):
    model = tiny(encoder)
    if not model._supports_flash_attn:
        pytest.skip(f"the library's {ENCODERS[encoder]} has no flash attention")
    packed = pack_sentences(sentences, pad_token_id=model.config.pad_token_id, row_length=48)
    assert len(packed["input_ids"]) > 1
    lengths = torch.tensor([0, *map(len, sentences)]).cumsum(0).int()
    flat = torch.tensor([[token for sentence in sentences for token in sentence]])
    with torch.no_grad():
        expected = model(**padded(model, sentences)).pooler_output
        flash(model)
        rows, row = model(**packed), model(flat, cu_seq_lens_q=lengths)
    assert_close_to(rows.pooler_output, expected)
    assert_close_to(row.pooler_output, expected)


def test_every_parameter_gets_a_gradient_from_packed_input(tiny, encoder, sentences):
    model = tiny(encoder).train()
    packed = pack_sentences(sentences, pad_token_id=model.config.pad_token_id)
    output = model(**packed).pooler_output
    (output * torch.randn_like(output)).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_token_types_are_taken_by_whom_they_mean_something(tiny, encoder, sentences):
    model = tiny(encoder, **({"type_vocab_size": 2} if encoder == "deberta_v2" else {}))
    batch = padded(model, sentences)
    types = (torch.arange(batch["input_ids"].shape[1]) > 3).long().expand_as(batch["input_ids"])
    with torch.no_grad():
        plain, told = model(**batch).pooler_output, model(**batch, token_type_ids=types * model.has_token_types)
    is_told = encoder in ("bert", "electra", "deberta_v2")
    assert model.has_token_types == (is_told or encoder == "roberta")  # which has one type only
    if encoder != "roberta":
        assert torch.equal(plain, told.pooler_output) == (not is_told)


@pytest.mark.parametrize("layout", ["plain", "masked language model"])
def test_a_checkpoint_of_the_encoder_lacks_the_pooler_alone(tiny, encoder, sentences, tmp_path, layout):
    auto_class = AutoModel if layout == "plain" else AutoModelForMaskedLM
    library = auto_class.from_config(plain_config(tiny(encoder))).eval()
    library.save_pretrained(tmp_path)
    model_class = getattr(modeling_layerpool, f"LayerPool{ENCODERS[encoder]}Model")
    model, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert {key.split(".")[0] for key in info["missing_keys"]} == {"pooler"}
    assert info["missing_keys"] == {f"pooler.{name}" for name in model.pooler.state_dict()}
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    batch = padded(model, sentences)
    with torch.no_grad():
        expected = library.base_model(**batch).last_hidden_state
        assert_close_to(model.eval()(**batch).last_hidden_state, expected)


def test_a_masked_language_head_goes_with_it(tiny, encoder, sentences, tmp_path):
    library = AutoModelForMaskedLM.from_config(plain_config(tiny(encoder))).eval()
    library.save_pretrained(tmp_path)
    model_class = getattr(modeling_layerpool, f"LayerPool{ENCODERS[encoder]}Model")
    model = model_class.from_pretrained(tmp_path).eval()
    head = MaskedLanguageHead.of_encoder(model, str(tmp_path))
    ids = torch.tensor(sentences[0]).unsqueeze(0)
    with torch.no_grad():
        logits = head(model(input_ids=ids).last_hidden_state[0])
        torch.testing.assert_close(logits, library(input_ids=ids).logits[0])


def test_a_classifier_learns_from_the_pooled_vector(tiny, encoder, sentences):
    model = tiny(encoder, classifier=True, num_labels=3).train()
    batch = padded(model, sentences)
    output = model(**batch, labels=torch.tensor([0, 1, 2, 0, 1]))
    output.loss.backward()
    assert output.logits.shape == (5, 3)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_script_opens_it_with_its_tokenizer(tiny, encoder, tokenizer_of, tmp_path):
    AutoModel.from_config(plain_config(tiny(encoder))).save_pretrained(tmp_path)
    tokenizer_of[encoder].save_pretrained(tmp_path)
    model, tokenizer = load_layerpool(str(tmp_path), pooler_type="mean")
    assert type(model).__name__ == f"LayerPool{ENCODERS[encoder]}Model"
    assert model.encode(list(SENTENCES), tokenizer).shape == (3, 32)


@pytest.mark.long
def test_all_of_them_open_without_the_package_and_in_sentence_transformers(
    tiny, tokenizer_of, tmp_path, record_difference
):
    expected = {}
    for encoder in ENCODERS:
        model, tokenizer = tiny(encoder), tokenizer_of[encoder]
        model.save_pretrained(tmp_path / encoder)
        tokenizer.save_pretrained(tmp_path / encoder)
        expected[encoder] = model.encode(list(SENTENCES), AutoTokenizer.from_pretrained(tmp_path / encoder))
    np.savez(tmp_path / "expected.npz", **expected)
    code = """
        import json
        import numpy as np
        from sentence_transformers import SentenceTransformer
        from transformers import AutoModel, AutoTokenizer
        expected, texts, differences = np.load("expected.npz"), json.loads(sys.argv[1]), []
        for name in expected:
            model = AutoModel.from_pretrained(name, trust_remote_code=True)
            assert type(model).__module__.startswith("transformers_modules.")
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
            assert abs(model.encode(texts, tokenizer) - expected[name]).max() < 2e-6, name
            opened = SentenceTransformer(name, trust_remote_code=True, device="cpu")
            differences.append(abs(opened.encode(texts) - expected[name]).max())
            assert differences[-1] < 2e-6, name
        print(max(differences))
    """
    done = run_without_the_package(code, json.dumps(SENTENCES), cwd=tmp_path)
    what = "`encode` of a saved folder, every encoder, without this package"
    record_difference("sentence-transformers", what, done.stdout.split()[-1])


def test_all_encoders_are_tested_here():
    assert [classes.config.model_type for classes in MODELS] == [f"layerpool_{name}" for name in ENCODERS]
    assert set(OWN_SETTINGS) <= set(ENCODERS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conv_kernel_size": 3}, "a convolution over neighboring tokens is not supported"),
        ({"pooler_layers": [0]}, "DeBERTa-v2 computes at least one layer"),
    ],
)
def test_what_deberta_cannot_do_is_refused(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        tiny("deberta_v2", pooler_type="mean", **options)
