"""What must hold for pairs mined from the standard library, whatever Python it is."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "stdlib_search" / "mine_docs.py"


def run_script(output_dir, hash_seed):
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, SCRIPT, "--output_dir", output_dir]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    return output_dir


def read_json_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def words(text):
    return " ".join(re.findall(r"\w+", text.casefold()))


def modules_of(titles):
    return {re.match(r"\w+", title)[0] for title in titles}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run_script(tmp_path_factory.mktemp("mined"), "1")


@pytest.fixture(scope="module")
def pairs(folder):
    return read_json_lines(folder / "train.jsonl")


@pytest.fixture(scope="module", params=["dev", "test"])
def retrieval(folder, request):
    """Documents and queries by id, and the pairs of ids that are relevant."""
    split = folder / request.param
    documents = {row["_id"]: row for row in read_json_lines(split / "corpus.jsonl")}
    queries = {row["_id"]: row["text"] for row in read_json_lines(split / "queries.jsonl")}
    header, *lines = (split / "qrels_test.tsv").read_text(encoding="utf-8").splitlines()
    assert header == "query-id\tcorpus-id\tscore"
    return documents, queries, [tuple(line.split("\t")) for line in lines]


def test_two_runs_write_the_same_bytes(folder, tmp_path):
    again = run_script(tmp_path, "2")
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    assert len(files) == 7
    for file in files:
        assert (folder / file).read_bytes() == (again / file).read_bytes(), file


def test_there_is_enough_to_train_and_to_measure(folder, pairs):
    assert len(pairs) >= 2500
    assert len(read_json_lines(folder / "dev" / "queries.jsonl")) >= 150
    assert len(read_json_lines(folder / "test" / "queries.jsonl")) >= 400


def test_no_training_text_is_empty_or_long(pairs):
    for pair in pairs:
        assert pair.keys() == {"anchor", "positive"}
        assert 4 <= len(pair["anchor"].split()) <= 40
        assert 1 <= len(pair["positive"].split()) <= 135


def test_every_query_has_one_document_and_every_document_one_query(retrieval):
    documents, queries, relevant = retrieval
    assert sorted(query for query, _, _ in relevant) == sorted(queries)
    assert sorted(document for _, document, _ in relevant) == sorted(documents)
    assert {score for _, _, score in relevant} == {"1"}
    assert all(text.strip() for text in queries.values())
    assert all(document["title"].startswith(name) for name, document in documents.items())


def test_no_query_is_contained_in_its_document_or_names_it(retrieval, pairs):
    documents, queries, relevant = retrieval
    for query, document, _ in relevant:
        title, text = documents[document]["title"], documents[document]["text"]
        assert words(queries[query]) not in words(f"{title} {text}")
        assert "." not in document or document not in queries[query]
    for pair in pairs:
        assert words(pair["anchor"]) not in words(pair["positive"])


def test_no_two_queries_of_the_corpus_are_alike(folder, pairs):
    anchors = [words(pair["anchor"]) for pair in pairs]
    for split in ("dev", "test"):
        anchors += [words(row["text"]) for row in read_json_lines(folder / split / "queries.jsonl")]
    assert len(anchors) == len(set(anchors))


def test_no_module_is_in_two_splits(folder, pairs):
    train = modules_of(pair["positive"] for pair in pairs)
    dev, test = (
        modules_of(row["_id"] for row in read_json_lines(folder / split / "corpus.jsonl")) for split in ("dev", "test")
    )
    assert not train & dev
    assert not train & test
    assert not dev & test


def test_the_questions_of_the_demo_have_their_answers_in_the_test_split(folder):
    names = {row["_id"] for row in read_json_lines(folder / "test" / "corpus.jsonl")}
    assert {"heapq.nsmallest", "shutil.rmtree", "textwrap.wrap"} <= names


def test_no_private_name_is_measured(retrieval):
    documents, _, _ = retrieval
    assert not [name for name in documents if "._" in name or name.startswith("_")]


@pytest.fixture(scope="module")
def mine_docs():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import mine_docs
    finally:
        sys.path.pop(0)
    return mine_docs


@pytest.mark.parametrize("source", [b"def broken(:", b"# coding: unknown\n", b"\xff\xfe\x00", b"x\x00y"])
def test_a_file_that_cannot_be_parsed_has_no_entries(mine_docs, source, tmp_path, monkeypatch):
    (tmp_path / "odd.py").write_bytes(source)
    monkeypatch.setattr(mine_docs, "library_folder", lambda: tmp_path)
    assert list(mine_docs.entries_of("odd")) == []


def test_a_source_file_is_read_and_not_run(mine_docs, tmp_path, monkeypatch):
    (tmp_path / "odd.py").write_text(
        "raise SystemExit\n"
        "class Box:\n"
        "    '''Hold a thing for later, e.g. a key. It is small.'''\n"
        "    def __init__(self, size=1): pass\n"
        "    def put(self, thing):\n"
        "        '''put(thing) -> None\n\n        Lay a thing into the box.\n\n        Twice is fine.'''\n"
    )
    monkeypatch.setattr(mine_docs, "library_folder", lambda: tmp_path)
    box, put = mine_docs.entries_of("odd")
    assert (box.title, box.summary, box.text) == (
        "odd.Box(size=1)",
        "Hold a thing for later, e.g. a key.",
        "It is small.",
    )
    assert (put.title, put.summary, put.text) == ("odd.Box.put(thing)", "Lay a thing into the box.", "Twice is fine.")
