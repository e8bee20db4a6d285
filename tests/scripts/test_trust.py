"""What a user of the scripts must be able to rely on: no silent failure, no leaked token, no work that is lost."""

import json
import logging
import os
import runpy
import sys
from pathlib import Path

import pytest


if sys.platform != "linux":
    pytest.skip("the inputs have links in them", allow_module_level=True)

from modeling_layerpool.training import OBJECTIVES
from modeling_layerpool.training.contrastive.data import load_file
from modeling_layerpool.training.masked_lm.texts import load_texts
from tests import fuzz_inputs as inputs
from tests.files import write_rows


TRAINING_SCRIPTS = [script for script in inputs.RUNS if script != "run_evaluation.py"]
UNSUPERVISED = OBJECTIVES["unsupervised"]()
TOKEN = "hf_ThisMustStaySecret"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with small inputs of every script, in which they start."""
    inputs.build(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here, monkeypatch, capsys):
    """Runs a script in this process: its exit code, and what it printed last on the standard error."""

    def start(script, number=0, **options):
        options = {name: value for name, value in (inputs.runs(script)[number] | options).items() if value is not None}
        words = inputs.command_line(options)
        monkeypatch.setattr("sys.argv", [str(inputs.ROOT / script), *words])
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(inputs.ROOT / script), run_name="__main__")
        except SystemExit as end:
            code = end.code
        if isinstance(code, str):  # what Python prints, for exit code 1
            return 1, code
        return code, (capsys.readouterr().err.strip().splitlines() or [""])[-1]

    return start


@pytest.fixture
def opens_no_model(monkeypatch):
    """A script that comes as far as a model fails."""

    def fail(*args, **kwargs):
        raise AssertionError("a model was opened")

    for name in (
        "transformers.PreTrainedModel.from_pretrained",
        "transformers.PreTrainedTokenizerBase.from_pretrained",
    ):
        monkeypatch.setattr(name, fail)


def read_json(path):
    return json.loads(Path(path).read_text())


# --- the token ---


@pytest.mark.parametrize("script", TRAINING_SCRIPTS)
def test_the_token_of_the_hub_is_in_no_file_of_the_output_folder(run, here, script):
    code, said = run(script, hub_token=TOKEN, save_steps=1)
    assert code == 0, said
    files = [path for path in (here / "out").rglob("*") if path.is_file()]
    assert {"training_args.bin", "README.md"} <= {path.name for path in files}
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
    assert "hub_token=..." in (here / "out/README.md").read_text()


def test_the_token_is_not_in_the_card_whatever_flag_it_came_with(run, here):
    code, said = run("run_contrastive.py", hub_token=TOKEN, run_name=f"with-{TOKEN}")
    assert code == 0, said
    card = (here / "out/README.md").read_text()
    assert TOKEN not in card
    assert "run_name" in card


@pytest.mark.parametrize("script", TRAINING_SCRIPTS)
def test_a_shortened_flag_is_refused_in_every_script(run, here, monkeypatch, capsys, script):
    monkeypatch.setattr("sys.argv", [script, *inputs.command_line(inputs.runs(script)[0]), f"--hub_toke={TOKEN}"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(inputs.ROOT / script), run_name="__main__")
    assert end.value.code == 2
    assert "--hub_toke" in capsys.readouterr().err
    assert not (here / "out").exists()


# --- the checkpoint that is kept ---


@pytest.mark.parametrize(
    ("metric", "keeps_the_highest"),
    [
        *(("loss", False), ("mlm_loss", False), ("perplexity", False), ("eval_perplexity", False)),
        *(("uniformity", False), ("alignment", False), ("mean_cosine", False), ("spearman", True)),
    ],
)
def test_the_checkpoint_that_is_kept_is_best_by_what_was_asked_for(run, here, metric, keeps_the_highest):
    options = {"validation_file": ["data/texts.jsonl"], "probe_file": "data/sts.jsonl", "measure_similarity": True}
    options |= {"save_steps": 1, "max_steps": 3, "learning_rate": 0.1, "lr_scheduler_type": "constant"}
    options |= {"eval_strategy": "steps", "eval_steps": 1}
    code, said = run("run_mlm.py", **options, metric_for_best_model=metric, load_best_model_at_end=True)
    assert code == 0, said
    state = read_json("out/trainer_state.json")
    name = f"eval_{metric.removeprefix('eval_')}"
    measured = [entry[name] for entry in state["log_history"] if name in entry][:3]
    assert len(set(measured)) == 3, "the choice is none"
    assert state["best_metric"] == (max if keeps_the_highest else min)(measured)


def test_the_best_checkpoint_can_be_asked_for_without_saying_when_to_evaluate(run, here):
    options = {"probe_file": "data/sts.jsonl", "save_steps": 1, "load_best_model_at_end": True}
    code, said = run("run_mlm.py", **options)
    assert code == 0, said
    assert read_json("out/trainer_state.json")["best_global_step"] in (1, 2)


@pytest.mark.parametrize("script", TRAINING_SCRIPTS)
def test_a_misspelt_metric_is_refused_before_a_model_is_opened(run, here, opens_no_model, script):
    number = 1 if script == "run_contrastive.py" else 0
    options = {"probe_file": "data/sts.jsonl"} if script == "run_mlm.py" else {}
    code, sentence = run(script, number, metric_for_best_model="spearmen", **options)
    assert code == 2
    assert "metric_for_best_model='spearmen' is not measured here; use one of " in sentence
    assert ("accuracy" if script == "run_classification.py" else "spearman") in sentence
    assert not (here / "out").exists()


def test_an_evaluation_that_was_switched_off_stays_off(run, here):
    code, said = run("run_contrastive.py", 1, eval_strategy="no", save_steps=1)
    assert code == 0, said
    state = read_json("out/trainer_state.json")
    assert not any("eval_spearman" in entry for entry in state["log_history"])
    assert state["best_metric"] is None
    assert "eval_spearman" in read_json("out/eval_results.json"), "which is of the end"


# --- the output folder ---


@pytest.mark.parametrize("place", ["data/sts.jsonl/under", "data/sts.jsonl", "links/dangling", "/proc/here"])
@pytest.mark.parametrize("script", inputs.RUNS)
def test_an_output_folder_that_cannot_be_written_to_is_refused_before_a_model_is_opened(
    run, here, opens_no_model, script, place
):
    code, sentence = run(script, output_dir=place)
    assert code == 2
    assert sentence.startswith(f"error: --output_dir {place}: cannot be written to (")


@pytest.mark.parametrize("script", TRAINING_SCRIPTS)
def test_what_fails_late_leaves_no_empty_folder(run, here, script):
    for path in (here / "models").glob("*/tokenizer.json"):
        path.write_text("{}")
    code, sentence = run(script, output_dir="new/folder")
    assert code == 2
    assert "tokenizer.json" in sentence or "no tokenizer" in sentence
    assert not (here / "new").exists()


@pytest.mark.parametrize("script", TRAINING_SCRIPTS)
def test_a_hub_out_of_reach_is_found_before_anything_is_computed(run, here, monkeypatch, opens_no_model, script):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, sentence = run(script, push_to_hub=True)
    assert code == 2
    assert sentence.startswith("error: --push_to_hub: the Hub cannot be reached or rejects the token (")
    assert not (here / "out").exists()


# --- what is measured and saved ---


@pytest.mark.parametrize("script", TRAINING_SCRIPTS)
def test_weights_that_the_last_update_made_infinite_are_not_saved(run, here, script):
    # The loss of the only step is finite; what the step leaves is not.
    options = {"max_steps": 1, "learning_rate": 1e38, "weight_decay": 1e38, "lr_scheduler_type": "constant"}
    code, sentence = run(script, **options, max_grad_norm=0, save_strategy="no")
    assert code == 1
    assert "weights are not finite after step 1" in sentence
    assert "they were not saved" in sentence
    assert not (here / "out/model.safetensors").exists()


def test_a_metric_that_is_not_defined_is_null_in_the_results(run, here):
    rows = [{"sentence1": "red", "sentence2": "red cat", "score": score} for score in (1, 2, 3)]
    write_rows(here / "data/same.jsonl", rows)
    code, said = run("run_contrastive.py", 1, validation_file="data/same.jsonl", save_strategy="no")
    assert code == 0, said
    for path in (here / "out").glob("*.json"):
        json.loads(path.read_text(), parse_constant=lambda word, path=path: pytest.fail(f"{path.name} holds {word}"))
    assert read_json("out/eval_results.json")["eval_spearman"] is None


@pytest.mark.parametrize(
    ("script", "number", "options"),
    [
        ("run_contrastive.py", 0, {"validation_file": "data/../data/triplets.jsonl"}),
        ("run_mlm.py", 0, {"validation_file": ["data/texts.txt"]}),
        ("run_classification.py", 0, {}),
    ],
)
def test_a_file_that_is_both_trained_on_and_measured_on_is_warned_of(run, here, caplog, script, number, options):
    with caplog.at_level(logging.WARNING):
        code, said = run(script, number, max_steps=1, **options)
    assert code == 0, said
    assert any("is used for both training and evaluation" in message for message in caplog.messages)
    caplog.clear()
    if script == "run_contrastive.py":
        run(script, 1, max_steps=1, output_dir="other")
        assert not any("is used for both training and evaluation" in message for message in caplog.messages)


# --- the data cache ---


@pytest.mark.parametrize("script", ["run_contrastive.py", "run_mlm.py"])
def test_files_that_differ_in_nothing_but_folder_and_content_are_not_taken_for_each_other(here, monkeypatch, script):
    found = []
    for name, text in (("a", "red cat"), ("b", "big dog")):
        (here / name).mkdir()
        (here / name / "texts.txt").write_text(f"{text}\n")
        os.utime(here / name / "texts.txt", ns=(10**18, 10**18))
        monkeypatch.chdir(here / name)
        rows = load_texts(["texts.txt"]) if script == "run_mlm.py" else load_file("texts.txt", UNSUPERVISED)
        found += rows["text"][:]
    assert found == ["red cat", "big dog"]


def test_a_file_that_changed_and_kept_its_time_and_size_is_read_again(here):
    for text in ("red cat", "big dog"):
        (here / "texts.txt").write_text(f"{text}\n")
        os.utime(here / "texts.txt", ns=(10**18, 10**18))
        assert load_file("texts.txt", UNSUPERVISED)["text"][:] == [text]
