"""What every training run here adds to the library's: whole checkpoints, a loss that is watched, an honest card."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import InputError
from .fault_tolerance import init_worker, whole_or_gone, write_manifest
from .lora import check_checkpoint


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite. The message names the step and, where they are known, the rows of the batch."""


@dataclass
class RunArguments(TrainingArguments):
    """`transformers.TrainingArguments`, with what all of our scripts share."""

    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Write into an --output_dir that is not empty; its old checkpoints are removed."},
    )
    # A loss that is not finite stops training here, so that it must not be smoothed over.
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Must stay off: a loss that is not finite stops the training."}
    )

    def __post_init__(self):
        if self.logging_nan_inf_filter:
            raise InputError("logging_nan_inf_filter must stay off: a loss that is not finite stops the training")
        if not torch.accelerator.is_available():
            self.use_cpu = True  # which is so anyhow, and the library wants it said before it takes bf16
        super().__post_init__()


class LayerPoolTrainer(Trainer):
    r"""
    The library's Trainer with checkpoints that are whole or gone, and a loss that must stay finite.

    Args:
        write_model_card (`Callable`, *optional*):
            Called with this trainer to write the card of `args.output_dir`, in place of the library's.

    Other arguments are the Trainer's.

    Raises:
        NonFiniteLossError: the loss is NaN or infinite; raised at the next logging or saving step.
        CheckpointWriteError: a checkpoint could not be written, as on a full disk; older ones stay whole.
    """

    # What to try when the loss is no longer finite.
    advice = "lower --learning_rate"

    def __init__(self, *args: Any, write_model_card: Callable[[Trainer], None] | None = None, **kwargs: Any):
        self.write_model_card = write_model_card
        self._unchecked: list[tuple[int, Sequence[int], torch.Tensor]] = []
        super().__init__(*args, **kwargs)

    def watch(self, loss: torch.Tensor, rows: Sequence[int] = ()) -> None:
        """Remember a step's loss for [`check_finite`]; looking at it now would wait for the device."""
        self._unchecked.append((self.state.global_step + 1, rows, loss.detach()))

    def check_finite(self) -> None:
        """Raise a [`NonFiniteLossError`] if a loss since the last check was not finite. Synchronises once."""
        if not self._unchecked:
            return
        steps = list(self._unchecked)
        self._unchecked.clear()
        finite = torch.isfinite(torch.stack([loss for _, _, loss in steps])).tolist()
        if not all(finite):
            step, rows, loss = steps[finite.index(False)]
            where = f"at step {step}" + (f", on rows {', '.join(map(str, rows))} of the training data" if rows else "")
            advice = self.advice + (", or look at these rows" if rows else "")
            raise NonFiniteLossError(f"the loss is {loss.item()} {where}; {advice}")

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The library's step, whose loss is watched."""
        rows = inputs.get("row_numbers", ())
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.watch(loss, rows)
        return loss

    def worker_options(self) -> dict[str, Any]:
        """What a data loader is told of its workers: the library's arguments, and to end after the step on SIGTERM."""
        args = self.args
        return {
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory,
            "persistent_workers": args.dataloader_persistent_workers,
            "prefetch_factor": args.dataloader_prefetch_factor,
            "worker_init_fn": partial(init_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
        }

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self.check_finite()
        super().log(logs, start_time)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.check_finite()
        folder = os.path.join(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        with whole_or_gone(self, folder):
            super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # Each process has written its part, and nothing older has been removed yet.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_manifest(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        check_checkpoint(resume_from_checkpoint, self.model)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _init_training_state(self, max_steps: int, steps_an_epoch: int, epochs: int, *args: Any) -> tuple[int, int]:
        epochs_trained, steps_trained = super()._init_training_state(max_steps, steps_an_epoch, epochs, *args)
        if self.state.global_step >= max_steps:
            # A run that was broken off behind its last step: the library would train one more.
            return epochs, 0
        return epochs_trained, steps_trained

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card of `args.output_dir`, on the main process."""
        if self.write_model_card is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            self.write_model_card(self)
