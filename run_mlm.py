#!/usr/bin/env python
"""
Pre-train an encoder with masked language modeling, or with TACO, which adds token-level contrast (--objective taco).

    python run_mlm.py --model_type bert --config_overrides hidden_size=256,num_hidden_layers=4,num_attention_heads=4 \\
        --train_file texts.txt.gz --validation_file held-out.txt --probe_file sts-dev.jsonl --output_dir runs/mine

or continue from a checkpoint with `--model_name_or_path`. `python run_mlm.py arguments.json` (or .yaml) reads the same
names from a file. On several devices: `accelerate launch run_mlm.py ...`. See docs/mlm.md.
"""

import shlex
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_layerpool.common.checkpoint_files import load_tokenizer
from modeling_layerpool.common.columns import ColumnNames
from modeling_layerpool.common.command_line import read_arguments
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.common.positions import position_limit
from modeling_layerpool.evaluation import geometry, sts
from modeling_layerpool.evaluation.encoders import CachingEncoder, PooledEncoder
from modeling_layerpool.evaluation.geometry import evaluate_geometry
from modeling_layerpool.evaluation.sts import evaluate_sts, positive_pairs, read_sts_file
from modeling_layerpool.publishing.model_card import write_language_model_card
from modeling_layerpool.publishing.plots import require_matplotlib
from modeling_layerpool.training.data import read_train_rows
from modeling_layerpool.training.distributed import same_on_all
from modeling_layerpool.training.masked_lm.arguments import (
    LanguageDataArguments,
    LanguageModelArguments,
    MaskedLanguageArguments,
)
from modeling_layerpool.training.masked_lm.models import load_masked_language_model, new_config, start_model
from modeling_layerpool.training.masked_lm.texts import load_texts, tokenize_texts
from modeling_layerpool.training.masked_lm.tokenizer import DEFAULT_VOCAB_SIZE, train_tokenizer
from modeling_layerpool.training.masked_lm.trainer import MaskedLanguageTrainer
from modeling_layerpool.training.masking import check_special_tokens
from modeling_layerpool.training.script import (
    argument_errors,
    choose_actions,
    choose_best_by,
    describe_run,
    evaluate_and_save,
    evaluate_when_saving,
    publish,
    run_script,
    train_and_save,
    warn_of_same_files,
)


CURVES_FILE = "curves.png"
# The panels of the plot: curves by their names in the log history and in the legend.
PANELS = {
    "loss": {
        "mlm_loss": "masked LM, training",
        "eval_mlm_loss": "masked LM, validation",
        "token_contrast_loss": "token contrast, training",
        "eval_token_contrast_loss": "token contrast, validation",
    },
    "masked tokens that are right, %": {"eval_masked_accuracy": "validation"},
    "probe": {"eval_spearman": "Spearman x 100"},
    "cosine of token semantics": {
        "eval_similarity_within": "within a sequence",
        "eval_similarity_between": "between sequences",
    },
}
PROBE_TOKENS = 8192  # computed at once


def parse_arguments() -> tuple[LanguageModelArguments, LanguageDataArguments, MaskedLanguageArguments]:
    """Read the arguments from flags or from one file, and check them against each other."""
    arguments = read_arguments(
        LanguageModelArguments, LanguageDataArguments, MaskedLanguageArguments, description=__doc__
    )
    model, data, training = arguments
    choose_actions(training, data, bool(data.evaluation_files), flags="a --validation_file or a --probe_file")
    if not training.do_train and model.model_name_or_path is None:
        raise InputError("an untrained new model is not worth evaluating; give --model_name_or_path")
    if data.streaming and model.model_type and model.tokenizer_name is None and data.train_file is None:
        raise InputError("a tokenizer is not trained on a stream from the Hub; give --tokenizer_name")
    if training.plot_curves:
        require_matplotlib()
    evaluate_when_saving(training, keep_best=False)
    metrics: dict[str, bool] = {}
    if data.validation_file is not None:
        metrics |= MaskedLanguageTrainer.metrics_of(training)
    if data.probe_file is not None:
        metrics |= sts.METRICS | geometry.METRICS
    if training.do_train and metrics:
        choose_best_by(training, metrics, default=next(iter(metrics)))
    return arguments


def read_probe(
    path: str, columns: ColumnNames
) -> Callable[[PreTrainedModel, PreTrainedTokenizerBase], dict[str, float]]:
    """Read scored sentence pairs; return a function that evaluates the mean-pooled last layer of a model on them."""
    pairs = read_sts_file(path, columns=columns)
    positives, texts = positive_pairs(*pairs), [*pairs[0], *pairs[1]]

    def probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        encoder = CachingEncoder(PooledEncoder(model.base_model, tokenizer, "mean", PROBE_TOKENS))
        return evaluate_sts(encoder, *pairs) | evaluate_geometry(encoder, *positives, texts)

    return probe


def open_tokenizer(
    model_args: LanguageModelArguments,
    args: MaskedLanguageArguments,
    texts: Dataset | IterableDataset,
    checkpoint: str | None,
) -> PreTrainedTokenizerBase:
    """
    The tokenizer of a new model: the named one, that of the checkpoint to resume from, or one trained on the texts.
    """
    name = model_args.tokenizer_name or checkpoint
    if name is not None:
        tokenizer = load_tokenizer(name)
        check_special_tokens(tokenizer, name)
        return tokenizer

    def all_texts() -> Iterator[str]:
        return (row["text"] for row in texts if row["text"])

    vocab_size = model_args.vocab_size or DEFAULT_VOCAB_SIZE
    trained = None
    if args.process_index == 0:
        try:
            trained = train_tokenizer(all_texts, model_args.model_type, vocab_size, not args.disable_tqdm)
        except InputError as error:
            trained = error
    trained = same_on_all(trained)
    if isinstance(trained, InputError):
        raise trained
    return trained


def describe(trainer: MaskedLanguageTrainer, data: LanguageDataArguments, checkpoint: str | None) -> str:
    """The plan of the run as a table."""
    args, model = trainer.args, trainer.model
    texts = "streamed"
    if not data.streaming:
        lengths = trainer.train_dataset["length"][:]
        blocks = len(trainer.get_train_dataloader().dataset)
        filled = sum(lengths) / (blocks * args.max_seq_length)
        texts = f"{len(lengths):,} of {sum(lengths):,} tokens in one epoch: {blocks:,} blocks, {filled:.1%} filled"
    plan = {
        "objective": args.objective,
        "model": f"{model.config.model_type}, {sum(p.numel() for p in model.parameters()):,} parameters",
        "vocabulary": f"{len(trainer.processing_class):,} tokens",
        "training texts": texts,
        "rows": f"blocks of {args.max_seq_length} tokens, {args.block_packing}, attention "
        + ("inside each text" if args.attend_within_documents else "over the whole block"),
    }
    return describe_run(trainer, plan, ", ".join(data.evaluation_files), checkpoint)


def plot_curves(log_history: list[dict[str, float]], path: Path) -> None:
    """Draw the log history of a run by step, with a panel for each kind of metric."""
    from matplotlib.figure import Figure  # an extra

    curves = {
        title: {
            label: points
            for name, label in names.items()
            if (points := {entry["step"]: entry[name] for entry in log_history if name in entry})
        }
        for title, names in PANELS.items()
    }
    panels = {title: lines for title, lines in curves.items() if lines}
    figure = Figure(figsize=(5 * max(1, len(panels)), 4), layout="constrained")
    for number, (title, lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), number)
        for label, points in lines.items():
            axes.plot(list(points), list(points.values()), label=label, marker="." if len(points) < 30 else None)
        axes.set(title=title, xlabel="step")
        axes.legend()
    figure.savefig(path, dpi=120)


def run(
    model_args: LanguageModelArguments,
    data_args: LanguageDataArguments,
    training_args: MaskedLanguageArguments,
    checkpoint: str | None,
) -> None:
    is_new = model_args.model_type is not None
    config = new_config(model_args.model_type, model_args.config_overrides) if is_new else None

    # 1. Data, read and checked before a model is loaded
    train_texts = validation_texts = None
    if training_args.do_train:
        warn_of_same_files(data_args.train_file or [], data_args.evaluation_files)
        train_texts = read_train_rows(data_args, training_args, load_texts)
    if data_args.validation_file is not None:
        with training_args.main_process_first(desc="reading the validation texts"):
            validation_texts = load_texts(data_args.validation_file, columns=data_args.column_names)
    probe = read_probe(data_args.probe_file, data_args.column_names) if data_args.probe_file is not None else None
    data_args.column_names.check_seen()

    # 2. Tokenizer and model
    loading = model_args.loading_options(training_args.do_train)
    if is_new:
        tokenizer = open_tokenizer(model_args, training_args, train_texts, checkpoint)
        model = start_model(config, tokenizer, loading["attn_implementation"], loading["dtype"])
        # Later positions of a new model are never trained.
        tokenizer.model_max_length = training_args.max_seq_length
    else:
        model, tokenizer = load_masked_language_model(model_args.model_name_or_path, **loading)
        check_special_tokens(tokenizer, model_args.model_name_or_path)
        tokenizer.model_max_length = min(tokenizer.model_max_length, position_limit(model))
    piece_length = training_args.max_seq_length if training_args.block_packing == "pack" else None
    with training_args.main_process_first(desc="tokenizing"):
        train_dataset, eval_dataset = (
            None if texts is None else tokenize_texts(texts, tokenizer, piece_length, source)
            for texts, source in ((train_texts, "training texts"), (validation_texts, "validation texts"))
        )
    if data_args.streaming:
        train_dataset = train_dataset.shuffle(seed=training_args.seed, buffer_size=data_args.shuffle_buffer_size)

    # 3. Trainer
    with argument_errors():
        trainer = MaskedLanguageTrainer(
            model,
            training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            evaluator=probe,
            write_model_card=partial(
                write_language_model_card,
                base_model=model_args.model_name_or_path,
                train_data=data_args.train_file or [data_args.dataset_name],
                validation_data=data_args.evaluation_files,
                hub_parts=data_args.hub_parts,
                command=shlex.join(["python", *sys.argv]),
            ),
        )

    # 4. Training
    if training_args.do_train:
        if trainer.is_world_process_zero():
            print(describe(trainer, data_args, checkpoint), flush=True)
        train_and_save(trainer, checkpoint)

    # 5. Evaluation
    if training_args.do_eval:
        evaluate_and_save(trainer)
        if training_args.do_train:
            trainer.save_state()  # so that all evaluations are in one file

    # 6. Curves, model card and Hub
    if training_args.plot_curves and trainer.is_world_process_zero():
        plot_curves(trainer.state.log_history, Path(training_args.output_dir) / CURVES_FILE)
    if training_args.do_train:
        publish(trainer)


if __name__ == "__main__":
    run_script(parse_arguments, run)
