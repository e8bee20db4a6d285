"""The example that trains six heads on one encoder: what it prints and saves, and what it refuses."""

import gzip
import importlib.util
import json
import re

import pytest

from tests.processes import ROOT


SCRIPT = ROOT / "examples" / "many_tasks" / "many_tasks.py"
ROWS = 20


def write_task(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"sentence": f"the {'cat' if i % 2 else 'dog'} sees {i}", "label": labels[i % 2]} for i in range(ROWS)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.fixture
def data(tmp_path):
    for name in ("mr.jsonl", "cr.jsonl.gz", "subj.jsonl", "mpqa.jsonl", "sst2/train.jsonl", "sst2/test.jsonl"):
        write_task(tmp_path / "data" / name, (0, 1))
    for part in ("train", "test"):
        write_task(tmp_path / "data" / "trec" / f"{part}.jsonl.gz", ("NUM", "HUM"))
    return tmp_path / "data"


@pytest.fixture
def run(data, tiny_folder, tmp_path, capsys):
    """Runs the example on tiny data and a tiny encoder, and returns what it printed."""
    spec = importlib.util.spec_from_file_location("many_tasks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments):
        own = ("--data", str(data), "--output_dir", str(tmp_path / "out"), "--model_name_or_path", tiny_folder)
        module.main([*own, *arguments])
        return capsys.readouterr().out

    return run


def test_six_heads_are_trained_saved_and_answer_together(run, tmp_path):
    told = run("--num_train_epochs", "1", "--max_test_rows", "5")
    rows = {row[0]: row[1:3] for row in re.findall(r"^(\w+) +(\d+) +(\d+) +\d+\.\d", told, re.MULTILINE)}
    split, whole = ("18", "2"), (str(ROWS), "5")  # every tenth row, or a test file of which 5 rows are used
    assert rows == {"mr": split, "cr": split, "subj": split, "mpqa": split, "sst2": whole, "trec": whole}
    for task in rows:
        assert {"head.json", "head.safetensors"} == {path.name for path in (tmp_path / "out" / task).iterdir()}
    assert "train_runtime" not in told
    answers = told.partition("sentences by all heads")[2]
    assert re.search(r"^Who was the first woman .*(objective|subjective) .*(NUM|HUM) ", answers, re.MULTILINE)
    assert "Total time" in told


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("mr.jsonl", None, r"data: has no mr.jsonl or mr.jsonl.gz; see --help"),
        (
            "mr.jsonl",
            '{"sentence": "a", "label": 2}\n{"sentence": "b", "label": 1}\n',
            r"line 1: the label of mr must be",
        ),
        ("subj.jsonl", '{"text": 3}\n', r"subj.jsonl, line 1: "),
    ],
)
def test_data_that_cannot_be_used_are_one_sentence(run, data, name, content, sentence, capsys):
    (data / name).unlink()
    if content is not None:
        (data / name).write_text(content)
    with pytest.raises(SystemExit) as end:
        run()
    assert end.value.code == 2
    assert re.search(sentence, capsys.readouterr().err.strip())


def test_a_folder_that_does_not_exist_is_one_sentence(run, capsys):
    with pytest.raises(SystemExit):
        run("--data", "nowhere")
    assert "--data nowhere: no such folder; it needs the tasks mr, cr" in capsys.readouterr().err
