"""`run_mlm.py` as a user starts it: new models and old ones, streams, resuming, two processes, curves, mistakes."""

import copy
import importlib.util
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    RobertaForMaskedLM,
    pipeline,
)

from modeling_layerpool import LayerPoolBertForSequenceClassification, LayerPoolBertModel, LayerPoolRobertaModel
from modeling_layerpool.training.masked_lm.texts import tokenize_texts
from modeling_layerpool.training.masked_lm.trainer import MaskedLanguageArguments, MaskedLanguageTrainer
from tests.files import write_rows
from tests.processes import ROOT, flags, launch
from tests.tiny import TINY_BERT
from tests.training.conftest import WORDS, triplets


SCRIPT = ROOT / "run_mlm.py"
SMALL = "hidden_size=32,num_hidden_layers=2,num_attention_heads=4,intermediate_size=37"


def sentences(count, start=0):
    for row in range(start, start + count):
        yield " ".join(WORDS[(row * 5 + place * (row % 4 + 1)) % len(WORDS)] for place in range(row % 9 + 2))


@pytest.fixture
def files(tmp_path):
    train, held_out = tmp_path / "train.txt", tmp_path / "held-out.txt"
    train.write_text("".join(f"{text}\n" for text in sentences(80)))
    held_out.write_text("".join(f"{text}\n" for text in sentences(30, 200)))
    pairs = zip(sentences(12, 20), sentences(12, 50), strict=True)
    rows = [{"sentence1": a, "sentence2": b, "score": number % 5} for number, (a, b) in enumerate(pairs)]
    return {
        "train_file": str(train),
        "validation_file": str(held_out),
        "probe_file": write_rows(tmp_path / "probe.jsonl", rows),
    }


@pytest.fixture
def arguments(files, tmp_path):
    """A short run of a new model, as a dictionary of flags."""
    return files | {
        "model_type": "bert",
        "objective": "taco",  # which draws random numbers, and needs all that "mlm" does
        "config_overrides": SMALL,
        "vocab_size": 80,
        "output_dir": str(tmp_path / "out"),
        "max_seq_length": 32,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "max_steps": 4,
        "save_steps": 2,
        "logging_steps": 1,
        "seed": 3,
        "disable_tqdm": "true",
        "use_cpu": True,
    }


def test_a_checkpoint_in_half_precision_trains_like_the_same_one_in_float32(run, arguments, out, tokenizer, tmp_path):
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**TINY_BERT))
    model, results = model.half(), []
    for dtype in (torch.float16, torch.float32):
        folder = tmp_path / str(dtype)
        model.to(dtype).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        options = {"model_type": None, "config_overrides": None, "vocab_size": None, "overwrite_output_dir": True}
        run(arguments | options | {"model_name_or_path": str(folder)})
        results.append(load_file(out / "model.safetensors"))
    half, whole = results
    assert {weight.dtype for weight in half.values()} == {torch.float32}
    assert all(half[name].equal(weight) for name, weight in whole.items())


def test_a_new_model_is_made_in_the_dtype_that_is_asked_for(run, fails, arguments, out):
    assert "--dtype auto is the dtype of a checkpoint" in fails(arguments | {"dtype": "auto"})
    run(arguments | {"dtype": "bfloat16", "max_steps": 1})
    assert {weight.dtype for weight in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


@pytest.fixture
def fails(run, capsys):
    """Runs the script, which must end with one sentence and exit code 2."""

    def start(options):
        with pytest.raises(SystemExit) as ended:
            run(options)
        assert ended.value.code == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert "error: " in error
        return error

    return start


def history(folder):
    return json.loads((Path(folder) / "trainer_state.json").read_text())["log_history"]


def evaluations(folder):
    """The measures of each step; of two at the last one, the one after the training."""
    return {entry["step"]: entry for entry in history(folder) if "eval_runtime" in entry}


def weights(folder):
    return AutoModelForMaskedLM.from_pretrained(folder).state_dict()


# --- a new model ---


@pytest.mark.parametrize("objective", ["mlm", "taco"])
def test_a_new_model_is_trained_measured_and_saved_whole(run, arguments, out, objective):
    printed = run(arguments | {"objective": objective, "measure_similarity": True})
    assert f"objective       {objective}" in printed
    assert "vocabulary      80 tokens" in printed
    assert "every 2 steps" in printed
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert isinstance(model, BertForMaskedLM)
    assert (model.config.vocab_size, model.config.hidden_size, len(tokenizer)) == (80, 32, 80)
    assert tokenizer.model_max_length == 32
    steps = [entry for entry in history(out) if "mlm_loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4]
    for entry in steps:
        contrast = entry.get("token_contrast_loss", 0.0)
        assert (contrast > 0) == (objective == "taco")
        assert entry["loss"] == pytest.approx(entry["mlm_loss"] + contrast, rel=1e-4)
    measured = evaluations(out)
    assert list(measured) == [2, 4]
    for entry in measured.values():
        assert entry["eval_perplexity"] == pytest.approx(math.exp(entry["eval_mlm_loss"]))
        assert 0 <= entry["eval_masked_accuracy"] <= 100
        assert {"eval_spearman", "eval_pearson", "eval_alignment", "eval_uniformity"} <= set(entry)
        assert {"eval_similarity_within", "eval_similarity_between", "eval_token_contrast_loss"} <= set(entry)
    card = ModelCard.load(out / "README.md")
    assert card.data.pipeline_tag == "fill-mask"
    assert "a new model, trained from random weights" in card.text
    assert "It prints:\n\n```\n" in card.text
    assert ("fu2022contextual" in card.text) == (objective == "taco")
    assert str(out.parent) not in card.text
    filled = pipeline("fill-mask", model=str(out))("red [MASK] blue", top_k=2)
    assert len(filled) == 2


def test_masked_language_modeling_alone_is_the_default(run, arguments, out):
    del arguments["objective"]
    assert "objective       mlm" in run(arguments | {"max_steps": 1})
    assert not any("token_contrast_loss" in entry for entry in history(out))


def test_the_measures_are_those_of_the_saved_model(run, arguments, files, out, tmp_path):
    run(arguments | {"objective": "mlm", "per_device_eval_batch_size": 3})
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    options = MaskedLanguageArguments(
        str(tmp_path / "other"), max_seq_length=32, objective="mlm", use_cpu=True, seed=8
    )
    texts = [{"text": text} for text in Path(files["validation_file"]).read_text().splitlines()]
    rows = tokenize_texts(Dataset.from_list(texts), tokenizer, 32, "texts")
    trainer = MaskedLanguageTrainer(model, options, eval_dataset=rows, processing_class=tokenizer)
    # Another batch size, another seed, and the same masks.
    measured = trainer.evaluate()
    known = evaluations(out)[4]
    for name in ("eval_mlm_loss", "eval_masked_accuracy", "eval_perplexity"):
        assert measured[name] == pytest.approx(known[name], rel=1e-5), name
    total, count, right = 0.0, 0, 0
    model.eval()
    for batch in trainer.get_eval_dataloader():
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        is_masked = batch["labels"] != -100
        total += torch.nn.functional.cross_entropy(logits[is_masked], batch["labels"][is_masked], reduction="sum")
        right += (logits.argmax(-1) == batch["labels"])[is_masked].sum().item()
        count += is_masked.sum().item()
    assert known["eval_mlm_loss"] == pytest.approx(total.item() / count, rel=1e-5)
    assert known["eval_masked_accuracy"] == pytest.approx(100 * right / count)


@pytest.mark.parametrize(
    "options",
    [
        {"block_packing": "concatenate"},
        {"attend_within_documents": True},
        {"block_packing": "concatenate", "attend_within_documents": True, "max_seq_length": 8},
        {"model_type": "roberta", "vocab_size": 300},
        {"model_type": "roberta", "vocab_size": 300, "attend_within_documents": True},
        {
            "model_type": "modernbert",
            "vocab_size": 300,
            "attend_within_documents": True,
            "config_overrides": SMALL + "",
        },
        {"model_type": "electra", "config_overrides": SMALL + ",embedding_size=16"},
        {"model_type": "distilbert", "config_overrides": "dim=32,n_layers=2,n_heads=4,hidden_dim=37"},
        {"num_train_epochs": 2, "max_steps": None, "eval_strategy": "epoch", "save_strategy": "epoch"},
    ],
)
def test_it_trains_with(run, arguments, out, options):
    run({name: value for name, value in (arguments | options).items() if value is not None})
    last = list(evaluations(out).values())[-1]
    assert math.isfinite(last["eval_loss"])
    assert weights(out)
    assert AutoTokenizer.from_pretrained(out).mask_token is not None


def test_a_loss_goes_down(run, arguments, out):
    run(arguments | {"max_steps": 40, "save_steps": 20, "learning_rate": 3e-3})
    first, last = (evaluations(out)[step] for step in (20, 40))
    assert last["eval_loss"] < first["eval_loss"]
    assert last["eval_mlm_loss"] < math.log(80)


def test_several_files_and_a_probe_alone(run, arguments, files, out, tmp_path):
    more = write_rows(tmp_path / "more.jsonl", [{"text": text} for text in sentences(20, 300)])
    options = arguments | {"train_file": [files["train_file"], more], "objective": "mlm"}
    del options["validation_file"]
    printed = run(options)
    assert "training texts  100 of" in printed
    assert "eval_spearman" in evaluations(out)[4]
    assert "eval_mlm_loss" not in evaluations(out)[4]


def test_the_best_checkpoint_is_kept_if_asked_for(run, arguments, out):
    run(
        arguments
        | {
            "load_best_model_at_end": True,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "learning_rate": 1.0,
            "lr_scheduler_type": "constant",
        }
    )
    losses = {step: entry["eval_loss"] for step, entry in evaluations(out).items()}
    state = json.loads((out / "trainer_state.json").read_text())
    assert state["best_global_step"] in losses
    kept, best = weights(out), weights(out / f"checkpoint-{state['best_global_step']}")
    assert all(kept[name].equal(best[name]) for name in kept)


# --- going on ---


def test_a_trained_model_is_measured_without_training(run, arguments, files, out, tmp_path):
    run(arguments | {"objective": "mlm"})
    options = {name: arguments[name] for name in ("validation_file", "probe_file", "max_seq_length", "use_cpu")}
    run(options | {"model_name_or_path": str(out), "output_dir": str(tmp_path / "measured"), "objective": "mlm"})
    found = json.loads((tmp_path / "measured" / "eval_results.json").read_text())
    known = evaluations(out)[4]
    for name in ("eval_mlm_loss", "eval_masked_accuracy", "eval_spearman", "eval_uniformity"):
        assert found[name] == pytest.approx(known[name], rel=1e-5), name


def test_a_checkpoint_is_trained_further(run, arguments, files, tmp_path, tokenizer):
    BertForMaskedLM(BertConfig(**TINY_BERT)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    options = arguments | {"model_name_or_path": str(tmp_path / "bert")}
    for name in ("model_type", "config_overrides", "vocab_size"):
        del options[name]
    run(options)
    before, after = weights(tmp_path / "bert"), weights(options["output_dir"])
    assert before.keys() == after.keys()
    assert not before["bert.embeddings.word_embeddings.weight"].equal(after["bert.embeddings.word_embeddings.weight"])
    saved = AutoTokenizer.from_pretrained(options["output_dir"])
    assert saved.model_max_length == min(tokenizer.model_max_length, 512)
    text = ModelCard.load(f"{options['output_dir']}/README.md").text
    assert "an encoder, trained further" in text


def test_an_encoder_without_head_gets_a_new_one(run, arguments, tmp_path, tokenizer, caplog):
    BertModel(BertConfig(**TINY_BERT)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    options = arguments | {"model_name_or_path": str(tmp_path / "bert"), "max_steps": 1}
    for name in ("model_type", "config_overrides", "vocab_size"):
        del options[name]
    run(options)
    assert "has no head for masked language modeling; a new one is initialized" in caplog.text


@pytest.mark.parametrize("options", [{}, {"streaming": True, "shuffle_buffer_size": 8}], ids=["files", "stream"])
def test_a_run_that_was_broken_off_ends_in_the_same_weights(run, arguments, out, tmp_path, options):
    # An epoch is some six steps: 5 and 8 lie in the middle of the first one and of the second.
    options = arguments | options | {"max_steps": 9, "save_steps": 1, "eval_strategy": "steps", "eval_steps": 4}
    run(options)
    expected, known = weights(out), history(out)
    out.rename(tmp_path / "unbroken")
    for broken_at in (2, 8):
        (tmp_path / "again").mkdir()
        name = f"checkpoint-{broken_at}"
        shutil.copytree(tmp_path / "unbroken" / name, tmp_path / "again" / name)
        run(options | {"output_dir": str(tmp_path / "again"), "resume_from_checkpoint": "true"})
        found = weights(tmp_path / "again")
        assert all(found[name].equal(expected[name]) for name in expected), broken_at
        losses = [[entry["loss"] for entry in log if "loss" in entry] for log in (known, history(tmp_path / "again"))]
        assert losses[0] == losses[1]
        (tmp_path / "again").rename(tmp_path / f"again-{broken_at}")


def test_two_processes_do_what_one_does(run, arguments, out, tmp_path):
    still = "hidden_dropout_prob=0,attention_probs_dropout_prob=0"  # dropout is drawn by each process
    options = arguments | {"objective": "mlm", "config_overrides": f"{SMALL},{still}", "optim": "sgd"}
    options |= {"max_steps": -1, "num_train_epochs": 1, "save_strategy": "no", "eval_strategy": "epoch"}
    run(options)
    shared = options | {"output_dir": str(tmp_path / "shared"), "per_device_train_batch_size": 2}
    done = launch(SCRIPT, *flags(shared), processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rows a step     4 on 2 process(es)" in done.stdout
    assert done.stdout.count("training texts") == 1
    expected, found = weights(out), weights(shared["output_dir"])
    for name, weight in expected.items():
        torch.testing.assert_close(
            found[name], weight, atol=1e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    (one,), (two,) = evaluations(out).values(), evaluations(shared["output_dir"]).values()
    for name in ("eval_mlm_loss", "eval_masked_accuracy", "eval_spearman"):
        assert two[name] == pytest.approx(one[name], rel=1e-4), name


# --- what it is for ---


def test_the_encoder_goes_into_contrastive_training_and_classification(run, arguments, out, tmp_path):
    run(arguments | {"max_steps": 2})
    pretrained = AutoModelForMaskedLM.from_pretrained(out)
    encoder = {f"bert.{name}": weight for name, weight in pretrained.bert.state_dict().items()}
    for model_class, heads in (
        (LayerPoolBertModel, ("pooler.",)),
        (LayerPoolBertForSequenceClassification, ("pooler.", "classifier.")),
    ):
        model, info = model_class.from_pretrained(out, output_loading_info=True)
        new = {name for name in model.state_dict() if name.startswith(heads)}
        assert set(info["missing_keys"]) == new
        assert not info["mismatched_keys"]
        found = model.state_dict()
        assert set(found) - new == set(encoder)
        assert all(found[name].equal(weight) for name, weight in encoder.items())
    common = {"model_name_or_path": str(out), "max_steps": 1, "learning_rate": 0, "use_cpu": True}
    common |= {"per_device_train_batch_size": 4, "disable_tqdm": "true", "pooler_type": "mean"}
    pairs = write_rows(tmp_path / "pairs.jsonl", triplets(8))
    run(common | {"train_file": pairs, "output_dir": str(tmp_path / "contrastive")}, ROOT / "run_contrastive.py")
    labelled = [{"text": text, "label": str(number % 2)} for number, text in enumerate(sentences(8))]
    labelled = write_rows(tmp_path / "labelled.jsonl", labelled)
    run(common | {"train_file": labelled, "output_dir": str(tmp_path / "classes")}, ROOT / "run_classification.py")
    for folder, model_class in (
        ("contrastive", LayerPoolBertModel),
        ("classes", LayerPoolBertForSequenceClassification),
    ):
        found = model_class.from_pretrained(tmp_path / folder).state_dict()
        assert all(found[name].equal(weight) for name, weight in encoder.items())


def test_a_roberta_goes_into_contrastive_training(run, arguments, out):
    run(arguments | {"max_steps": 1, "model_type": "roberta", "vocab_size": 300})
    pretrained = RobertaForMaskedLM.from_pretrained(out)
    model, info = LayerPoolRobertaModel.from_pretrained(out, output_loading_info=True)
    assert all(name.startswith("pooler.") for name in info["missing_keys"])
    name = "encoder.layer.1.output.dense.weight"
    assert model.roberta.state_dict()[name].equal(pretrained.roberta.state_dict()[name])


# --- curves ---


def test_curves_are_drawn(run, arguments, out):
    pytest.importorskip("matplotlib")
    run(arguments | {"plot_curves": True, "measure_similarity": True})
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_curves_without_matplotlib_are_refused_at_once(fails, arguments, out, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find(name, *rest)
    )
    assert "pip install matplotlib" in fails(arguments | {"plot_curves": True})
    assert not out.exists()


# --- mistakes: one sentence, exit code 2 ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_file": None, "validation_file": None, "probe_file": None}, "nothing to do"),
        ({"train_file": None}, "an untrained new model is not worth evaluating"),
        ({"train_file": "missing.txt"}, "missing.txt: no such file"),
        ({"dataset_name": "some/texts"}, "either --train_file or --dataset_name"),
        ({"vocab_size": 5000}, "--vocab_size 5000: the texts give only"),
        ({"vocab_size": 5}, "--vocab_size 5: the letters of the texts and the special tokens alone are"),
        ({"model_type": "bart", "config_overrides": None}, "give --tokenizer_name"),
        ({"model_type": "birt"}, "--model_type birt: is unknown; use one of"),
        ({"model_type": None}, "give either --model_name_or_path, to continue from a checkpoint, or --model_type"),
        (
            {"model_name_or_path": "here"},
            "give either --model_name_or_path, to continue from a checkpoint, or --model_type",
        ),
        ({"config_overrides": "hiden_size=3"}, "bert has no field 'hiden_size'"),
        ({"config_overrides": "hidden_size=x"}, "hidden_size=x does not fit"),
        ({"config_overrides": "hidden_size"}, "'hidden_size' must read name=value"),
        ({"config_overrides": "hidden_size=30,num_attention_heads=4"}, "no model can be made of this"),
        ({"config_overrides": "hidden_act=none"}, "no model can be made of this"),
        ({"max_seq_length": 600}, "max_seq_length=600 is beyond the 512 positions of the model"),
        ({"max_seq_length": 2}, "max_seq_length=2 must be at least 3"),
        ({"streaming": True, "max_steps": None}, "--streaming needs --max_steps"),
        ({"mlm_probability": 1.5}, "mlm_probability=1.5 must be above 0 and below 1"),
        ({"block_packing": "stack"}, "invalid choice: 'stack'"),
        ({"tokenizer_name": "here"}, "--vocab_size is for a tokenizer that is trained"),
        ({"per_device_train_batch_size": 500, "dataloader_drop_last": True}, "and 500 are needed"),
    ],
)
def test_a_mistake_is_one_sentence(fails, arguments, options, message):
    assert message in fails({name: value for name, value in (arguments | options).items() if value is not None})


def test_mistakes_in_files_are_named(fails, arguments, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    assert "empty.txt: the file is empty" in fails(arguments | {"train_file": str(tmp_path / "empty.txt")})
    path = write_rows(tmp_path / "other.jsonl", [{"body": "a text"}])
    error = fails(arguments | {"train_file": path})
    assert "other.jsonl, line 1: no column 'text' (columns here: body)" in error
    path = write_rows(tmp_path / "null.jsonl", [{"text": "a text"}, {"text": None}])
    assert "null.jsonl, line 2: the column 'text' is missing or null" in fails(arguments | {"validation_file": path})


def test_a_checkpoint_that_cannot_be_trained_on_is_named(fails, arguments, tmp_path, tokenizer, tiny_folder):
    for name in ("model_type", "config_overrides", "vocab_size"):
        del arguments[name]
    assert "no such folder" in fails(arguments | {"model_name_or_path": "nowhere"})
    assert "no masked language model of type 'layerpool_bert'" in fails(
        arguments | {"model_name_or_path": tiny_folder}
    )
    BertForMaskedLM(BertConfig(**TINY_BERT)).save_pretrained(tmp_path / "bert")
    without = copy.deepcopy(tokenizer)
    without.mask_token = None  # the tokenizer is that of all tests
    without.save_pretrained(tmp_path / "bert")
    assert "has no mask token" in fails(arguments | {"model_name_or_path": str(tmp_path / "bert")})
    given = arguments | {"model_name_or_path": str(tmp_path / "bert"), "config_overrides": "hidden_size=3"}
    assert "--config_overrides is for a new model" in fails(given)


def test_a_folder_that_is_in_use_is_left_alone(run, fails, arguments, out):
    out.mkdir()
    (out / "something").write_text("mine")
    assert "is not empty" in fails(arguments)
