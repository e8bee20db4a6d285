"""
Mine hard negatives: texts that a model finds near an anchor, but that are not its positive.

    python -m modeling_layerpool.evaluation.mine_negatives --model_name_or_path runs/nli \\
        --train_file pairs.jsonl --output_file triplets.jsonl

Writes a file that `run_contrastive.py --objective supervised` trains on. See docs/hard-negatives.md.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from tabulate import tabulate
from transformers.utils import logging

from ..common.columns import COLUMNS, ColumnNames
from ..common.command_line import Range, check_arguments, read_arguments
from ..common.errors import InputError, usage_errors
from ..common.folders import output_folder
from ..common.nearest_texts import NEIGHBOUR_SEARCHES, FaissSearch
from ..common.rows import check_text, read_rows, require_columns, row_name
from .encoders import CachingEncoder, Encoder, encode_queries_and_documents
from .loading import load_encoder
from .retrieval import search


SAMPLINGS = ("top", "random")
CANDIDATES_FOR_A_NEGATIVE = 10
ANCHORS_AT_ONCE = 1024


@dataclass(kw_only=True)
class MiningOptions:
    """
    Which of the texts near an anchor become its negatives.

    The candidates of an anchor are the texts nearest to it, without its positives and without a text equal to it.
    Those that are too near or too far are left out, the best `range_max` of the others are kept, and the first
    `range_min` of these are skipped. These rules and their order are those of sentence-transformers'
    `mine_hard_negatives`.
    """

    GROUP: ClassVar[str] = "choice of negatives"
    RANGES: ClassVar = {
        "num_negatives": Range(at_least=1),
        "range_min": Range(at_least=0),
        "range_max": Range(at_least=1),
        "max_score": Range(at_least=-1, at_most=1),
        "min_score": Range(at_least=-1, at_most=1),
    }

    num_negatives: int = field(default=1, metadata={"help": "Negatives of each row."})
    range_min: int = field(
        default=0, metadata={"help": "Number of best candidates to skip, since they may be positives."}
    )
    range_max: int | None = field(
        default=None,
        metadata={
            "help": "Number of best candidates to choose from. Default: range_min + "
            f"{CANDIDATES_FOR_A_NEGATIVE} * num_negatives."
        },
    )
    relative_margin: float | None = field(
        default=0.05,
        metadata={
            "help": "A negative's cosine to the anchor is below the positive's by at least this fraction of it "
            "(0.05 as in NV-Retriever, arXiv 2407.15831). If an anchor has several positives, the farthest counts."
        },
    )
    absolute_margin: float | None = field(
        default=None, metadata={"help": "A negative's cosine is below the positive's by at least this much."}
    )
    max_score: float | None = field(default=None, metadata={"help": "Highest cosine of a negative to its anchor."})
    min_score: float | None = field(default=None, metadata={"help": "Lowest cosine of a negative to its anchor."})
    sampling: str = field(
        default="top",
        metadata={"choices": SAMPLINGS, "help": "Take the best candidates (top) or draw from all of them (random)."},
    )
    seed: int = field(default=42, metadata={"help": "Seed of --sampling random."})

    def __post_init__(self):
        check_arguments(self)
        if self.range_max is None:
            self.range_max = self.range_min + CANDIDATES_FOR_A_NEGATIVE * self.num_negatives
        if self.range_max - self.range_min < self.num_negatives:
            raise InputError(
                f"range_max={self.range_max} leaves {max(0, self.range_max - self.range_min)} candidates after "
                f"range_min={self.range_min}; raise it to at least {self.range_min + self.num_negatives}"
            )


@dataclass(kw_only=True)
class MiningArguments(MiningOptions):
    """The model, the data and the search."""

    RANGES: ClassVar = {"max_seq_length": Range(at_least=1)}

    model_name_or_path: str = field(metadata={"help": "Any encoder: a folder or a Hub model ID."})
    train_file: str = field(metadata={"help": "Rows with the columns anchor and positive."})
    output_file: str = field(metadata={"help": "New .jsonl file with the columns anchor, positive and negative."})
    corpus_file: str | None = field(
        default=None,
        metadata={"help": "More texts to choose negatives from, in the column text. Default: the positives alone."},
    )
    columns: list[str] = field(default_factory=list, metadata=COLUMNS)
    neighbour_search: str = field(
        default="exact",
        metadata={
            "choices": tuple(NEIGHBOUR_SEARCHES),
            "help": "Compute all cosines (exact), or search with an index of FAISS, which is faster for a large "
            "corpus and may miss a text (faiss).",
        },
    )
    max_seq_length: int | None = field(
        default=None, metadata={"help": "Maximum number of tokens of a text. Default: that of the model."}
    )
    revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a Hub model."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})
    allow_pickle: bool = field(default=False, metadata={"help": "Also load pickled weights, which can run code."})


@dataclass
class MinedNegatives:
    """The result of [`mine_negatives`]: for each row its negatives, none if too few were found, and cosines."""

    negatives: list[list[str]]
    positive_scores: np.ndarray  # (rows,)
    negative_scores: np.ndarray  # of all negatives


def mine_negatives(
    encoder: Encoder,
    anchors: Sequence[str],
    positives: Sequence[str],
    corpus: Sequence[str] = (),
    options: MiningOptions | None = None,
    *,
    neighbour_search: str = "exact",
    show_progress_bar: bool = True,
) -> MinedNegatives:
    """
    Find hard negatives for pairs of texts.

    Args:
        encoder: embeds anchors as queries and all other texts as documents, if it tells them apart.
        anchors, positives: the two texts of each row. An anchor may occur in several rows with different positives.
        corpus: more candidates; the positives of all rows are candidates in any case.
        options: default: `MiningOptions()`.
        neighbour_search: `"exact"` or `"faiss"`.
        show_progress_bar: whether to show the progress of the search.

    Raises:
        InputError: an embedding is not finite, or FAISS is not installed.
    """
    options = options or MiningOptions()
    documents = list(dict.fromkeys([*corpus, *positives]))
    position = {text: index for index, text in enumerate(documents)}
    positives_of: dict[str, dict[int, None]] = {}  # the documents by index, each once, in order
    for anchor, positive in zip(anchors, positives, strict=True):
        positives_of.setdefault(anchor, {})[position[positive]] = None
    queries = list(positives_of)
    excluded = [{*positives_of[query], position.get(query, -1)} - {-1} for query in queries]
    embeddings = encode_queries_and_documents(CachingEncoder(encoder), queries, documents)
    of_queries, of_documents = (torch.nn.functional.normalize(torch.from_numpy(part).double()) for part in embeddings)
    # The search finds what is excluded, too.
    depth = options.range_max + max(map(len, excluded))
    found = _nearest(of_queries, of_documents, depth, neighbour_search, show_progress_bar)

    random = np.random.default_rng(options.seed)
    positive_cosines: dict[str, dict[int, float]] = {}
    mined: dict[str, dict[int, float]] = {}
    for query, embedding, nearest, left_out in zip(queries, of_queries, found, excluded, strict=True):
        own = list(positives_of[query])
        positive_cosines[query] = dict(zip(own, (of_documents[own] @ embedding).tolist(), strict=True))
        candidates = nearest[(nearest >= 0) & ~np.isin(nearest, list(left_out))]
        cosines = (of_documents[candidates] @ embedding).numpy()
        is_kept = _is_far_enough(cosines, min(positive_cosines[query].values()), options)
        indices = np.flatnonzero(is_kept)[: options.range_max][options.range_min :]
        if len(indices) < options.num_negatives:
            mined[query] = {}
            continue
        if options.sampling == "random":
            indices = np.sort(random.choice(indices, options.num_negatives, replace=False))
        indices = indices[: options.num_negatives]
        mined[query] = dict(zip(candidates[indices].tolist(), cosines[indices].tolist(), strict=True))
    return MinedNegatives(
        negatives=[[documents[index] for index in mined[anchor]] for anchor in anchors],
        positive_scores=np.array(
            [positive_cosines[anchor][position[text]] for anchor, text in zip(anchors, positives, strict=True)]
        ),
        negative_scores=np.array([score for anchor in anchors for score in mined[anchor].values()]),
    )


def _is_far_enough(cosines: np.ndarray, positive: float, options: MiningOptions) -> np.ndarray:
    is_kept = np.ones(len(cosines), dtype=bool)
    if options.relative_margin is not None:
        is_kept &= cosines <= positive - abs(positive) * options.relative_margin
    if options.absolute_margin is not None:
        is_kept &= cosines + options.absolute_margin <= positive
    if options.max_score is not None:
        is_kept &= cosines <= options.max_score
    if options.min_score is not None:
        is_kept &= cosines >= options.min_score
    return is_kept


def _nearest(
    queries: torch.Tensor, documents: torch.Tensor, depth: int, neighbour_search: str, show_progress_bar: bool
) -> np.ndarray:
    """The nearest documents of each query, best first, -1 where none was found."""
    if neighbour_search == "exact":
        return search(queries.numpy(), documents.numpy(), depth, show_progress_bar=show_progress_bar)
    units = torch.cat([documents, queries]).float()
    find, may_be_found = FaissSearch(units), torch.arange(len(documents))
    found = []
    with logging.tqdm(total=len(queries), desc="Searching", unit="text", disable=not show_progress_bar) as progress:
        for begin in range(0, len(queries), ANCHORS_AT_ONCE):
            texts = range(len(documents) + begin, min(len(units), len(documents) + begin + ANCHORS_AT_ONCE))
            found.append(find(list(texts), may_be_found, depth).numpy())
            progress.update(len(texts))
    return np.concatenate(found)


def read_pairs(path: str, columns: ColumnNames) -> tuple[list[str], list[str]]:
    """The anchors and positives of a file."""
    texts = [_read_column(path, name, columns) for name in ("anchor", "positive")]
    return texts[0], texts[1]


def _read_column(path: str, name: str, columns: ColumnNames) -> list[str]:
    texts, column = [], None
    for number, row in read_rows(path):
        where = row_name(path, number)
        if column is None:  # the first row decides
            column = columns.of(row).get(name, name)
        require_columns(row, [column], where)
        texts.append(check_text(row[column], where, column))
    if not texts:
        raise InputError(f"{path}: the file is empty")
    return texts


def write_triplets(
    path: Path, anchors: Sequence[str], positives: Sequence[str], negatives: Sequence[Sequence[str]]
) -> int:
    """
    Write the rows that have negatives, in the columns `negative`, or `negative_1`, `negative_2` and so on.

    Returns:
        The number of rows. No file is written if it is 0.
    """
    part, written = path.with_name(f".{path.name}.{os.getpid()}"), 0
    try:
        with part.open("w", encoding="utf-8") as file:
            for anchor, positive, found in zip(anchors, positives, negatives, strict=True):
                names = (
                    ["negative"] if len(found) == 1 else [f"negative_{number}" for number in range(1, len(found) + 1)]
                )
                if found:
                    row = {"anchor": anchor, "positive": positive} | dict(zip(names, found, strict=True))
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    written += 1
        if written:
            part.rename(path)
    finally:
        part.unlink(missing_ok=True)
    return written


def describe(mined: MinedNegatives) -> str:
    """The cosines of positives and negatives to their anchors as a table."""
    rows = [
        (name, f"{len(scores):,}", scores.mean(), scores.min(), scores.max())
        for name, scores in (("positives", mined.positive_scores), ("negatives", mined.negative_scores))
    ]
    headers = ("cosine to the anchor", "number", "mean", "lowest", "highest")
    return tabulate(rows, headers=headers, floatfmt=".3f", colalign=("left", "right"))


def run(arguments: MiningArguments) -> None:
    output = Path(arguments.output_file)
    if output.suffix != ".jsonl":
        raise InputError(f"--output_file {output}: must end in .jsonl")
    if output.exists():
        raise InputError(f"--output_file {output}: exists; name a new file")
    columns = ColumnNames.parse(arguments.columns, ("anchor", "positive", "text"))
    anchors, positives = read_pairs(arguments.train_file, columns)
    corpus = [] if arguments.corpus_file is None else _read_column(arguments.corpus_file, "text", columns)
    columns.check_seen()
    with output_folder(output.parent, "--output_file"):
        encoder = load_encoder(
            arguments.model_name_or_path,
            revision=arguments.revision,
            max_seq_length=arguments.max_seq_length,
            trust_remote_code=arguments.trust_remote_code,
            allow_pickle=arguments.allow_pickle,
        )
        mined = mine_negatives(
            encoder, anchors, positives, corpus, arguments, neighbour_search=arguments.neighbour_search
        )
        written = write_triplets(output, anchors, positives, mined.negatives)
    advice = "choose from more candidates (--range_max, --corpus_file) or lower the margins"
    if not written:
        raise InputError(f"{arguments.train_file}: no row has {arguments.num_negatives} negatives; {advice}")
    print(describe(mined))
    print(f"\n{output}: {written:,} of {len(anchors):,} rows; negatives in each: {arguments.num_negatives}")
    if written < len(anchors):
        print(f"{len(anchors) - written:,} rows have too few negatives and were left out; to keep them, {advice}")


def main() -> None:
    with usage_errors():
        (arguments,) = read_arguments(MiningArguments, description=__doc__)
        run(arguments)


if __name__ == "__main__":
    main()
