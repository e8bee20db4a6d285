"""Two real processes (gloo, on the CPU), started as a user would."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from modeling_layerpool.evaluation import ShardedEncoder, is_main_process, join_processes
from tests.evaluation.data import PAIRS, VectorEncoder, write_lines, write_pairs, write_retrieval, write_transfer
from tests.processes import ROOT, accelerate_launch, launch


SCRIPT = ROOT / "tests" / "evaluation" / "noting_evaluation.py"


@pytest.fixture
def start(tiny_folder, tmp_path):
    """Evaluate with this many processes. Returns the finished processes and their folder."""

    def run(processes, *more, failing_rank=-1, launch=launch):
        folder = tmp_path / f"on {processes}"
        folder.mkdir()
        arguments = ("--model_name_or_path", tiny_folder, "--output_dir", folder, *more)
        return launch(SCRIPT, folder, failing_rank, *arguments, processes=processes), folder

    return run


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.long
def test_two_processes_share_the_texts_and_measure_what_one_does(start, tmp_path):
    labels = [{"sentence1": a, "sentence2": b, "label": int(score > 3)} for a, b, score in PAIRS]
    data = (
        *("--sts", f"inline={write_pairs(tmp_path / 'pairs.jsonl')}"),
        *("--pairs", f"labels={write_lines(tmp_path / 'labels.jsonl', labels)}"),
        *("--retrieval", f"small={write_retrieval(tmp_path / 'retrieval')}"),
        *("--transfer", f"task={write_transfer(tmp_path / 'task.jsonl')}"),
        "--plots",
    )
    (one, alone), (two, shared) = start(1, *data), start(2, *data)
    assert one.returncode == 0, one.stderr[-4000:]
    assert two.returncode == 0, two.stderr[-4000:]

    expected, measured = read(alone / "evaluation.json"), read(shared / "evaluation.json")
    assert list(measured) == list(expected)
    for group in ("sts", "pairs", "retrieval"):
        assert list(measured[group]) == list(expected[group])
        for name, scores in expected[group].items():
            assert measured[group][name] == pytest.approx(scores, rel=1e-5)  # cosines that differ by little
    assert measured["geometry"] == pytest.approx(expected["geometry"], rel=1e-5, abs=1e-6)
    assert (
        measured["transfer"] == expected["transfer"] == {"task": {"accuracy": 100.0, "rows": 40, "features": "pooled"}}
    )

    names = [sorted(path.name for path in (folder / "plots").iterdir()) for folder in (alone, shared)]
    assert names[0] == names[1] == ["alignment_uniformity.png", "similarities_inline.png", "spectrum.png"]

    whole, shares = read(alone / "0.json"), [read(shared / f"{rank}.json") for rank in (0, 1)]
    # Counter: a text of two sets is embedded for each of them
    assert Counter(shares[0]["embedded"] + shares[1]["embedded"]) == Counter(whole["embedded"])
    assert abs(len(shares[0]["embedded"]) - len(shares[1]["embedded"])) <= 4, "at most one a set"
    lengths = [sum(map(len, share["embedded"])) for share in shares]
    assert max(lengths) < 1.2 * min(lengths)
    assert [share["calls_for_few"] for share in shares] == [[["a"]], []]

    # Gloo of torch 2.8 says there, too, that its processes are connected.
    printed = [line for line in two.stdout.splitlines() if "connected peer ranks" not in line]
    expected = one.stdout.replace(str(alone), str(shared)).splitlines()
    assert printed == expected, "only the main process prints"
    assert two.stderr.count("Encoding:   0%") == one.stderr.count("Encoding:   0%") > 0
    assert two.stderr.count("Searching:   0%") == one.stderr.count("Searching:   0%") > 0


@pytest.mark.long
def test_processes_keep_a_text_apart_that_is_a_query_and_a_document(start, tiny_folder, tmp_path):
    settings = {
        "prompts": {"query": "query: ", "document": "passage: ", "alike": "like: "},
        "default_prompt_name": "alike",
    }
    write_lines(Path(tiny_folder, "config_sentence_transformers.json"), [settings])
    folder = write_retrieval(tmp_path / "retrieval")
    both = "Dogs were the first animals that people kept."
    write_lines(
        folder / "queries.jsonl", [{"_id": name, "text": text} for name, text in (("q1", both), ("q2", "dogs"))]
    )
    data = ("--retrieval", f"small={folder}", "--sts", f"inline={write_pairs(tmp_path / 'pairs.jsonl')}")
    (one, alone), (two, shared) = start(1, *data), start(2, *data)
    assert one.returncode == 0, one.stderr[-4000:]
    assert two.returncode == 0, two.stderr[-4000:]

    whole, shares = read(alone / "0.json")["embedded"], [read(shared / f"{rank}.json")["embedded"] for rank in (0, 1)]
    assert Counter(shares[0] + shares[1]) == Counter(whole)
    assert all(shares)
    assert {f"query: {both}", f"passage: {both}", "passage: Onion", "like: A man plays the guitar."} <= set(whole)
    assert len(whole) == len(set(whole)) == 2 + 4 + len({text for *pair, _ in PAIRS for text in pair})

    expected, measured = read(alone / "evaluation.json"), read(shared / "evaluation.json")
    assert measured["prompts"] == {"sentences": "like: ", "queries": "query: ", "documents": "passage: "}
    for group, name in (("retrieval", "small"), ("sts", "inline")):
        assert measured[group][name] == pytest.approx(expected[group][name], rel=1e-6)
    assert measured["geometry"] == pytest.approx(expected["geometry"], abs=1e-6)


@pytest.mark.long
def test_a_usage_error_ends_all_processes_with_code_2(start):
    done, folder = start(2, "--sts", "a=missing.jsonl")
    assert done.returncode == 2
    assert done.stderr.startswith("error: missing.jsonl: no such file")
    assert list(folder.iterdir()) == []


@pytest.mark.long
def test_a_process_that_fails_takes_the_others_with_it(start, tmp_path):
    done, folder = start(
        2, "--sts", f"inline={write_pairs(tmp_path / 'pairs.jsonl')}", failing_rank=1, launch=accelerate_launch
    )
    assert done.returncode != 0
    assert "the device of this process is full" in done.stderr
    assert list(folder.iterdir()) == []


def test_a_single_process_is_the_main_one_and_embeds_all_texts():
    join_processes()
    assert is_main_process()
    encoder = VectorEncoder({"a": [1, 0], "long": [0, 1]})
    np.testing.assert_array_equal(ShardedEncoder(encoder).encode(["a", "long"]), [[1, 0], [0, 1]])
    assert encoder.calls == [["a", "long"]]
