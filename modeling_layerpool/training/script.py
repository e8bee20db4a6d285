"""The parts that all training scripts share: the output folder, training, evaluation, saving and publishing."""

import logging
import math
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import datasets
import torch
import transformers
from huggingface_hub import HfApi
from huggingface_hub.utils import HFValidationError, validate_repo_id
from tabulate import tabulate
from transformers import PreTrainedModel, TrainingArguments

from ..common.card_facts import device_name, precision_name
from ..common.checkpoint_files import read_json_object
from ..common.command_line import write_arguments
from ..common.errors import InputError, one_line, usage_errors
from ..common.folders import output_folder
from ..models.modeling_layerpool_attention import describe_attention
from .base import LayerPoolTrainer, NonFiniteLossError, unknown_metric
from .computed_files import EMBEDDINGS_FOLDER, STATES_FOLDER
from .data_arguments import TrainDataArguments
from .fault_tolerance import CheckpointWriteError, find_defect, last_whole_checkpoint, save_on_sigterm, write_errors
from .lora import ADAPTER_FOLDER, has_adapter, save_and_merge
from .run_arguments import RunArguments
from .upload import describe_upload


METRICS_FILE = "all_results.json"
# Pushes to the Hub leave out names with an underscore, and this file has paths of this machine.
ARGUMENTS_FILE = "_arguments.yaml"
# The suffixes of the files that a run writes, without checkpoints.
WRITTEN = (".bin", ".json", ".jsonl", ".md", ".png", ".py", ".safetensors")

logger = logging.getLogger(__name__)


class PushError(RuntimeError):
    """The model is trained and saved, but could not be pushed to the Hub."""


def run_script(parse_arguments: Callable[[], tuple], run: Callable[..., None]) -> None:
    """
    Call `run` with the parsed arguments, the last of which are [`RunArguments`], and the checkpoint to resume from.

    Ends the process with one sentence: exit code 2 for input that the user can correct, 1 for a run that failed.
    """
    with usage_errors():
        try:
            arguments = parse_arguments()
            training_args = arguments[-1]
            set_up_logging(training_args)
            if training_args.dry_run:
                if training_args.process_index == 0:
                    print(describe_upload(training_args))
                return
            with output_of(training_args) as checkpoint:
                transformers.set_seed(training_args.seed)
                run(*arguments, checkpoint)
        except (NonFiniteLossError, CheckpointWriteError, PushError) as error:
            sys.exit(f"error: {error}")
        except BlockingIOError as error:
            sys.exit(f"error: the machine cannot start more processes ({error}); lower --dataloader_num_workers")


def set_up_logging(args: TrainingArguments) -> None:
    """Messages and progress bars of the main process, bars unless `disable_tqdm` is set; only errors of the others."""
    logging.basicConfig(format="%(message)s", level=logging.INFO if args.process_index == 0 else logging.ERROR)
    level = args.get_process_log_level()
    transformers.utils.logging.set_verbosity(level)
    datasets.utils.logging.set_verbosity(level)
    if args.disable_tqdm or args.process_index > 0:
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()


def choose_actions(args: RunArguments, data: TrainDataArguments, evaluates: bool, flags: str) -> None:
    """
    Train and evaluate if there are data for it, unless `--do_train` or `--do_eval` alone is given.

    Args:
        evaluates: whether there are data to evaluate on.
        flags: the flags that give such data, for errors.

    Raises:
        InputError: data are missing for an action, there is nothing to do, or a stream has no number of steps.
    """
    # transformers sets do_eval if an --eval_strategy is given.
    if not args.do_eval or args.eval_strategy != "no":
        args.do_train = args.do_train or data.has_train_data
    args.do_eval = args.do_eval or evaluates
    if not (args.do_train or args.do_eval):
        raise InputError(f"nothing to do: give training data (--train_file or --dataset_name), {flags} or both")
    if args.do_train and not data.has_train_data:
        raise InputError("give the training data as either --train_file or --dataset_name")
    if args.do_eval and not evaluates:
        raise InputError(f"--do_eval needs {flags}")
    if data.streaming and args.max_steps <= 0:
        raise InputError("--streaming needs --max_steps, as a stream has no length")


def evaluate_when_saving(args: RunArguments, keep_best: bool = True) -> None:
    """
    Evaluate at every save and, if `keep_best`, keep the best checkpoint, unless the arguments say when to evaluate.
    """
    if args.eval_on_start and not args.do_eval:
        raise InputError("--eval_on_start needs evaluation data")
    if args.do_train and args.do_eval and not args.eval_strategy_was_given:
        if args.save_strategy == "best":
            raise InputError("--save_strategy best needs an --eval_strategy, to know when to evaluate")
        args.evaluate_when_saving()
        if keep_best:
            args.load_best_model_at_end = args.save_strategy != "no"


def choose_best_by(args: RunArguments, metrics: Mapping[str, bool], default: str) -> None:
    """
    Set the metric that the best checkpoint is chosen by, unless it was given.

    Args:
        metrics: the metrics of an evaluation in this run, and whether higher is better.
        default: the metric to choose by.

    Raises:
        InputError: the given metric is not among them.
    """
    name = args.metric_for_best_model.removeprefix("eval_") if args.metric_was_given else default
    if name not in metrics:
        raise unknown_metric(name, list(metrics))
    args.metric_for_best_model = name
    if not args.direction_was_given:
        args.greater_is_better = metrics[name]


def warn_of_same_files(train: Sequence[str | None], validation: Sequence[str | None]) -> None:
    """Warn if a file is used for both training and evaluation: its scores say nothing about other data."""
    trained = {os.path.realpath(path) for path in train if path}
    for path in dict.fromkeys(validation):
        if path and os.path.realpath(path) in trained:
            logger.warning(
                f"{path} is used for both training and evaluation: its scores will say nothing about other data"
            )


@contextmanager
def output_of(args: RunArguments) -> Iterator[str | None]:
    """
    Make the output folder and check that it can be written to; remove it if the script ends without writing anything.

    Yields:
        The checkpoint to resume from, if any.

    Raises:
        InputError: the folder cannot be used, the checkpoint does not exist, or the Hub to push to cannot be reached.
    """
    with output_folder(args.output_dir) if args.process_index == 0 else nullcontext():
        checkpoint = _find_checkpoint(args)
        _check_unused(args, checkpoint)
        _check_hub(args)
        yield checkpoint


def _check_hub(args: RunArguments) -> None:
    if not args.push_to_hub or args.process_index > 0:
        return
    try:
        validate_repo_id(args.hub_model_id or Path(args.output_dir).absolute().name)
        HfApi().whoami(token=args.hub_token)
    except HFValidationError as error:
        raise InputError(f"--hub_model_id: {error}") from error
    except Exception as error:  # huggingface_hub raises many types for a missing network, account or token
        raise InputError(
            f"--push_to_hub: the Hub cannot be reached or rejects the token ({one_line(error)})"
        ) from error


def _find_checkpoint(args: RunArguments) -> str | None:
    """The checkpoint to resume from."""
    output_dir = Path(args.output_dir)
    resume = args.resume_from_checkpoint
    if resume is not None and str(resume).lower() in ("true", "1"):
        resume = last_whole_checkpoint(output_dir)
        if resume is None:
            raise InputError(f"--resume_from_checkpoint: {output_dir} holds no checkpoint to resume from")
    elif resume is not None and (defect := find_defect(resume)):
        raise InputError(f"--resume_from_checkpoint {resume}: {defect}")
    return resume


def _check_unused(args: RunArguments, checkpoint: str | None) -> None:
    """Check that no file is overwritten without permission, and that all files of the run can be written."""
    # Only the main process checks: when a slow process gets here, this run may have written files already.
    if args.process_index > 0:
        return
    output_dir = Path(args.output_dir)
    in_place = checkpoint is not None and os.path.dirname(os.path.realpath(checkpoint)) == os.path.realpath(output_dir)
    found = [path for path in output_dir.iterdir() if path.name not in (STATES_FOLDER, EMBEDDINGS_FOLDER)]
    if args.do_train and found and not in_place and not args.overwrite_output_dir:
        raise InputError(
            f"--output_dir {output_dir}: is not empty; choose another, resume with --resume_from_checkpoint true, or "
            "give --overwrite_output_dir"
        )
    for path in output_dir.iterdir():
        if path.suffix in WRITTEN and not path.is_file():
            raise InputError(f"--output_dir {output_dir}: {path.name} in it is not a file; remove it")
    if (output_dir / METRICS_FILE).exists():
        read_json_object(output_dir / METRICS_FILE)  # transformers adds the metrics of this run to it


def train_and_save(trainer: LayerPoolTrainer, checkpoint: str | None, save: Callable[[], None] | None = None) -> None:
    """
    Train from a checkpoint or from the start; save the model, the metrics and the state in `args.output_dir`.

    An adapter is saved on its own, then merged into the trainer's model.

    Args:
        checkpoint: the checkpoint to resume from, if any.
        save: saves what is kept of the model, on one process. Default: the whole model.
    """
    args = trainer.args
    if args.overwrite_output_dir and checkpoint is None and args.process_index == 0:
        # A new run must not find, or resume from, the checkpoints of the run that it overwrites.
        for pattern in ("checkpoint-*", ADAPTER_FOLDER):
            for folder in Path(args.output_dir).glob(pattern):
                shutil.rmtree(folder)
    with save_on_sigterm(trainer):
        result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.check_weights()
    with write_errors(trainer, args.output_dir):
        if has_adapter(trainer.model):
            save_and_merge(trainer)
        if save is None:
            trainer.save_model()
        elif args.should_save:
            save()
        if args.given and args.process_index == 0:
            write_arguments(args.given, Path(args.output_dir) / ARGUMENTS_FILE)
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()


def evaluate_and_save(trainer: LayerPoolTrainer) -> None:
    """Evaluate, and save the metrics in `args.output_dir`."""
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)


def describe_run(
    trainer: LayerPoolTrainer,
    settings: Mapping[str, str],
    evaluation_data: str,
    checkpoint: str | None,
    learning_rates: Mapping[str, float] | None = None,
) -> str:
    """
    The plan of a run as a table.

    Args:
        settings: rows of the table that belong to the kind of training.
        evaluation_data: the names of the evaluation data, if there are any.
        checkpoint: the checkpoint that it resumes from, if any.
        learning_rates: the highest rate of each part that is trained. Default: that of all.
    """
    args = trainer.args
    rates = [f"{part} {rate:g}" for part, rate in (learning_rates or {}).items()] or [f"{args.learning_rate:g}"]
    steps = args.max_steps
    if steps <= 0:
        steps_per_epoch = math.ceil(len(trainer.get_train_dataloader()) / args.gradient_accumulation_steps)
        steps = math.ceil(steps_per_epoch * args.num_train_epochs)
    evaluates_on = "nothing"
    if args.eval_strategy != "no":
        evaluates_on = f"{evaluation_data}, {_how_often(args, steps)}"
        if args.load_best_model_at_end:
            evaluates_on += f"; keeps the checkpoint with the best {args.metric_for_best_model}"
    plan = {
        **settings,
        "rows a step": f"{args.per_device_train_batch_size * args.world_size} on {args.world_size} process(es), "
        f"{args.gradient_accumulation_steps} accumulated",
        "steps": f"{steps:,}",
        "learning rate": f"{', '.join(rates)}; {args.lr_scheduler_type.value} schedule, "
        f"{args.get_warmup_steps(steps):,} warmup steps",
        "device": device_name(args),
        "precision": precision_name(args, trainer.model.dtype),
        "evaluates on": evaluates_on,
        "resumes from": checkpoint or "nothing",
    }
    return tabulate(plan.items(), tablefmt="plain", disable_numparse=True)


def _how_often(args: RunArguments, steps: int) -> str:
    if args.eval_strategy == "epoch":
        return "every epoch"
    every = math.ceil(args.eval_steps * steps) if args.eval_steps < 1 else int(args.eval_steps)
    return "at the end" if every >= steps else f"every {every:,} steps and at the end"


def describe_end(trainer: LayerPoolTrainer, commands: Mapping[str, Sequence[str]]) -> str:
    """
    What a finished run kept, where it is, and what to try next, as a table.

    Args:
        commands: the words of commands to try, by what they do.
    """
    facts, args = trainer.card_facts(), trainer.args
    kept = f"step {facts.kept_step:,} of {trainer.state.global_step:,}"
    score = facts.evaluations.get(facts.kept_step, {}).get(facts.metric)
    if score is not None:
        evaluations = f"{len(facts.evaluations)} evaluations"
        best = f", the best of {evaluations}" if facts.is_best_kept and len(facts.evaluations) > 1 else ""
        kept += f"{best}: {facts.metric} {score:.4g}"
    rows = {
        "kept": kept,
        "saved in": f"{args.output_dir}; its README.md is the model card",
        **{name: shlex.join(words) for name, words in commands.items()},
    }
    return "\n" + tabulate(rows.items(), tablefmt="plain", disable_numparse=True)


def describe_pooler(model: PreTrainedModel) -> str:
    """The pooler of a model and the hidden states that it reads, in words."""
    base = model.pooler.residual
    name = model.config.pooler_type if base is None else f"{base} + {model.config.pooler_type}"
    return f"{name} over the hidden states {', '.join(map(str, model.pooler.states))}"


def describe_packed_attention(trainer: LayerPoolTrainer) -> str:
    """How attention stays inside packed sentences in this run, in words."""
    args, model = trainer.args, trainer.model
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else model.dtype
    return describe_attention(model.config, args.device, dtype)


def publish(trainer: LayerPoolTrainer) -> None:
    """Write the model card and, with `push_to_hub`, upload the folder to the Hub."""
    if not trainer.args.push_to_hub:
        trainer.create_model_card()
        return
    try:
        trainer.push_to_hub()
    except Exception as error:  # see _check_hub
        raise PushError(
            f"the model is saved in {trainer.args.output_dir}, but could not be pushed to the Hub ({one_line(error)})"
        ) from error


@contextmanager
def argument_errors() -> Iterator[None]:
    """Turn errors of transformers while a trainer is created, which are about the arguments, into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, ImportError, RuntimeError, OSError) as error:
        raise InputError(one_line(error)) from error
