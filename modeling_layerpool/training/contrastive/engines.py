"""FSDP and DeepSpeed: the options that they would apply wrongly or not at all, and a whole model from its shards."""

import copy

from transformers import PreTrainedModel, Trainer

from ...common.errors import InputError
from ..lora import has_adapter


def check_engine(trainer: Trainer) -> None:
    """Raise an `InputError` if the run uses FSDP or DeepSpeed and an option that does not work with it."""
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return
    args, engine = trainer.args, "FSDP" if trainer.is_fsdp_enabled else "DeepSpeed"
    both = ("FSDP", "DeepSpeed")
    with_parameters = "mlm_weight" if trainer.mlm_head is not None else "learn_temperature"
    if args.distill_projection:
        with_parameters = "distill_projection"
    adds_parameters = any(True for _ in trainer.extra_modules.parameters())
    for option, is_given, engines, reason in (
        ("use_lora", has_adapter(trainer.model), both, "which was not tested with adapters"),
        ("pooler_learning_rate", args.pooler_learning_rate is not None, ("DeepSpeed",), "which has one learning rate"),
        ("gradient_cache", args.gradient_cache is not None, ("DeepSpeed",), "which has to run every backward pass"),
        # Each forward pass gathers weights, and processes may split their rows into different numbers of chunks.
        (
            "gradient_cache",
            args.gradient_cache is not None,
            ("FSDP",),
            "where all processes must run equally many passes",
        ),
        (
            f"shuffling={args.shuffling}",
            args.shuffling in ("neighbours", "clusters"),
            both,
            "where no process has all weights to embed with (shuffling=words needs none)",
        ),
        (with_parameters, adds_parameters, both, "whose optimizer knows the parameters of the model only"),
    ):
        if is_given and engine in engines:
            raise InputError(f"{option} does not work under {engine}, {reason}; leave it out, or use DDP")
    if engine == "FSDP":
        plugin = trainer.accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise InputError(f"FSDP {plugin.fsdp_version} is not supported; set fsdp_version: 2")
        if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
            raise InputError(
                "under FSDP the model is saved as a whole only with fsdp_state_dict_type: FULL_STATE_DICT; set it"
            )


class WholeModel:
    """
    A copy of the model on the main process, for evaluation and saving under FSDP.

    FSDP leaves no process with all weights and gives the model a class of torch. The sharded model cannot be
    evaluated: `encode` runs under `torch.inference_mode`, and weights that FSDP gathers there cannot be trained on.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.model = copy.deepcopy(trainer.model) if trainer.args.process_index == 0 else None

    def gather(self) -> PreTrainedModel | None:
        """The copy with the current weights on the main process, None on the others. All processes must call this."""
        weights = self.trainer.accelerator.get_state_dict(self.trainer.model)
        if self.model is None:
            return None
        self.model.load_state_dict(weights)
        return self.model.to(self.trainer.args.device)
