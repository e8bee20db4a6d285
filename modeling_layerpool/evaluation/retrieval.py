"""Semantic search: rank a corpus by cosine for each query and measure the ranking as BEIR does."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers.utils import logging

from ..common.errors import InputError
from ..common.rows import check_number, check_text, is_folder, read_rows, require_columns
from .encoders import CachingEncoder, Encoder, encode_queries_and_documents
from .metrics import RANKING_DEPTH, RetrievalMetric


# The main metric first, and whether more is better.
METRICS = {"ndcg@10": True, "mrr@10": True, "map": True, "recall@100": True}

Texts = dict[str, str]
Qrels = dict[str, dict[str, int]]


def read_retrieval_folder(folder: str | Path) -> tuple[Texts, Texts, Qrels]:
    """Read a folder in BEIR's layout: `evaluate_retrieval(encoder, *read_retrieval_folder(folder))`.

    Args:
        folder: holds `corpus.jsonl` (`_id`, `text`, optionally `title`) and `queries.jsonl` (`_id`, `text`), or the
            same as `.jsonl.gz`, and the test judgments `qrels_test.tsv` or `qrels/test.tsv` with the header
            `query-id`, `corpus-id`, `score` (whole numbers).

    Returns:
        `(corpus, queries, qrels)`: `{document id: title and text, joined by a space}`, `{query id: text}`,
        `{query id: {document id: relevance}}`, in file order. Includes queries without a judgment.

    Raises:
        InputError: a file is missing or empty; or a row (with its line) lacks a column or a text, repeats an id, names
            an unknown query or document, or contradicts an earlier judgment.
    """
    folder = Path(folder)
    if not is_folder(folder):
        raise InputError(f"{folder}: no such folder")
    corpus = _read_texts(_find(folder, "corpus.jsonl", "corpus.jsonl.gz"), with_title=True)
    queries = _read_texts(_find(folder, "queries.jsonl", "queries.jsonl.gz"), with_title=False)
    return corpus, queries, _read_qrels(_find(folder, "qrels_test.tsv", "qrels/test.tsv"), corpus, queries)


def _find(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder}: has neither {' nor '.join(names)}")


def _read_texts(path: Path, with_title: bool) -> Texts:
    texts = {}
    for line, row in read_rows(path):
        where = f"{path}, line {line}"
        require_columns(row, ("_id", "text"), where)
        text = row["text"]
        if with_title and row.get("title"):
            # BEIR's join; a document may consist of its title alone
            text = f"{check_text(row['title'], where, 'title')} {text or ''}".strip()
        # some data sets number their documents
        identifier = str(row["_id"]) if isinstance(row["_id"], int) else check_text(row["_id"], where, "_id")
        if identifier in texts:
            raise InputError(f"{where}: the _id {identifier!r} is there twice")
        texts[identifier] = check_text(text, where, "text")
    if not texts:
        raise InputError(f"{path}: no rows")
    return texts


def _read_qrels(path: Path, corpus: Texts, queries: Texts) -> Qrels:
    qrels: Qrels = {}
    for line, row in read_rows(path):
        where = f"{path}, line {line}"
        require_columns(row, ("query-id", "corpus-id", "score"), where)
        query, document = row["query-id"], row["corpus-id"]
        relevance = check_number(row["score"], where, "score")
        if query not in queries:
            raise InputError(f"{where}: the query {query!r} is not in the queries file")
        if document not in corpus:
            raise InputError(f"{where}: the document {document!r} is not in the corpus file")
        if not relevance.is_integer() or abs(relevance) >= 2**31:
            raise InputError(f"{where}: the column 'score' must be a whole number below 2^31, got {row['score']!r}")
        if qrels.setdefault(query, {}).setdefault(document, int(relevance)) != relevance:
            raise InputError(f"{where}: query {query!r} and document {document!r} were judged differently before")
    if not any(relevance > 0 for judged in qrels.values() for relevance in judged.values()):
        raise InputError(f"{path}: no document is relevant to any query (score above 0)")
    return qrels


def search(
    queries: np.ndarray,
    corpus: np.ndarray,
    k: int,
    *,
    query_block: int = 256,
    corpus_block: int = 8192,
    device: str | torch.device | None = None,
    show_progress_bar: bool = True,
) -> np.ndarray:
    """Exact search by cosine, in float64 and in blocks of at most `query_block x (corpus_block + k)` scores.

    Args:
        queries: (q, d), float, not necessarily normalized.
        corpus: (c, d), likewise; c below 2^32.
        k: number of documents to return for each query.
        device: by default the GPU if there is one.

    Returns:
        (q, min(k, c)) indices into `corpus`, best first. Documents with the same cosine (to 1e-9) keep their order.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    k = min(k, len(corpus))
    queries = F.normalize(torch.from_numpy(queries).double(), dim=1)
    low_bits = (1 << 32) - 1
    rankings = []
    pairs = len(queries) * len(corpus)
    options = {"unit": "pair", "unit_scale": True, "leave": False, "disable": not show_progress_bar}
    progress = logging.tqdm(total=pairs, desc="Searching", **options)
    for start in range(0, len(queries), query_block):
        block = queries[start : start + query_block].to(device)
        best = torch.empty(len(block), 0, dtype=torch.int64, device=device)
        for offset in range(0, len(corpus), corpus_block):
            part = torch.from_numpy(corpus[offset : offset + corpus_block]).to(device).double()
            cosines = block @ F.normalize(part, dim=1).T
            # One integer orders by cosine and then by index in the corpus, since topk breaks ties in any order. The
            # cosine is rounded to 1e-9, since the last bits of a product depend on its position in the block.
            indices = torch.arange(offset, offset + len(part), device=device)
            keys = ((cosines * 2**30).round().long() << 32) + (low_bits - indices)
            best = torch.cat([best, keys], dim=1)
            best = best.topk(min(k, best.shape[1]), dim=1).values
            progress.update(cosines.numel())
        rankings.append((low_bits - (best & low_bits)).cpu().numpy())
    progress.close()
    return np.concatenate(rankings)


def evaluate_retrieval(
    encoder: Encoder, corpus: Mapping[str, str], queries: Mapping[str, str], qrels: Mapping[str, Mapping[str, int]]
) -> dict[str, float]:
    """Rank the whole corpus by cosine for each query that has a relevant document, and score the first 1000.

    As in BEIR, the ranking leaves out a document with the id of the query, which in Quora and ArguAna is the query
    itself. Unlike in BEIR, the document stays if the judgments call it relevant, since then ids of queries and of
    documents are independent.

    Args:
        encoder: called once, with each distinct text once. If it has encoders for queries and documents, each of these
            is called once.
        corpus: `{document id: text}`; its order decides between equal cosines.
        queries: `{query id: text}`.
        qrels: `{query id: {document id: relevance}}`, relevant above 0.

    Returns:
        `{"ndcg@10", "mrr@10", "map", "recall@100", "queries"}`, see [`ranking_scores`].

    Raises:
        InputError: the judgments name an unknown query or document, or no query has a relevant document.
        RuntimeError: an embedding is not finite.
    """
    for query, judged in qrels.items():
        if query not in queries:
            raise InputError(f"the judgments name the query {query!r}, which is not among the queries")
        if unknown := judged.keys() - corpus.keys():
            raise InputError(f"query {query!r} has a judged document {min(unknown)!r} that is not in the corpus")
    scored = [query for query in queries if any(relevance > 0 for relevance in qrels.get(query, {}).values())]
    if not scored:
        raise InputError("no query has a relevant document (relevance above 0)")
    texts_of_queries, texts_of_corpus = [queries[query] for query in scored], list(corpus.values())
    of_queries, of_corpus = encode_queries_and_documents(CachingEncoder(encoder), texts_of_queries, texts_of_corpus)

    documents = list(corpus)
    rankings = []
    # One more than is scored, since one document may be left out.
    for query, indices in zip(scored, search(of_queries, of_corpus, RANKING_DEPTH + 1), strict=True):
        is_itself = qrels[query].get(query, 0) <= 0
        ranking = [documents[index] for index in indices]
        rankings.append([document for document in ranking if not (is_itself and document == query)])
    judged = [{"ids": list(qrels[query]), "relevance": list(qrels[query].values())} for query in scored]
    return RetrievalMetric().compute(predictions=rankings, references=judged)


def relevant_pairs(corpus: Mapping[str, str], queries: Mapping[str, str], qrels: Qrels) -> tuple[list[str], list[str]]:
    """The texts of all queries with each of their relevant documents (relevance above 0), as two lists."""
    pairs = [
        (queries[query], corpus[document])
        for query, judged in qrels.items()
        for document, relevance in judged.items()
        if relevance > 0
    ]
    return [query for query, _ in pairs], [document for _, document in pairs]
