"""
Private parts of transformers and torch that the training needs, because no public interface does the same.

tests/training/test_compat.py fails with a sentence for each of them that a new release renames or changes.
"""

import copy
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PretrainedConfig, Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..common.progress import without_bars


class TrainerHooks(Trainer):
    """Calls methods with names of our own at moments of the training that have no callback in transformers."""

    # --- to be overridden ---

    @contextmanager
    def writing_checkpoint(self, folder: str) -> Iterator[None]:
        """Around the writing of a checkpoint, errors included."""
        yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Around an evaluation during the training."""
        yield

    def complete_checkpoint(self, folder: str) -> None:
        """After this process wrote its files of a checkpoint, before the state, and before older ones are removed."""

    def model_to_save(self) -> nn.Module:
        """The model whose class and code are saved with the weights."""
        return self.model

    def save_next_to_model(self, folder: str) -> None:
        """After the model was saved in a folder."""

    def before_resuming(self, checkpoint: str) -> None:
        """Before the weights of a checkpoint are loaded."""

    def after_resuming(self, checkpoint: str) -> None:
        """After the weights of a checkpoint were loaded."""

    def is_finished(self) -> bool:
        """Whether nothing is left to train in the state that was just loaded."""
        return False

    def can_be_best(self, metrics: dict[str, float]) -> bool:
        """Whether an evaluation may be chosen as the best one."""
        return True

    # --- private methods of the Trainer ---

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # The callback on_save comes after everything was written, and not at all after an error.
        folder = os.path.join(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        with self.writing_checkpoint(folder):
            super()._save_checkpoint(model, trial)

    def _evaluate(
        self, trial: Any, ignore_keys_for_eval: list[str] | None, *args: Any, **kwargs: Any
    ) -> dict[str, float]:
        # The public method is also called for the finished model.
        with self.evaluating():
            return super()._evaluate(trial, ignore_keys_for_eval, *args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        # The last file before the state. The callback on_save comes after older checkpoints were removed.
        super()._save_rng_state(output_dir)
        self.complete_checkpoint(output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # save_model gathers the weights of a sharded model, which is no longer one that can be saved.
        trained, self.model = self.model, self.model_to_save()
        try:
            with without_bars():  # there would be one for each file, below that of the training
                super()._save(output_dir, state_dict)
        finally:
            self.model = trained
        self.save_next_to_model(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # The callback on_train_begin is not told the checkpoint.
        self.before_resuming(resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.after_resuming(resume_from_checkpoint)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        # Here transformers compares the arguments with the checkpoint's, which has shares of all steps as numbers.
        args, self.args = self.args, _with_whole_steps(self.args, max_steps)
        try:
            trained = super()._init_training_state(
                max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
            )
        finally:
            self.args = args
        # Whatever a callback sets, transformers trains at least one step if an epoch is left.
        return (num_train_epochs, 0) if self.is_finished() else trained

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # An undefined metric would leave an infinite best metric in the saved state, which is not valid JSON.
        return self.can_be_best(metrics) and super()._determine_best_metric(metrics, trial)


def _with_whole_steps(args: TrainingArguments, max_steps: int) -> TrainingArguments:
    """The arguments with `logging_steps`, `eval_steps` and `save_steps` as numbers of steps."""
    whole = copy.copy(args)
    for name in ("logging_steps", "eval_steps", "save_steps"):
        steps = getattr(args, name)
        if steps is not None and steps < 1:
            setattr(whole, name, math.ceil(max_steps * steps))
    return whole


def attention_implementation(config: PretrainedConfig) -> str | None:
    """The attention that a model runs: transformers chooses it and has no public name for the choice."""
    return config._attn_implementation


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether a forward hook reads a module: torch can only add and remove hooks."""
    return bool(module._forward_hooks)


def is_write_error(error: Exception) -> bool:
    """Whether a file could not be written: safetensors, tokenizers and torch tell it in the message only."""
    signs = ("os error", "inline_container", "PytorchStreamWriter")
    return isinstance(error, OSError) or any(sign in str(error) for sign in signs)
