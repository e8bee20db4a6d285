"""`run_contrastive.py` and `run_evaluation.py` with data as users have them."""

import json
import os

import pytest
from datasets import Dataset

from tests.processes import ROOT
from tests.training.conftest import triplets


SCRIPT = ROOT / "run_contrastive.py"


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def pairs(tmp_path):
    """Rows with the columns query and answer."""
    return write_rows(
        tmp_path / "pairs.jsonl", [{"query": row["anchor"], "answer": row["positive"]} for row in triplets(12)]
    )


@pytest.fixture
def scored(tmp_path):
    """Scored pairs with our columns."""
    rows = ({"sentence1": row["anchor"], "sentence2": row["positive"]} for row in triplets(9))
    return write_rows(tmp_path / "scored.jsonl", [row | {"score": i} for i, row in enumerate(rows)])


@pytest.fixture
def arguments(tiny_folder, tmp_path):
    return {
        "model_name_or_path": tiny_folder,
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "save_strategy": "no",
        "max_seq_length": 32,
        "use_cpu": True,
    }


@pytest.fixture
def refused(run, arguments, capsys):
    """Runs the script with these options and returns the sentence that it ends on."""

    def fail(script=SCRIPT, **options):
        with pytest.raises(SystemExit) as end:
            run(options if script != SCRIPT else arguments | options, script)
        assert end.value.code == 2
        assert not os.path.exists((arguments | options)["output_dir"])
        return capsys.readouterr().err.strip().splitlines()[-1]

    return fail


COLUMNS = ["anchor=query", "positive=answer"]


def test_columns_of_other_names_train_and_evaluation_files_keep_theirs(run, arguments, pairs, scored, out):
    shown = run(arguments | {"train_file": pairs, "validation_file": scored, "columns": COLUMNS})
    assert "training rows         12" in shown
    assert "eval_spearman" in json.loads((out / "eval_results.json").read_text())


def test_a_parquet_file_with_the_columns_query_and_answer(run, refused, arguments, pairs, tmp_path):
    path = str(tmp_path / "pairs.parquet")
    Dataset.from_json(pairs).to_parquet(path)
    assert "training rows         12" in run(arguments | {"train_file": path, "columns": COLUMNS})
    Dataset.from_list([{"query": "a", "answer": "b"}, {"query": "a", "answer": None}]).to_parquet(path)
    sentence = refused(train_file=path, columns=COLUMNS, output_dir=str(tmp_path / "other"))
    assert "pairs.parquet, row 2: the column 'answer' is missing or null" in sentence


def test_mistakes_in_columns_are_one_sentence(refused, pairs):
    message = "no column 'anchor', which the supervised objective needs (columns here: query, answer)"
    assert message in refused(train_file=pairs)
    assert "'queri', which was given for 'anchor'" in refused(train_file=pairs, columns=[*COLUMNS, "anchor=queri"])
    assert "'query' is not read here; use one of anchor" in refused(train_file=pairs, columns=["query=anchor"])


def test_the_evaluation_reads_the_same_columns(run, tiny_folder, tmp_path):
    rows = [{"a": row["anchor"], "b": row["positive"], "gold": i} for i, row in enumerate(triplets(9))]
    options = {
        "model_name_or_path": tiny_folder,
        "sts": f"mine={write_rows(tmp_path / 'sts.jsonl', rows)}",
        "columns": ["sentence1=a", "sentence2=b", "score=gold"],
        "output_dir": str(tmp_path / "out"),
    }
    run(options, ROOT / "run_evaluation.py")
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["sts"]["mine"]["pairs"] == 9
