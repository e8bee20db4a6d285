"""Runs that are killed, told to end, or run out of disk, and what they go on from."""

import contextlib
import errno
import itertools
import logging
import os
import resource
import runpy
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import TrainerCallback

from modeling_layerpool import LayerPoolBertConfig, LayerPoolBertModel
from modeling_layerpool.training import ContrastiveTrainer, fault_tolerance
from modeling_layerpool.training.fault_tolerance import (
    PREEMPTED,
    CheckpointWriteError,
    Preempted,
    find_defect,
    last_whole_checkpoint,
    save_on_sigterm,
)
from tests.files import write_rows
from tests.processes import ROOT, Running, launch, start_group
from tests.tiny import TINY_BERT
from tests.training.conftest import triplets


STEPS = 11  # epochs of 4 steps (14 rows in batches of 4, the last one of 2), the third one cut short


@pytest.fixture(scope="module")
def command(tmp_path_factory, shared_tokenizer):
    """The command of a run with all that it must carry over a break: dropout, gradient cache, temperature, workers."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    LayerPoolBertModel(LayerPoolBertConfig(**TINY_BERT)).save_pretrained(folder / "tiny")
    shared_tokenizer.save_pretrained(folder / "tiny")
    write_rows((folder / "train.jsonl"), triplets(14))

    def make(output_dir, *more):
        flags = (
            f"--model_name_or_path {folder}/tiny --train_file {folder}/train.jsonl --do_train "
            f"--output_dir {output_dir} --per_device_train_batch_size 4 --max_steps {STEPS} --save_steps 1 "
            "--learning_rate 1e-3 --learn_temperature --temperature_learning_rate 0.1 --gradient_cache 64 "
            "--row_length 32 --dataloader_num_workers 1 --use_cpu --disable_tqdm true"
        )
        return [str(ROOT / "run_contrastive.py"), *flags.split(), *map(str, more)]

    return make


def wait_for(path, process, seconds=120):
    end = time.monotonic() + seconds
    while not os.path.exists(path):
        assert process.poll() is None, process.finish().stderr[-3000:]
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.001)


@pytest.fixture(scope="module")
def unbroken(command, tmp_path_factory):
    """The folder of the run that nothing happened to, with the checkpoints 10 and 11."""
    out = tmp_path_factory.mktemp("unbroken")
    done = launch(*command(out, "--save_steps", "10", "--overwrite_output_dir"))
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def weights(folder):
    return load_file(f"{folder}/model.safetensors") | load_file(f"{folder}/objective.safetensors")


def assert_identical(found, expected):
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


# --- real processes ---


@pytest.mark.long
def test_a_run_killed_twice_and_preempted_once_ends_as_the_unbroken_one(command, unbroken, tmp_path):
    out = tmp_path / "out"
    resume = command(out, "--resume_from_checkpoint", "true", "--save_total_limit", "1")

    # In the middle of a save: the folder is there, its files are not.
    process = Running(*command(out, "--save_total_limit", "1"))
    wait_for(out / "checkpoint-3", process)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.finish().returncode == -signal.SIGKILL
    assert last_whole_checkpoint(out) is not None

    # At some moment in a step of the second epoch.
    process = Running(*resume)
    wait_for(out / "checkpoint-5" / "trainer_state.json", process)
    time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.finish().returncode == -signal.SIGKILL
    assert last_whole_checkpoint(out) is not None

    # Told to end, as is its data worker.
    process = Running(*resume)
    wait_for(out / "checkpoint-7" / "trainer_state.json", process)
    os.killpg(process.pid, signal.SIGTERM)
    done = process.finish()
    assert done.returncode == PREEMPTED == 143, done.stderr[-3000:]
    assert "SIGTERM: saved step" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (out / "model.safetensors").exists()  # not the end of a training
    assert len([name for name in os.listdir(out) if name.startswith("checkpoint-")]) == 1

    done = launch(*resume)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_identical(weights(out), weights(unbroken))


@pytest.mark.long
def test_sigterm_to_one_of_two_processes_saves_and_stops_both(command, tmp_path):
    out = tmp_path / "out"
    words = command(out, "--max_steps", "100000", "--save_steps", "5", "--save_total_limit", "2")
    first, second = start_group(*words, processes=2)
    wait_for(out / "checkpoint-5" / "trainer_state.json", first)
    os.kill(second.pid, signal.SIGTERM)
    done = [first.finish(), second.finish()]
    assert [one.returncode for one in done] == [PREEMPTED, PREEMPTED]
    assert sum(one.stderr.count("SIGTERM: saved step") for one in done) == 1
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(os.listdir(last_whole_checkpoint(out)))


def test_a_run_broken_off_behind_its_last_step_trains_no_further(make_trainer):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant"}
    unbroken = make_trainer(**options)
    unbroken.train()
    resumed = make_trainer(name="resumed", **options)
    resumed.train(resume_from_checkpoint=last_whole_checkpoint(unbroken.args.output_dir))
    assert resumed.state.global_step == 2
    assert_identical(resumed.model.state_dict(), unbroken.model.state_dict())


# --- checkpoints that are not whole ---


@pytest.fixture
def out(unbroken, tmp_path):
    return shutil.copytree(unbroken, tmp_path / "copy")


def cut(path):
    os.truncate(path, path.stat().st_size - 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "harm", "defect"),
    [
        ("model.safetensors", cut, "model.safetensors has"),
        ("model.safetensors", flip, "model.safetensors is corrupt"),
        ("optimizer.pt", Path.unlink, "optimizer.pt is missing"),
        ("optimizer.pt", flip, "optimizer.pt is corrupt"),
        ("objective.safetensors", flip, "objective.safetensors is corrupt"),
        ("rng_state.pth", cut, "rng_state.pth has"),
        ("trainer_state.json", cut, "trainer_state.json is corrupt"),
        ("trainer_state.json", Path.unlink, "trainer_state.json is missing"),
        ("complete.json", cut, "complete.json is corrupt"),
        ("complete.json", Path.unlink, "complete.json is missing"),
    ],
)
def test_a_broken_checkpoint_is_named_and_the_one_before_it_taken(out, caplog, name, harm, defect):
    harm(out / "checkpoint-11" / name)
    with caplog.at_level(logging.WARNING):
        assert last_whole_checkpoint(out) == str(out / "checkpoint-10")
    (message,) = caplog.messages
    assert message.startswith(f"{out}/checkpoint-11 is skipped: {defect}")


@pytest.mark.long
def test_without_a_whole_checkpoint_there_is_none_to_resume_from(out, tmp_path):
    for step in (10, 11):
        (out / f"checkpoint-{step}" / "complete.json").write_text("[1]")
    assert last_whole_checkpoint(out) is None
    assert last_whole_checkpoint(tmp_path / "nowhere") is None
    assert find_defect(tmp_path / "nowhere") == "no checkpoint there"


@pytest.mark.long
def test_a_broken_checkpoint_that_is_asked_for_is_refused(command, out, monkeypatch, capsys):
    cut(out / "checkpoint-11" / "optimizer.pt")
    monkeypatch.setattr("sys.argv", command(out, "--resume_from_checkpoint", out / "checkpoint-11"))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "run_contrastive.py"), run_name="__main__")
    assert end.value.code == 2
    assert "checkpoint-11: optimizer.pt has" in capsys.readouterr().err.splitlines()[-1]


class Interrupted(BaseException):
    """Ends a run as SIGKILL does: nobody cleans up."""


SAVING = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "learn_temperature": True}


def test_wherever_a_save_is_cut_off_a_whole_checkpoint_is_left(make_trainer, monkeypatch, tmp_path):
    """A save is cut off before its first write, before its second, and so on, with room for one checkpoint only."""
    trainer = make_trainer(**SAVING)
    trainer.train()
    out = Path(trainer.args.output_dir)
    keep = tmp_path / "keep"
    shutil.copytree(out / "checkpoint-3", keep)
    writes = itertools.count()
    cut_at = None

    def watch(event, arguments):
        # All that Python is told of writing: files opened for it, renamed and removed, folders made and removed.
        is_write = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree") or (
            event == "open" and isinstance(arguments[1], str) and arguments[1] and arguments[1][0] in "wax"
        )
        if cut_at is not None and is_write and str(arguments[0]).startswith(str(out)) and next(writes) == cut_at:
            raise Interrupted

    sys.addaudithook(watch)
    for moment in itertools.count():
        shutil.rmtree(out)
        shutil.copytree(keep, out / "checkpoint-3")
        trainer.state.global_step = 4
        writes = itertools.count()
        cut_at = moment
        try:
            trainer._save_checkpoint(trainer.model, None)
        except Interrupted:
            assert last_whole_checkpoint(out) is not None, moment
        else:
            break
        finally:
            cut_at = None
    assert moment > 8
    assert os.listdir(out) == ["checkpoint-4"]
    assert last_whole_checkpoint(out) == str(out / "checkpoint-4")


def test_what_a_broken_save_left_does_not_vouch_for_the_next_one(make_trainer):
    trainer = make_trainer(**SAVING)
    trainer.train()
    checkpoint = Path(trainer.args.output_dir) / "checkpoint-3"
    (checkpoint / "complete.json.part").write_text("{")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(trainer), "_save_rng_state", lambda *args: (_ for _ in ()).throw(Interrupted))
        with pytest.raises(Interrupted):
            trainer._save_checkpoint(trainer.model, None)
    assert "complete.json is missing" in find_defect(checkpoint)
    trainer._save_checkpoint(trainer.model, None)
    assert find_defect(checkpoint) is None


# --- a full disk ---


def out_of_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("method", ["_save", "_save_optimizer_and_scheduler", "_save_rng_state"])
def test_a_full_disk_is_one_sentence_and_leaves_the_older_checkpoint(make_trainer, monkeypatch, method):
    trainer = make_trainer(**SAVING)
    calls = itertools.count()
    real = getattr(trainer, method)
    monkeypatch.setattr(trainer, method, lambda *args: real(*args) if next(calls) == 0 else out_of_space())
    with pytest.raises(
        CheckpointWriteError, match=r"checkpoint-2: could not be .* needs about [\d.]+ MB, [\d,.]+ MB are free \(No sp"
    ):
        trainer.train()
    assert os.listdir(trainer.args.output_dir) == ["checkpoint-1"]
    resumed = make_trainer(**SAVING)
    resumed.train(resume_from_checkpoint=last_whole_checkpoint(trainer.args.output_dir))
    assert resumed.state.global_step == 3


@pytest.mark.parametrize("limit", [8_000, 200_000, 500_000])  # code, weights, optimizer
def test_whatever_file_does_not_fit_it_is_the_same_sentence(make_trainer, limit):
    trainer = make_trainer(**SAVING | {"max_steps": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(CheckpointWriteError, match="checkpoint-1: could not be written to its end"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(trainer.args.output_dir) == []


def test_the_script_ends_on_a_full_disk_with_that_sentence(command, tmp_path, monkeypatch):
    # A data worker that nobody waits for would keep the tests after this one waiting.
    monkeypatch.setattr("sys.argv", command(tmp_path / "out", "--max_steps", 1, "--dataloader_num_workers", 0))
    monkeypatch.setattr(ContrastiveTrainer, "_save_optimizer_and_scheduler", out_of_space)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "run_contrastive.py"), run_name="__main__")
    assert end.value.code.startswith(f"error: {tmp_path}/out/checkpoint-1: could not be written")  # exit code 1


def test_other_errors_stay_as_they_are_and_a_whole_checkpoint_stays(make_trainer, monkeypatch):
    trainer = make_trainer(**SAVING)
    monkeypatch.setattr(trainer, "_save", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert os.listdir(trainer.args.output_dir) == []
    trainer = make_trainer(name="other", **SAVING)
    monkeypatch.setattr("transformers.trainer.rotate_checkpoints", lambda **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert last_whole_checkpoint(trainer.args.output_dir).endswith("checkpoint-1")


# --- SIGTERM ---


class Terminate(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("step", [2, 4, 6])  # within an epoch; its last one; the last one of all
def test_sigterm_saves_the_step_under_way_and_training_goes_on_from_it(make_trainer, step):
    scores = itertools.cycle([1.0, 3.0, 2.0])
    options = {
        "max_steps": 6,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "score",
        "save_total_limit": 1,
    }

    def make(**more):
        return make_trainer(evaluator=lambda model, tokenizer: {"score": next(scores)}, **options, **more)

    stopped = make(callbacks=[Terminate(step)])
    with pytest.raises(Preempted) as end, save_on_sigterm(stopped):
        stopped.train()
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    checkpoint = last_whole_checkpoint(stopped.args.output_dir)
    assert checkpoint.endswith(f"checkpoint-{step}")
    resumed = make()
    resumed.train(resume_from_checkpoint=checkpoint)
    assert resumed.state.global_step == 6
    evaluated = [entry["step"] for entry in resumed.state.log_history if "eval_score" in entry]
    assert evaluated == [4, 6]  # as without the break


def test_a_handler_that_is_there_is_left_alone(make_trainer):
    caught = []
    before = signal.signal(signal.SIGTERM, lambda *args: caught.append(args))
    try:
        trainer = make_trainer(max_steps=2, callbacks=[Terminate(1)])
        with save_on_sigterm(trainer):
            trainer.train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(caught) == 1
    assert trainer.state.global_step == 2


def test_a_data_worker_outlives_sigterm_for_the_time_of_grace(make_trainer, monkeypatch):
    monkeypatch.setattr(fault_tolerance, "GRACE", 1)
    trainer = make_trainer(dataloader_num_workers=1, train_dataset=Dataset.from_list(triplets(14)))
    batches = iter(trainer.get_train_dataloader())
    next(batches)
    (worker,) = batches._workers
    worker.terminate()
    worker.join(0.3)
    assert worker.is_alive()
    with contextlib.suppress(RuntimeError):  # the data loader may notice it first
        worker.join(5)
    assert not worker.is_alive()
