"""`run_contrastive.py` and `run_evaluation.py` with data as users have them."""

import json
import os
import shutil

import pytest
from datasets import Dataset
from huggingface_hub import ModelCard

from tests.files import write_rows
from tests.processes import ROOT, flags, launch
from tests.training.conftest import triplets


SCRIPT = ROOT / "run_contrastive.py"


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
    message = "no column 'anchor', which the supervised objective needs (columns here: answer, query)"
    assert message in refused(train_file=pairs, columns=["anchor=qury", "positive=answer"])
    assert "'queri', which was given for 'anchor'" in refused(train_file=pairs, columns=[*COLUMNS, "anchor=queri"])
    assert "'query' is not read here; use one of anchor" in refused(train_file=pairs, columns=["query=anchor"])


def test_two_datasets_are_mixed_by_weight_and_the_card_names_them(run, arguments, pairs, tmp_path, out):
    more = write_rows(tmp_path / "triplets.jsonl", triplets(8))
    shown = run(arguments | {"dataset_name": [f"{pairs}=3", f"{more}=1"], "columns": COLUMNS})
    assert "training rows         20\n" in shown
    assert f"                      {pairs}: 12 rows, 75% of the batches" in shown
    assert f"{more}: 8 rows, 25% of the batches" in shown
    card = (out / "README.md").read_text()
    assert "Data: `pairs.jsonl` (local); `triplets.jsonl` (local), 20 rows." in card
    assert "12 rows, 75% of the batches; 8 rows, 25% of the batches" in card
    assert str(tmp_path) not in card


def test_two_processes_take_the_same_dataset_for_a_batch(arguments, pairs, tmp_path, out):
    more = write_rows(tmp_path / "triplets.jsonl", triplets(8))
    options = {"train_file": [pairs, more], "columns": COLUMNS, "per_device_train_batch_size": 2, "max_steps": -1}
    done = launch(SCRIPT, *flags(arguments | options | {"num_train_epochs": 1}), processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((out / "train_results.json").read_text())["epoch"] == 1
    assert "steps                 5" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_file": ["a.jsonl=0"]}, "a.jsonl=0: the weight after '=' must be a number above 0"),
        ({"train_file": ["a.jsonl=1", "b.jsonl"]}, "some training data have a weight (=NUMBER) and some have none"),
        ({"train_file": ["a.jsonl=2"]}, "the weight of a.jsonl does nothing without other training data"),
        ({"train_file": ["a.jsonl", "a.jsonl"]}, "the training data a.jsonl are given twice"),
        ({"train_file": ["a.jsonl", "b.jsonl"], "streaming": True}, "--streaming reads one file or dataset"),
        ({"dataset_name": ["x", "y"], "dataset_config_name": "c"}, "--dataset_config_name is for one dataset"),
        ({"dataset_name": ["gone.parquet", "y"]}, "gone.parquet: no such file"),
    ],
)
def test_mistakes_in_several_datasets_are_one_sentence(refused, options, message):
    assert message in refused(**options)


def test_several_scored_datasets_need_one_scale(refused, run, arguments, scored, tmp_path):
    other = shutil.copy(scored, tmp_path / "other.jsonl")
    options = {"train_file": [scored, str(other)], "objective": "pairwise", "pairwise_loss": "cosent"}
    assert "several training data with scores need --score_range" in refused(**options)
    assert "9 rows, 50% of the batches" in run(arguments | options | {"score_range": [0, 10]})


def test_several_validation_sets_choose_the_checkpoint_by_their_mean(run, arguments, pairs, scored, tmp_path, out):
    rows = [{"q": row["anchor"], "a": row["positive"], "label": i % 2} for i, row in enumerate(triplets(8))]
    labeled = write_rows(tmp_path / "labeled.jsonl", rows)
    options = {"save_strategy": "steps", "save_steps": 1, "columns": [*COLUMNS, "sentence1=q", "sentence2=a"]}
    options |= {"train_file": pairs, "validation_file": [scored, f"mine={labeled}", f"rows={pairs}"]}
    shown = run(arguments | options)
    assert "keeps the checkpoint with the best mean" in shown
    results = json.loads((out / "eval_results.json").read_text())
    main = results["eval_scored_spearman"], results["eval_mine_average_precision"]
    assert results["eval_mean"] == pytest.approx(sum(main) / 2)
    assert results["eval_loss"] > 0
    card = (out / "README.md").read_text()
    assert (
        "On the development data: scored: `scored.jsonl` (local); mine: `labeled.jsonl` (local); rows: `pairs." in card
    )
    results = ModelCard(card).data.eval_results
    found = {(result.dataset_name, result.metric_type): result.metric_value for result in results}
    assert found["scored.jsonl", "spearman"] == pytest.approx(main[0])
    assert found["labeled.jsonl", "average_precision"] == pytest.approx(main[1])


def test_the_best_checkpoint_may_be_chosen_by_one_of_the_sets(run, refused, arguments, pairs, scored):
    options = {"train_file": pairs, "columns": COLUMNS, "validation_file": [scored, f"again={scored}"]}
    message = "metric_for_best_model='spearman' is not measured here; use one of mean, scored_spearman"
    assert message in refused(**options, metric_for_best_model="spearman")
    options |= {"save_strategy": "steps", "save_steps": 1, "metric_for_best_model": "again_spearman"}
    assert "keeps the checkpoint with the best again_spearman" in run(arguments | options)


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
