import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from modeling_layerpool import LayerPoolBertModel
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.evaluation import CachingEncoder, load_encoder
from tests.conftest import assert_close_to
from tests.evaluation.data import SENTENCES1, VectorEncoder


LONG = "one two three four five six seven eight nine ten eleven twelve"


def cosine(first, second):
    return (first * second).sum(-1) / np.linalg.norm(first, axis=-1) / np.linalg.norm(second, axis=-1)


@pytest.fixture
def bert_folder(tiny_config, tokenizer, tmp_path):
    """A plain BERT with its tokenizer: no modules.json, no pooler of ours."""
    torch.manual_seed(0)
    BertModel(BertConfig(**tiny_config)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_a_sentence_transformers_folder_embeds_as_that_library_does(minilm):
    expected = SentenceTransformer(minilm, device="cpu").encode(SENTENCES1)
    embeddings = load_encoder(minilm, device="cpu").encode(SENTENCES1)
    assert embeddings.dtype == np.float32
    assert_close_to(embeddings, expected)


def test_a_static_sentence_transformers_model_is_an_encoder_too(minilm, tmp_path):
    static = StaticEmbedding(Tokenizer.from_file(f"{minilm}/tokenizer.json"), embedding_dim=16)
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path))
    assert load_encoder(tmp_path).encode(SENTENCES1).shape == (len(SENTENCES1), 16)
    with pytest.raises(InputError, match=r"--max_seq_length 12: .* no tokenizer whose length could be set"):
        load_encoder(tmp_path, max_seq_length=12)


def test_a_model_of_ours_embeds_with_its_own_pooler(minilm, minilm_tokenizer, tmp_path):
    LayerPoolBertModel.from_pretrained(minilm, pooler_type="mean").save_pretrained(tmp_path)
    minilm_tokenizer.save_pretrained(tmp_path)
    embeddings = load_encoder(tmp_path, device="cpu").encode(SENTENCES1)
    expected = SentenceTransformer(minilm, device="cpu").encode(SENTENCES1)
    np.testing.assert_allclose(cosine(embeddings, expected), 1, atol=1e-5)
    assert not np.allclose(np.linalg.norm(embeddings, axis=1), 1), "embeddings are not normalised"


def test_any_other_encoder_is_mean_pooled_over_its_real_tokens(minilm, tmp_path):
    shutil.copytree(minilm, tmp_path / "plain", ignore=shutil.ignore_patterns("modules.json"))
    embeddings = load_encoder(tmp_path / "plain", device="cpu").encode(SENTENCES1)
    expected = SentenceTransformer(minilm, device="cpu").encode(SENTENCES1)
    np.testing.assert_allclose(cosine(embeddings, expected), 1, atol=1e-5)


@pytest.mark.parametrize("kind", ["ours", "sentence-transformers", "plain"])
def test_weights_in_bfloat16_embed_almost_the_same_under_another_identity(kind, minilm, tiny_folder, bert_folder):
    folder = {"ours": tiny_folder, "sentence-transformers": minilm, "plain": bert_folder}[kind]
    exact, rounded = (load_encoder(folder, device="cpu", dtype=dtype) for dtype in (None, torch.bfloat16))
    assert {parameter.dtype for parameter in rounded.model.parameters()} == {torch.bfloat16}
    embeddings = rounded.encode(SENTENCES1)
    assert embeddings.dtype == np.float32
    assert all(cosine(*pair) > 0.99 for pair in zip(exact.encode(SENTENCES1), embeddings, strict=True))
    assert exact.identity != rounded.identity


def test_pooling_overrides_the_modules_of_a_sentence_transformers_folder(minilm):
    mean, cls = (load_encoder(minilm, pooling=pooling, device="cpu").encode(SENTENCES1) for pooling in ("mean", "cls"))
    own = SentenceTransformer(minilm, device="cpu").encode(SENTENCES1)
    np.testing.assert_allclose(cosine(mean, own), 1, atol=1e-5)
    assert cosine(cls, own).max() < 0.99


def test_the_batch_does_not_change_an_embedding(bert_folder):
    texts = ["Short.", LONG, "A text of middling length, to be sure.", LONG + LONG]
    encoder = load_encoder(bert_folder)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    for budget in (1, 40, 8192):
        embeddings = load_encoder(bert_folder, max_tokens_per_batch=budget).encode(texts)
        assert_close_to(embeddings, alone)


@pytest.mark.parametrize("kind", ["ours", "sentence-transformers", "plain"])
def test_max_seq_length_cuts_a_text_and_the_default_is_the_saved_tokenizers(
    kind, minilm, tiny_folder, bert_folder, tokenizer
):
    folder = {"ours": tiny_folder, "sentence-transformers": minilm, "plain": bert_folder}[kind]
    # [CLS] one two three [SEP]
    cut = load_encoder(folder, max_seq_length=5).encode([LONG, "one two three"])
    assert_close_to(cut[0], cut[1])
    whole = load_encoder(folder).encode([LONG, "one two three"])
    assert not np.allclose(whole[0], whole[1], atol=1e-3)
    if kind != "sentence-transformers":
        tokenizer.model_max_length, kept = 5, tokenizer.model_max_length
        tokenizer.save_pretrained(folder)
        tokenizer.model_max_length = kept
        assert_close_to(load_encoder(folder).encode([LONG]), cut[:1])


def test_a_length_that_does_not_fit_names_the_limit(minilm, bert_folder):
    for folder in (minilm, bert_folder):
        with pytest.raises(InputError, match="--max_seq_length 513: the model has positions for at most 512 tokens"):
            load_encoder(folder, max_seq_length=513)
        with pytest.raises(InputError, match="--max_seq_length 2: leaves no token"):
            load_encoder(folder, max_seq_length=2)


def test_robertas_positions_start_after_the_padding_index(tiny_config, tokenizer, tmp_path):
    config = RobertaConfig(**tiny_config, max_position_embeddings=40, pad_token_id=tokenizer.pad_token_id)
    RobertaModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    limit = 40 - tokenizer.pad_token_id - 1
    with pytest.raises(InputError, match=f"at most {limit} tokens"):
        load_encoder(tmp_path, max_seq_length=limit + 1)
    # the tokenizer would allow 512: the default stays within the model
    assert np.isfinite(load_encoder(tmp_path).encode([LONG * 20])).all()


def test_each_wrong_folder_has_its_sentence(tmp_path, bert_folder, tiny_folder):
    with pytest.raises(InputError, match=r"nowhere: no such folder, nor a Hub model that can be reached"):
        load_encoder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="someone/some-model: no such folder, nor a Hub model that can be reached"):
        load_encoder("someone/some-model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: has no config.json"):
        load_encoder(tmp_path / "empty")
    with pytest.raises(InputError, match="--pooling max: use one of mean, cls"):
        load_encoder(bert_folder, pooling="max")
    with pytest.raises(InputError, match="has its own pooler, mean"):
        load_encoder(tiny_folder, pooling="cls")
    (bert_folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="bert: has no weights"):
        load_encoder(bert_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 4}, r"16 tensors are missing or of another shape \(for example encoder.layer.3"),
        ({"intermediate_size": 40}, r"9 tensors are missing or of another shape \(for example encoder.layer.0"),
        ({"model_type": "unheard"}, "could not be loaded .*model type `unheard`"),
    ],
)
def test_weights_that_do_not_fit_are_refused_rather_than_drawn_at_random(bert_folder, change, message):
    config_file = bert_folder / "config.json"
    config_file.write_text(json.dumps(json.loads(config_file.read_text()) | change))
    with pytest.raises(InputError, match=message):
        load_encoder(bert_folder)


def test_a_truncated_weights_file_is_an_input_error(bert_folder):
    weights = bert_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="bert: could not be loaded"):
        load_encoder(bert_folder)


def test_a_folder_without_a_tokenizer_is_refused_rather_than_read_as_unknown_words(bert_folder, tiny_folder):
    for folder in (bert_folder, Path(tiny_folder)):
        for path in folder.glob("tokenizer*"):
            path.unlink()
        with pytest.raises(InputError, match="has no tokenizer"):
            load_encoder(folder)


def test_pickled_weights_need_the_flag(bert_folder):
    expected = load_encoder(bert_folder).encode(SENTENCES1)
    torch.save(BertModel.from_pretrained(bert_folder).state_dict(), bert_folder / "pytorch_model.bin")
    (bert_folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"pytorch_model.bin: a pickle file.*--allow_pickle"):
        load_encoder(bert_folder)
    assert_close_to(load_encoder(bert_folder, allow_pickle=True).encode(SENTENCES1), expected)


def test_code_in_a_checkpoint_needs_the_flag_and_never_asks(tiny_folder):
    config_file = Path(tiny_folder, "config.json")
    config = json.loads(config_file.read_text())
    assert "auto_map" in config
    config_file.write_text(json.dumps(config | {"model_type": "someone_elses"}))
    Path(tiny_folder, "modules.json").unlink(missing_ok=True)
    with pytest.raises(InputError, match="may need --trust_remote_code"):
        load_encoder(tiny_folder)


def test_without_sentence_transformers_the_sentence_names_how_to_install_it(minilm, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match=r"pip install sentence-transformers"):
        load_encoder(minilm)
    assert load_encoder(minilm, pooling="mean").encode(["a"]).shape == (1, 384)


def test_the_cache_asks_only_for_what_is_new():
    encoder = VectorEncoder({"a": [1, 0], "b": [0, 1], "c": [1, 1]})
    cache = CachingEncoder(encoder)
    np.testing.assert_array_equal(cache.encode(["a", "b", "a"]), [[1, 0], [0, 1], [1, 0]])
    np.testing.assert_array_equal(cache.encode(["c", "a"]), [[1, 1], [1, 0]])
    assert encoder.calls == [["a", "b"], ["c"]]


@pytest.mark.parametrize(
    ("vectors", "error", "message"),
    [
        ({"a": [math.inf]}, InputError, "1 of 1 embeddings hold nan or infinity"),
        ({"a": 1.0}, RuntimeError, r"shape \(1,\) for 1 texts"),
    ],
)
def test_the_cache_refuses_broken_embeddings(vectors, error, message):
    with pytest.raises(error, match=message):
        CachingEncoder(VectorEncoder(vectors)).encode(["a"])
