"""`--push_to_hub --dry_run` lists what a push uploads."""

import json

import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects

from modeling_layerpool.common.errors import InputError
from modeling_layerpool.training import ContrastiveTrainingArguments
from modeling_layerpool.training.upload import describe_upload, files_to_upload


def test_it_lists_the_files_that_the_push_of_a_trainer_uploads(make_trainer, tmp_path, monkeypatch):
    pushed = {}
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **options: pushed.update(options))
    trainer = make_trainer(max_steps=2, save_strategy="steps", save_steps=1)
    trainer.hub_model_id = "me/it"  # so that no repository is created
    trainer.train()
    folder = tmp_path / "run"
    (folder / "_states").mkdir()
    (folder / "_states" / "a.npy").write_bytes(b"x" * 10)
    (folder / "plots").mkdir()
    (folder / "plots" / "a.png").write_bytes(b"x" * 12_345)
    trainer.push_to_hub()
    uploaded, left_out = files_to_upload(folder)
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert uploaded == sorted(filter_repo_objects(files, ignore_patterns=pushed["ignore_patterns"]))
    assert {"model.safetensors", "config.json", "plots/a.png"} <= set(uploaded)
    assert "_states/a.npy" in left_out
    assert {path.split("/")[0] for path in left_out} == {"_states", "checkpoint-1", "checkpoint-2"}


def test_names_and_sizes_are_told_and_nothing_is_sent(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(HfApi, "whoami", refuse)
    (tmp_path / "config.json").write_text(json.dumps({}))
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1_234_567)
    (tmp_path / "_arguments.yaml").write_text("a: 1\n")
    args = ContrastiveTrainingArguments(
        output_dir=str(tmp_path), push_to_hub=True, hub_model_id="me/it", dry_run=True, use_cpu=True
    )
    text = describe_upload(args)
    assert "the Hub (me/it); nothing was uploaded" in text
    assert "config.json        2 bytes" in text
    assert "model.safetensors   1.2 MB" in text
    assert "total               1.2 MB" in text
    assert "left out: _arguments.yaml" in text
    assert text.splitlines()[-1] == f"hf upload me/it {tmp_path} . --exclude '_*' --exclude 'checkpoint-*'"


def test_a_folder_without_a_model_is_refused(tmp_path):
    args = ContrastiveTrainingArguments(output_dir=str(tmp_path), push_to_hub=True, dry_run=True, use_cpu=True)
    with pytest.raises(InputError, match="holds no model; train it first"):
        describe_upload(args)
