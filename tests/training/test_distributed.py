"""Two real processes (gloo, on the CPU), started as a user would."""

import pytest
import torch

from tests.conftest import ROOT, launch


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    found = {}
    for processes, *cache in ((1,), (2,), (2, 32)):
        folder = tmp_path_factory.mktemp("run")
        script = ROOT / "tests" / "training" / "gradients_of_a_run.py"
        done = launch(script, folder, processes, *cache, processes=processes)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        found[(processes, *cache)] = torch.load(folder / "result.pt")
    return found


@pytest.mark.parametrize("run", [(2,), (2, 32)], ids=["two processes", "two processes, gradient caching"])
def test_the_gradient_of_two_processes_is_the_one_of_the_whole_batch(results, run):
    whole, parts = results[(1,)]["gradients"], results[run]["gradients"]
    assert len(whole) == len(parts) == 3
    for step, (one, two) in enumerate(zip(whole, parts, strict=True)):
        for name, gradient in one.items():
            torch.testing.assert_close(
                two[name], gradient, rtol=1e-6, atol=1e-12, msg=lambda m, n=name, s=step: f"step {s}, {n}: {m}"
            )


def test_the_logged_loss_of_two_processes_is_the_one_of_the_whole_batch(results):
    assert results[(2,)]["losses"] == pytest.approx(results[(1,)]["losses"], abs=1e-5)
