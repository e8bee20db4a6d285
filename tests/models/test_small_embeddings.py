"""Fewer dimensions and fewer bits, by what sentence-transformers offers for its models: it works on our folders."""

import inspect
import json
import math
import os
import shutil
import statistics
from importlib.metadata import version

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from sentence_transformers.util.quantization import quantize_embeddings, semantic_search_faiss
from transformers import AutoTokenizer

from modeling_layerpool import LayerPoolBertModel
from tests.conftest import assert_close_to
from tests.processes import run_without_the_package


# What Python's functions say they do: real sentences, and enough of them to find ranges from.
TEXTS = sorted(
    {
        " ".join(inspect.getdoc(member).split("\n\n")[0].split())[:200]
        for namespace in (os, shutil, math, statistics, str, dict)
        for name, member in vars(namespace).items()
        if not name.startswith("_") and inspect.isroutine(member) and inspect.getdoc(member)
    }
)
QUESTIONS = [
    "Delete a folder with everything in it.",
    "The square root of a number.",
    "Make all letters small.",
    "Copy a file with its permissions.",
    "What is the middle value of the data?",
    "Replace one part of a text by another.",
]


@pytest.fixture(scope="module", params=["mean", "layer_attention"])
def saved(request, minilm, minilm_tokenizer, tmp_path_factory):
    """A folder with real weights (the pooler of layer attention is new), and its own embeddings of the first TEXTS."""
    torch.manual_seed(0)
    model = LayerPoolBertModel.from_pretrained(minilm, pooler_type=request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    minilm_tokenizer.save_pretrained(folder)
    return folder, model.encode(TEXTS[:24], minilm_tokenizer)


@pytest.mark.parametrize("dim", [256, 60])
def test_truncated_embeddings_are_the_first_numbers_of_our_own(saved, dim):
    folder, own = saved
    model = SentenceTransformer(str(folder), trust_remote_code=True, truncate_dim=dim, device="cpu")
    cut = own[:8, :dim]
    assert model.get_embedding_dimension() == dim
    assert_close_to(model.encode(TEXTS[:8]), cut)
    units = cut / np.linalg.norm(cut, axis=1, keepdims=True)
    assert_close_to(model.encode(TEXTS[:8], normalize_embeddings=True), units)


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_quantised_embeddings_are_those_of_our_own(saved, precision):
    folder, own = saved
    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    got = model.encode(TEXTS[:24], precision=precision)
    # A number on the border of two codes may fall to either side, and the largest of a dimension always stands on one:
    # each has the code of our own number, made a little smaller or a little larger.
    ranges = np.stack([own.min(axis=0), own.max(axis=0)])
    little = 1e-5 * np.abs(own).max(axis=0)
    codes = [quantize_embeddings(own + sign * little, precision=precision, ranges=ranges) for sign in (-1, 1)]
    assert (got.dtype, got.shape) == (codes[0].dtype, (24, 48 if "binary" in precision else 384))
    if "binary" in precision:
        got, *codes = (np.unpackbits(packed.view(np.uint8)) for packed in (got, *codes))
    assert ((got == codes[0]) | (got == codes[1])).all()
    assert (codes[0] != codes[1]).mean() < 0.06


@pytest.fixture(scope="module")
def searched(minilm, minilm_tokenizer):
    """Questions and texts as vectors of length 1, and the places of the ten nearest texts by exact search."""
    model = LayerPoolBertModel.from_pretrained(minilm, pooler_type="mean")
    questions, texts = (model.encode(each, minilm_tokenizer, normalize=True) for each in (QUESTIONS, TEXTS))
    return questions, texts, np.argsort(-questions @ texts.T, axis=1)[:, :10]


def share_found(found, expected):
    return np.mean([len({*one} & {*other}) / len(other) for one, other in zip(found, expected, strict=True)])


@pytest.mark.skipif(
    tuple(map(int, version("sentence-transformers").split(".")[:2])) < (6, 2),
    reason="this release orders its candidates by the codes as they are",
)
def test_search_in_bytes_finds_the_neighbours_of_exact_search(searched):
    questions, texts, expected = searched
    found, _ = semantic_search_faiss(
        questions,
        corpus_embeddings=quantize_embeddings(texts, precision="uint8", calibration_embeddings=texts),
        corpus_precision="uint8",
        calibration_embeddings=texts,
        top_k=10,
        rescore_multiplier=4,
    )
    found = np.array([[hit["corpus_id"] for hit in hits] for hits in found])
    assert (found[:, 0] == expected[:, 0]).all()
    assert share_found(found, expected) > 0.95


def test_search_in_bits_has_the_neighbours_of_exact_search_among_its_first(searched):
    questions, texts, expected = searched
    found, _ = semantic_search_faiss(
        quantize_embeddings(questions, precision="ubinary"),
        corpus_embeddings=quantize_embeddings(texts, precision="ubinary"),
        corpus_precision="ubinary",
        top_k=40,
        rescore=False,
    )
    candidates = np.array([[hit["corpus_id"] for hit in hits] for hits in found])
    cosines = np.einsum("qd,qkd->qk", questions, texts[candidates])
    best = np.take_along_axis(candidates, np.argsort(-cosines, axis=1), axis=1)[:, :10]
    assert (best[:, 0] == expected[:, 0]).all()
    assert share_found(best, expected) > 0.9


@pytest.mark.long
def test_matryoshka_training_reaches_the_pooler_and_opens_again_everywhere(tiny_model, tokenizer, tmp_path):
    tiny_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    model = SentenceTransformer(str(tmp_path / "start"), trust_remote_code=True, device="cpu")
    things = ("house", "car", "tree", "dog", "ship", "lamp", "book", "shoe")
    kinds = ("red", "green", "blue", "old", "new", "big", "small", "cheap")
    pairs = {
        "anchor": [f"a {kind} {thing}" for kind in kinds for thing in things],
        "positive": [f"this {thing} is {kind}" for kind in kinds for thing in things],
    }
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path / "run"),
            max_steps=30,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=Dataset.from_dict(pairs),
        loss=MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), [32, 16, 8]),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    unchanged = [name for name, weight in model.state_dict().items() if torch.equal(weight, before[name])]
    assert not [name for name in unchanged if ".pooler." in name]

    folder, texts = tmp_path / "saved-v1.0", pairs["anchor"][:8]
    model.save(str(folder))
    expected = model.encode(texts)
    own = LayerPoolBertModel.from_pretrained(folder)
    assert_close_to(own.encode(texts, AutoTokenizer.from_pretrained(folder)), expected)
    np.save(tmp_path / "expected.npy", expected)
    code = """
        import json
        import numpy as np
        from sentence_transformers import SentenceTransformer
        from transformers import AutoModel, AutoTokenizer
        folder, texts, expected = sys.argv[1], json.loads(sys.argv[2]), np.load("expected.npy")
        model = SentenceTransformer(folder, trust_remote_code=True, truncate_dim=16, device="cpu")
        assert abs(model.encode(texts) - expected[:, :16]).max() < 2e-6
        model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        assert abs(model.encode(texts, tokenizer) - expected).max() < 2e-6
    """
    run_without_the_package(code, folder, json.dumps(texts), cwd=tmp_path)
