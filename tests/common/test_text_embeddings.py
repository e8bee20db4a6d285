"""Texts are embedded once by each encoder, and a file of other texts or of another encoder is never read."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.normalizers import Lowercase
from transformers import BertConfig, BertModel

from modeling_layerpool.common.errors import InputError
from modeling_layerpool.common.text_embeddings import TextEmbeddings, unit_rows
from modeling_layerpool.evaluation.loading import load_encoder
from modeling_layerpool.training.computed_files import embed_texts
from tests.conftest import SENTENCES
from tests.tiny import TINY_BERT


class Words:
    """An encoder that counts: each text is a vector of its length and of its words."""

    def __init__(self, identity="words", width=3):
        self.identity, self.width, self.calls = identity, width, []

    def encode(self, sentences):
        self.calls.append(len(sentences))
        return np.array([[len(text), len(text.split()), *[1.0] * (self.width - 2)] for text in sentences])


TEXTS = ["a cat", "a dog runs", "a cat", "a tree"]


def test_each_distinct_text_is_embedded_once_and_read_ever_after(tmp_path):
    encoder = Words()
    embeddings = embed_texts(TEXTS, {"teacher": [encoder]}, tmp_path)
    assert sum(encoder.calls) == 3 + 1  # the first text once more, for the width
    indices = embeddings.indices(TEXTS)
    assert indices.tolist() == [0, 1, 0, 2]
    expected = torch.from_numpy(unit_rows(Words().encode(TEXTS))).float()
    torch.testing.assert_close(embeddings.read("teacher", indices), expected, atol=1e-3, rtol=0)
    second = Words()
    embed_texts(TEXTS, {"teacher": [second]}, tmp_path)
    assert second.calls == [1]
    assert len(list(tmp_path.glob("*.npy"))) == 1


@pytest.mark.parametrize("texts", [["a cat", "a dog"], ["a dog runs", "a cat", "a tree"], ["a cat"]])
def test_embeddings_of_other_texts_are_never_read(tmp_path, texts):
    embed_texts(TEXTS, {"teacher": [Words()]}, tmp_path)
    encoder = Words()
    embed_texts(texts, {"teacher": [encoder]}, tmp_path)
    assert sum(encoder.calls) == len(texts) + 1


def test_a_text_without_an_embedding_is_one_sentence(tmp_path):
    embeddings = embed_texts(TEXTS, {"teacher": [Words()]}, tmp_path)
    with pytest.raises(InputError, match="no embedding of the text 'a bird': the text embeddings are those of other"):
        embeddings.indices(["a cat", "a bird"])


def test_several_encoders_are_read_side_by_side_and_their_cosines_averaged(tmp_path):
    encoders = [Words("one", 3), Words("two", 5)]
    embeddings = embed_texts(TEXTS, {"teacher": encoders, "guide": encoders[:1]}, tmp_path)
    assert (embeddings.width("teacher"), embeddings.width("guide")) == (8, 3)
    assert "teacher" in embeddings
    assert "other" not in embeddings
    rows = embeddings.read("teacher", np.array([[0, 1], [2, 0]]))
    assert rows.shape == (2, 2, 8)
    pairs = [unit_rows(encoder.encode(["a cat", "a dog runs"])) for encoder in encoders]
    cosines = [first @ second for first, second in pairs]
    assert (rows[0, 0] @ rows[0, 1]).item() == pytest.approx(np.mean(cosines), abs=2e-3)


def test_a_data_worker_gets_the_names_of_the_files_and_no_texts(tmp_path):
    embeddings = embed_texts(["a text " * 1000], {"teacher": [Words()]}, tmp_path)
    pickled = pickle.dumps(embeddings)
    assert len(pickled) < 1000
    copy = pickle.loads(pickled)
    assert isinstance(copy, TextEmbeddings)
    assert torch.equal(copy.read("teacher", np.array([0])), embeddings.read("teacher", np.array([0])))


def test_embeddings_that_are_not_finite_are_refused(tmp_path):
    encoder = Words()
    encoder.encode = lambda sentences: np.full((len(sentences), 2), np.nan)
    with pytest.raises(InputError, match="embeddings hold nan or infinity"):
        embed_texts(TEXTS, {"teacher": [encoder]}, tmp_path / "new")
    assert not list(tmp_path.rglob("*.npy"))


@pytest.fixture
def folders(tiny_folder, tokenizer, tmp_path):
    """Folders of a model of this package and of a plain one."""
    plain = tmp_path / "plain"
    BertModel(BertConfig(**TINY_BERT)).save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    return {"layerpool": tiny_folder, "plain": str(plain)}


def changed_weight(encoder):
    next(iter(encoder.model.parameters())).data.flatten()[0] += 1e-3


def changed_length(encoder):
    encoder.tokenizer.model_max_length = 4


def changed_rule(encoder):
    encoder.tokenizer.backend_tokenizer.normalizer = Lowercase()


@pytest.mark.parametrize("kind", ["layerpool", "plain"])
def test_the_identity_of_an_encoder_follows_its_weights_and_its_length_but_not_its_folder(folders, kind, tmp_path):
    folder = folders[kind]
    moved = tmp_path / "moved"
    Path(folder).rename(moved)
    same, other = load_encoder(moved), load_encoder(moved)
    assert same.identity == other.identity
    other.encode(["a call sets the padding and truncation of a tokenizer"])
    assert same.identity == other.identity
    for change in (changed_weight, changed_length, changed_rule):
        before = other.identity
        change(other)
        assert other.identity != before


def test_the_identity_of_an_encoder_follows_its_pooling_and_its_prompt(folders):
    mean, cls = (load_encoder(folders["plain"], pooling=pooling) for pooling in ("mean", "cls"))
    assert mean.identity != cls.identity
    encoder = load_encoder(folders["layerpool"])
    before = encoder.identity
    encoder.prompt = "query: "
    assert encoder.identity != before


def test_sentence_transformers_models_have_an_identity_too(tmp_path, minilm):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(minilm, device="cpu")
    model.save(str(tmp_path / "st"))
    one, two = load_encoder(tmp_path / "st"), load_encoder(tmp_path / "st")
    assert one.identity == two.identity
    two.model.max_seq_length = 8
    assert one.identity != two.identity
    embeddings = embed_texts(SENTENCES, {"teacher": [one]}, tmp_path / "cache")
    np.testing.assert_allclose(
        embeddings.read("teacher", np.arange(3)).numpy(), unit_rows(one.encode(list(SENTENCES))), atol=1e-3
    )
