#!/usr/bin/env python
"""
Train a layer-pooled classifier: one class per row, any number of classes per row, or a number (regression).

    python run_classification.py --model_name_or_path google-bert/bert-base-uncased --pooler_type hire \\
        --train_file train.jsonl --validation_file dev.jsonl --test_file test.jsonl --output_dir runs/mine

`--task_name rte` (GLUE) or `--dataset_name` (any dataset on the Hub) replaces the files. `python run_classification.py
arguments.json` (or .yaml) reads the same names from a file. On several devices: `accelerate launch
run_classification.py ...`. See docs/classification.md.
"""

import json
import os
import shlex
import sys
from functools import partial
from pathlib import Path

from transformers import EvalPrediction

from modeling_layerpool.common.checkpoint_files import has_classifier, read_config
from modeling_layerpool.common.checkpoints import load_layerpool
from modeling_layerpool.common.command_line import check_used, read_arguments
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.common.head_files import check_separable, save_head
from modeling_layerpool.evaluation.metrics import ClassificationMetric, MultiLabelMetric, SentenceSimilarityMetric
from modeling_layerpool.publishing import write_model_card
from modeling_layerpool.training.classification import (
    GLUE,
    METRIC_NAMES,
    PROBLEM_TYPES,
    ClassificationDataArguments,
    ClassificationModelArguments,
    ClassificationTrainer,
    ClassificationTrainingArguments,
    LabelledTexts,
    Labels,
    read_part,
    restart_classifier,
    tokenize_part,
)
from modeling_layerpool.training.data import set_max_seq_length
from modeling_layerpool.training.frozen import describe_frozen
from modeling_layerpool.training.script import (
    argument_errors,
    choose_best_by,
    describe_pooler,
    describe_run,
    evaluate_and_save,
    evaluate_when_saving,
    publish,
    run_script,
    train_and_save,
    warn_of_same_files,
)


PREDICTIONS_FILE = "predictions.jsonl"


def parse_arguments() -> tuple[
    ClassificationModelArguments, ClassificationDataArguments, ClassificationTrainingArguments
]:
    """Read the arguments from flags or from one file, and check them against each other."""
    arguments = read_arguments(
        ClassificationModelArguments,
        ClassificationDataArguments,
        ClassificationTrainingArguments,
        description=__doc__,
    )
    _, data, training = arguments
    files = [path for path in (data.train_file, data.validation_file, data.test_file) if path is not None]
    if (data.task_name is not None) + (data.dataset_name is not None) + bool(files) != 1:
        raise InputError("give the data as one of --task_name, --dataset_name, or files (--train_file ...)")
    from_hub = data.hub_name is not None
    # transformers sets do_eval if an --eval_strategy is given.
    is_told = training.do_train or training.do_predict or (training.do_eval and training.eval_strategy == "no")
    training.do_train = training.do_train or (not is_told and (from_hub or data.train_file is not None))
    training.do_eval = training.do_eval or data.validation_file is not None or (from_hub and not is_told)
    training.do_predict = training.do_predict or data.test_file is not None
    for does, flag, path in (
        (training.do_train, "do_train", "train_file"),
        (training.do_eval, "do_eval", "validation_file"),
        (training.do_predict, "do_predict", "test_file"),
    ):
        if does and not from_hub and getattr(data, path) is None:
            raise InputError(f"--{flag} needs a --{path}")
    if training.early_stopping_patience is not None and not (training.do_train and training.do_eval):
        raise InputError("--early_stopping_patience needs a --validation_file, to know when to stop")
    check_used(training, {"save_head_only": training.do_train}, "without do_train")
    evaluate_when_saving(training)
    if training.early_stopping_patience is not None and training.eval_strategy == "no":
        raise InputError(
            "--early_stopping_patience needs a --save_strategy or --eval_strategy, to evaluate while training"
        )
    return arguments


def saved_labels(model_args: ClassificationModelArguments) -> Labels | None:
    """The labels of the checkpoint's classifier, if it is a layer-pooled model with a classifier."""
    config = read_config(model_args.model_name_or_path, model_args.revision)
    if not (config.get("model_type", "").startswith("layerpool_") and has_classifier(config)):
        return None
    labels = Labels.from_config(config)
    if labels.problem_type not in PROBLEM_TYPES:
        raise InputError(
            f"{model_args.model_name_or_path}: config.json: problem_type must be one of {', '.join(PROBLEM_TYPES)}, "
            f"not {labels.problem_type!r}"
        )
    return labels


def load_data(
    model_args: ClassificationModelArguments,
    data_args: ClassificationDataArguments,
    training_args: ClassificationTrainingArguments,
) -> tuple[Labels, bool, dict[str, LabelledTexts], dict[str, list | None]]:
    """
    Read and check all parts of the data that the run needs.

    Returns:
        The labels; whether they are those of the checkpoint's classifier; the parts `train`, `validation` and `test`;
        and for each part the targets of the loss.
    """
    name = model_args.model_name_or_path
    saved = saved_labels(model_args)
    if training_args.do_train and model_args.ignore_mismatched_sizes:
        saved = None
    if saved is None and not training_args.do_train:
        raise InputError(
            f"{name}: has no trained classifier to evaluate or to predict with; train one with --do_train"
        )
    problem_type = data_args.problem_type or (saved.problem_type if saved else None)
    if saved is not None and problem_type != saved.problem_type:
        raise InputError(
            f"--problem_type {problem_type}: the classifier of {name} is for {saved.problem_type}; start a new one "
            "with --ignore_mismatched_sizes"
        )
    labels, whose, fix = saved, f"the classifier of {name}", "start a new classifier with --ignore_mismatched_sizes"
    parts = {}
    if training_args.do_train:
        train = parts["train"] = read_part(data_args, "train", problem_type, data_args.max_train_samples)
        if saved is None:
            labels, whose, fix = (
                Labels.from_rows(train, problem_type),
                train.source,
                "add such rows to the training data",
            )
    if training_args.do_eval:
        parts["validation"] = read_part(data_args, "validation", labels.problem_type)
    if training_args.do_predict:
        parts["test"] = read_part(data_args, "test", labels.problem_type)
    data_args.column_names.check_seen()
    first = next(iter(parts.values()))
    for part in parts.values():
        if len(part.texts) != len(first.texts):
            raise InputError(
                f"{part.source}: the texts of a row are {' and '.join(part.text_columns)}, but those of "
                f"{first.source} {' and '.join(first.text_columns)}; rename the columns, or name them with "
                "--columns"
            )
    encoded = {key: None if part.labels is None else labels.encode(part, whose, fix) for key, part in parts.items()}
    return labels, saved is not None, parts, encoded


def choose_metric(labels: Labels, data: ClassificationDataArguments, args: ClassificationTrainingArguments) -> None:
    """Choose the best checkpoint by the metric of the task, or check the metric that was given."""
    names = METRIC_NAMES[labels.problem_type]
    if len(labels.names) != 2:
        names = tuple(name for name in names if name != "f1")
    choose_best_by(args, {name: name != "loss" for name in names}, default=GLUE.get(data.task_name, names[0]))


def compute_metrics(output: EvalPrediction, labels: Labels) -> dict[str, float]:
    """The metrics for these labels, in percent."""
    predictions = labels.decide(output.predictions)
    if labels.problem_type == "regression":
        scores = SentenceSimilarityMetric().compute(predictions=predictions, references=output.label_ids)
        return {"spearman": scores["spearman"], "pearson": scores["pearson"], "rows": scores["pairs"]}
    references = output.label_ids.astype(int)
    if labels.problem_type == "multi_label_classification":
        return MultiLabelMetric().compute(predictions=predictions, references=references)
    return ClassificationMetric().compute(
        predictions=predictions, references=references, num_classes=len(labels.names)
    )


def describe(trainer: ClassificationTrainer, labels: Labels, parts: dict, checkpoint: str | None) -> str:
    """The plan of the run as a table."""
    args, model = trainer.args, trainer.model
    train, lengths = parts["train"], trainer.train_dataset["length"]
    target = "a number" if labels.problem_type == "regression" else ", ".join(labels.names)
    plan = {
        "learns": f"{target} ({labels.problem_type}), column {train.label_column}",
        "texts": " and ".join(train.text_columns),
        "training rows": f"{len(train.row_numbers):,}, {sum(lengths):,} tokens in one epoch",
        "order of the rows": args.train_sampling_strategy,
        "tokens a row": f"at most {trainer.processing_class.model_max_length}",
        "trainable parameters": f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,}",
        "pooler": describe_pooler(model),
        **describe_frozen(trainer),
    }
    if args.early_stopping_patience is not None:
        plan["stops early"] = f"after {args.early_stopping_patience} evaluations without a better one"
    evaluation_data = parts["validation"].source if "validation" in parts else "nothing"
    return describe_run(trainer, plan, evaluation_data, checkpoint)


def write_predictions(part: LabelledTexts, predictions: list[dict], output_dir: str) -> None:
    """Write one line per row, in the order of the rows; the file appears only when it is complete."""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{PREDICTIONS_FILE}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        for number, prediction in zip(part.row_numbers, predictions, strict=True):
            file.write(json.dumps({"row_number": number} | prediction, ensure_ascii=False) + "\n")
    os.replace(temporary, folder / PREDICTIONS_FILE)


def run(
    model_args: ClassificationModelArguments,
    data_args: ClassificationDataArguments,
    training_args: ClassificationTrainingArguments,
    checkpoint: str | None,
) -> None:
    # 1. Data, read and checked before a model is loaded
    if training_args.do_train:
        warn_of_same_files([data_args.train_file], [data_args.validation_file, data_args.test_file])
    labels, is_saved, parts, encoded = load_data(model_args, data_args, training_args)
    choose_metric(labels, data_args, training_args)

    # 2. Model and tokenized rows
    model, tokenizer = load_layerpool(
        model_args.model_name_or_path,
        task="sequence-classification",
        **model_args.loading_options(training_args.do_train),
        ignore_mismatched_sizes=not is_saved,
        **labels.config_fields,
        **model_args.config_overrides(),
    )
    if not is_saved:
        restart_classifier(model)
    if training_args.save_head_only:
        check_separable(model)
    text_columns = next(iter(parts.values())).text_columns
    set_max_seq_length(model, tokenizer, training_args.max_seq_length, len(text_columns))
    datasets = {key: tokenize_part(part, encoded[key], tokenizer) for key, part in parts.items()}

    # 3. Trainer
    with argument_errors():
        trainer = ClassificationTrainer(
            model,
            training_args,
            train_dataset=datasets.get("train"),
            eval_dataset=datasets.get("validation"),
            processing_class=tokenizer,
            compute_metrics=partial(compute_metrics, labels=labels),
            write_model_card=partial(
                write_model_card,
                base_model=model_args.model_name_or_path,
                train_data=data_args.hub_name or data_args.train_file,
                validation_data=(data_args.hub_name or data_args.validation_file) if training_args.do_eval else None,
                test_data=(data_args.hub_name or data_args.test_file) if training_args.do_predict else None,
                hub_parts=data_args.hub_parts,
                text_columns=text_columns,
                command=shlex.join(["python", *sys.argv]),
            ),
        )

    # 4. Training
    if training_args.do_train:
        if trainer.is_world_process_zero():
            print(describe(trainer, labels, parts, checkpoint), flush=True)
        save_only_head = partial(
            save_head,
            model,
            tokenizer,
            training_args.output_dir,
            encoder=model_args.model_name_or_path,
            revision=model_args.revision,
            text_columns=text_columns,
        )
        train_and_save(trainer, checkpoint, save_only_head if training_args.save_head_only else None)

    # 5. Evaluation
    if training_args.do_eval:
        evaluate_and_save(trainer)

    # 6. Prediction
    if training_args.do_predict:
        output = trainer.predict(datasets["test"])
        trainer.log(output.metrics)  # the card reads the log history
        trainer.log_metrics("test", output.metrics)
        trainer.save_metrics("test", output.metrics)
        if trainer.is_world_process_zero():
            write_predictions(parts["test"], labels.predictions(output.predictions), training_args.output_dir)

    # 7. Model card and Hub
    if training_args.do_train:
        publish(trainer)


if __name__ == "__main__":
    run_script(parse_arguments, run)
