"""Two real processes (gloo, on the CPU), started as a user would."""

import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT


def launch(script, *arguments, processes, cwd=ROOT):
    """Run a script, through `accelerate launch` if on several processes. `--cpu --num_processes 2` would start one."""
    launcher = []
    if processes > 1:
        launcher = [
            *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--main_process_port", "0"),
            *("--num_processes", str(processes), "--mixed_precision", "no", "--dynamo_backend", "no"),
        ]
    done = subprocess.run(
        [sys.executable, *launcher, str(script), *map(str, arguments)],
        cwd=cwd,
        env=os.environ
        | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    found = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"processes{processes}")
        launch(ROOT / "tests" / "training" / "gradients_of_a_run.py", folder, processes, processes=processes)
        found[processes] = torch.load(folder / "result.pt")
    return found


def test_the_gradient_of_two_processes_is_the_one_of_the_whole_batch(results):
    assert len(results[1]["gradients"]) == len(results[2]["gradients"]) == 3
    for step, (one, two) in enumerate(zip(results[1]["gradients"], results[2]["gradients"], strict=True)):
        for name, gradient in one.items():
            torch.testing.assert_close(
                two[name], gradient, rtol=1e-6, atol=1e-12, msg=lambda m, n=name, s=step: f"step {s}, {n}: {m}"
            )


def test_the_logged_loss_of_two_processes_is_the_one_of_the_whole_batch(results):
    assert results[2]["losses"] == pytest.approx(results[1]["losses"], abs=1e-5)
