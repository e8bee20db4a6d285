import gzip

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from modeling_layerpool.common.errors import InputError
from modeling_layerpool.evaluation import (
    evaluate_retrieval,
    load_encoder,
    read_retrieval_folder,
    relevant_pairs,
    search,
)
from tests.evaluation.data import VectorEncoder, real_data, write_lines, write_retrieval


HEADER = "query-id\tcorpus-id\tscore"


def test_a_folder_is_read_as_beir_does(tmp_path):
    corpus, queries, qrels = read_retrieval_folder(write_retrieval(tmp_path))
    assert corpus == {
        "d1": "Guitar A string instrument that is played with the fingers.",
        "d2": "Dogs were the first animals that people kept.",
        "d3": "The stock market is where shares are bought and sold.",
        "d4": "Onion",
    }
    assert list(queries) == ["q1", "q2", "q3"]
    assert qrels == {"q1": {"d2": 2, "d1": 0}, "q2": {"d3": 1}}


def test_gzipped_files_and_beirs_own_qrels_folder_are_read_alike(tmp_path):
    plain, zipped = write_retrieval(tmp_path / "plain"), write_retrieval(tmp_path / "zipped")
    for name in ("corpus.jsonl", "queries.jsonl"):
        (zipped / f"{name}.gz").write_bytes(gzip.compress((zipped / name).read_bytes()))
        (zipped / name).unlink()
    (zipped / "qrels").mkdir()
    (zipped / "qrels_test.tsv").rename(zipped / "qrels" / "test.tsv")
    assert read_retrieval_folder(zipped) == read_retrieval_folder(plain)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("corpus.jsonl", [], "no rows"),
        ("corpus.jsonl", [{"_id": "d1"}], "line 1: no column 'text'"),
        ("corpus.jsonl", [{"_id": "d1", "text": "a"}, {"_id": "d1", "text": "b"}], "line 2: the _id 'd1' is there"),
        ("corpus.jsonl", [{"_id": "d1", "title": "", "text": ""}], "line 1: the column 'text' is empty"),
        ("queries.jsonl", [{"_id": None, "text": "a"}], "line 1: the column '_id' is missing or null"),
        ("qrels_test.tsv", ["q1\td1\t1"], "no document is relevant"),
        ("qrels_test.tsv", ["a\tb\tc", "q1\td1\t1"], "line 2: no column 'query-id'"),
        ("qrels_test.tsv", [HEADER, "q9\td1\t1"], "line 2: the query 'q9' is not in the queries file"),
        ("qrels_test.tsv", [HEADER, "q1\td9\t1"], "line 2: the document 'd9' is not in the corpus file"),
        ("qrels_test.tsv", [HEADER, "q1\td1\t0.5"], "line 2: the column 'score' must be a whole number"),
        ("qrels_test.tsv", [HEADER, "q1\td1\t1e30"], "line 2: the column 'score' must be a whole number"),
        ("qrels_test.tsv", [HEADER, "q1\td1\t1", "q1\td1\t0"], "line 3: .* were judged differently before"),
        ("qrels_test.tsv", [HEADER, "q1\td1\t0"], "no document is relevant"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path, name, rows, message):
    write_lines(write_retrieval(tmp_path) / name, rows)
    with pytest.raises(InputError, match=message) as error:
        read_retrieval_folder(tmp_path)
    assert str(tmp_path / name) in str(error.value)


def test_a_missing_folder_or_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        read_retrieval_folder(tmp_path / "nowhere")
    (write_retrieval(tmp_path) / "qrels_test.tsv").unlink()
    with pytest.raises(InputError, match=r"has neither qrels_test.tsv nor qrels/test.tsv"):
        read_retrieval_folder(tmp_path)


@settings(max_examples=50, deadline=None)
@given(
    documents=st.integers(1, 60),
    k=st.integers(1, 70),
    query_block=st.integers(1, 5),
    corpus_block=st.integers(1, 20),
    seed=st.integers(0, 1000),
)
def test_search_in_blocks_is_a_stable_sort_of_all_cosines(documents, k, query_block, corpus_block, seed):
    # the corners of a square in a few lengths: many documents share a cosine exactly
    random = np.random.default_rng(seed)
    corpus = random.choice([-1.0, 1.0], size=(documents, 2)) * random.choice([1.0, 2.0], size=(documents, 1))
    queries = random.choice([-1.0, 1.0], size=(7, 2))
    cosines = queries @ corpus.T / np.linalg.norm(corpus, axis=1)
    expected = np.argsort(-cosines.round(6), axis=1, kind="stable")[:, :k]
    blocks = {"query_block": query_block, "corpus_block": corpus_block, "show_progress_bar": False}
    assert (search(queries, corpus, k, **blocks) == expected).all()


def test_search_finds_the_nearest_among_random_vectors():
    random = np.random.default_rng(0)
    corpus, queries = random.normal(size=(500, 16)).astype(np.float32), random.normal(size=(9, 16)).astype(np.float32)
    cosines = queries @ (corpus / np.linalg.norm(corpus, axis=1, keepdims=True)).T
    expected = np.argsort(-cosines, axis=1)[:, :20]
    assert (search(queries, corpus, 20, query_block=4, corpus_block=64, show_progress_bar=False) == expected).all()


class LargestTensor(TorchFunctionMode):
    """Notes the number of elements of the largest tensor that torch creates."""

    elements = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple) else (result,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def test_search_holds_one_block_of_scores_at_a_time():
    queries, corpus = np.random.default_rng(0).normal(size=(301, 2)), np.random.default_rng(1).normal(size=(3001, 2))
    with LargestTensor() as largest:
        found = search(queries, corpus, 9, query_block=16, corpus_block=100, device="cpu", show_progress_bar=False)
    assert found.shape == (301, 9)
    assert largest.elements == 16 * (100 + 9), "of 903,301 scores"


VECTORS = {"east": [1, 0], "north": [0, 1], "north-east": [1, 1], "west": [-1, 0]}
CORPUS = {"d1": "east", "d2": "north-east", "d3": "north", "d4": "west"}


def test_only_judged_queries_are_embedded_and_each_text_once():
    encoder = VectorEncoder(VECTORS)
    queries = {"q1": "east", "q2": "not embedded", "q3": "north"}
    qrels = {"q1": {"d2": 1}, "q3": {"d3": 1}, "q2": {"d1": 0}}
    result = evaluate_retrieval(encoder, CORPUS | {"d5": "east"}, queries, qrels)
    assert encoder.calls == [["east", "north", "north-east", "west"]]
    # q1: d1, d5 tie before d2; q3: d3 first
    assert result["mrr@10"] == pytest.approx(100 * (1 / 3 + 1) / 2)
    assert result["queries"] == 2


def test_equal_documents_rank_in_the_order_of_the_corpus():
    encoder = VectorEncoder(VECTORS)
    corpus = {"later": "north", "first": "east", "second": "east"}
    ranks = {
        document: evaluate_retrieval(encoder, corpus, {"q": "east"}, {"q": {document: 1}})["mrr@10"]
        for document in corpus
    }
    assert ranks == pytest.approx({"first": 100, "second": 50, "later": 100 / 3})


def test_a_document_with_the_id_of_the_query_is_the_query_itself_and_left_out():
    result = evaluate_retrieval(VectorEncoder(VECTORS), CORPUS, {"d1": "east"}, {"d1": {"d2": 1}})
    assert result["mrr@10"] == 100


def test_a_document_with_the_id_of_the_query_stays_when_it_is_judged_relevant():
    result = evaluate_retrieval(VectorEncoder(VECTORS), CORPUS, {"d1": "east"}, {"d1": {"d1": 1}})
    assert result["mrr@10"] == 100


def test_graded_relevance_reaches_ndcg():
    best = evaluate_retrieval(VectorEncoder(VECTORS), CORPUS, {"q": "east"}, {"q": {"d1": 2, "d2": 1}})
    swapped = evaluate_retrieval(VectorEncoder(VECTORS), CORPUS, {"q": "east"}, {"q": {"d1": 1, "d2": 2}})
    assert best["ndcg@10"] == pytest.approx(100)
    assert swapped["ndcg@10"] < 90
    assert best["map"] == swapped["map"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ({"q9": {"d1": 1}}, "the query 'q9'"),
        ({"q": {"d9": 1}}, "judged document 'd9'"),
        ({"q": {"d1": 0}}, "no query has a relevant document"),
    ],
)
def test_judgements_that_fit_nothing_are_refused(qrels, message):
    with pytest.raises(InputError, match=message):
        evaluate_retrieval(VectorEncoder(VECTORS), CORPUS, {"q": "east"}, qrels)


def test_relevant_pairs_are_texts_of_queries_and_their_relevant_documents():
    qrels = {"q": {"d1": 2, "d2": 0, "d3": 1}}
    assert relevant_pairs(CORPUS, {"q": "east"}, qrels) == (["east", "east"], ["east", "north"])


def test_a_real_model_finds_the_right_documents(minilm, tmp_path):
    result = evaluate_retrieval(load_encoder(minilm), *read_retrieval_folder(write_retrieval(tmp_path)))
    assert result == {"ndcg@10": 100.0, "mrr@10": 100.0, "map": 100.0, "recall@100": 100.0, "queries": 2}


def test_scifact_is_read_with_its_known_counts():
    corpus, queries, qrels = read_retrieval_folder(real_data("scifact"))
    assert (len(corpus), len(queries), len(qrels)) == (5183, 1109, 300)
    assert sum(map(len, qrels.values())) == 339
