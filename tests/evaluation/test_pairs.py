import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

import run_evaluation
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.evaluation import Pairs, evaluate_pairs, read_pairs_file
from modeling_layerpool.evaluation.pairs import best_thresholds, pair_ranking_scores
from tests.evaluation.data import VectorEncoder, write_lines


# Few different similarities, so that many are equal.
judged = st.lists(st.tuples(st.integers(-4, 4).map(lambda x: x / 4), st.booleans()), min_size=2, max_size=30)


def arrays(rows):
    similarities, labels = (np.array(column) for column in zip(*rows, strict=True))
    assume(labels.any() and not labels.all())
    return similarities, labels


@given(rows=judged)
def test_no_other_threshold_is_better_on_the_dev_part(rows):
    similarities, labels = arrays(rows)
    chosen = best_thresholds(similarities, labels)
    accuracy = ((similarities >= chosen["accuracy_threshold"]) == labels).mean()
    f1 = f1_score(labels, similarities >= chosen["f1_threshold"], zero_division=0)
    for threshold in [*similarities, math.inf]:
        assert accuracy >= ((similarities >= threshold) == labels).mean()
        assert f1 >= f1_score(labels, similarities >= threshold, zero_division=0)


def test_partners_are_ranked_for_each_first_text():
    queries = ["a", "a", "a", "b", "b", "only positive", "c", "c"]
    similarities = np.array([0.9, 0.8, 0.1, 0.2, 0.7, 0.5, 0.3, 0.3])
    labels = np.array([False, True, True, True, False, True, True, False])
    # a: ranks 2 and 3; b: rank 2; c: a tie, in the worst order: rank 2.
    expected = {"map": 100 * ((1 / 2 + 2 / 3) / 2 + 1 / 2 + 1 / 2) / 3, "mrr": 50.0}
    scores = pair_ranking_scores(queries, similarities, labels)
    assert scores == pytest.approx(expected | {"has_positives@1": 0.0, "has_positives@5": 100.0, "queries": 3})
    assert pair_ranking_scores(["a", "b"], similarities[:2], labels[:2]) == {}


VECTORS = {"x": [1, 0], "near": [0.9, 0.1], "far": [0, 1], "middle": [0.7, 0.7]}


def test_the_threshold_comes_from_the_dev_part_alone():
    test = Pairs(["x", "x", "far"], ["near", "middle", "middle"], [1, 0, 1], True)
    dev = Pairs(["x", "x", "far"], ["near", "far", "middle"], [1, 0, 1], True)
    scores = evaluate_pairs(VectorEncoder(VECTORS), test, dev)
    assert 0 < scores["accuracy_threshold"] < 0.71  # between "far" and "middle" of dev
    assert scores["accuracy"] == pytest.approx(200 / 3)  # the negative one is as near as a positive one
    assert scores["f1"] == pytest.approx(80)
    without = evaluate_pairs(VectorEncoder(VECTORS), test)
    assert "accuracy" not in without
    assert without["average_precision"] == scores["average_precision"]


def test_scores_give_correlations():
    pairs = Pairs(["x", "x", "x"], ["near", "middle", "far"], [5, 3, 1], False)
    scores = evaluate_pairs(VectorEncoder(VECTORS), pairs)
    assert scores["spearman"] == pytest.approx(100)
    with pytest.raises(InputError, match="a dev part is for labels: neither"):
        evaluate_pairs(VectorEncoder(VECTORS), pairs, pairs)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "0 pairs, and at least 2 are needed"),
        ([{"sentence1": "a", "sentence2": "b"}], "line 1: no column 'score'"),
        ([{"sentence1": "a", "sentence2": "b", "label": 2}], "line 1: the label must be 0 or 1, got 2"),
        ([{"sentence1": "a", "sentence2": "b", "label": 1}] * 2, "every label is 1"),
    ],
)
def test_broken_files_are_named(tmp_path, rows, message):
    path = write_lines(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(InputError, match=message):
        read_pairs_file(path)


def test_the_script_measures_pairs(tiny_folder, tmp_path):
    rows = [
        {"sentence1": f"text {number // 2}", "sentence2": f"other {number}", "label": number % 2}
        for number in range(8)
    ]
    path = write_lines(tmp_path / "pairs.jsonl", rows)
    arguments = {"model_name_or_path": tiny_folder, "output_dir": str(tmp_path / "out")}
    run_evaluation.run(
        run_evaluation.EvaluationArguments(**arguments, pairs=[f"mine={path}"], pairs_dev=[f"mine={path}"])
    )
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["pairs"]["mine"]
    assert found["pairs"] == 8
    assert found["queries"] == 4
    assert {"average_precision", "accuracy", "f1", "map", "mrr", "has_positives@1"} <= set(found)
    with pytest.raises(InputError, match="--pairs_dev yours: there is no --pairs of this name"):
        run_evaluation.run(
            run_evaluation.EvaluationArguments(**arguments, pairs=[f"mine={path}"], pairs_dev=[f"yours={path}"])
        )
