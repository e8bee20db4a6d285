"""`run_contrastive.py` as a user starts it: flags and files, results, resuming, two processes, and every mistake."""

import json
import os
import runpy
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
)

from modeling_layerpool import LayerPoolBertModel
from modeling_layerpool.common.checkpoints import load_layerpool
from modeling_layerpool.evaluation import evaluate_retrieval, load_encoder
from modeling_layerpool.evaluation.retrieval import read_retrieval_folder
from tests.conftest import assert_close_to
from tests.evaluation.data import write_retrieval
from tests.files import write_rows
from tests.processes import ROOT, flags, launch
from tests.tiny import TINY_BERT
from tests.training.conftest import triplets


SCRIPT = ROOT / "run_contrastive.py"


@pytest.fixture
def files(tmp_path):
    pairs = [
        {"sentence1": row["anchor"], "sentence2": row["positive" if i % 2 else "negative"], "score": i % 2 + i / 50}
        for i, row in enumerate(triplets(12))
    ]
    return {
        "train": write_rows(tmp_path / "train.jsonl", triplets(14)),
        "sts": write_rows(tmp_path / "sts.jsonl", pairs),
        "out": str(tmp_path / "out"),
    }


def arguments(folder, files, **options):
    """A short run, as a dictionary of flags."""
    return {
        "model_name_or_path": folder,
        "train_file": files["train"],
        "output_dir": files["out"],
        "do_train": True,
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "save_steps": 1,
        "logging_steps": 1,
        "max_seq_length": 32,
        "use_cpu": True,
    } | options


def read_json(path):
    return json.loads(Path(path).read_text())


def run(options, processes=1):
    return launch(SCRIPT, *flags(options), processes=processes)


def test_it_trains_chooses_by_the_dev_set_and_leaves_a_complete_folder(tiny_folder, files):
    done = run(
        arguments(tiny_folder, files, do_eval=True, validation_file=files["sts"], report_to="tensorboard", seed=5)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for line in (
        "supervised, on the columns anchor, positive, negative",
        "training rows         14",
        "negatives an anchor   7",
        "mean over the hidden states 3",
        "every 1 steps and at the end; keeps the checkpoint with the best spearman",
        "learning rate         encoder 5e-05; linear schedule, 0 warmup steps",
        "device                cpu, 1 process",
        "precision             float32",
        "the best of 3 evaluations: spearman ",
        f"saved in     {files['out']}; its README.md is the model card",
        f"evaluate it  python run_evaluation.py --model_name_or_path {files['out']} --sts stsb",
    ):
        assert line in done.stdout, done.stdout
    out = files["out"]
    model, tokenizer = AutoModel.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert tokenizer.model_max_length == 32
    state = read_json(f"{out}/trainer_state.json")
    evaluations = {entry["step"]: entry["eval_spearman"] for entry in state["log_history"] if "eval_spearman" in entry}
    best = max(evaluations, key=evaluations.get)
    assert state["best_global_step"] == best
    from_best = AutoModel.from_pretrained(f"{out}/checkpoint-{best}").encode(["a text"], tokenizer)
    assert_close_to(model.encode(["a text"], tokenizer), from_best)
    assert {"README.md", "modules.json", "eval_results.json", "train_results.json"} <= set(os.listdir(out))
    assert any("tfevents" in name for _, _, names in os.walk(out) for name in names)


def test_prompts_are_trained_kept_and_used_by_evaluation_and_by_sentence_transformers(tiny_folder, files, tmp_path):
    prompts = ["anchor=query: ", "positive=passage: ", "negative=passage: "]
    search = write_retrieval(tmp_path / "search")
    done = run(arguments(tiny_folder, files, max_steps=1, validation_file=str(search), prompts=prompts))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        'prompts               anchor "query: ", positive "passage: ", negative "passage: "; none for other texts'
        in done.stdout
    )
    out = files["out"]
    assert 'prompt_name="query"' in Path(out, "README.md").read_text()
    model, theirs, texts = AutoModel.from_pretrained(out), SentenceTransformer(out, device="cpu"), ["a cat", "the dog"]
    assert_close_to(theirs.encode_query(texts), model.encode(texts, prompt="query: "))
    assert_close_to(theirs.encode_document(texts), model.encode(texts, prompt_name="document"))
    measured = evaluate_retrieval(load_encoder(out, device="cpu"), *read_retrieval_folder(search))
    logged = read_json(f"{out}/eval_results.json")
    assert {name: logged[f"eval_{name}"] for name in measured} == pytest.approx(measured, abs=1e-3)


@pytest.mark.parametrize("kind", ["json", "yaml"])
def test_a_file_takes_the_place_of_flags(tiny_folder, files, tmp_path, kind):
    options = arguments(tiny_folder, files, max_steps=1)
    path = tmp_path / f"arguments.{kind}"
    path.write_text(json.dumps(options) if kind == "json" else yaml.safe_dump(options))
    done = launch(SCRIPT, path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert os.path.isfile(f"{files['out']}/model.safetensors")


def test_a_run_from_a_file_with_flags_can_be_repeated_from_its_folder_and_from_its_card(
    tiny_folder, files, tmp_path, capsys
):
    options = arguments(tiny_folder, files, max_steps=100, logging_steps=None, save_strategy="no")
    path = tmp_path / "arguments.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in options.items() if value is not None}))
    done = launch(SCRIPT, path, "--max_steps", "2", "--pooler_type=weighted_layers", "--learning_rate", "1e-4")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("'loss'") == 2  # a short run shows its loss without --logging_steps
    [command] = [line for line in done.stdout.splitlines() if line.startswith("open it ")]
    exec(shlex.split(command)[-1])
    assert "[[" in capsys.readouterr().out
    out = Path(files["out"])
    card = (out / "README.md").read_text()
    assert "arguments.yaml" not in card
    assert "--max_steps 2" in card
    again = launch(SCRIPT, out / "_arguments.yaml", "--output_dir", tmp_path / "again")
    assert again.returncode == 0, again.stderr[-3000:]
    first, second = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)

    listed = launch(SCRIPT, out / "_arguments.yaml", "--push_to_hub", "--hub_model_id", "me/it", "--dry_run")
    assert listed.returncode == 0, listed.stderr[-3000:]
    assert "hf upload me/it" in listed.stdout
    assert "model.safetensors" in listed.stdout
    assert "left out: _arguments.yaml" in listed.stdout
    assert "training rows" not in listed.stdout


def test_the_checkpoints_configuration_stays_where_no_flag_is_given(tiny_folder, files, minilm):
    assert run(arguments(tiny_folder, files, max_steps=1)).returncode == 0
    assert AutoModel.from_pretrained(files["out"]).config.pooler_type == "mean"
    again = arguments(tiny_folder, files, max_steps=1, pooler_type="cls", pooler_layers=[0, -2])
    assert run(again | {"overwrite_output_dir": True}).returncode == 0
    config = AutoModel.from_pretrained(files["out"]).config
    assert (config.pooler_type, config.pooler_layers) == ("cls", [0, -2])


def test_unsupervised_from_a_plain_bert_and_a_text_file_gets_mean(files, tokenizer, tmp_path):
    BertModel(BertConfig(**TINY_BERT)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    text = tmp_path / "text.txt"
    text.write_text("".join(row["anchor"] + "\n" for row in triplets(14)))
    options = arguments(str(tmp_path / "bert"), files, objective="unsupervised", train_file=str(text))
    done = run(options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "unsupervised, on the columns text" in done.stdout
    assert AutoModel.from_pretrained(files["out"]).config.pooler_type == "mean"


def test_validation_rows_like_the_training_data_give_their_loss(tiny_folder, files):
    done = run(arguments(tiny_folder, files, do_eval=True, validation_file=files["train"], save_strategy="epoch"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "eval_loss" in read_json(f"{files['out']}/eval_results.json")


@pytest.mark.parametrize(
    ("options", "trains"),
    [({}, True), ({"eval_strategy": "steps", "eval_steps": 1}, True), ({"do_eval": True}, False)],
)
def test_training_data_are_trained_on_unless_evaluation_alone_is_asked_for(tiny_folder, files, options, trains):
    options = arguments(tiny_folder, files, max_steps=1, do_train=None, validation_file=files["sts"]) | options
    done = run(options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert os.path.exists(f"{files['out']}/model.safetensors") == trains
    assert os.path.exists(f"{files['out']}/eval_results.json")


def test_masked_language_modeling_beside_it_leaves_an_ordinary_folder(files, tokenizer, tmp_path):
    config = BertConfig(**TINY_BERT)
    language_model = BertForMaskedLM(config)
    language_model.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    done = run(arguments(str(tmp_path / "bert"), files, mlm_weight=0.15, gradient_cache=64))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "masked language modeling, weight 0.15" in done.stdout
    assert "no head" not in done.stderr
    out = Path(files["out"])
    assert "| weight 0.15, 15% of the tokens" in (out / "README.md").read_text()
    head = load_file(out / "mlm_head.safetensors")["cls_predictions_transform_dense_weight"]
    change = (head - language_model.cls.predictions.transform.dense.weight).abs().max()
    assert 0 < change < 0.01  # it began as the checkpoint's
    assert not any("predictions" in name for name in load_file(out / "model.safetensors"))
    assert AutoModel.from_pretrained(out).encode(["a text"], tokenizer).shape == (1, 32)


def test_teachers_and_a_guide_embed_the_texts_once_and_are_named_in_plan_and_card(train, tiny_folder, files, tmp_path):
    options = arguments(tiny_folder, files, do_eval=True, validation_file=files["train"], distill_weight=0.5)
    options |= {"teacher": ["self", tiny_folder], "guide": tiny_folder, "embedding_cache_dir": tmp_path / "cache"}
    printed = train(options)
    assert "distillation, weight 0.5" in printed
    out = Path(files["out"])
    [file] = (tmp_path / "cache").iterdir()  # of one encoder, under three names
    changed = file.stat().st_mtime_ns
    card = " ".join((out / "README.md").read_text().split())
    assert "| teacher | `tiny` (local), `tiny` (local) |" in card
    assert "| guide | `tiny` (local) |" in card
    assert "| weight of the distillation | 0.5 |" in card
    assert all(paper in card for paper in ("gao2021simcse", "hinton2015distilling", "solatorio2024gistembed"))
    log = read_json(out / "trainer_state.json")["log_history"]
    assert all(entry["distill_loss"] >= 0 for entry in log if "distill_loss" in entry)
    assert any("distill_loss" in entry for entry in log)
    train(options | {"output_dir": tmp_path / "again"})
    assert file.stat().st_mtime_ns == changed
    train(options | {"output_dir": tmp_path / "rounded", "bf16": True})
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_run_that_failed_after_its_teacher_embedded_the_texts_can_start_again(refused, train, tiny_folder, files):
    options = arguments(tiny_folder, files, teacher="self", objective="distill")
    refused(*flags(options | {"row_length": 5}), writes_nothing=False)
    assert [path.name for path in Path(files["out"]).iterdir()] == ["_embeddings"]
    train(options)


def test_a_streamed_file_trains(tiny_folder, files):
    done = run(arguments(tiny_folder, files, streaming=True, shuffle_buffer_size=8))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "training rows         streamed" in done.stdout


def test_it_resumes_in_place_in_the_middle_of_an_epoch(tiny_folder, files, tmp_path):
    options = arguments(tiny_folder, files, max_steps=6, learn_temperature=True)
    assert run(options | {"output_dir": str(tmp_path / "unbroken")}).returncode == 0
    expected = AutoModel.from_pretrained(tmp_path / "unbroken").state_dict()
    # The same run, broken off after two of the four steps of the first epoch.
    assert run(options | {"output_dir": files["out"]}).returncode == 0
    for step in (3, 4, 5, 6):
        os.rename(f"{files['out']}/checkpoint-{step}", tmp_path / f"gone-{step}")
    done = run(options | {"resume_from_checkpoint": "true"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "checkpoint-2" in done.stdout
    for name, weight in AutoModel.from_pretrained(files["out"]).state_dict().items():
        assert weight.equal(expected[name]), name


def test_two_processes_train_together(tiny_folder, files):
    options = arguments(tiny_folder, files, per_device_train_batch_size=2, num_train_epochs=1, max_steps=-1)
    done = run(options | {"do_eval": True, "validation_file": files["sts"]}, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rows a step           4 on 2 process(es)" in done.stdout
    assert "negatives an anchor   7" in done.stdout
    assert done.stdout.count("training rows") == 1  # said once, not by every process
    assert done.stdout.count("evaluate it") == 1
    assert done.stderr.count("Loading weights:   0%") == 1
    assert "find_unused_parameters" not in done.stderr
    assert read_json(f"{files['out']}/trainer_state.json")["global_step"] == 4


# --- mistakes: one sentence, exit code 2, nothing written ---


def broken_folder(tmp_path, kind, tokenizer):
    folder = tmp_path / kind
    if kind == "albert":
        AlbertModel(AlbertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=37)).save_pretrained(folder)
    else:
        BertModel(BertConfig(**TINY_BERT)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if kind == "without_weights":
        os.remove(folder / "model.safetensors")
    if kind == "pickled":
        os.rename(folder / "model.safetensors", folder / "pytorch_model.bin")
    if kind == "other_weights":
        save_file({"something": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.fixture
def refused(files, monkeypatch, capsys):
    """Runs the script in this process (starting one takes seconds) and returns the sentence that it ends on."""

    def run_and_fail(*arguments, writes_nothing=True):
        monkeypatch.setattr("sys.argv", [str(SCRIPT), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert end.value.code == 2
        if writes_nothing:
            assert not os.path.exists(files["out"])
        return capsys.readouterr().err.strip().splitlines()[-1]

    return run_and_fail


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("albert", "a model of type 'albert'; use one of bert, roberta"),
        ("without_weights", "has no weights (model.safetensors)"),
        ("pickled", "pytorch_model.bin: a pickle file"),
        ("other_weights", "the weights are not those of the encoder"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_refused(refused, files, tmp_path, tokenizer, kind, message):
    assert message in refused(*flags(arguments(broken_folder(tmp_path, kind, tokenizer), files)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature=0.0 must be above 0"),
        ({"pooler_type": "attention"}, "pooler_type='attention' is unknown; use one of layer_attention"),
        ({"pooler_layers": [9]}, "pooler_layers names hidden state 9, but this encoder has 4"),
        ({"max_seq_length": 600}, "max_seq_length=600 is beyond the 512 positions of the model"),
        ({"row_length": 5}, "row_length=5 is shorter than the longest text, "),
        ({"per_device_train_batch_size": 1}, "leaves a batch without negatives"),
        (
            {"model_name_or_path": "nowhere/at-all"},
            "nowhere/at-all: no such folder, nor a Hub model that can be reached",
        ),
        ({"train_file": "gone.jsonl"}, "gone.jsonl: no such file"),
        ({"train_file": None}, "give the training data as either --train_file or --dataset_name"),
        ({"objective": "unsupervised"}, "no column 'text', which the unsupervised objective needs"),
        ({"do_eval": True}, "--do_eval needs a --validation_file"),
        ({"do_train": None, "train_file": None}, "nothing to do"),
        (
            {"dataloader_drop_last": True, "per_device_train_batch_size": 15},
            "14 training row(s) do not make a batch; 15 are needed",
        ),
        ({"resume_from_checkpoint": "true"}, "holds no checkpoint to resume from"),
        ({"resume_from_checkpoint": "gone"}, "no checkpoint there"),
        ({"push_to_hub": True, "dry_run": True}, "holds no model; train it first"),
        ({"streaming": True, "max_steps": None}, "--streaming needs --max_steps"),
        ({"teacher": "nowhere/at-all"}, "--teacher nowhere/at-all: nowhere/at-all: no such folder, nor a Hub model"),
        ({"teacher": "self", "streaming": True}, "--teacher embeds all texts first; leave out --streaming"),
        ({"objective": "distill"}, "objective=distill learns from a teacher; give one (--teacher"),
        ({"objective": "pairwise", "guide": "self"}, "a guide does nothing with objective=pairwise"),
        ({"teacher": "self", "model_name_or_path": "nowhere/at-all"}, "error: nowhere/at-all: no such folder"),
        ({"embedding_cache_dir": "cache"}, "embedding_cache_dir does nothing without a teacher or a guide"),
        ({"guide_margin": 0.1}, "guide_margin does nothing without a guide"),
    ],
)
def test_a_wrong_argument_is_one_sentence(refused, tiny_folder, files, options, message):
    sentence = refused(*flags(arguments(tiny_folder, files) | options))
    assert sentence.startswith("error: ")
    assert message in sentence


def test_an_unknown_objective_is_refused_by_the_parser(refused, tiny_folder, files):
    assert "invalid choice: 'telepathy'" in refused(*flags(arguments(tiny_folder, files, objective="telepathy")))


def test_a_mistake_ends_the_process_with_exit_code_2_and_one_sentence(tiny_folder, files):
    done = run(arguments(tiny_folder, files, temperature=0))
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == "error: temperature=0.0 must be above 0"
    assert "Traceback" not in done.stderr
    assert not os.path.exists(files["out"])


def test_an_unknown_name_in_a_file_of_arguments_is_named(refused, tiny_folder, files, tmp_path):
    path = tmp_path / "arguments.json"
    path.write_text(json.dumps(arguments(tiny_folder, files, tempurature=0.1)))
    assert "tempurature" in refused(path)


def test_broken_rows_are_named_before_anything_is_written(refused, tiny_folder, files, tmp_path):
    with open(files["train"], "a") as file:
        file.write('{"anchor": "a", "positive": ""}\n')
    assert "train.jsonl, line 15: no column 'negative'" in refused(*flags(arguments(tiny_folder, files)))
    scores = write_rows(tmp_path / "sts.jsonl", [{"sentence1": "a", "sentence2": "b", "score": "high"}])
    files["train"] = write_rows(tmp_path / "train.jsonl", triplets(1))
    assert "1 training row(s) do not make a batch; 2 are needed" in refused(*flags(arguments(tiny_folder, files)))
    files["train"] = write_rows(tmp_path / "train.jsonl", triplets(4))
    options = arguments(tiny_folder, files, do_eval=True, validation_file=scores)
    assert "sts.jsonl, line 1: the column 'score' must be a number, got 'high'" in refused(*flags(options))


def test_a_folder_that_is_not_empty_is_not_written_into_unasked(refused, tiny_folder, files):
    os.makedirs(files["out"])
    open(f"{files['out']}/mine.txt", "w").close()
    assert "is not empty" in refused(*flags(arguments(tiny_folder, files)), writes_nothing=False)
    assert os.listdir(files["out"]) == ["mine.txt"]


# --- the dtype of the weights ---


@pytest.fixture
def train(monkeypatch, capsys):
    """Runs the script in this process (starting one takes seconds) and returns what it prints."""

    def run_to_its_end(options):
        monkeypatch.setattr("sys.argv", [str(SCRIPT), *flags(options)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out

    return run_to_its_end


def half_and_whole(folder, tmp_path):
    """Copies of a folder whose weights are in float16, and the same numbers in float32."""
    copies = {}
    for dtype in (torch.float16, torch.float32):
        copies[dtype] = tmp_path / f"in {dtype}"
        LayerPoolBertModel.from_pretrained(folder, dtype=torch.float16).to(dtype).save_pretrained(copies[dtype])
        AutoTokenizer.from_pretrained(folder).save_pretrained(copies[dtype])
    return copies[torch.float16], copies[torch.float32]


@pytest.mark.parametrize("mixed", [{}, {"bf16": True}])
def test_a_checkpoint_in_half_precision_trains_like_the_same_one_in_float32(
    train, tiny_folder, files, tmp_path, mixed
):
    results = []
    for number, folder in enumerate(half_and_whole(tiny_folder, tmp_path)):
        out = str(tmp_path / f"out-{number}")
        options = {"output_dir": out, "mlm_weight": 0.1, "save_strategy": "no"} | mixed
        train(arguments(str(folder), files, **options))
        results.append([load_file(f"{out}/{name}.safetensors") for name in ("model", "mlm_head")])
        assert read_json(f"{out}/config.json")["dtype"] == "float32"
    for half, whole in zip(*results, strict=True):
        for name, weight in whole.items():
            assert weight.dtype == torch.float32
            assert half[name].dtype == torch.float32
            assert torch.equal(half[name], weight), name


def test_a_run_holds_the_dtype_that_is_asked_for_and_evaluation_that_of_the_file(
    train, tiny_folder, files, tmp_path, monkeypatch
):
    half, _ = half_and_whole(tiny_folder, tmp_path)
    opened = []

    def load(*args, **kwargs):
        model, tokenizer = load_layerpool(*args, **kwargs)
        opened.append(model.dtype)
        return model, tokenizer

    monkeypatch.setattr("modeling_layerpool.common.checkpoints.load_layerpool", load)
    measured = {"do_train": None, "train_file": None, "do_eval": True, "validation_file": files["sts"]}
    train(arguments(str(half), files, **measured))
    train(arguments(str(half), files, **measured, dtype="float32"))
    train(arguments(str(half), files, dtype="bfloat16", overwrite_output_dir=True))
    assert opened == [torch.float16, torch.float32, torch.bfloat16]
    assert load_file(f"{files['out']}/model.safetensors")["bert.embeddings.LayerNorm.bias"].dtype == torch.bfloat16


# --- LoRA ---


def test_lora_leaves_an_ordinary_folder_with_the_adapter_beside_it(train, tiny_folder, files, tokenizer):
    options = arguments(tiny_folder, files, do_eval=True, validation_file=files["sts"], pooler_type="layer_attention")
    printed = train(options | {"use_lora": True, "lora_r": 4, "learning_rate": 1e-2})
    out = Path(files["out"])
    model = AutoModel.from_pretrained(out)
    base = LayerPoolBertModel.from_pretrained(tiny_folder, pooler_type="layer_attention")
    total = sum(parameter.numel() for parameter in base.parameters())
    alone = PeftModel.from_pretrained(base, out / "adapter", is_trainable=True)
    count = sum(parameter.numel() for parameter in alone.parameters() if parameter.requires_grad)
    share = f"{count:,}, which is {count / total:.2%} of the model's {total:,}"
    assert f"trainable parameters  {share}\n" in printed
    assert "LoRA                  rank 4, alpha 32, dropout 0, on dense, key, query, value, pooler in full" in printed
    texts = ["a text", "another one"]
    assert_close_to(alone.encode(texts, tokenizer), model.encode(texts, tokenizer), 1e-5)
    assert not (out / "adapter_config.json").exists()  # else transformers would add the adapter once more
    best = read_json(out / "trainer_state.json")["best_metric"]
    # Merged, two of the twelve pairs that are as near as rounding may change places, which moves it by 0.7.
    assert read_json(out / "eval_results.json")["eval_spearman"] == pytest.approx(best, abs=1.5)
    card = (out / "README.md").read_text()
    assert "| LoRA " in card
    assert f"| {share}" in card
    assert "The encoder was trained with LoRA" in card
    assert "peft " in card
    assert "hu2022lora" in card


def test_a_run_with_lora_resumes_bit_identical(train, tiny_folder, files, tmp_path):
    options = arguments(tiny_folder, files, max_steps=4, use_lora=True, lora_dropout=0.1, learning_rate=1e-2)
    train(options)
    expected = load_file(f"{files['out']}/model.safetensors")
    for step in (3, 4):
        os.rename(f"{files['out']}/checkpoint-{step}", tmp_path / f"gone-{step}")
    assert "checkpoint-2" in train(options | {"resume_from_checkpoint": "true"})
    found = load_file(f"{files['out']}/model.safetensors")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert weight.equal(found[name]), name


def test_a_run_without_lora_takes_the_adapter_of_the_one_that_it_overwrites_away(train, tiny_folder, files):
    options = arguments(tiny_folder, files, max_steps=1)
    train(options | {"use_lora": True})
    assert os.path.exists(f"{files['out']}/adapter")
    train(options | {"overwrite_output_dir": True})
    assert not os.path.exists(f"{files['out']}/adapter")
    assert "LoRA" not in Path(files["out"], "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_r": 4}, "lora_r does nothing without use_lora"),
        ({"use_lora": True, "lora_r": 0}, "lora_r=0 must be at least 1"),
        ({"use_lora": True, "lora_target_modules": ["q_proj"]}, "no linear layer 'q_proj' to adapt; use dense, key"),
        ({"use_lora": True, "push_to_hub": True}, "give --hub_strategy end"),
        (
            {"use_lora": True, "do_train": None, "train_file": None, "do_eval": True, "validation_file": "sts.jsonl"},
            "--use_lora does nothing without training",
        ),
    ],
)
def test_a_wrong_argument_of_lora_is_one_sentence(refused, tiny_folder, files, options, message):
    sentence = refused(*flags(arguments(tiny_folder, files) | options))
    assert sentence.startswith("error: ")
    assert message in sentence
