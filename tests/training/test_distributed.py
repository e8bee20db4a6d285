"""Two real processes (gloo, on the CPU), started as a user would."""

import pytest
import torch

from tests.conftest import ROOT, launch


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    found = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"processes{processes}")
        done = launch(ROOT / "tests" / "training" / "gradients_of_a_run.py", folder, processes, processes=processes)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
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
