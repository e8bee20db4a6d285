#!/usr/bin/env python
"""
Train a layer-pooled sentence encoder with a contrastive objective. For instance:

    python run_contrastive.py --model_name_or_path google-bert/bert-base-uncased \\
        --dataset_name sentence-transformers/all-nli --dataset_config_name triplet \\
        --max_train_samples 20000 --output_dir runs/nli

A file of arguments may go first: run_contrastive.py arguments.yaml --max_steps 3.
Several devices: accelerate launch run_contrastive.py ... See docs/configuration.md.
"""

import json
import shlex
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset

from modeling_layerpool.common.checkpoints import load_layerpool
from modeling_layerpool.common.command_line import read_arguments
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.common.text_embeddings import TextEmbeddings
from modeling_layerpool.evaluation.development import development_evaluators, parse_development_sets
from modeling_layerpool.evaluation.encoders import Encoder
from modeling_layerpool.evaluation.loading import load_encoder
from modeling_layerpool.publishing import write_model_card
from modeling_layerpool.training import OBJECTIVES, ContrastiveTrainer, ContrastiveTrainingArguments
from modeling_layerpool.training.computed_files import EMBEDDINGS_FOLDER, embed_texts
from modeling_layerpool.training.contrastive.arguments import SELF, DataArguments, EncoderArguments
from modeling_layerpool.training.contrastive.data import load_file, text_names
from modeling_layerpool.training.contrastive.embedded_rows import check_groups
from modeling_layerpool.training.contrastive.objectives.base import Objective
from modeling_layerpool.training.contrastive.parameter_groups import learning_rates
from modeling_layerpool.training.contrastive.sources import read_sources
from modeling_layerpool.training.frozen import describe_frozen
from modeling_layerpool.training.lora import add_lora, lora_settings
from modeling_layerpool.training.mlm_head import MaskedLanguageHead
from modeling_layerpool.training.model_arguments import LoraArguments, ModelArguments
from modeling_layerpool.training.script import (
    argument_errors,
    choose_actions,
    choose_best_by,
    describe_end,
    describe_packed_attention,
    describe_pooler,
    describe_run,
    evaluate_and_save,
    evaluate_when_saving,
    publish,
    run_script,
    train_and_save,
    warn_of_same_files,
)


Arguments = tuple[ModelArguments, LoraArguments, EncoderArguments, DataArguments, ContrastiveTrainingArguments]


def parse_arguments() -> Arguments:
    """The arguments from flags or from one file, checked against each other."""
    arguments = read_arguments(
        *(ModelArguments, LoraArguments, EncoderArguments, DataArguments, ContrastiveTrainingArguments),
        description=__doc__,
        first=("model_name_or_path", "train_file", "validation_file", "output_dir", "pooler_type", "objective"),
    )
    _, lora, encoders, data, training = arguments
    choose_actions(training, data, evaluates=data.validation_file is not None, flags="a --validation_file")
    if lora.use_lora and not training.do_train:
        raise InputError("--use_lora does nothing without training")
    if encoders.groups and not training.do_train:
        raise InputError(f"--{next(iter(encoders.groups))} does nothing without training")
    if encoders.groups and data.streaming:
        raise InputError(f"--{next(iter(encoders.groups))} embeds all texts first; leave out --streaming")
    if lora.use_lora and training.push_to_hub and training.hub_strategy != "end":
        # An earlier push would upload the adapter to the same folder as the merged model.
        raise InputError("--use_lora pushes to the Hub at the end only; give --hub_strategy end")
    if training.do_train:
        check_groups(OBJECTIVES[training.objective].from_arguments(training), training, encoders.groups)
    evaluate_when_saving(training)
    return arguments


def embed_with_others(
    encoders: EncoderArguments,
    model: ModelArguments,
    training: ContrastiveTrainingArguments,
    objective: Objective,
    datasets: Iterable[Dataset | None],
) -> TextEmbeddings | None:
    """The embeddings of the training and evaluation texts by the teachers and the guide."""
    if not encoders.groups:
        return None
    texts: list[str] = []
    for dataset in filter(None, datasets):
        for column in dict.fromkeys(objective.select_columns(text_names(dataset), "the data")):
            texts += dataset[column]
    opened: dict[str, Encoder] = {}
    for group, names in encoders.groups.items():
        for name in names:
            options = {"allow_pickle": model.allow_pickle, "device": training.device}
            if training.bf16:
                options["dtype"] = torch.bfloat16
            if name == SELF:
                options["revision"] = model.revision
            try:
                opened[name] = load_encoder(model.model_name_or_path if name == SELF else name, **options)
            except InputError as error:
                raise InputError(f"--{group} {name}: {error}") from error
    groups = {group: [opened[name] for name in names] for group, names in encoders.groups.items()}
    folder = encoders.embedding_cache_dir or Path(training.output_dir, EMBEDDINGS_FOLDER)
    return embed_texts(texts, groups, folder, show_progress_bar=not training.disable_tqdm)


def describe(trainer: ContrastiveTrainer, data: DataArguments, adapter: dict[str, str], checkpoint: str | None) -> str:
    """The plan of the run as a table."""
    args, model = trainer.args, trainer.model
    dataset = trainer.train_dataset
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    objective = trainer.objective.settings(trainer.columns)
    parts = [f"{name}: {rows}" for name, rows in trainer.mixture.describe().items()] if trainer.mixture else []
    if args.mlm_weight > 0:
        objective["objective"] += f"; masked language modeling, weight {args.mlm_weight:g}"
    if trainer.distillation is not None:
        objective["objective"] += f"; distillation, weight {trainer.distillation.weight:g}"
        objective |= trainer.distillation.objective.distillation_settings()
    plan = {
        **objective,
        **trainer.prompts.settings(),
        "training rows": "streamed" if data.streaming else "\n".join([f"{len(dataset):,}", *parts]),
        "training tokens": "streamed" if data.streaming else f"{sum(dataset['tokens']):,} in one epoch",
        "negatives an anchor": f"{trainer.most_negatives(args.per_device_train_batch_size * args.world_size)}",
        "tokens a text": f"at most {trainer.processing_class.model_max_length}",
        "trainable parameters": f"{trainable:,}",
        **adapter,
        "pooler": describe_pooler(model),
        "attention": describe_packed_attention(trainer),
        **describe_frozen(trainer),
    }
    return describe_run(trainer, plan, ", ".join(data.validation_file or []), checkpoint, learning_rates(trainer))


def commands_to_try(folder: str) -> dict[str, list[str]]:
    """Commands for the finished model."""
    code = (
        f"from modeling_layerpool import load_layerpool; model, _ = load_layerpool({json.dumps(folder)}); "
        'print(model.encode(["A text."]))'
    )
    results = str(Path(folder, "evaluation"))
    evaluate = ["python", "run_evaluation.py", "--model_name_or_path", folder, "--sts", "stsb", "--output_dir"]
    return {"evaluate it": [*evaluate, results], "open it": ["python", "-c", code]}


def run(
    model_args: ModelArguments,
    lora_args: LoraArguments,
    encoder_args: EncoderArguments,
    data_args: DataArguments,
    training_args: ContrastiveTrainingArguments,
    checkpoint: str | None,
) -> None:
    # 1. Data: read and checked before a model is loaded
    objective = OBJECTIVES[training_args.objective].from_arguments(training_args)
    development_sets = parse_development_sets(data_args.validation_file or [])
    train_dataset = eval_dataset = evaluator = None
    if training_args.do_train:
        evaluated = [data.name for data in development_sets.values()]
        warn_of_same_files([source.name for source in data_args.sources], evaluated)
        train_dataset = read_sources(data_args, training_args, objective)
        if data_args.streaming:
            train_dataset = train_dataset.shuffle(seed=training_args.seed, buffer_size=data_args.shuffle_buffer_size)
    if training_args.do_eval:
        evaluator, metrics, rows = development_evaluators(development_sets, data_args.column_names)
        if rows is not None:
            eval_dataset = load_file(rows, objective, columns=data_args.column_names)
            metrics = metrics | ContrastiveTrainer.METRICS
        choose_best_by(training_args, metrics, default=next(iter(metrics)))
    data_args.column_names.check_seen()

    # 2. Model
    model, tokenizer = load_layerpool(
        model_args.model_name_or_path,
        **model_args.loading_options(training_args.do_train),
        default_pooler="residual_layers" if training_args.freeze_encoder else None,
        **model_args.config_overrides(),
    )
    adapter = {}
    if lora_args.use_lora:
        model = add_lora(model, **lora_args.options())
        adapter = lora_settings(model)

    mlm_head = None
    if training_args.do_train and training_args.mlm_weight > 0:
        mlm_head = MaskedLanguageHead.of_encoder(
            model,
            model_args.model_name_or_path,
            revision=model_args.revision,
            allow_pickle=model_args.allow_pickle,
        )

    # 3. Teachers and guide: their embeddings of all texts
    datasets = [*(train_dataset.values() if isinstance(train_dataset, dict) else [train_dataset]), eval_dataset]
    text_embeddings = embed_with_others(encoder_args, model_args, training_args, objective, datasets)

    # 4. Trainer
    with argument_errors():
        trainer = ContrastiveTrainer(
            model,
            training_args,
            mlm_head=mlm_head,
            train_dataset=train_dataset,
            dataset_weights=data_args.dataset_weights,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            objective=objective,
            text_embeddings=text_embeddings,
            evaluator=evaluator,
            write_model_card=partial(
                write_model_card,
                base_model=model_args.model_name_or_path,
                train_data=[(source.name, source.parts or {}) for source in data_args.sources],
                validation_data={name: data.source for name, data in development_sets.items()}
                if training_args.do_eval
                else None,
                adapter=adapter,
                encoders={
                    group: [model_args.model_name_or_path if name == SELF else name for name in names]
                    for group, names in encoder_args.groups.items()
                },
                command=shlex.join(["python", *sys.argv]),
            ),
        )

    # 5. Training
    if training_args.do_train:
        if trainer.is_world_process_zero():
            print(describe(trainer, data_args, adapter, checkpoint), flush=True)
        train_and_save(trainer, checkpoint)

    # 6. Evaluation
    if training_args.do_eval:
        evaluate_and_save(trainer)

    # 7. Model card and Hub
    if training_args.do_train:
        publish(trainer)
        if trainer.is_world_process_zero():
            print(describe_end(trainer, commands_to_try(training_args.output_dir)))


if __name__ == "__main__":
    run_script(parse_arguments, run)
