"""Real evaluation data if it is there, and a few pairs that always are."""

import json
import os
from pathlib import Path

import numpy as np
import pytest


DATA = Path(os.environ.get("LAYERPOOL_DATA") or Path(__file__).parents[2].parent / "shared" / "data")

PAIRS = [
    ("A man is playing a guitar.", "A man plays the guitar.", 5.0),
    ("A woman is slicing an onion.", "A woman is cutting an onion.", 4.4),
    ("Two dogs run through the snow.", "Two dogs are running on a white field.", 3.6),
    ("A man is playing a guitar.", "A woman is playing a flute.", 1.8),
    ("The stock market fell on Monday.", "Shares dropped at the start of the week.", 3.8),
    ("A child is reading a book.", "The train arrives at noon.", 0.2),
    ("A plane is taking off.", "A woman is slicing an onion.", 0.0),
    ("He did not go to the cinema.", "He went to the cinema.", 2.6),
]
SENTENCES1, SENTENCES2, SCORES = (list(column) for column in zip(*PAIRS, strict=True))


def real_data(path: str) -> Path:
    """A file or folder of the local data, or a skipped test."""
    if not (DATA / path).exists():
        pytest.skip(f"no {path} in {DATA}: set LAYERPOOL_DATA to a folder with the evaluation data")
    return DATA / path


def write_lines(path: Path, rows: list) -> Path:
    """Write each row as a line: a text as it is, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_pairs(path: Path) -> Path:
    """The inline pairs as an STS file."""
    return write_lines(path, [dict(zip(("sentence1", "sentence2", "score"), pair, strict=True)) for pair in PAIRS])


def write_retrieval(folder: Path) -> Path:
    """A corpus of four documents and two judged queries in BEIR's layout."""
    corpus = [
        {"_id": "d1", "title": "Guitar", "text": "A string instrument that is played with the fingers."},
        {"_id": "d2", "title": "", "text": "Dogs were the first animals that people kept."},
        {"_id": "d3", "text": "The stock market is where shares are bought and sold."},
        {"_id": "d4", "title": "Onion", "text": ""},
    ]
    write_lines(folder / "corpus.jsonl", corpus)
    queries = {"q1": "which pet has been with us for longest", "q2": "where are shares traded", "q3": "not judged"}
    write_lines(folder / "queries.jsonl", [{"_id": name, "text": text} for name, text in queries.items()])
    write_lines(folder / "qrels_test.tsv", ["query-id\tcorpus-id\tscore", "q1\td2\t2", "q1\td1\t0", "q2\td3\t1"])
    return folder


def write_transfer(path: Path) -> Path:
    """A task of 40 short texts, about cats or about guitars."""
    words = (("cat", "sleeps"), ("guitar", "sounds"))
    texts = [
        (" ".join(["The", noun, verb, *["again"] * (row % 5)]), noun) for row in range(20) for noun, verb in words
    ]
    return write_lines(path, [{"sentence": text, "label": label} for text, label in texts])


class VectorEncoder:
    """An encoder that looks up the vector of each text, and notes the texts of each call."""

    def __init__(self, vectors: dict):
        self.vectors = vectors
        self.calls: list[list[str]] = []

    def encode(self, sentences: list[str]) -> np.ndarray:
        self.calls.append(list(sentences))
        return np.array([self.vectors[text] for text in sentences], dtype=np.float32)
