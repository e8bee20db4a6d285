"""`run_classification.py` as a user starts it: every kind of label, results, resuming, two processes, and mistakes."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, BertConfig, BertModel, pipeline

from modeling_layerpool import load_heads
from tests.files import write_rows
from tests.processes import ROOT, flags, launch
from tests.tiny import TINY_BERT
from tests.training.conftest import WORDS


SCRIPT = ROOT / "run_classification.py"


def texts(count, start=0):
    """Texts of different lengths, of which every other one has the word "good" in it."""
    for row in range(start, start + count):
        words = [WORDS[(row * 7 + place * (row % 5 + 1)) % len(WORDS)] for place in range(row % 9 + 1)]
        yield " ".join([*words, *(["good"] if row % 2 else [])])


def rows_of(kind, count, start=0):
    """Rows of one kind of label."""
    for row, text in enumerate(texts(count, start), start):
        is_good = "good" in text
        yield {
            "single": {"sentence": text, "label": "yes" if is_good else "no"},
            "numbered": {"text": text, "label": 1 + 9 * is_good},
            "pair": {"sentence1": text, "sentence2": "it is good", "label": ("neither", "same", "other")[row % 3]},
            "regression": {"sentence1": text, "sentence2": "it is good", "score": is_good + row / 50},
            "several": {"sentence": text, "label": (["good"] if is_good else []) + (["long"] if row % 9 > 4 else [])},
        }[kind]


@pytest.fixture
def files(tmp_path):
    """The paths of train, dev and test data of a kind of label, by the flags that take them."""

    def make(kind="single"):
        sizes = {"train": (14, 0), "validation": (6, 20), "test": (7, 40)}
        return {
            f"{part}_file": write_rows(tmp_path / f"{part}.jsonl", rows_of(kind, *size))
            for part, size in sizes.items()
        }

    return make


@pytest.fixture
def arguments(tiny_folder, tmp_path):
    """A short run, as a dictionary of flags."""
    return {
        "model_name_or_path": tiny_folder,
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "max_seq_length": 32,
        "disable_tqdm": "true",
    }


def read_json(path):
    return json.loads(Path(path).read_text())


def read_lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def weights(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder).state_dict()


# --- every kind of label ---


@pytest.mark.parametrize(
    ("kind", "pooler", "problem_type", "names", "metrics"),
    [
        ("single", "layer_attention", "single_label_classification", ["no", "yes"], {"accuracy", "f1", "matthews"}),
        ("numbered", "weighted_layers", "single_label_classification", ["1", "10"], {"accuracy", "macro_f1"}),
        ("pair", "hire", "single_label_classification", ["neither", "other", "same"], {"accuracy", "macro_f1"}),
        ("regression", "mean", "regression", ["score"], {"spearman", "pearson"}),
        ("several", "cls", "multi_label_classification", ["good", "long"], {"micro_f1", "macro_f1", "accuracy"}),
    ],
)
def test_every_kind_of_label_is_trained_measured_and_predicted(
    run, arguments, files, out, kind, pooler, problem_type, names, metrics
):
    gru = {"pooler_gru_size": 8, "pooler_gru_layers": 1} if pooler == "hire" else {}
    told = run(arguments | files(kind) | gru | {"pooler_type": pooler})
    assert f"({problem_type})" in told
    assert f"{pooler} over the hidden states" in told
    config = AutoConfig.from_pretrained(out)
    assert (config.pooler_type, config.problem_type) == (pooler, problem_type)
    assert [config.id2label[number] for number in range(config.num_labels)] == names
    assert config.label2id == {name: number for number, name in enumerate(names)}
    for part, name in (("eval", "eval_results.json"), ("test", "test_results.json")):
        assert {f"{part}_{metric}" for metric in metrics} <= set(read_json(out / name))
    assert ("test_f1" in read_json(out / "test_results.json")) == (kind in ("single", "numbered"))
    predictions = read_lines(out / "predictions.jsonl")
    assert [row["row_number"] for row in predictions] == list(range(1, 8))
    # The pipeline of the library, a text at a time, says the same of each row.
    classify = pipeline("text-classification", model=str(out), trust_remote_code=True)
    for row, prediction in zip(rows_of(kind, 7, 40), predictions, strict=True):
        text = row.get("sentence") or row.get("text") or {"text": row["sentence1"], "text_pair": row["sentence2"]}
        said = classify(text, top_k=None)
        if problem_type == "regression":
            assert said == [{"label": "score", "score": pytest.approx(prediction["prediction"], abs=1e-5)}]
            continue
        scores = {answer["label"]: answer["score"] for answer in said}
        assert scores == pytest.approx(prediction["scores"], abs=1e-5)
        expected = [name for name in names if scores[name] > 0.5]
        assert prediction["prediction"] == (expected if kind == "several" else said[0]["label"])


def test_what_can_be_learned_is_learned(run, arguments, files, out, tmp_path):
    data = files()
    data["train_file"] = write_rows(tmp_path / "train.jsonl", rows_of("single", 100))
    run(arguments | data | {"learning_rate": 1e-2, "num_train_epochs": 8})
    assert read_json(out / "test_results.json")["test_accuracy"] == 100


def test_files_of_other_formats_and_glues_other_columns(run, arguments, files, out, tmp_path):
    train = tmp_path / "train.tsv"
    train.write_text("question\tsentence\tlabel\n" + "".join(f"{t}\tit is\t{i % 2}\n" for i, t in enumerate(texts(8))))
    dev = tmp_path / "dev.csv"
    dev.write_text("premise,hypothesis,label\na cat,a dog,0\na dog,a cat,1\n")
    told = run(arguments | {"train_file": str(train), "validation_file": str(dev)})
    assert re.search(r"texts +question and sentence", told)
    assert read_json(out / "eval_results.json")["eval_rows"] == 2


def test_roberta_is_classified_too(run, arguments, files, out, tiny, roberta_tokenizer, tmp_path):
    folder = tmp_path / "roberta"
    tiny("roberta", pooler_type="cls", max_position_embeddings=100, type_vocab_size=1).save_pretrained(folder)
    roberta_tokenizer.save_pretrained(folder)
    run(arguments | files("pair") | {"model_name_or_path": str(folder), "pooler_type": "layer_attention"})
    assert AutoConfig.from_pretrained(out).model_type == "layerpool_roberta"
    assert len(read_lines(out / "predictions.jsonl")) == 7


def test_a_plain_bert_gets_mean_and_a_frozen_one_all_layers(run, arguments, files, out, tokenizer, tmp_path):
    folder = tmp_path / "bert"
    BertModel(BertConfig(**TINY_BERT)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for freezes, expected in ((False, "mean"), (True, "concat_layers")):
        flags = {"model_name_or_path": str(folder), "freeze_encoder": freezes, "overwrite_output_dir": True}
        run(arguments | files() | flags)
        assert AutoConfig.from_pretrained(out).pooler_type == expected


def test_rows_without_labels_are_predicted_and_not_measured(run, arguments, files, out, tmp_path):
    data = files()
    data["test_file"] = write_rows(tmp_path / "unlabelled.jsonl", [{"sentence": text} for text in texts(3)])
    run(arguments | data)
    assert len(read_lines(out / "predictions.jsonl")) == 3
    assert "test_accuracy" not in read_json(out / "test_results.json")
    assert "On the test data" not in (out / "README.md").read_text()


def test_every_row_is_measured_and_predicted_whatever_is_dropped_in_training(run, arguments, files, out, tmp_path):
    data = files() | {"per_device_eval_batch_size": 4}
    run(arguments | data | {"dataloader_drop_last": True})
    assert len(read_lines(out / "predictions.jsonl")) == 7
    losses = []
    for name, options in (("all", {}), ("dropped", {"dataloader_drop_last": True})):
        again = {"model_name_or_path": str(out), "output_dir": str(tmp_path / name), "train_file": None}
        run(arguments | data | again | options)
        losses.append(read_json(tmp_path / name / "eval_results.json")["eval_loss"])
    assert losses[0] == losses[1]


def test_a_dataset_with_splits_and_class_names_takes_the_place_of_files(run, arguments, out, tmp_path):
    folder = tmp_path / "dataset"
    folder.mkdir()
    names = ["zero", "alpha"]  # not in alphabetical order
    for split, size in (("train", 8), ("validation", 4), ("test", 4)):
        rows = [{"text": text, "label": row % 2} for row, text in enumerate(texts(size))]
        if split == "test":
            rows = [row | {"label": -1} for row in rows]
        dataset = Dataset.from_list(rows).cast_column("label", ClassLabel(names=names))
        dataset.to_parquet(folder / f"{split}.parquet")
    run(arguments | {"dataset_name": str(folder)})
    assert read_json(out / "eval_results.json")["eval_rows"] == 4
    assert list(AutoConfig.from_pretrained(out).id2label.values()) == names
    run(arguments | {"dataset_name": str(folder), "model_name_or_path": str(out), "do_predict": True})
    assert {row["prediction"] for row in read_lines(out / "predictions.jsonl")} <= set(names)
    assert "test_accuracy" not in read_json(out / "test_results.json")


# --- training ---


def test_the_checkpoint_that_is_best_on_the_dev_set_is_kept(run, arguments, files, out):
    told = run(arguments | files() | {"num_train_epochs": 5, "learning_rate": 3e-2, "seed": 3})
    assert "every epoch; keeps the checkpoint with the best accuracy" in told
    state = read_json(out / "trainer_state.json")
    scores = {entry["step"]: entry["eval_accuracy"] for entry in state["log_history"] if "eval_accuracy" in entry}
    assert len(scores) == 5
    best = max(scores, key=scores.get)  # the first one, if several are as good
    assert state["best_global_step"] == best
    assert read_json(out / "eval_results.json")["eval_accuracy"] == scores[best]
    kept = weights(out)
    saved = {step: weights(out / f"checkpoint-{step}") for step in scores}
    assert [step for step in saved if all(kept[name].equal(saved[step][name]) for name in kept)] == [best]


def test_the_metric_to_choose_by_can_be_told(run, arguments, files, out):
    run(arguments | files() | {"metric_for_best_model": "loss", "num_train_epochs": 3, "learning_rate": 1e-2})
    state = read_json(out / "trainer_state.json")
    losses = {entry["step"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}
    assert state["best_global_step"] == min(losses, key=losses.get)


def test_early_stopping_stops_and_a_resumed_run_counts_on(run, arguments, files, out, tmp_path):
    # Nothing is learned, so that only the first evaluation is better than those before it.
    options = arguments | files() | {"num_train_epochs": 10, "learning_rate": 0, "early_stopping_patience": 2}
    told = run(options)
    assert "after 2 evaluations without a better one" in told
    assert read_json(out / "trainer_state.json")["global_step"] == 3 * 4
    run(options | {"resume_from_checkpoint": "true"})  # it had stopped
    assert read_json(out / "trainer_state.json")["global_step"] == 3 * 4
    os.rename(out / "checkpoint-12", tmp_path / "gone")
    run(options | {"resume_from_checkpoint": "true"})  # one evaluation more, and not two
    assert read_json(out / "trainer_state.json")["global_step"] == 3 * 4
    run(options | {"resume_from_checkpoint": "true", "early_stopping_patience": 4})  # more patience now
    assert read_json(out / "trainer_state.json")["global_step"] == 5 * 4


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_a_resumed_run_ends_in_the_weights_of_an_unbroken_one(run, arguments, files, out, tmp_path, strategy):
    options = arguments | files() | {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 1}
    options |= {"train_sampling_strategy": strategy, "pooler_type": "layer_attention", "learning_rate": 1e-3}
    options |= {"load_best_model_at_end": None, "eval_strategy": "no", "validation_file": None}
    run(options)
    expected = weights(out)
    for step in (7, 8):  # in the middle of the second epoch
        os.rename(out / f"checkpoint-{step}", tmp_path / f"gone-{step}")
    told = run(options | {"resume_from_checkpoint": "true"})
    assert "checkpoint-6" in told
    resumed = weights(out)
    assert all(resumed[name].equal(expected[name]) for name in expected)


@pytest.mark.parametrize("kind", ["single", "pair", "regression", "several"])
def test_a_frozen_encoder_is_trained_on_by_its_states_whatever_is_learned(run, arguments, files, out, tmp_path, kind):
    options = arguments | files(kind) | {"freeze_encoder": True, "pooler_type": "mean", "state_cache": "float32"}
    told = run(options)
    assert "read from the states of" in told
    assert len(list(out.glob("_states/*.npy"))) == 3  # of each part
    assert "the head only; the encoder was frozen" in (out / "README.md").read_text()
    before, after = AutoModel.from_pretrained(arguments["model_name_or_path"]).state_dict(), weights(out)
    assert all(after[name].equal(weight) for name, weight in before.items() if name.startswith("bert."))
    predicted = read_lines(out / "predictions.jsonl")
    run(options | {"state_cache": "off", "output_dir": tmp_path / "off"})
    for one, other in zip(predicted, read_lines(tmp_path / "off" / "predictions.jsonl"), strict=True):
        assert one.get("scores", one["prediction"]) == pytest.approx(
            other.get("scores", other["prediction"]), rel=1e-3
        )


def test_two_processes_take_the_steps_of_one(run, arguments, files, out, tmp_path, tiny_model, tokenizer):
    folder = tmp_path / "without_dropout"
    tiny_model(pooler_type="mean", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # 15 rows in batches of 4: the last one has three, two on one process and one on the other.
    data = files() | {"train_file": write_rows(tmp_path / "train.jsonl", rows_of("single", 15))}
    options = arguments | data | {"model_name_or_path": str(folder), "optim": "sgd", "learning_rate": 0.1}
    run(options | {"use_cpu": True})
    expected, predictions = weights(out), read_lines(out / "predictions.jsonl")
    both = options | {"per_device_train_batch_size": 2, "output_dir": str(tmp_path / "both")}
    done = launch(SCRIPT, *flags(both), processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "4 on 2 process(es)" in done.stdout
    assert done.stdout.count("training rows") == 1  # said once, not by every process
    assert read_json(tmp_path / "both" / "trainer_state.json")["global_step"] == 4
    together = weights(tmp_path / "both")
    for name, weight in expected.items():
        torch.testing.assert_close(together[name], weight, rtol=1e-5, atol=1e-6, msg=name)
    for one, two in zip(predictions, read_lines(tmp_path / "both" / "predictions.jsonl"), strict=True):
        assert two["scores"] == pytest.approx(one["scores"], abs=1e-5)


def test_a_yaml_file_takes_the_place_of_flags(run, arguments, files, out, tmp_path):
    path = tmp_path / "arguments.yaml"
    path.write_text(yaml.safe_dump(arguments | files() | {"pooler_type": "weighted_layers", "max_train_samples": 9}))
    told = run(path)
    assert re.search(r"training rows +9,", told)
    assert AutoConfig.from_pretrained(out).pooler_type == "weighted_layers"


def test_a_saved_classifier_is_trained_on_measured_and_predicts(run, arguments, files, out, tmp_path):
    data = files()
    run(arguments | data)
    before = read_json(out / "test_results.json")
    saved = arguments | {"model_name_or_path": str(out), "output_dir": str(tmp_path / "later")}
    run(saved | {name: data[name] for name in ("validation_file", "test_file")})
    assert not (tmp_path / "later" / "model.safetensors").exists()
    after = read_json(tmp_path / "later" / "test_results.json")
    assert {name: after[name] for name in ("test_loss", "test_accuracy")} == pytest.approx(
        {name: before[name] for name in ("test_loss", "test_accuracy")}, rel=1e-5
    )
    # Rows of one of its classes alone are enough to go on with, and its classes stay.
    some = [row for row in rows_of("single", 12) if row["label"] == "yes"]
    train = write_rows(tmp_path / "some.jsonl", some)
    run(saved | {"train_file": train, "learning_rate": 0, "output_dir": str(tmp_path / "on")})
    assert AutoConfig.from_pretrained(tmp_path / "on").id2label == {0: "no", 1: "yes"}
    kept, first = weights(tmp_path / "on"), weights(out)
    assert all(kept[name].equal(first[name]) for name in first)


def test_a_new_classifier_is_started_if_asked_for(run, arguments, files, out, tmp_path):
    run(arguments | files())
    options = arguments | files("pair") | {"model_name_or_path": str(out), "output_dir": str(tmp_path / "new")}
    run(options | {"ignore_mismatched_sizes": True, "learning_rate": 0})
    assert set(AutoConfig.from_pretrained(tmp_path / "new").id2label.values()) == {"neither", "same", "other"}
    # As many classes, but others: the old ones' weights would mean nothing.
    rows = [row | {"label": {"yes": "a", "no": "b"}[row["label"]]} for row in rows_of("single", 8)]
    train = write_rows(tmp_path / "others.jsonl", rows)
    options = arguments | {"model_name_or_path": str(out), "output_dir": str(tmp_path / "same_size")}
    run(options | {"train_file": train, "ignore_mismatched_sizes": True, "learning_rate": 0})
    old, new = weights(out), weights(tmp_path / "same_size")
    assert old["bert.embeddings.word_embeddings.weight"].equal(new["bert.embeddings.word_embeddings.weight"])
    assert not old["classifier.weight"].equal(new["classifier.weight"])


def test_a_checkpoint_in_half_precision_trains_like_the_same_one_in_float32(
    run, arguments, files, out, tiny_model, tokenizer, tmp_path
):
    model, results = tiny_model(pooler_type="layer_attention").half(), []
    for dtype in (torch.float16, torch.float32):
        folder = tmp_path / str(dtype)
        model.to(dtype).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        run(arguments | files() | {"model_name_or_path": str(folder), "overwrite_output_dir": True})
        results.append(load_file(out / "model.safetensors"))
    half, whole = results
    assert {weight.dtype for weight in half.values()} == {torch.float32}
    assert all(half[name].equal(weight) for name, weight in whole.items())


# --- a head without its encoder ---


HEAD_ONLY = {
    "freeze_encoder": True,
    "save_head_only": True,
    "state_cache": "float32",
    "pooler_type": "layer_attention",
}


@pytest.mark.parametrize("kind", ["single", "pair", "regression", "several"])
def test_a_head_alone_is_saved_and_predicts_as_the_run_did(run, arguments, files, out, kind, monkeypatch, capsys):
    run(arguments | files(kind) | HEAD_ONLY | {"save_strategy": "no", "state_cache_dir": str(out.parent / "states")})
    assert {"head.json", "head.safetensors", "eval_results.json", "test_results.json"} <= set(os.listdir(out))
    assert not {"config.json", "model.safetensors", "tokenizer.json"} & set(os.listdir(out))
    rows = list(rows_of(kind, 7, 40))
    texts = [(row["sentence1"], row["sentence2"]) if "sentence1" in row else row["sentence"] for row in rows]
    heads = load_heads(out)
    for found, row in zip(heads.predict(texts)["out"], read_lines(out / "predictions.jsonl"), strict=True):
        if kind == "regression":
            assert found["prediction"] == pytest.approx(row["prediction"], abs=1e-5)
        else:
            assert (found["prediction"], found["scores"]) == (
                row["prediction"],
                pytest.approx(row["scores"], abs=1e-5),
            )
    description = read_json(out / "head.json")
    assert (description["encoder"], description["max_seq_length"]) == (arguments["model_name_or_path"], 32)
    assert description["text_columns"] == (["sentence1", "sentence2"] if isinstance(texts[0], tuple) else ["sentence"])
    card = ModelCard.load(out / "README.md")
    assert "trust_remote_code" not in card.text
    assert str(out.parent) not in card.content
    (block,) = re.findall(r"^```python\n(.*?)^```$", card.text, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(out.parent)
    capsys.readouterr()
    exec(compile(block, "card", "exec"), {})
    assert f"It prints:\n\n```\n{capsys.readouterr().out}```" in card.text


def test_the_head_of_the_best_checkpoint_is_saved(run, arguments, files, out):
    run(arguments | files() | HEAD_ONLY | {"num_train_epochs": 3, "learning_rate": 0.1})
    best = Path(read_json(out / "trainer_state.json")["best_model_checkpoint"])
    kept, whole = load_file(out / "head.safetensors"), load_file(best / "model.safetensors")
    assert kept
    assert all(kept[name].equal(whole[name]) for name in kept)


# --- the card ---


@pytest.mark.parametrize(
    ("kind", "pooler"), [("single", "hire"), ("regression", "layer_attention"), ("several", "cls")]
)
def test_the_card_says_what_was_done_and_its_code_runs(run, arguments, files, out, kind, pooler, monkeypatch, capsys):
    run(arguments | files(kind) | {"pooler_type": pooler})
    card = ModelCard.load(out / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-classification")
    assert {result.dataset_name for result in card.data.eval_results} == {"validation.jsonl", "test.jsonl"}
    assert {result.task_type for result in card.data.eval_results} == {"text-classification"}
    assert ("yang2019deepening" in card.text) == ("published no code" in card.text) == (pooler == "hire")
    assert ("oh2022layerpool" in card.text) == (pooler == "layer_attention")
    assert ("`f1` is that of\nthe class `yes`" in card.text) == (kind == "single")
    for word in ("contrastive", "cosine", "embeddings", "sentence-transformers"):
        assert word not in card.text, word
    assert "a number, `score`" in card.text or kind != "regression"
    assert "It prints" in card.text
    assert str(out.parent) not in card.content
    test = read_json(out / "test_results.json")
    headline = {"single": "accuracy", "regression": "spearman", "several": "micro_f1"}[kind]
    (result,) = (r for r in card.data.eval_results if (r.dataset_name, r.metric_type) == ("test.jsonl", headline))
    assert result.metric_value == pytest.approx(test[f"test_{headline}"])
    (block,) = re.findall(r"^```python\n(.*?)^```$", card.text, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(out.parent)  # which holds the folder that the card names
    exec(compile(block, "card", "exec"), {})
    said = capsys.readouterr().out
    assert all(
        name in said for name in {"single": ("yes", "no"), "regression": ("score",), "several": ("long",)}[kind]
    )


# --- mistakes: one sentence, exit code 2, nothing written ---


@pytest.fixture
def refused(run, out, capsys):
    def run_and_fail(options, writes_nothing=True):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run(options)
        assert end.value.code == 2
        if writes_nothing:
            assert not out.exists()
        sentence = capsys.readouterr().err.strip().splitlines()[-1]
        assert "error: " in sentence
        return sentence

    return run_and_fail


@pytest.mark.parametrize(
    ("kind", "part", "line", "row", "message"),
    [
        ("single", "train", 3, {"sentence": "a"}, "train.jsonl, line 3: the column 'label' is missing, null or empty"),
        (
            "single",
            "train",
            2,
            {"sentence": "a", "label": None},
            "line 2: the column 'label' is missing, null or empty",
        ),
        ("single", "train", 2, {"sentence": "", "label": "no"}, "line 2: the column 'sentence' is empty"),
        ("single", "train", 1, {"words": "a", "label": "no"}, "train.jsonl, line 1: no columns 'sentence1' and"),
        ("single", "train", 1, {"sentence": "a"}, "line 1: no column 'label' or 'labels' or 'score'"),
        ("single", "train", 2, {"sentence": "a", "label": {"b": 1}}, "line 2: the column 'label' must be a class"),
        ("single", "train", 2, {"sentence": "a", "label": float("nan")}, "line 2: the column 'label' "),
        (
            "single",
            "validation",
            2,
            {"sentence": "a", "label": "maybe"},
            "validation.jsonl, line 2: the column 'label' is 'maybe', which is not among the classes of ",
        ),
        (
            "single",
            "test",
            2,
            {"sentence": "a", "label": "maybe"},
            "test.jsonl, line 2: the column 'label' is 'maybe'",
        ),
        ("single", "test", 2, {"sentence": "a"}, "test.jsonl, line 2: the column 'label' is missing, null or empty"),
        (
            "regression",
            "train",
            2,
            {"sentence1": "a", "sentence2": "b", "score": "high"},
            "must be a number, got 'high'",
        ),
        ("several", "train", 2, {"sentence": "a", "label": "good"}, "line 2: the column 'label' must be a list of"),
        ("several", "train", 2, {"sentence": "a", "label": [["a"]]}, "must be a class, as a text or a whole number"),
        ("several", "validation", 2, {"sentence": "a", "label": ["new"]}, "line 2: the column 'label' is 'new'"),
    ],
)
def test_a_bad_row_is_named_with_its_line(refused, arguments, files, kind, part, line, row, message):
    data = files(kind)
    path = Path(data[f"{part}_file"])
    rows = read_lines(path)
    write_rows(path, [*rows[: line - 1], row, *rows[line:]])
    assert message in refused(arguments | data)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"text": "a", "label": "x"}] * 2, {}, "train.jsonl: the column 'label' is 'x' in every row"),
        ([{"text": "a", "score": 1}] * 2, {}, "train.jsonl: the column 'score' is 1 in every row"),
        ([{"text": "a", "label": []}] * 2, {}, "the column 'label' names no class in any row"),
        ([], {}, "train.jsonl: the file is empty"),
        (
            [{"text": "a", "label": ["x"]}, {"text": "a", "label": ["y"]}],
            {"problem_type": "single_label_classification"},
            "got ['x']; several classes a row need --problem_type multi_label_classification",
        ),
        (
            [{"text": "a", "label": "x"}],
            {"problem_type": "regression"},
            "train.jsonl, line 1: the column 'label' must be a number, got 'x'",
        ),
        ([{"text": "a", "label": 1}], {"label_column": "verdict"}, "no column 'verdict'"),
        (
            [{"text": "a", "label": 1}, {"text": "b", "label": 2}],
            {"text_columns": ["body"], "validation_file": None, "test_file": None},
            "no data have the column 'body', which was given for 'sentence' (columns: text, label)",
        ),
    ],
)
def test_a_train_file_that_cannot_be_learned_from_is_refused(refused, arguments, tmp_path, rows, options, message):
    train = write_rows(tmp_path / "train.jsonl", rows)
    assert message in refused(arguments | {"train_file": train} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_file": None, "validation_file": None, "test_file": None}, "give the data as one of --task_name"),
        ({"dataset_name": "x"}, "give the data as one of --task_name, --dataset_name, or files"),
        ({"train_file": None, "do_train": True}, "--do_train needs a --train_file"),
        ({"test_file": None, "do_predict": True}, "--do_predict needs a --test_file"),
        (
            {"validation_file": None, "early_stopping_patience": 2},
            "--early_stopping_patience needs a --validation_file",
        ),
        ({"early_stopping_patience": 0}, "early_stopping_patience=0 must be at least 1"),
        ({"early_stopping_patience": 2, "save_strategy": "no"}, "needs a --save_strategy or --eval_strategy"),
        ({"save_strategy": "best"}, "--save_strategy best needs an --eval_strategy"),
        (
            {"metric_for_best_model": "spearman"},
            "metric_for_best_model='spearman' is not measured here; use one of acc",
        ),
        ({"train_file": "gone.jsonl"}, "gone.jsonl: no such file"),
        ({"train_file": None}, "has no trained classifier to evaluate or to predict with"),
        ({"max_seq_length": 600}, "max_seq_length=600 is beyond the 512 positions of the model"),
        ({"max_seq_length": 2}, "max_seq_length=2 must be at least 3"),
        ({"max_seq_length": 1}, "max_seq_length=1 must be at least 3"),
        ({"max_seq_length": 0}, "max_seq_length=0 must be at least 3"),
        ({"max_seq_length": -5}, "max_seq_length=-5 must be at least 3"),
        ({"max_train_samples": 0}, "max_train_samples=0 must be at least 1"),
        ({"pooler_type": "attention"}, "pooler_type='attention' is unknown"),
        (
            {"model_name_or_path": "nowhere/at-all"},
            "nowhere/at-all: no such folder, nor a Hub model that can be reached",
        ),
        ({"label_names": ["label"]}, "label_names does nothing in this kind of training"),
        ({"problem_type": "several"}, "invalid choice: 'several'"),
        ({"train_sampling_strategy": "batch_rebalance"}, "invalid choice: 'batch_rebalance'"),
        ({"save_head_only": True}, "save_head_only does nothing without freeze_encoder; leave it out"),
        (HEAD_ONLY | {"push_to_hub": True}, "save_head_only does not work with push_to_hub, FSDP or DeepSpeed"),
        (HEAD_ONLY | {"train_file": None}, "save_head_only does nothing without do_train; leave it out"),
        (HEAD_ONLY | {"pooler_type": "hire", "pooler_gru_size": 8}, "pooler_type=hire cannot be saved without its"),
        (HEAD_ONLY | {"dtype": "bfloat16"}, "a head is saved from weights in float32, not torch.bfloat16"),
    ],
)
def test_a_wrong_argument_is_one_sentence(refused, arguments, files, options, message):
    assert message in refused(arguments | files() | options)


@pytest.mark.parametrize("options", [{"task_name": "rte"}, {"dataset_name": "some/thing", "do_train": True}])
def test_a_dataset_that_cannot_be_reached_is_one_sentence(refused, arguments, options):
    sentence = refused(arguments | options)
    assert "cannot be loaded" in sentence
    assert "nyu-mll/glue" in sentence or "some/thing" in sentence


def test_resuming_with_another_pooler_is_one_sentence(run, refused, arguments, files):
    run(arguments | files())
    again = {"resume_from_checkpoint": "true", "num_train_epochs": 2, "pooler_type": "layer_attention"}
    sentence = refused(arguments | files() | again, writes_nothing=False)
    assert "it has another optimizer or other groups of parameters; resume with the pooler_type and optim" in sentence


def test_label_smoothing_of_numbers_is_refused(refused, arguments, files):
    sentence = refused(arguments | files("regression") | {"label_smoothing_factor": 0.1})
    assert "--label_smoothing_factor needs one class per row" in sentence


def test_pairs_need_room_for_three_special_tokens_and_a_text(refused, arguments, files):
    sentence = refused(arguments | files("pair") | {"max_seq_length": 3})
    assert "max_seq_length=3" in sentence


@pytest.mark.parametrize("word", ["nan", "NaN"])
def test_a_class_that_is_not_a_number_is_refused_in_a_table(refused, arguments, tmp_path, word):
    (tmp_path / "train.csv").write_text(f"sentence,label\na cat,1\na dog,{word}\nred,2\n")
    assert "train.csv, line 3: the column 'label' " in refused(arguments | {"train_file": str(tmp_path / "train.csv")})


def test_texts_and_pairs_are_not_mixed(refused, arguments, files, tmp_path):
    data = files()
    data["validation_file"] = write_rows(tmp_path / "pairs.jsonl", rows_of("pair", 4))
    sentence = refused(arguments | data)
    assert "pairs.jsonl: the texts of a row are sentence1 and sentence2, but those of" in sentence


def test_a_saved_classifier_with_other_classes_is_not_quietly_replaced(run, refused, arguments, files, out, tmp_path):
    run(arguments | files())
    options = arguments | {"model_name_or_path": str(out), "output_dir": str(tmp_path / "later")}
    train = write_rows(tmp_path / "more.jsonl", [{"text": "a", "label": "yes"}, {"text": "b", "label": "perhaps"}])
    sentence = refused(options | {"train_file": train}, writes_nothing=False)
    assert "more.jsonl, line 2: the column 'label' is 'perhaps', which is not among the classes of" in sentence
    assert "(no, yes)" in sentence
    assert "--ignore_mismatched_sizes" in sentence
    sentence = refused(options | {"train_file": train, "problem_type": "regression"}, writes_nothing=False)
    assert "is for single_label_classification; start a new one with --ignore_mismatched_sizes" in sentence
    assert not (tmp_path / "later").exists()


@pytest.mark.parametrize("name", ["classifier.bias", "pooler.query.weight"])
@pytest.mark.parametrize("trains", [False, True])
def test_a_trained_head_that_is_missing_is_not_quietly_replaced(
    run, refused, arguments, files, out, tmp_path, name, trains
):
    data = files()
    run(arguments | data | {"pooler_type": "layer_attention"})
    tensors = load_file(out / "model.safetensors")
    del tensors[name]
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    options = arguments | {"model_name_or_path": str(out), "output_dir": str(tmp_path / "later")}
    parts = data if trains else {"test_file": data["test_file"]}
    sentence = refused(options | parts, writes_nothing=False)
    assert f"{out}: the weights lack {name}, which was trained; copy the whole checkpoint again, or start" in sentence
    assert not (tmp_path / "later").exists()
    if trains:
        new = {"pooler_type": "mean"} if name.startswith("pooler.") else {"ignore_mismatched_sizes": True}
        run(options | data | new)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id2label": ["no", "yes"]}, "id2label must give the name of each class by its number, not ['no', 'yes']"),
        ({"id2label": {"first": "no"}}, "id2label must give the name of each class by its number"),
        ({"id2label": {"0": None}}, "id2label must give the name of each class by its number"),
        ({"architectures": "LayerPoolBertForSequenceClassification"}, "architectures must be a list of names"),
        ({"architectures": 3}, "architectures must be a list of names, not 3"),
        ({"problem_type": ["regression"]}, "problem_type must be one of single_label_classification"),
        ({"model_type": ["layerpool_bert"]}, "model_type must be a name, not ['layerpool_bert']"),
        ({"hidden_size": "32"}, "hidden_size must be a positive whole number, not '32'"),
    ],
)
def test_a_broken_config_of_a_classifier_is_one_sentence(
    refused, arguments, files, tiny, tokenizer, tmp_path, fields, message
):
    folder = tmp_path / "classifier"
    names = {0: "no", 1: "yes", 2: "perhaps"}
    tiny("bert", classifier=True, pooler_type="mean", id2label=names).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(read_json(path) | fields))
    sentence = refused(arguments | files() | {"model_name_or_path": str(folder)})
    assert str(folder) in sentence
    assert message in sentence


def test_a_mistake_ends_the_process_with_exit_code_2_and_one_sentence(arguments, files, tmp_path):
    data = files() | {"train_file": write_rows(tmp_path / "train.jsonl", [{"text": "a", "label": "x"}] * 2)}
    done = launch(SCRIPT, *flags(arguments | data))
    assert done.returncode == 2
    assert "is 'x' in every row; at least two classes are needed" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
