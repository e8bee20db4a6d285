"""LoRA: what is trained, what is saved, and that the merged model is the trained one."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModel, TrainerCallback

from modeling_layerpool import LayerPoolBertConfig, LayerPoolBertModel
from modeling_layerpool.common.checkpoints import load_layerpool
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.training import ContrastiveTrainer, ContrastiveTrainingArguments, add_lora
from modeling_layerpool.training.fault_tolerance import find_defect, last_whole_checkpoint
from modeling_layerpool.training.lora import has_adapter, linear_layers, lora_settings
from modeling_layerpool.training.model_arguments import LoraArguments
from modeling_layerpool.training.script import train_and_save
from tests.conftest import ENCODERS, POOLER_TYPES, SENTENCES, assert_close_to, needs_gradient_checkpointing
from tests.processes import launch
from tests.tiny import TINY_BERT, make_tokenizer
from tests.training.conftest import triplets


SAVING = {"save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2}
NO_NOISE = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pooler_activation": "relu"}


def trained(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def move_adapter(model):
    """Give the adapter weights that do something: LoRA's begin at zero, the pooler as the base model's."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))


def assert_identical(first, second):
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name


# --- the model ---


@pytest.mark.parametrize("encoder", ENCODERS)
def test_lora_on_each_encoder_trains_saves_and_merges(tiny, tokenizer_of, tmp_path, encoder, record_difference):
    tokenizer = tokenizer_of[encoder]
    base = tiny(encoder, vocab_size=max(tokenizer.get_vocab().values()) + 1)
    untouched = base.encode(SENTENCES, tokenizer)
    model = add_lora(base, r=4)
    assert_close_to(model.encode(SENTENCES, tokenizer), untouched)

    # Two matrices for each linear layer of the encoder, and the pooler.
    names = set(trained(model))
    layers = {name.partition(".lora_")[0] for name in names if ".lora_" in name}
    expected = linear_layers(tiny(encoder))
    prefix = f"base_model.model.{base.base_model_prefix}."
    assert layers == {f"{prefix}{name}" for name in expected}
    assert len(expected) >= 3 * 4
    pooler = [f"pooler.modules_to_save.default.{name}" for name, _ in tiny(encoder).pooler.named_parameters()]
    assert {name for name in names if ".lora_" not in name} == {f"base_model.model.{name}" for name in pooler}
    move_adapter(model)
    inputs = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    model.train()(**inputs).pooler_output.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == parameter.requires_grad, name

    adapted = model.encode(SENTENCES, tokenizer)
    assert abs(adapted - untouched).max() > 1e-2
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny(encoder, vocab_size=base.config.vocab_size), tmp_path)
    np.testing.assert_array_equal(loaded.encode(SENTENCES, tokenizer), adapted)
    for adapter in (model, loaded):
        merged = adapter.merge_and_unload()
        assert type(merged) is type(base)
        assert merged.state_dict().keys() == tiny(encoder).state_dict().keys()
        found = merged.encode(SENTENCES, tokenizer)
        assert_close_to(found, adapted, 1e-5)
        what = "LoRA merged, against the adapter beside the weights, every encoder"
        record_difference("peft", what, abs(found - adapted).max())


@pytest.mark.parametrize("pooler_type", POOLER_TYPES)
def test_every_pooler_is_trained_in_full_and_merged(tiny_model, tokenizer, tmp_path, pooler_type):
    model = add_lora(tiny_model(pooler_type=pooler_type))
    pooler = [parameter.shape for name, parameter in trained(model).items() if "pooler" in name]
    assert pooler == [parameter.shape for parameter in tiny_model(pooler_type=pooler_type).pooler.parameters()]
    move_adapter(model)
    adapted = model.encode(SENTENCES, tokenizer)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(pooler_type=pooler_type), tmp_path)
    np.testing.assert_array_equal(loaded.encode(SENTENCES, tokenizer), adapted)
    assert_close_to(model.merge_and_unload().encode(SENTENCES, tokenizer), adapted, 1e-5)


def test_named_layers_are_adapted_and_the_pooler_never(tiny_model):
    # The pooler of layer attention has maps of the same names.
    names = set(trained(add_lora(tiny_model(), target_modules=["query", "attention.output.dense"])))
    layers = {name.partition(".lora_")[0].rpartition(".")[2] for name in names if ".lora_" in name}
    assert layers == {"query", "dense"}
    assert not any("lora" in name and ("pooler" in name or "intermediate" in name) for name in names)


def test_a_layer_that_is_not_there_is_refused_with_those_that_are(tiny_model):
    with pytest.raises(InputError, match="no linear layer 'q_proj' to adapt; use dense, key, query, value"):
        add_lora(tiny_model(), target_modules=["query", "q_proj"])


def test_an_adapter_that_the_pooler_would_not_see_is_refused(tiny, make_trainer):
    """A narrow ELECTRA widens its embeddings by a linear layer, whose output is hidden state 0."""
    assert "embeddings_project" not in linear_layers(tiny("electra"))
    with pytest.raises(InputError, match="no linear layer 'embeddings_project' to adapt"):
        add_lora(tiny("electra"), target_modules=["embeddings_project"])
    theirs = get_peft_model(tiny("electra"), LoraConfig(target_modules="all-linear", modules_to_save=["pooler"]))
    with pytest.raises(InputError, match="reads 'embeddings_project' without its adapter"):
        make_trainer(model=theirs)


def test_a_classifier_is_trained_in_full_too(tiny):
    names = set(trained(add_lora(tiny("bert", classifier=True))))
    assert any("classifier.modules_to_save" in name for name in names)
    assert any("pooler.modules_to_save" in name for name in names)


def test_the_settings_say_what_is_trained(tiny_model):
    plain = sum(parameter.numel() for parameter in tiny_model().parameters())
    model = add_lora(tiny_model(), r=4, lora_alpha=8)
    count = sum(parameter.numel() for parameter in trained(model).values())
    assert lora_settings(model) == {
        "LoRA": "rank 4, alpha 8, dropout 0, on dense, key, query, value, pooler in full",
        "trainable parameters": f"{count:,}, which is {count / plain:.2%} of the model's {plain:,}",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_r": 8}, "lora_r does nothing without use_lora; leave it out"),
        ({"lora_target_modules": ["query"]}, "lora_target_modules does nothing without use_lora; leave it out"),
        ({"use_lora": True, "lora_r": 0}, "lora_r=0 must be at least 1 and at most 65,536"),
        ({"use_lora": True, "lora_alpha": -1}, "lora_alpha=-1 must be at least 1 and at most 65,536"),
        ({"use_lora": True, "lora_dropout": 1.0}, "lora_dropout=1.0 must be at least 0 and below 1"),
    ],
)
def test_an_option_that_cannot_work_is_refused_in_one_sentence(options, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        LoraArguments(**options)


def test_without_peft_the_package_is_named(tiny_model, monkeypatch):
    plain = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "peft" else plain(name, *a))
    assert not has_adapter(tiny_model())
    for use in (lambda: LoraArguments(use_lora=True), lambda: add_lora(tiny_model())):
        with pytest.raises(InputError, match=r"needs PEFT: pip install peft"):
            use()


# --- training ---


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {"lora_dropout": 0.1, "gradient_cache": 48, "learn_temperature": True},
        {"pooler_type": "mean", "mlm_weight": 0.1, "shuffling": "neighbours"},
    ],
)
def test_a_resumed_run_ends_bit_identical_to_an_unbroken_one(make_trainer, tiny_model, options):
    options = dict(options)
    dropout, pooler_type = options.pop("lora_dropout", 0.0), options.pop("pooler_type", "layer_attention")

    def make(name):
        model = add_lora(tiny_model(pooler_type=pooler_type), r=4, lora_dropout=dropout)
        return make_trainer(name=name, model=model, max_steps=4, **SAVING, **options)

    unbroken = make("unbroken")
    start = {name: weight.clone() for name, weight in unbroken.model.state_dict().items()}
    unbroken.train()
    resumed = make("resumed")
    resumed.train(resume_from_checkpoint=f"{unbroken.args.output_dir}/checkpoint-2")
    assert resumed.state.global_step == 4
    end = unbroken.model.state_dict()
    assert_identical(resumed.model.state_dict(), end)
    assert_identical(
        load_file(f"{resumed.args.output_dir}/checkpoint-4/adapter_model.safetensors"),
        load_file(f"{unbroken.args.output_dir}/checkpoint-4/adapter_model.safetensors"),
    )
    for name, weight in start.items():
        assert torch.equal(weight, end[name]) != (".lora_" in name or ".modules_to_save." in name), name


def test_a_checkpoint_holds_the_adapter_alone_and_is_checked(make_trainer, tiny_model):
    trainer = make_trainer(model=add_lora(tiny_model()), max_steps=2, **SAVING)
    trainer.train()
    checkpoint = Path(trainer.args.output_dir, "checkpoint-2")
    assert find_defect(checkpoint) is None
    files = {path.name for path in checkpoint.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "tokenizer.json"} <= files
    assert not files & {"model.safetensors", "config.json"}
    weights = checkpoint / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert find_defect(checkpoint) == "adapter_model.safetensors is corrupt"
    assert last_whole_checkpoint(trainer.args.output_dir).endswith("checkpoint-1")


def test_the_best_checkpoint_is_what_is_merged_and_saved(make_trainer, tiny_model, tokenizer):
    base = tiny_model(pooler_type="layer_attention")
    scores = iter([1.0, 3.0, 2.0])
    trainer = make_trainer(
        model=add_lora(base),
        evaluator=lambda model, tokenizer: {"score": next(scores), "one": model.encode("a text", tokenizer)[0].item()},
        max_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
        **SAVING,
    )
    train_and_save(trainer, None)
    out = trainer.args.output_dir
    assert type(trainer.model) is LayerPoolBertModel
    best = PeftModel.from_pretrained(tiny_model(), f"{out}/checkpoint-2").encode(SENTENCES, tokenizer)
    last = PeftModel.from_pretrained(tiny_model(), f"{out}/checkpoint-3").encode(SENTENCES, tokenizer)
    assert abs(best - last).max() > 1e-3
    alone = PeftModel.from_pretrained(tiny_model(), f"{out}/adapter").encode(SENTENCES, tokenizer)
    np.testing.assert_array_equal(alone, best)
    for model in (trainer.model, AutoModel.from_pretrained(out)):
        assert_close_to(model.encode(SENTENCES, tokenizer), best, 1e-5)
    # Imported here, as it takes seconds and the two processes below import this module.
    from sentence_transformers import SentenceTransformer

    assert_close_to(SentenceTransformer(out, device="cpu").encode(list(SENTENCES)), best, 1e-5)


def test_the_final_folder_is_that_of_a_run_without_lora(make_trainer, tiny_model):
    folders = []
    for name, model in (("plain", tiny_model()), ("lora", add_lora(tiny_model()))):
        trainer = make_trainer(name=name, model=model, max_steps=1)
        train_and_save(trainer, None)
        folders.append(Path(trainer.args.output_dir))
    plain, lora = folders
    assert set(os.listdir(lora)) == set(os.listdir(plain)) | {"adapter"}
    assert {path.name for path in (lora / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    with pytest.raises(InputError, match="an adapter, which is not a whole model"):
        load_layerpool(str(lora / "adapter"))
    assert load_file(lora / "model.safetensors").keys() == load_file(plain / "model.safetensors").keys()
    assert json.loads((lora / "config.json").read_text()) == json.loads((plain / "config.json").read_text())


def test_a_checkpoint_of_another_kind_of_run_is_refused(make_trainer, tiny_model):
    checkpoints = {}
    for name, model in (("adapted", add_lora(tiny_model(), r=4)), ("plain", tiny_model())):
        trainer = make_trainer(name=name, model=model, max_steps=1, **SAVING)
        trainer.train()
        checkpoints[name] = f"{trainer.args.output_dir}/checkpoint-1"
    for model, name, message in (
        (tiny_model(), "adapted", "holds an adapter; resume it with --use_lora"),
        (add_lora(tiny_model()), "plain", "holds no adapter; resume it without --use_lora"),
        (add_lora(tiny_model()), "adapted", "was trained with lora_r=4, which cannot become 16"),
        (add_lora(tiny_model(), r=4, lora_alpha=4), "adapted", "lora_alpha=32, which cannot become 4"),
        (add_lora(tiny_model(), r=4, target_modules=["query"]), "adapted", r"which cannot become \['query'\]"),
    ):
        with pytest.raises(InputError, match=message):
            make_trainer(model=model, max_steps=2).train(resume_from_checkpoint=checkpoints[name])


class Recorder(TrainerCallback):
    """Keeps the gradients of every optimizer step."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients.append({name: parameter.grad.clone() for name, parameter in trained(model).items()})


@needs_gradient_checkpointing
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(make_trainer, tiny_model, use_reentrant):
    found = []
    for name, options in (
        ("plain", {}),
        ("checkpointed", {"gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}}),
    ):
        recorder = Recorder()
        trainer = make_trainer(
            name=name,
            model=add_lora(tiny_model(**NO_NOISE)),
            max_steps=2,
            gradient_checkpointing=bool(options),
            evaluator=lambda model, tokenizer: {"norm": abs(model.encode("a text", tokenizer)).sum().item()},
            eval_strategy="steps",
            eval_steps=1,
            callbacks=[recorder],
            **SAVING,
            **options,
        )
        trainer.train()
        found.append(recorder.gradients)
    for plain, checkpointed in zip(*found, strict=True):
        for name, gradient in plain.items():
            torch.testing.assert_close(checkpointed[name], gradient, atol=1e-6, rtol=1e-4, msg=name)
    assert all(gradient.abs().sum() > 0 for gradient in found[1][-1].values())


def test_gradient_caching_is_exact_with_an_adapter(make_trainer, tiny_model):
    found = []
    for cache in (None, 48):
        recorder = Recorder()
        make_trainer(
            name=f"{cache}",
            model=add_lora(tiny_model(**NO_NOISE).double()).double(),
            gradient_cache=cache,
            max_steps=3,
            callbacks=[recorder],
            learning_rate=1e-2,
        ).train()
        found.append(recorder.gradients)
    for plain, cached in zip(*found, strict=True):
        for name, gradient in plain.items():
            torch.testing.assert_close(cached[name], gradient, atol=1e-9, rtol=1e-6, msg=name)


@pytest.mark.long
@pytest.mark.parametrize(("task_type", "pooler_type"), [(None, "layer_attention"), ("FEATURE_EXTRACTION", "mean")])
def test_a_model_of_pefts_own_trains_and_saves_as_the_librarys_trainer_does(
    make_trainer, tiny_model, tokenizer, task_type, pooler_type
):
    config = LoraConfig(task_type=task_type, r=4, target_modules="all-linear", modules_to_save=["pooler"])
    trainer = make_trainer(
        rows=8,
        model=get_peft_model(tiny_model(pooler_type=pooler_type), config),
        eval_dataset=Dataset.from_list(triplets(4)),
        evaluator=lambda model, tokenizer: {"norm": abs(model.encode("a text", tokenizer)).sum().item()},
        gradient_cache=64,
        mlm_weight=0.1,
        shuffling="clusters",
        max_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        **SAVING,
    )
    trainer.train()
    trainer.save_model()
    files = set(os.listdir(trainer.args.output_dir))
    assert {"adapter_model.safetensors", "adapter_config.json", "mlm_head.safetensors"} <= files
    assert "model.safetensors" not in files
    expected = trainer.model.encode(SENTENCES, tokenizer)
    assert abs(expected - tiny_model(pooler_type=pooler_type).encode(SENTENCES, tokenizer)).max() > 1e-3
    loaded = PeftModel.from_pretrained(tiny_model(pooler_type=pooler_type), trainer.args.output_dir)
    np.testing.assert_array_equal(loaded.encode(SENTENCES, tokenizer), expected)


def test_too_long_a_text_is_refused_of_an_adapted_model_too(make_trainer, tiny_model):
    with pytest.raises(InputError, match="max_seq_length=513 is beyond the 512 positions"):
        make_trainer(model=add_lora(tiny_model()), max_seq_length=513)


@pytest.mark.parametrize("engine", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_fsdp_and_deepspeed_are_refused(make_trainer, tiny_model, monkeypatch, engine):
    plain = ContrastiveTrainer.create_accelerator_and_postprocess

    def with_engine(self):
        plain(self)
        setattr(self, engine, True)

    monkeypatch.setattr(ContrastiveTrainer, "create_accelerator_and_postprocess", with_engine)
    with pytest.raises(InputError, match=r"use_lora does not work under (FSDP|DeepSpeed)"):
        make_trainer(model=add_lora(tiny_model()))


# --- several processes ---


@pytest.mark.long
def test_the_gradient_of_two_processes_is_the_one_of_the_whole_batch(tmp_path):
    whole = run_of_one_process(tmp_path / "whole", 1)
    done = launch(__file__, tmp_path / "parts", 2, processes=2)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    parts = torch.load(tmp_path / "parts" / "gradients.pt")
    assert len(whole) == len(parts) == 3
    for one, two in zip(whole, parts, strict=True):
        assert any(".lora_" in name for name in one)
        for name, gradient in one.items():
            torch.testing.assert_close(two[name], gradient, rtol=1e-6, atol=1e-12, msg=name)
    assert_identical(*(torch.load(tmp_path / "parts" / f"merged-{rank}.pt") for rank in range(2)))


def run_of_one_process(folder, world_size):
    """One epoch of two whole batches and one of 3 rows, which two processes cannot halve; its gradients by step."""
    torch.manual_seed(0)
    model = add_lora(LayerPoolBertModel(LayerPoolBertConfig(**TINY_BERT, **NO_NOISE)).double()).double()
    recorder = Recorder()
    trainer = ContrastiveTrainer(
        model,
        ContrastiveTrainingArguments(
            output_dir=f"{folder}/out",
            per_device_train_batch_size=4 // world_size,
            num_train_epochs=1,
            max_grad_norm=0.0,
            learning_rate=1e-2,
            gradient_cache=32 if world_size > 1 else None,
            row_length=32,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            seed=3,
        ),
        train_dataset=Dataset.from_list(triplets(11)),
        processing_class=make_tokenizer(),
        callbacks=[recorder],
    )
    assert trainer.args.world_size == world_size
    train_and_save(trainer, None)
    if trainer.args.process_index == 0:
        torch.save(recorder.gradients, f"{folder}/gradients.pt")
    torch.save(trainer.model.state_dict(), f"{folder}/merged-{trainer.args.process_index}.pt")
    return recorder.gradients


if __name__ == "__main__":
    run_of_one_process(sys.argv[1], int(sys.argv[2]))
