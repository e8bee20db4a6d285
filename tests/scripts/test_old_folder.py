"""
A checkpoint from before the package was laid out in folders opens, trains on and resumes.

`fixtures/flat_layout/checkpoint-2` was saved after 2 of 4 steps by the release whose modules all lay in one folder,
and carries that code. `embeddings.json` holds the embeddings that the same release computed with it, and those after
its 4 steps.
"""

import json
import shutil

import numpy as np
import pytest

from modeling_layerpool import load_layerpool
from tests.conftest import assert_close_to
from tests.processes import ROOT, launch, run_without_the_package


FOLDER = ROOT / "tests" / "fixtures" / "flat_layout"


@pytest.fixture
def stored():
    content = json.loads((FOLDER / "embeddings.json").read_text())
    return {name: value if name == "sentences" else np.float32(value) for name, value in content.items()}


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(FOLDER / "checkpoint-2", tmp_path / "run" / "checkpoint-2")


def train(model, output_dir, *options):
    done = launch(
        "run_contrastive.py",
        *("--model_name_or_path", model, "--objective", "supervised", "--train_file", FOLDER / "train.jsonl"),
        *("--do_train", "--per_device_train_batch_size", 4, "--learning_rate", 1e-2, "--max_steps", 4),
        *("--save_strategy", "steps", "--save_steps", 2, "--seed", 7, "--output_dir", output_dir, *options),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_layerpool(str(output_dir))


def test_it_gives_the_stored_embeddings(checkpoint, stored):
    model, tokenizer = load_layerpool(str(checkpoint))
    assert_close_to(model.encode(stored["sentences"], tokenizer), stored["after_2_steps"])


def test_its_own_code_gives_the_stored_embeddings(checkpoint, stored, tmp_path):
    code = """
        import json, sys
        import numpy as np
        from transformers import AutoModel, AutoTokenizer
        folder, stored = sys.argv[1], json.loads(open(sys.argv[2]).read())
        model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        embeddings = model.encode(stored["sentences"], AutoTokenizer.from_pretrained(folder, trust_remote_code=True))
        expected = np.float32(stored["after_2_steps"])
        assert abs(embeddings - expected).max() < 2e-6 * max(1, abs(expected).max())
    """
    run_without_the_package(code, checkpoint, FOLDER / "embeddings.json", cwd=tmp_path)


def test_it_resumes_as_the_earlier_release_went_on(checkpoint, stored):
    model, tokenizer = train(checkpoint, checkpoint.parent, "--resume_from_checkpoint", checkpoint)
    embeddings = model.encode(stored["sentences"], tokenizer)
    assert abs(embeddings - stored["after_2_steps"]).max() > 1e-2
    # Adam enlarges the rounding of small gradients.
    assert_close_to(embeddings, stored["after_4_steps"], 1e-4)


def test_it_is_a_start_for_more_training(checkpoint, stored, tmp_path):
    model, tokenizer = train(checkpoint, tmp_path / "further")
    embeddings = model.encode(stored["sentences"], tokenizer)
    assert np.isfinite(embeddings).all()
    assert abs(embeddings - stored["after_2_steps"]).max() > 1e-2
