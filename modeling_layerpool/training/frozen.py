"""Training of a head on a frozen encoder, whose states are computed once and read from a file in every epoch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import IterableDataset
from transformers import PreTrainedModel, Trainer

from ..common.command_line import check_used
from ..common.errors import InputError
from ..common.state_cache import DTYPES, StateCache, StateFile, distinct_texts
from .computed_files import STATES_FOLDER, compute_together
from .lora import has_adapter


TRAINED_FROZEN = "the head only; the encoder was frozen"  # for the model card


@dataclass
class FreezeArguments:
    """
    The options of a frozen encoder. A class of arguments names this class before its class of [`RunArguments`], whose
    default of `learning_rate` would count otherwise.
    """

    GROUP: ClassVar = "frozen encoder"
    DETAILS: ClassVar = ("state_cache", "state_cache_dir")

    freeze_encoder: bool = field(
        default=False,
        metadata={
            "help": "Train only the pooler and the classifier, with the encoder in evaluation mode. The encoder runs "
            "once over each distinct text, and every epoch reads its states from a file (see --state_cache). Without "
            "--pooler_type, an encoder that has no pooler gets one that reads all layers: concat_layers for a "
            "classifier, residual_layers otherwise."
        },
    )
    state_cache: str = field(
        default="float16",
        metadata={
            "help": "Dtype of the states that --freeze_encoder keeps: float16 or float32, or off to run the encoder "
            "in every step, as poolers that read every token (hire), streams, FSDP and DeepSpeed always do.",
            "choices": [*DTYPES, "off"],
        },
    )
    state_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the states, which runs on the same texts with the same encoder can share. Default: the "
            f"folder {STATES_FOLDER} in --output_dir."
        },
    )
    learning_rate: float | None = field(
        default=None,
        metadata={"help": "The initial learning rate. Default: 5e-5, or 1e-3 with --freeze_encoder."},
    )

    def __post_init__(self):
        if self.learning_rate is None:
            self.learning_rate = 1e-3 if self.freeze_encoder else 5e-5
        super().__post_init__()
        check_used(self, {"state_cache": self.freeze_encoder}, "without freeze_encoder")
        check_used(self, {"state_cache_dir": self.state_cache != "off"}, "with state_cache=off")
        check_used(self, {"state_cache_dir": self.freeze_encoder}, "without freeze_encoder")


def freeze_encoder(model: PreTrainedModel) -> None:
    """Leave only the pooler and the classifier to train. Raises an `InputError` if there is an adapter to train."""
    if has_adapter(model):
        raise InputError("freeze_encoder leaves the adapter of use_lora nothing to do; drop one of them")
    model.base_model.requires_grad_(False)


class FrozenTexts:
    """
    The texts of a run with a frozen encoder, by their index, and the states that belong to each index.

    Args:
        trainer: its arguments, its model and its processes.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.caches: list[StateCache] = []
        self.begins: list[int] = []  # the index of the first text of each cache

    def __getstate__(self) -> dict[str, Any]:
        # Data workers only read states.
        return {"caches": self.caches, "begins": self.begins}

    def add(
        self, input_ids: Sequence[Sequence[int]], token_type_ids: Sequence[Sequence[int]] | None = None
    ) -> np.ndarray:
        """
        The index of each text, `(len(input_ids),)`, equal for equal texts. States that no file has are computed: each
        process computes a part. All processes must call this.
        """
        args, trainer = self.trainer.args, self.trainer
        input_ids, token_type_ids, rows = distinct_texts(input_ids, token_type_ids)
        folder = args.state_cache_dir or Path(args.output_dir) / STATES_FOLDER
        with trainer.compute_loss_context_manager():
            file = StateFile(trainer.model, input_ids, token_type_ids, folder, args.state_cache)
            compute_together(file, "The encoder", not args.disable_tqdm)
        first = len(self)
        self.caches.append(StateCache(file.path, np.arange(len(input_ids))))
        self.begins.append(first)
        return first + np.asarray(rows)

    def __len__(self) -> int:
        return sum(len(cache) for cache in self.caches)

    def states(self, indices: np.ndarray) -> torch.Tensor:
        """The states of some texts that were added together, `(len(indices), n, 2, h)`."""
        number = np.searchsorted(self.begins, indices[0], side="right") - 1
        return torch.from_numpy(self.caches[number][indices - self.begins[number]])


def keep_frozen(trainer: Trainer) -> None:
    """Keep a frozen encoder in evaluation mode. transformers sets the whole model to training mode in each step."""
    if trainer.args.freeze_encoder:
        trainer.model.base_model.eval()


def frozen_texts(trainer: Trainer) -> FrozenTexts | None:
    """An empty [`FrozenTexts`] if this run reads the states of a frozen encoder from a file, otherwise None."""
    args = trainer.args
    if not args.freeze_encoder or args.state_cache == "off" or isinstance(trainer.train_dataset, IterableDataset):
        return None
    if trainer.model.pooler.reads_tokens or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return None
    if not trainer.model.config.include_prompt:  # the mean of a text depends on its prompt
        return None
    return FrozenTexts(trainer)


def describe_frozen(trainer: Trainer) -> dict[str, str]:
    """The row of the plan of a run about its frozen encoder, if it has one."""
    if not trainer.args.freeze_encoder:
        return {}
    if trainer.frozen is not None:
        return {"frozen encoder": f"read from the states of {len(trainer.frozen):,} texts"}
    reason = f" ({trainer.model.config.pooler_type} reads every token)" if trainer.model.pooler.reads_tokens else ""
    return {"frozen encoder": f"runs in every step{reason}"}
