"""Publishing to a Hub and opening from it, with the real client against a small server on this machine."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from transformers import AutoTokenizer

from modeling_layerpool import LayerPoolBertModel
from tests.conftest import SENTENCES, assert_close_to
from tests.files import write_rows
from tests.hub_server import running_hub
from tests.processes import ROOT
from tests.training.conftest import triplets


@pytest.fixture
def hub():
    with running_hub() as found:
        yield found


def run(arguments, address, cache, with_package=True, offline=False):
    environment = os.environ | {
        "HF_ENDPOINT": address,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT) if with_package else "",
    }
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cache, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


OPEN = textwrap.dedent("""
    import json, sys
    # As on a machine without the package: an editable installation would be found otherwise.
    sys.modules["modeling_layerpool"] = None
    import numpy as np
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer
    name, revision, texts, file = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
    model = AutoModel.from_pretrained(name, revision=revision, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=True)
    opened = SentenceTransformer(name, revision=revision, trust_remote_code=True, device="cpu")
    found = model.encode(texts, tokenizer)
    assert (model.encode(texts) == found).all()  # the tokenizer of this revision
    assert abs(opened.encode(texts) - found).max() < 2e-6 * max(1, abs(found).max())
    np.save(file, found)
""")


# One process for both, as the address of the Hub is read once.
PUBLISH = """
    import runpy, sys
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
    from modeling_layerpool import LayerPoolBertModel
    model = LayerPoolBertModel.from_pretrained("out")
    model.push_to_hub("tester/pushed", token="hf_test")
    model.save_pretrained("saved", push_to_hub=True, repo_id="tester/saved", token="hf_test")
"""


@pytest.mark.long
def test_a_run_is_published_and_opened_from_the_hub_by_its_commit_and_then_offline(
    hub, tiny_folder, tmp_path, record_difference
):
    server, address = hub
    train = tmp_path / "train.jsonl"
    write_rows(train, triplets(8))
    out = tmp_path / "out"
    run(
        [
            *("-c", textwrap.dedent(PUBLISH)),
            *(ROOT / "run_contrastive.py", "--model_name_or_path", tiny_folder, "--train_file", train),
            *("--output_dir", out, "--max_steps", "2", "--per_device_train_batch_size", "4", "--save_strategy", "no"),
            *("--push_to_hub", "--hub_model_id", "tester/layers", "--hub_token", "hf_test", "--use_cpu"),
            *("--freeze_encoder", "--pooler_type", "weighted_layers"),
        ],
        address,
        tmp_path,
    )
    for name in ("tester/pushed", "tester/saved"):  # from Python
        _, files = server.files(name)
        assert set(files) >= {"config.json", "model.safetensors", "modeling_layerpool_bert.py"}
        assert set(files) >= {"modules.json", "sentence_bert_config.json"}
    commit, files = server.files("tester/layers")
    assert set(files) >= {
        "README.md",
        "config.json",
        "model.safetensors",
        "modeling_layerpool_bert.py",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
    }
    assert [name for name, content in files.items() if b"hf_test" in content] == []
    assert list(out.glob("_states/*.npy"))
    assert [name for name in files if name.endswith(".npy")] == []  # they may tell the texts
    assert any(request == "POST /api/validate-yaml" for request in server.requests)
    expected = LayerPoolBertModel.from_pretrained(out).encode(list(SENTENCES), AutoTokenizer.from_pretrained(out))
    # Somebody else's later commit does not matter to who pins a revision.
    server.commit("tester/layers", {"config.json": b"{}", "tokenizer.json": b"{}"})
    arguments = ["-c", OPEN, "tester/layers", commit, json.dumps(SENTENCES), tmp_path / "found.npy"]
    cache = tmp_path / "cache"
    cache.mkdir()
    run(arguments, address, cache, with_package=False)
    assert_close_to(np.load(tmp_path / "found.npy"), expected)
    difference = abs(np.load(tmp_path / "found.npy") - expected).max()
    record_difference("huggingface_hub", "published, and opened by its commit (a server on the machine)", difference)
    (tmp_path / "found.npy").unlink()
    asked = len(server.requests)
    run(arguments, address, cache, with_package=False, offline=True)
    assert_close_to(np.load(tmp_path / "found.npy"), expected)
    assert len(server.requests) == asked
