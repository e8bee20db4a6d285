import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_layerpool.common.errors import InputError
from modeling_layerpool.evaluation import RetrievalMetric, SentenceSimilarityMetric, ranking_scores, similarity_scores
from modeling_layerpool.evaluation.metrics import AveragePrecisionMetric, ClassificationMetric, MultiLabelMetric


def classification_scores(predictions, references, num_classes):
    return ClassificationMetric().compute(predictions=predictions, references=references, num_classes=num_classes)


def multi_label_scores(predictions, references):
    return MultiLabelMetric().compute(predictions=predictions, references=references)


def test_perfect_order_is_spearman_100_whatever_the_scale():
    result = similarity_scores([0.1, 0.2, 0.9], [1.0, 3.0, 4.0])
    assert result["spearman"] == pytest.approx(100)
    assert result["pearson"] < 100
    assert result["pairs"] == 3


def test_spearman_gives_tied_values_their_mean_rank():
    # ranks 1.5 1.5 3 4 against 1 2 3 4: the Pearson correlation of these is 4.5 / sqrt(4.5 * 5)
    assert similarity_scores([0.0, 0.0, 0.5, 1.0], [1, 2, 3, 4])["spearman"] == pytest.approx(
        100 * 4.5 / math.sqrt(4.5 * 5)
    )


def test_equal_similarities_have_no_correlation_rather_than_a_number():
    result = similarity_scores([0.7, 0.7, 0.7], [1, 2, 3])
    assert math.isnan(result["spearman"])
    assert math.isnan(result["pearson"])


@pytest.mark.parametrize(
    ("similarities", "scores", "message"),
    [
        ([0.1, 0.2], [3.0, 3.0], "all 2 gold scores are 3"),
        ([0.1], [3.0], "at least 2 pairs"),
        ([0.1, 0.2], [1.0, 2.0, 3.0], "of the same length"),
        ([0.1, math.nan], [1.0, 2.0], "finite"),
    ],
)
def test_similarity_scores_refuses_what_has_no_correlation(similarities, scores, message):
    with pytest.raises(InputError, match=message):
        similarity_scores(similarities, scores)


def reference_ranking_scores(rankings, relevances):
    """trec_eval's definitions, as literally as possible, with explicit vectors in float64."""
    rows = []
    for ranking, relevance in zip(rankings, relevances, strict=True):
        if max(relevance.values(), default=0) <= 0:
            continue
        gains = np.zeros(1000)
        for place, document in enumerate(ranking[:1000]):
            gains[place] = max(relevance.get(document, 0), 0)
        ideal = np.zeros(1000)
        positives = sorted((gain for gain in relevance.values() if gain > 0), reverse=True)
        ideal[: len(positives)] = positives
        ranks = np.arange(1, 1001)
        discounts = 1 / np.log2(ranks + 1)
        is_hit = gains > 0
        first = ranks[is_hit].min() if is_hit.any() else math.inf
        rows.append(
            [
                (gains * discounts)[:10].sum() / (ideal * discounts)[:10].sum(),
                1 / first if first <= 10 else 0,
                (is_hit.cumsum() / ranks * is_hit).sum() / len(positives),
                is_hit[:100].sum() / len(positives),
            ]
        )
    means = 100 * np.mean(rows, axis=0)
    return dict(zip(("ndcg@10", "mrr@10", "map", "recall@100"), means, strict=True)) | {"queries": len(rows)}


@st.composite
def judged_rankings(draw):
    documents = [f"d{number}" for number in range(draw(st.integers(1, 150)))]
    queries = draw(st.integers(1, 4))
    grades = st.dictionaries(st.sampled_from(documents), st.integers(-1, 3), max_size=30)
    relevances = [draw(grades) for _ in range(queries)]
    relevances[0][documents[0]] = 1
    rankings = []
    for _ in range(queries):
        order = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).permutation(documents).tolist()
        rankings.append(order[: draw(st.integers(0, len(order)))])
    return rankings, relevances


@settings(max_examples=100, deadline=None)
@given(judged_rankings())
def test_ranking_scores_are_trec_evals(case):
    assert ranking_scores(*case) == pytest.approx(reference_ranking_scores(*case), abs=1e-9)


@st.composite
def scored_documents(draw):
    """Judgements and retrieval scores of one to four queries; few distinct scores, so that most of them are tied."""
    documents = [f"d{number}" for number in range(draw(st.integers(1, 150)))]
    levels = draw(st.integers(1, 200))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    relevances, runs = {}, {}
    for query in range(draw(st.integers(1, 4))):
        judged = draw(st.dictionaries(st.sampled_from(documents), st.integers(0, 3), max_size=30))
        relevances[f"q{query}"] = judged | {random.choice(documents).item(): 1}
        retrieved = random.permutation(documents)[: draw(st.integers(1, len(documents)))].tolist()
        runs[f"q{query}"] = {document: float(random.integers(levels)) for document in retrieved}
    return relevances, runs


@settings(max_examples=100, deadline=None)
@given(scored_documents())
def test_ranking_scores_are_those_of_pytrec_eval(case):
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="pip install pytrec-eval-terrier")
    relevances, runs = case
    measures = {"ndcg_cut.10", "map_cut.1000", "recall.100", "recip_rank"}
    of_queries = pytrec_eval.RelevanceEvaluator(relevances, measures).evaluate(runs)
    expected = {
        name: 100 * np.mean([of_queries[query][theirs] for query in runs])
        for name, theirs in (("ndcg@10", "ndcg_cut_10"), ("map", "map_cut_1000"), ("recall@100", "recall_100"))
    }
    reciprocal = np.array([of_queries[query]["recip_rank"] for query in runs])
    expected["mrr@10"] = 100 * np.where(reciprocal > 1 / 10.5, reciprocal, 0).mean()
    # trec_eval ranks by score, and documents of the same score by their names, both falling
    rankings = [
        sorted(run, key=lambda document, run=run: (run[document], document), reverse=True) for run in runs.values()
    ]
    assert ranking_scores(rankings, list(relevances.values())) == pytest.approx(
        expected | {"queries": len(runs)}, abs=1e-9
    )


def test_ranking_scores_of_a_case_worked_out_by_hand():
    result = ranking_scores([["a", "b", "c", "d"]], [{"b": 2, "d": 1, "a": 0, "z": 1}])
    ideal = 2 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)
    assert result == pytest.approx(
        {
            "ndcg@10": 100 * (2 / math.log2(3) + 1 / math.log2(5)) / ideal,
            "mrr@10": 50.0,
            "map": 100 * (1 / 2 + 2 / 4) / 3,
            "recall@100": 100 * 2 / 3,
            "queries": 1,
        }
    )


def test_a_relevant_document_beyond_rank_1000_counts_for_nothing():
    ranking = [f"d{number}" for number in range(1001)]
    assert ranking_scores([ranking], [{"d1000": 1}])["map"] == 0
    assert ranking_scores([ranking], [{"d999": 1}])["map"] == pytest.approx(100 / 1000)


def test_rankings_without_any_relevant_document_are_refused():
    with pytest.raises(InputError, match="no query has a relevant document"):
        ranking_scores([["a"]], [{"a": 0}])


@st.composite
def classified_rows(draw):
    rows, classes = draw(st.integers(1, 40)), draw(st.integers(2, 5))
    labels = st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows)
    return draw(labels), draw(labels), classes


def f1_by_counting(predicted, true):
    """F1 x 100 from its counts; 0 without anything to find and without anything found."""
    return 200 * (predicted & true).sum() / max(1, predicted.sum() + true.sum())


@settings(max_examples=100, deadline=None)
@given(classified_rows())
def test_classification_scores_are_those_of_their_definitions(case):
    predictions, references, classes = np.array(case[0]), np.array(case[1]), case[2]
    occurring = np.union1d(predictions, references)
    # Matthews correlation is the correlation of the two one-hot matrices (Gorodkin 2004).
    one_hot = [np.eye(classes)[labels] - np.eye(classes)[labels].mean(0) for labels in (predictions, references)]
    spread = math.sqrt((one_hot[0] ** 2).sum() * (one_hot[1] ** 2).sum())
    expected = {
        "accuracy": 100 * (predictions == references).mean(),
        "macro_f1": np.mean([f1_by_counting(predictions == number, references == number) for number in occurring]),
        "matthews": 100 * (one_hot[0] * one_hot[1]).sum() / spread if spread > 1e-9 else 0,
        "rows": len(references),
    }
    if classes == 2:
        expected["f1"] = f1_by_counting(predictions == 1, references == 1)
    assert classification_scores(predictions, references, classes) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_multi_label_scores_are_those_of_their_definitions(rows, classes, seed):
    predictions, references = np.random.default_rng(seed).integers(0, 2, (2, rows, classes))
    predicted, true = predictions == 1, references == 1
    assert multi_label_scores(predictions, references) == pytest.approx(
        {
            "micro_f1": f1_by_counting(predicted, true),
            "macro_f1": np.mean([f1_by_counting(*columns) for columns in zip(predicted.T, true.T, strict=True)]),
            "accuracy": 100 * (predictions == references).all(1).mean(),
            "rows": rows,
        },
        abs=1e-9,
    )


def test_classification_scores_of_a_case_worked_out_by_hand():
    # 3 of class 1 found, one missed, two wrongly said; one of class 0 right.
    result = classification_scores([1, 1, 1, 0, 1, 1, 0], [1, 1, 1, 1, 0, 0, 0], 2)
    assert result == pytest.approx(
        {
            "accuracy": 100 * 4 / 7,
            "f1": 100 * 6 / 9,
            "macro_f1": 100 * (6 / 9 + 2 / 5) / 2,
            "matthews": 100 * (3 * 1 - 2 * 1) / math.sqrt(5 * 4 * 3 * 2),
            "rows": 7,
        }
    )


def test_one_class_for_all_rows_has_no_correlation_and_no_f1_to_find():
    assert classification_scores([0, 0, 0], [0, 1, 0], 2) == pytest.approx(
        {"accuracy": 200 / 3, "f1": 0, "macro_f1": 40, "matthews": 0, "rows": 3}
    )


def test_average_precision_of_a_case_worked_out_by_hand():
    metric = AveragePrecisionMetric()
    # Positives at rank 1, and at ranks 2 and 3, which are tied with the negative of rank 4.
    found = metric.compute(predictions=[0.9, 0.5, 0.5, 0.5], references=[1, 1, 1, 0])
    assert found == pytest.approx({"average_precision": 100 * (1 / 3 * 1 + 2 / 3 * 3 / 4)})
    nothing = metric.compute(predictions=[0.9, 0.5], references=[0, 0])
    assert math.isnan(nothing["average_precision"])


RETRIEVAL_CASE = {
    "predictions": [["d2", "d1"], ["d1", "d3"]],
    "references": [{"ids": ["d1"], "relevance": [1]}, {"ids": ["d3", "d1"], "relevance": [2, 0]}],
}


def test_metrics_return_what_the_functions_return():
    similarities, scores = [0.1, 0.7, 0.3], [1.0, 2.0, 3.0]
    assert SentenceSimilarityMetric().compute(predictions=similarities, references=scores) == similarity_scores(
        similarities, scores
    )
    expected = ranking_scores(RETRIEVAL_CASE["predictions"], [{"d1": 1}, {"d3": 2, "d1": 0}])
    assert RetrievalMetric().compute(**RETRIEVAL_CASE) == expected


def test_metrics_collect_batches():
    metric = SentenceSimilarityMetric()
    metric.add_batch(predictions=[0.1, 0.7], references=[1, 2])
    metric.add(prediction=0.3, reference=3)
    assert metric.compute() == similarity_scores([0.1, 0.7, 0.3], [1, 2, 3])


def test_metrics_write_no_cache_file_in_which_processes_could_meet(tmp_path):
    SentenceSimilarityMetric(cache_dir=tmp_path).compute(predictions=[0.1, 0.7], references=[1, 2])
    RetrievalMetric(cache_dir=tmp_path).compute(**RETRIEVAL_CASE)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_metrics_work_without_a_writable_cache(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path / "file" / "metrics")
    assert SentenceSimilarityMetric().compute(predictions=[0.1, 0.7], references=[1, 2])["spearman"] == pytest.approx(
        100
    )


def test_metrics_in_threads_do_not_disturb_each_other():
    def compute(seed):
        similarities, scores = np.random.default_rng(seed).random((2, 50))
        expected = similarity_scores(similarities, scores)
        return SentenceSimilarityMetric().compute(predictions=similarities, references=scores) == expected

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(compute, range(16)))
