"""Development data: files, folders and built-in sets, one or several."""

import datasets
import pytest

from modeling_layerpool.common.columns import ColumnNames
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.evaluation import evaluate_pairs, evaluate_sts, read_pairs_file, read_sts_file
from modeling_layerpool.evaluation.development import (
    DevelopmentData,
    development_evaluators,
    parse_development_sets,
)
from modeling_layerpool.evaluation.encoders import LayerPoolEncoder
from tests.evaluation.test_transfer import write_lines


SCORED = [{"sentence1": f"cat {i}", "sentence2": f"dog tree {i * i}", "score": i % 4} for i in range(9)]
LABELED = [{"q": f"cat {i}", "a": f"guitar {i}", "label": i % 2} for i in range(8)]


@pytest.fixture
def files(tmp_path):
    return write_lines(tmp_path / "sts-dev.jsonl", SCORED), write_lines(tmp_path / "pairs.jsonl", LABELED)


def test_sets_are_called_as_their_files_or_as_the_user_calls_them(files, tmp_path):
    sts, pairs = files
    (tmp_path / "a=b.jsonl").touch()
    assert parse_development_sets([str(sts), f"mine={pairs}", "stsb", f"{tmp_path}/a=b.jsonl"]) == {
        "sts-dev": DevelopmentData(str(sts)),
        "mine": DevelopmentData(str(pairs)),
        "stsb": DevelopmentData("stsb", is_built_in=True),
        "a-b": DevelopmentData(f"{tmp_path}/a=b.jsonl"),
    }


def test_several_sets_have_the_scores_that_each_has_and_their_mean(files, tiny_model, tokenizer):
    sts, pairs = files
    columns = ColumnNames({"sentence1": ["q"], "sentence2": ["a"]})
    sets = parse_development_sets([str(sts), f"mine={pairs}"])
    evaluator, metrics, rows = development_evaluators(sets, columns)
    model = tiny_model(pooler_type="mean")
    encoder = LayerPoolEncoder(model, tokenizer, show_progress_bar=False)
    one = evaluate_sts(encoder, *read_sts_file(sts))
    other = evaluate_pairs(encoder, read_pairs_file(pairs, columns))
    expected = {
        "mean": (one["spearman"] + other["average_precision"]) / 2,
        "sts-dev_spearman": one["spearman"],
        "sts-dev_pearson": one["pearson"],
        "mine_average_precision": other["average_precision"],
    }
    assert evaluator(model, tokenizer) == pytest.approx(expected, abs=1e-6)
    assert metrics == dict.fromkeys(expected, True)
    assert rows is None


def test_one_set_keeps_the_names_of_its_metrics(files, tiny_model, tokenizer):
    evaluator, metrics, rows = development_evaluators(parse_development_sets([f"mine={files[0]}"]))
    assert list(metrics) == ["spearman", "pearson"]
    assert evaluator(tiny_model(pooler_type="mean"), tokenizer).keys() == {"spearman", "pearson", "pairs"}
    assert rows is None


def test_one_of_the_files_may_hold_rows_like_the_training_data(files, tmp_path):
    train = write_lines(tmp_path / "rows.jsonl", [{"anchor": "a", "positive": "p"}])
    other = write_lines(tmp_path / "other.jsonl", [{"anchor": "a", "positive": "p"}])
    _, metrics, rows = development_evaluators(parse_development_sets([str(files[0]), str(train)]))
    assert (list(metrics), rows) == (["sts-dev_spearman", "sts-dev_pearson"], str(train))
    with pytest.raises(InputError, match="only one validation file may have the columns of the training data"):
        development_evaluators(parse_development_sets([str(train), str(other)]))


@pytest.mark.parametrize(("name", "split", "warns"), [("stsb", "validation", False), ("sts12", "test", True)])
def test_a_built_in_set_is_read_from_its_development_part_if_it_has_one(monkeypatch, caplog, name, split, warns):
    asked = []

    def load_dataset(repository, split):
        asked.append((repository, {"validation": split}))
        return SCORED

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    sets = parse_development_sets([name])
    _, metrics, _ = development_evaluators(sets)
    assert list(metrics) == ["spearman", "pearson"]
    assert asked == [sets[name].source]
    assert asked[0][1] == {"validation": split}
    assert ("no development part" in caplog.text) == warns


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["stbs"], "--validation_file stbs: no such file or folder, nor a built-in set (stsb, sts12"),
        (["a b=dev.jsonl"], "expected NAME=FILE, with letters, digits"),
        (["dev.jsonl", "other/dev.csv"], "two sets are called 'dev'; name them as NAME=FILE"),
        (["=dev.jsonl"], "expected NAME=FILE"),
        (["dev="], "expected NAME=FILE"),
    ],
)
def test_a_mistake_is_one_sentence(values, message):
    with pytest.raises(InputError) as error:
        parse_development_sets(values)
    assert message in str(error.value)
