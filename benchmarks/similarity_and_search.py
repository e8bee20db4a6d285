"""The runs of several studies, and their scores for similarity and for search."""

import argparse
import shutil
from pathlib import Path
from typing import Any

from studies import run_script
from study_pairs import read_scifact, write_beir


MEASURES = ("STS-B", "SICK-R", "SciFact")


def train(name: str, flags: dict[str, Any], seed: int, options: argparse.Namespace) -> tuple[dict[str, Any], Path]:
    """
    A run of run_contrastive.py in bf16, with at most 64 tokens and no evaluation. Returns its results and its folder.

    Args:
        name: of the run.
        flags: those of this run, with `train_file`; they replace the ones of the study.
        seed: of the run.
        options: those of a study, with `model_name_or_path`, `steps`, `batch_size`, `learning_rate`, `output_dir`.
    """
    all_flags = {
        "model_name_or_path": options.model_name_or_path,
        "train_file": flags["train_file"],
        "max_steps": options.steps,
        "warmup_steps": 0.1,
        "per_device_train_batch_size": options.batch_size,
        "learning_rate": f"{options.learning_rate:g}",
        "max_seq_length": 64,
        "seed": seed,
        "eval_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": "true",
    } | flags
    return run_script("run_contrastive.py", name, all_flags, ["--overwrite_output_dir", "--bf16"], options.output_dir)


def measure(name: str, model: str | Path, part: str, options: argparse.Namespace) -> dict[str, Any]:
    """
    The scores of a model by run_evaluation.py, and its command.

    Args:
        name: of the run.
        part: "dev" is the dev parts of STS-B and SICK-R, and the training claims of SciFact among the abstracts that
            claims cite, with at most 128 tokens. "test" is their test parts, with all abstracts and 256 tokens.
        options: those of a study, with `data` and `output_dir`.

    Returns:
        Spearman correlations and nDCG@10 by `MEASURES`, and `command`.
    """
    search = options.output_dir / "data" / f"scifact-{part}"
    if not search.exists():
        citations, abstracts, claims = read_scifact(options, all_abstracts=part == "test")
        write_beir(search, abstracts, claims, citations["train" if part == "dev" else "test"])
    flags = {
        "model_name_or_path": model,
        "sts": [f"stsb={options.data}/stsb/{part}.jsonl", f"sickr={options.data}/sick/{part}.jsonl"],
        "retrieval": [f"scifact={search}"],
        "max_seq_length": 128 if part == "dev" else 256,
    }
    result, folder = run_script("run_evaluation.py", f"{name}-{part}", flags, [], options.output_dir)
    shutil.rmtree(folder, ignore_errors=True)
    sts, retrieval = result["evaluation"]["sts"], result["evaluation"]["retrieval"]
    values = (sts["stsb"]["spearman"], sts["sickr"]["spearman"], retrieval["scifact"]["ndcg@10"])
    return dict(zip(MEASURES, values, strict=True)) | {"command": result["command"]}
