#!/usr/bin/env python
"""
Train a layer-pooled sentence encoder with a contrastive objective.

    python run_contrastive.py --model_name_or_path google-bert/bert-base-uncased --objective supervised \\
        --train_file nli.jsonl --validation_file sts-dev.jsonl --output_dir runs/nli --do_train --do_eval

or `python run_contrastive.py arguments.json` (or .yaml) with the same names. On several devices:
`accelerate launch run_contrastive.py ...`. See docs/data-formats.md and docs/configuration.md.
"""

import json
import logging
import math
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path

import datasets
import transformers
import yaml
from tabulate import tabulate
from transformers import HfArgumentParser, set_seed

from modeling_layerpool.checkpoints import load_layerpool
from modeling_layerpool.errors import InputError, usage_errors
from modeling_layerpool.evaluation.development import development_evaluator
from modeling_layerpool.publishing import write_model_card
from modeling_layerpool.training import (
    OBJECTIVES,
    ContrastiveTrainer,
    ContrastiveTrainingArguments,
    NonFiniteLossError,
    Objective,
)
from modeling_layerpool.training.arguments import DataArguments, ModelArguments
from modeling_layerpool.training.data import load_file, load_hub
from modeling_layerpool.training.fault_tolerance import (
    CheckpointWriteError,
    find_defect,
    last_whole_checkpoint,
    save_on_sigterm,
    write_errors,
)


def parse_arguments() -> tuple[ModelArguments, DataArguments, ContrastiveTrainingArguments]:
    """Flags, or the one file that holds them, checked against each other."""
    parser = HfArgumentParser((ModelArguments, DataArguments, ContrastiveTrainingArguments), description=__doc__)
    try:
        is_file = len(sys.argv) == 2 and Path(sys.argv[1]).suffix in (".json", ".yaml", ".yml")
        arguments = parser.parse_args_into_dataclasses(flags_of_file(sys.argv[1]) if is_file else None)
    except (ValueError, TypeError, OSError, yaml.YAMLError) as error:  # what the library's argument classes raise
        raise InputError(str(error)) from error
    _, data, training = arguments
    if not training.do_eval or training.eval_strategy != "no":  # the library takes --eval_strategy for --do_eval
        training.do_train = training.do_train or data.train_file is not None or data.dataset_name is not None
    training.do_eval = training.do_eval or data.validation_file is not None
    if not (training.do_train or training.do_eval):
        raise InputError("nothing to do: give training data, a --validation_file or both")
    if training.do_train and (data.train_file is None) == (data.dataset_name is None):
        raise InputError("give the training data as either --train_file or --dataset_name")
    if training.do_eval and data.validation_file is None:
        raise InputError("--do_eval needs a --validation_file")
    if data.streaming and training.max_steps <= 0:
        raise InputError("--streaming needs --max_steps, as a stream has no length")
    if training.do_train and training.do_eval and training.eval_strategy == "no":
        # Whoever brings a dev set wants the checkpoint that is best on it.
        training.eval_strategy = training.save_strategy
        training.eval_steps = training.eval_steps or training.save_steps
        training.load_best_model_at_end = training.save_strategy != "no"
    return arguments


def flags_of_file(path: str) -> list[str]:
    """The content of a JSON or YAML file as flags, so that both are read and checked in the same way."""
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))  # JSON is YAML
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected names and values of arguments")
    flags = []
    for name, value in content.items():
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def set_up_logging(args: ContrastiveTrainingArguments) -> None:
    logging.basicConfig(format="%(message)s", level=logging.INFO if args.process_index == 0 else logging.ERROR)
    level = args.get_process_log_level()
    transformers.utils.logging.set_verbosity(level)
    datasets.utils.logging.set_verbosity(level)
    if args.disable_tqdm or args.process_index > 0:
        datasets.disable_progress_bars()


def find_checkpoint(args: ContrastiveTrainingArguments) -> str | None:
    """The checkpoint to resume from, and the check that nothing in the way is overwritten unasked."""
    output_dir = Path(args.output_dir)
    if output_dir.is_file():
        raise InputError(f"--output_dir {output_dir}: is a file, not a folder")
    resume = args.resume_from_checkpoint
    if resume is not None and str(resume).lower() in ("true", "1"):
        resume = last_whole_checkpoint(output_dir)
        if resume is None:
            raise InputError(f"--resume_from_checkpoint: {output_dir} holds no checkpoint to resume from")
    elif resume is not None and (defect := find_defect(resume)):
        raise InputError(f"--resume_from_checkpoint {resume}: {defect}")
    in_place = resume is not None and Path(resume).resolve().parent == output_dir.resolve()
    is_used = output_dir.is_dir() and any(output_dir.iterdir())
    if args.do_train and is_used and not in_place and not args.overwrite_output_dir:
        raise InputError(
            f"--output_dir {output_dir}: is not empty; choose another, resume with --resume_from_checkpoint true, or "
            "give --overwrite_output_dir"
        )
    return resume


def remove_old_checkpoints(args: ContrastiveTrainingArguments, checkpoint: str | None) -> None:
    """A run of its own must not find, or resume from, the checkpoints of the one that it overwrites."""
    if args.do_train and args.overwrite_output_dir and checkpoint is None and args.process_index == 0:
        for folder in Path(args.output_dir).glob("checkpoint-*"):
            shutil.rmtree(folder)


def load_train_dataset(data: DataArguments, args: ContrastiveTrainingArguments, objective: Objective):
    with args.main_process_first(desc="reading the training data"):
        if data.train_file is not None:
            dataset = load_file(data.train_file, objective.select_columns, data.streaming)
        else:
            dataset = load_hub(data.dataset_name, data.dataset_config_name, data.dataset_split, data.streaming)
    if data.streaming:
        return dataset.shuffle(seed=args.seed, buffer_size=data.shuffle_buffer_size)
    if data.max_train_samples is not None:
        dataset = dataset.select(range(min(data.max_train_samples, len(dataset))))
    return dataset


def describe(trainer: ContrastiveTrainer, data: DataArguments, checkpoint: str | None) -> str:
    """What the run will do, as a table."""
    args, model = trainer.args, trainer.model
    dataset = trainer.train_dataset
    batch = args.per_device_train_batch_size * args.world_size
    further = max(0, len(trainer.columns) - 2)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    steps = args.max_steps
    if steps <= 0:
        steps_an_epoch = math.ceil(len(trainer.get_train_dataloader()) / args.gradient_accumulation_steps)
        steps = math.ceil(steps_an_epoch * args.num_train_epochs)
    measured = "nothing"
    if args.eval_strategy != "no":
        every = f"{args.eval_steps:g} steps" if args.eval_strategy == "steps" else "epoch"
        measured = f"{data.validation_file}, every {every}"
        if args.load_best_model_at_end:
            measured += f"; keeps the checkpoint with the best {args.metric_for_best_model}"
    plan = {
        "objective": f"{args.objective} on the columns {', '.join(trainer.columns)}",
        "training rows": "streamed" if data.streaming else f"{len(dataset):,}",
        "training tokens": "streamed" if data.streaming else f"{sum(dataset['tokens']):,} in one epoch",
        "rows a step": f"{batch} on {args.world_size} process(es), {args.gradient_accumulation_steps} accumulated",
        "negatives an anchor": f"{batch - 1 + further * batch}",
        "steps": f"{steps:,}",
        "tokens a text": f"at most {trainer.processing_class.model_max_length}",
        "trainable parameters": f"{trainable:,}",
        "pooler": f"{model.config.pooler_type} over the hidden states {', '.join(map(str, model.pooler.states))}",
        "evaluates on": measured,
        "resumes from": checkpoint or "nothing",
    }
    return tabulate(plan.items(), tablefmt="plain", disable_numparse=True)


def main() -> None:
    # 1. Arguments
    model_args, data_args, training_args = parse_arguments()
    set_up_logging(training_args)
    checkpoint = find_checkpoint(training_args)
    set_seed(training_args.seed)

    # 2. Data, all of it read and checked before a model is loaded
    objective = OBJECTIVES[training_args.objective].from_arguments(training_args)
    train_dataset = eval_dataset = evaluator = None
    if training_args.do_train:
        train_dataset = load_train_dataset(data_args, training_args, objective)
    if training_args.do_eval:
        evaluator, headline = development_evaluator(data_args.validation_file)
        if evaluator is None:
            eval_dataset = load_file(data_args.validation_file, objective.select_columns)
        if training_args.metric_for_best_model is None or (
            evaluator and training_args.metric_for_best_model == "loss"
        ):
            # The library's default is the loss, which an evaluator does not give.
            training_args.metric_for_best_model = headline or "loss"
            training_args.greater_is_better = headline is not None

    # 3. Model
    model, tokenizer = load_layerpool(
        model_args.model_name_or_path,
        revision=model_args.revision,
        allow_pickle=model_args.allow_pickle,
        attn_implementation=model_args.attn_implementation,
        **model_args.config_overrides(),
    )

    # 4. Trainer
    trainer = ContrastiveTrainer(
        model,
        training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        objective=objective,
        evaluator=evaluator,
        write_model_card=partial(
            write_model_card,
            base_model=model_args.model_name_or_path,
            train_data=data_args.train_file or data_args.dataset_name,
            validation_data=data_args.validation_file if training_args.do_eval else None,
            command=shlex.join(["python", *sys.argv]),
        ),
    )

    # 5. Training
    if training_args.do_train:
        if trainer.is_world_process_zero():
            print(describe(trainer, data_args, checkpoint), flush=True)
        remove_old_checkpoints(training_args, checkpoint)
        with save_on_sigterm(trainer):
            result = trainer.train(resume_from_checkpoint=checkpoint)
        with write_errors(trainer, training_args.output_dir):
            trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()

    # 6. Evaluation
    if training_args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

    # 7. Model card, and the Hub if asked for
    if training_args.do_train:
        if training_args.push_to_hub:
            trainer.push_to_hub()
        else:
            trainer.create_model_card()


if __name__ == "__main__":
    with usage_errors():
        try:
            main()
        except (NonFiniteLossError, CheckpointWriteError) as error:
            sys.exit(f"error: {error}")
