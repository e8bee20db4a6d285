#!/usr/bin/env python
"""Measure a sentence encoder: semantic similarity, retrieval and the geometry of its space.

    python run_evaluation.py --model_name_or_path M --sts stsb=test.jsonl --retrieval scifact=folder --output_dir D

prints a table and writes `D/evaluation.json`. M is a model of this package, of sentence-transformers, or any other
encoder of transformers. See docs/evaluation.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import HfArgumentParser

from modeling_layerpool.errors import InputError, usage_errors
from modeling_layerpool.evaluation import (
    STS_DATASETS,
    CachingEncoder,
    evaluate_geometry,
    evaluate_pairs,
    evaluate_retrieval,
    evaluate_sts,
    format_results,
    load_encoder,
    load_sts,
    positive_pairs,
    read_pairs_file,
    read_retrieval_folder,
    read_sts_file,
    relevant_pairs,
    run_metadata,
    write_results,
)
from modeling_layerpool.evaluation.report import check_output_dir


@dataclass
class EvaluationArguments:
    """What to measure, and where the results go."""

    model_name_or_path: str = field(metadata={"help": "A folder or a model of the Hub."})
    output_dir: str = field(metadata={"help": "Folder for evaluation.json; created if it is not there."})
    sts: list[str] = field(
        default_factory=list,
        metadata={
            "action": "extend",
            "help": "NAME=FILE ...: jsonl, csv or tsv with the columns sentence1, sentence2, score; or the name alone "
            f"of a built-in set from the Hub ({', '.join(STS_DATASETS)}).",
        },
    )
    pairs: list[str] = field(
        default_factory=list,
        metadata={
            "action": "extend",
            "help": "NAME=FILE ...: jsonl, csv or tsv with sentence1, sentence2, and score or label (0 or 1).",
        },
    )
    pairs_dev: list[str] = field(
        default_factory=list,
        metadata={
            "action": "extend",
            "help": "NAME=FILE ...: labelled pairs on which the thresholds of the --pairs of that name are chosen.",
        },
    )
    retrieval: list[str] = field(
        default_factory=list,
        metadata={
            "action": "extend",
            "help": "NAME=FOLDER ...: BEIR's layout, corpus.jsonl[.gz], queries.jsonl[.gz], qrels_test.tsv or "
            "qrels/test.tsv.",
        },
    )
    max_seq_length: int | None = field(
        default=None, metadata={"help": "Tokens at which a text is cut. Default: what the saved tokenizer says."}
    )
    pooling: str | None = field(
        default=None,
        metadata={"help": "mean or cls: pool the last hidden state. Default: the model's own pooling, else mean."},
    )
    max_tokens_per_batch: int = field(
        default=8192, metadata={"help": "Tokens computed at a time: lower it when memory runs out."}
    )
    device: str | None = field(default=None, metadata={"help": "Default: the GPU if there is one, else the CPU."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that the checkpoint brings along."})
    allow_pickle: bool = field(
        default=False, metadata={"help": "Also load weights from pickle files, which can run code."}
    )


def read_sets(flag: str, values: list[str], read: Callable, built_in: Callable | None = None) -> dict[str, Any]:
    """Read every `NAME=PATH` (or built-in `NAME`) of a flag: `{name: what was read}`, in the order given."""
    sets: dict[str, Any] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not name or (equals and not path) or (not equals and built_in is None):
            raise InputError(f"{flag} {value}: expected NAME=PATH")
        if name in sets:
            raise InputError(f"{flag}: the name {name!r} is given twice")
        sets[name] = read(path) if equals else built_in(name)
    return sets


def run(arguments: EvaluationArguments) -> dict[str, Any]:
    """Evaluate, write `evaluation.json` and return its content. All data is read before the model is loaded."""
    if not (arguments.sts or arguments.pairs or arguments.retrieval):
        raise InputError("nothing to evaluate: give --sts, --pairs or --retrieval")
    if arguments.max_tokens_per_batch < 1:
        raise InputError(f"--max_tokens_per_batch {arguments.max_tokens_per_batch}: must be at least 1")
    check_output_dir(arguments.output_dir)
    sts = read_sets("--sts", arguments.sts, read_sts_file, load_sts)
    pairs = read_sets("--pairs", arguments.pairs, read_pairs_file)
    pairs_dev = read_sets("--pairs_dev", arguments.pairs_dev, read_pairs_file)
    for name, dev in pairs_dev.items():
        if name not in pairs:
            raise InputError(f"--pairs_dev {name}: there is no --pairs of this name")
        if not (dev.are_labels and pairs[name].are_labels):
            raise InputError(f"--pairs_dev {name}: a threshold is chosen on labels, for labels; one file has scores")
    retrieval = read_sets("--retrieval", arguments.retrieval, read_retrieval_folder)

    encoder = load_encoder(
        arguments.model_name_or_path,
        max_seq_length=arguments.max_seq_length,
        pooling=arguments.pooling,
        max_tokens_per_batch=arguments.max_tokens_per_batch,
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
        allow_pickle=arguments.allow_pickle,
    )
    results: dict[str, Any] = {"sts": {}, "retrieval": {}, "geometry": {}}
    for name, (sentences1, sentences2, scores) in sts.items():
        remembered = CachingEncoder(encoder)
        results["sts"][name] = evaluate_sts(remembered, sentences1, sentences2, scores)
        if not results["geometry"]:
            positives = positive_pairs(sentences1, sentences2, scores)
            results["geometry"] = evaluate_geometry(remembered, *positives, [*sentences1, *sentences2])
    for name, labelled in pairs.items():
        results.setdefault("pairs", {})[name] = evaluate_pairs(encoder, labelled, pairs_dev.get(name))
    for name, (corpus, queries, qrels) in retrieval.items():
        remembered = CachingEncoder(encoder)
        results["retrieval"][name] = evaluate_retrieval(remembered, corpus, queries, qrels)
        if not results["geometry"]:
            positives = relevant_pairs(corpus, queries, qrels)
            results["geometry"] = evaluate_geometry(remembered, *positives, list(corpus.values()))
    results |= run_metadata(arguments.model_name_or_path)
    write_results(results, arguments.output_dir)
    return results


def main() -> None:
    (arguments,) = HfArgumentParser(EvaluationArguments, description=__doc__).parse_args_into_dataclasses()
    with usage_errors():
        print(format_results(run(arguments)))


if __name__ == "__main__":
    main()
