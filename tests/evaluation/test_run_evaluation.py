import json
import math
import subprocess
import sys

import pytest

import run_evaluation
from modeling_layerpool.evaluation import read_sts_file, report, write_results
from modeling_layerpool.evaluation.metrics import similarity_scores

from ..conftest import ROOT
from .data import PAIRS, real_data, write_lines, write_pairs, write_retrieval


@pytest.fixture
def sts_file(tmp_path):
    return write_pairs(tmp_path / "pairs.jsonl")


@pytest.fixture
def retrieval_folder(tmp_path):
    return write_retrieval(tmp_path / "retrieval")


@pytest.fixture
def evaluate(tmp_path, monkeypatch, capsys):
    """Run the script's main with these arguments; returns exit code, output, errors and the results file's path."""

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["run_evaluation.py", "--output_dir", str(tmp_path / "out"), *arguments])
        code = 0
        try:
            run_evaluation.main()
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr(), tmp_path / "out" / "evaluation.json"

    return main


def test_results_have_exactly_the_promised_form(evaluate, tiny_folder, sts_file, retrieval_folder):
    code, output, _, path = evaluate(
        *("--model_name_or_path", tiny_folder),
        *("--sts", f"second={sts_file}", f"first={sts_file}", "--sts", f"third={sts_file}"),
        *("--retrieval", f"small={retrieval_folder}"),
    )
    results = json.loads(path.read_text())
    assert code == 0
    assert list(results) == ["sts", "retrieval", "geometry", "model", "versions", "date"]
    assert list(results["sts"]) == ["second", "first", "third"]
    assert list(results["sts"]["first"]) == ["spearman", "pearson", "pairs"]
    assert results["sts"]["first"]["pairs"] == len(PAIRS)
    assert list(results["retrieval"]["small"]) == ["ndcg@10", "mrr@10", "map", "recall@100", "queries"]
    assert list(results["geometry"]) == ["alignment", "uniformity", "mean_cosine"]
    assert results["model"] == tiny_folder
    assert {"python", "torch", "transformers", "modeling-layerpool"} <= results["versions"].keys()
    assert f"{results['sts']['first']['spearman']:.2f}" in output
    assert [entry.name for entry in path.parent.iterdir()] == ["evaluation.json"]


def test_with_retrieval_alone_the_geometry_comes_from_relevant_pairs(evaluate, tiny_folder, retrieval_folder):
    code, _, _, path = evaluate("--model_name_or_path", tiny_folder, "--retrieval", f"small={retrieval_folder}")
    results = json.loads(path.read_text())
    assert code == 0
    assert results["sts"] == {}
    assert all(math.isfinite(value) for value in results["geometry"].values())


def test_a_score_that_is_not_defined_is_null_in_the_file(tmp_path):
    path = write_results({"sts": {"x": similarity_scores([1, 1], [1, 2])}}, tmp_path)
    assert json.loads(path.read_text()) == {"sts": {"x": {"spearman": None, "pearson": None, "pairs": 2}}}


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_results({"sts": {}}, tmp_path)
    with pytest.raises(TypeError):
        write_results({"sts": object()}, tmp_path)

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(report.os, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_results({"retrieval": {}}, tmp_path)
    assert json.loads(path.read_text()) == {"sts": {}}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to evaluate: give --sts, --pairs or --retrieval"),
        (["--sts", "a=missing.jsonl"], "missing.jsonl: no such file"),
        (["--sts", "unheard"], "--sts unheard: no built-in set of this name"),
        (["--sts", "sts12"], "mteb/sts12-sts could not be loaded from the Hub"),
        (["--sts", "a={sts}", "--sts", "a={sts}"], "--sts: the name 'a' is given twice"),
        (["--sts", "a="], "--sts a=: expected NAME=PATH"),
        (["--sts", "={sts}"], "expected NAME=PATH"),
        (["--sts", "a={empty}"], "empty.jsonl: 0 sentence pairs"),
        (["--retrieval", "{retrieval}"], "expected NAME=PATH"),
        (["--retrieval", "a=missing"], "missing: no such folder"),
        (["--sts", "a={sts}", "--max_tokens_per_batch", "0"], "--max_tokens_per_batch 0: must be at least 1"),
        (["--sts", "a={sts}", "--output_dir", "{sts}"], "is a file, not a folder"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2_before_the_model_is_opened(
    evaluate, arguments, message, sts_file, retrieval_folder, tmp_path
):
    places = {"sts": sts_file, "retrieval": retrieval_folder, "empty": write_lines(tmp_path / "empty.jsonl", [])}
    filled = [argument.format(**places) for argument in arguments]
    # a model that would be an error of its own
    code, output, errors, path = evaluate("--model_name_or_path", "no-such-model", *filled)
    assert code == 2
    assert message in errors
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1
    assert output == ""
    assert not path.parent.exists()


def test_a_model_that_is_not_there_is_one_sentence_and_writes_nothing(evaluate, sts_file):
    code, _, errors, path = evaluate("--model_name_or_path", "no-such-model", "--sts", f"a={sts_file}")
    assert code == 2
    assert errors.splitlines() == ["error: no-such-model: no such folder, and no such model could be reached"]
    assert not path.exists()


def test_the_script_runs_as_a_program_and_keeps_the_table_on_standard_output(minilm, tmp_path, sts_file):
    command = [sys.executable, ROOT / "run_evaluation.py", "--model_name_or_path", minilm, "--sts", f"a={sts_file}"]
    done = subprocess.run([*command, "--output_dir", tmp_path], capture_output=True, text=True, check=True)
    spearman = json.loads((tmp_path / "evaluation.json").read_text())["sts"]["a"]["spearman"]
    assert done.stdout.splitlines()[0].split() == ["sts", "spearman", "pearson", "pairs"]
    assert done.stdout.splitlines()[2].split()[:2] == ["a", f"{spearman:.2f}"]


def test_further_columns_of_a_file_are_ignored():
    sets = run_evaluation.read_sets("--sts", [f"sickr={real_data('sick/test.jsonl')}"], read_sts_file)
    assert [len(column) for column in sets["sickr"]] == [4927, 4927, 4927]
