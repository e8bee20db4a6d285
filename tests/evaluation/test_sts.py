import gzip
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from modeling_layerpool.common.errors import InputError
from modeling_layerpool.evaluation import evaluate_sts, load_encoder, load_sts, positive_pairs, read_sts_file
from tests.evaluation.data import (
    PAIRS,
    SCORES,
    SENTENCES1,
    SENTENCES2,
    VectorEncoder,
    real_data,
    write_lines,
    write_pairs,
)


ROW = {"sentence1": "a", "sentence2": "b", "score": 1}


def test_a_file_is_read_in_order_plain_or_gzipped(tmp_path):
    path = write_pairs(tmp_path / "pairs.jsonl")
    zipped = tmp_path / "zipped.jsonl.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert read_sts_file(path) == read_sts_file(zipped) == (SENTENCES1, SENTENCES2, SCORES)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "0 sentence pairs"),
        ([ROW], "1 sentence pairs"),
        ([ROW, ROW], "every score is 1"),
        ([ROW, {"sentence1": "a", "score": 1}], "line 2: no column 'sentence2'"),
        ([ROW, ROW | {"sentence1": " "}], "line 2: the column 'sentence1' is empty"),
        ([ROW, ROW | {"score": "high"}], "line 2: the column 'score' must be a number, got 'high'"),
        ([ROW, ROW | {"score": None}], "line 2: the column 'score' must be a number, got None"),
        ([ROW, "{"], "line 2: not valid JSON"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path, rows, message):
    path = write_lines(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(InputError, match=message) as error:
        read_sts_file(path)
    assert str(path) in str(error.value)


def test_unknown_built_in_name_lists_the_known_ones():
    with pytest.raises(InputError, match=r"no built-in set of this name .*sts12.*NAME=FILE"):
        load_sts("sts99")


def test_built_in_set_without_a_network_says_what_to_do_instead():
    with pytest.raises(InputError, match=r"mteb/sickr-sts could not be loaded .*sickr=FILE"):
        load_sts("sickr")


def test_each_distinct_sentence_is_embedded_once_in_one_call():
    encoder = VectorEncoder({"a": [1, 0], "b": [1, 1], "c": [0, 1]})
    result = evaluate_sts(encoder, ["a", "a", "b"], ["b", "c", "b"], [3, 1, 5])
    assert encoder.calls == [["a", "b", "c"]]
    assert result == {"spearman": pytest.approx(100), "pearson": pytest.approx(97.26, abs=0.01), "pairs": 3}


SUBSET_ROWS = [
    {"sentence1": first, "sentence2": second, "score": score, "subset": subset}
    for (first, second, score), subset in zip(PAIRS, "aabbbaab", strict=True)
]


def test_the_subsets_of_a_file_are_read_on_request(tmp_path):
    path = write_lines(tmp_path / "pairs.jsonl", SUBSET_ROWS)
    assert read_sts_file(path) == (SENTENCES1, SENTENCES2, SCORES)
    assert read_sts_file(path, subset_column="subset") == (SENTENCES1, SENTENCES2, SCORES, list("aabbbaab"))
    assert read_sts_file(path, subset_column="genre") == (SENTENCES1, SENTENCES2, SCORES, None)
    years = write_lines(tmp_path / "years.jsonl", [ROW | {"score": score, "year": 2012} for score in (1, 2)])
    assert read_sts_file(years, subset_column="year")[3] == ["2012", "2012"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*SUBSET_ROWS, ROW], "line 9: no column 'subset'"),
        ([*SUBSET_ROWS, ROW | {"subset": None}], "line 9: the column 'subset' is missing or null"),
        ([*SUBSET_ROWS, ROW | {"subset": "c"}], "pairs.jsonl, subset 'c': 1 sentence pairs"),
        ([*SUBSET_ROWS, *[ROW | {"subset": "c"}] * 2], "pairs.jsonl, subset 'c': every score is 1"),
    ],
)
def test_a_subset_without_a_correlation_is_named(tmp_path, rows, message):
    path = write_lines(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(InputError, match=message):
        read_sts_file(path, subset_column="subset")


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(2, 9), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_the_means_over_subsets_are_those_of_scipys_correlations(sizes, seed):
    random = np.random.default_rng(seed)
    subsets = random.permutation(np.repeat([f"subset {number}" for number in range(len(sizes))], sizes)).tolist()
    pairs = len(subsets)
    first, second = ([f"{side} {number}" for number in range(pairs)] for side in ("first", "second"))
    vectors = {text: random.normal(size=3).astype(np.float32) for text in first + second}
    scores = random.permutation(pairs).tolist()
    result = evaluate_sts(VectorEncoder(vectors), first, second, scores, subsets)
    whole = evaluate_sts(VectorEncoder(vectors), first, second, scores)
    assert {name: result[name] for name in whole} == whole
    assert result["subsets"] == len(sizes)
    cosines = np.array(
        [
            np.dot(vectors[one].astype(float), vectors[other].astype(float))
            / np.linalg.norm(vectors[one].astype(float))
            / np.linalg.norm(vectors[other].astype(float))
            for one, other in zip(first, second, strict=True)
        ]
    )
    for name, correlation in (("spearman", stats.spearmanr), ("pearson", stats.pearsonr)):
        total = weighted = 0.0
        for subset in set(subsets):
            own = np.array([entry == subset for entry in subsets])
            found = correlation(cosines[own], np.array(scores)[own]).statistic
            total += found
            weighted += own.sum() * found
        assert result[f"{name}_subsets_mean"] == pytest.approx(100 * total / len(sizes), abs=1e-6)
        assert result[f"{name}_subsets_wmean"] == pytest.approx(100 * weighted / pairs, abs=1e-6)


def test_equal_cosines_in_one_subset_leave_the_means_undefined():
    encoder = VectorEncoder({"a": [1, 0], "b": [0, 1], "c": [1, 1]})
    sides = ["a", "a", "a", "b"], ["b", "b", "b", "c"]
    result = evaluate_sts(encoder, *sides, [1, 2, 3, 4], ["x", "x", "y", "y"])
    assert math.isfinite(result["spearman"])
    assert math.isnan(result["spearman_subsets_mean"])
    assert math.isnan(result["pearson_subsets_wmean"])


def test_subsets_that_do_not_fit_the_pairs_are_refused():
    encoder = VectorEncoder({"a": [1, 0], "b": [0, 1]})
    with pytest.raises(InputError, match="1 subsets for 2 scores"):
        evaluate_sts(encoder, ["a", "b"], ["b", "b"], [1, 2], ["x"])
    with pytest.raises(InputError, match="subset 'x': a correlation needs at least 2 pairs"):
        evaluate_sts(encoder, ["a", "b"], ["b", "b"], [1, 2], ["x", "y"])


def test_the_length_of_embeddings_does_not_matter():
    vectors = {text: np.random.default_rng(index).normal(size=8) for index, text in enumerate(SENTENCES1 + SENTENCES2)}
    scaled = {text: vector * (1 + len(text)) for text, vector in vectors.items()}
    plain, lengthened = (
        evaluate_sts(VectorEncoder(table), SENTENCES1, SENTENCES2, SCORES) for table in (vectors, scaled)
    )
    assert lengthened == pytest.approx(plain, abs=1e-4)


def test_a_collapsed_encoder_has_no_correlation_and_says_so(caplog):
    encoder = VectorEncoder({text: [1.0, 2.0, 3.0] for text in SENTENCES1 + SENTENCES2})
    result = evaluate_sts(encoder, SENTENCES1, SENTENCES2, SCORES)
    assert math.isnan(result["spearman"])
    assert "tells no pairs apart" in caplog.text


def test_embeddings_that_are_not_finite_end_in_an_error_not_a_score():
    encoder = VectorEncoder({"a": [1, 0], "b": [math.nan, 1]})
    with pytest.raises(InputError, match=r"1 of 2 embeddings hold nan or infinity \(the first of 'b'\)"):
        evaluate_sts(encoder, ["a", "b"], ["b", "a"], [1, 2])


def test_constant_gold_scores_and_uneven_lists_are_refused():
    encoder = VectorEncoder({"a": [1, 0], "b": [0, 1]})
    with pytest.raises(InputError, match="all 2 gold scores are 2"):
        evaluate_sts(encoder, ["a", "b"], ["b", "a"], [2, 2])
    with pytest.raises(InputError, match="2 and 1 sentences for 2 scores"):
        evaluate_sts(encoder, ["a", "b"], ["b"], [1, 2])


def test_positive_pairs_are_those_above_four_fifths_of_the_highest_score():
    assert positive_pairs(["a", "b", "c"], ["x", "y", "z"], [5.0, 4.0, 4.1]) == (["a", "c"], ["x", "z"])


def difference_from_sentence_transformers(minilm, pairs):
    expected = EmbeddingSimilarityEvaluator(*pairs)(SentenceTransformer(minilm, device="cpu"))
    result = evaluate_sts(load_encoder(minilm, device="cpu"), *pairs)
    return max(abs(result[name] / 100 - expected[f"{name}_cosine"]) for name in ("spearman", "pearson"))


def test_scores_equal_those_of_sentence_transformers(minilm, record_difference):
    difference = difference_from_sentence_transformers(minilm, (SENTENCES1, SENTENCES2, SCORES))
    assert difference < 1e-4
    record_difference("sentence-transformers", "its STS evaluator's correlations, against ours", difference)


@pytest.mark.long
def test_scores_equal_those_of_sentence_transformers_on_real_pairs(minilm):
    pairs = read_sts_file(real_data("stsb/test.jsonl"))
    assert difference_from_sentence_transformers(minilm, tuple(column[::20] for column in pairs)) < 1e-4


@pytest.mark.long
def test_minilm_reaches_its_known_spearman_on_the_sts_benchmark(minilm):
    result = evaluate_sts(load_encoder(minilm), *read_sts_file(real_data("stsb/test.jsonl")))
    assert result["pairs"] == 1379
    assert result["spearman"] == pytest.approx(82.0, abs=0.1)


def test_the_inline_pairs_are_sorted_well_by_a_real_model(minilm):
    assert evaluate_sts(load_encoder(minilm), SENTENCES1, SENTENCES2, SCORES)["pairs"] == len(PAIRS)
