"""What every training script does around its trainer: the output folder, training, saving."""

import logging
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import datasets
import transformers
from transformers import PreTrainedModel, TrainingArguments

from ..errors import InputError, usage_errors
from .base import LayerPoolTrainer, NonFiniteLossError, RunArguments
from .fault_tolerance import (
    CheckpointWriteError,
    find_defect,
    last_whole_checkpoint,
    save_on_sigterm,
    write_errors,
)
from .lora import ADAPTER_FOLDER, has_adapter, save_and_merge


def set_up_logging(args: TrainingArguments) -> None:
    """Messages of the main process, errors of the others; progress bars as `disable_tqdm` says."""
    logging.basicConfig(format="%(message)s", level=logging.INFO if args.process_index == 0 else logging.ERROR)
    level = args.get_process_log_level()
    transformers.utils.logging.set_verbosity(level)
    datasets.utils.logging.set_verbosity(level)
    if args.disable_tqdm or args.process_index > 0:
        datasets.disable_progress_bars()


def evaluate_when_saving(args: RunArguments) -> None:
    """Whoever brings a dev set wants the checkpoint that is best on it: evaluate at every save, keep the best."""
    if args.do_train and args.do_eval and args.eval_strategy == "no":
        if args.save_strategy == "best":
            raise InputError("--save_strategy best needs an --eval_strategy, to know when to measure")
        args.eval_strategy = args.save_strategy
        args.eval_steps = args.eval_steps or args.save_steps
        args.load_best_model_at_end = args.save_strategy != "no"


def find_checkpoint(args: RunArguments) -> str | None:
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


def train_and_save(trainer: LayerPoolTrainer, checkpoint: str | None) -> None:
    """
    Train from a checkpoint or from the start; save the model, the metrics and the state in `args.output_dir`.

    An adapter is saved alone, then merged: the trainer's model is an ordinary one afterwards.
    """
    args = trainer.args
    if args.overwrite_output_dir and checkpoint is None and args.process_index == 0:
        # A run of its own must not find, or resume from, the checkpoints of the one that it overwrites.
        for pattern in ("checkpoint-*", ADAPTER_FOLDER):
            for folder in Path(args.output_dir).glob(pattern):
                shutil.rmtree(folder)
    with save_on_sigterm(trainer):
        result = trainer.train(resume_from_checkpoint=checkpoint)
    with write_errors(trainer, args.output_dir):
        if has_adapter(trainer.model):
            save_and_merge(trainer)
        trainer.save_model()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()


def describe_pooler(model: PreTrainedModel) -> str:
    """What the pooler of a model is and which hidden states it reads, in words."""
    base = getattr(model.pooler, "residual", None)
    name = model.config.pooler_type if base is None else f"{base} + {model.config.pooler_type}"
    return f"{name} over the hidden states {', '.join(map(str, model.pooler.states))}"


def publish(trainer: LayerPoolTrainer) -> None:
    """Write the model card, and push to the Hub if asked for."""
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    else:
        trainer.create_model_card()


@contextmanager
def one_sentence_errors():
    """End the script with one sentence: exit code 2 for what the call can mend, 1 for a run that failed."""
    with usage_errors():
        try:
            yield
        except (NonFiniteLossError, CheckpointWriteError) as error:
            sys.exit(f"error: {error}")
