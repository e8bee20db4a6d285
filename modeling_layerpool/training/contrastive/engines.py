"""FSDP and DeepSpeed: the options that they would apply wrongly or not at all, and a whole model from its shards."""

import copy

from transformers import PreTrainedModel, Trainer

from ...common.errors import InputError
from ..lora import has_adapter


def check_engine(trainer: Trainer) -> None:
    """Raise an `InputError` if the run uses FSDP or DeepSpeed and an option that does not work with it."""
    args = trainer.args
    is_fsdp, is_deepspeed = trainer.is_fsdp_enabled, trainer.is_deepspeed_enabled
    is_sharded = is_fsdp or is_deepspeed
    option_with_parameters = "learn_temperature" if trainer.mlm_head is None else "mlm_weight"
    for is_refused, message in (
        (
            is_sharded and has_adapter(trainer.model),
            "use_lora does not work under FSDP or DeepSpeed, which were not tested with adapters; use DDP, or leave "
            "it out",
        ),
        (
            is_deepspeed and args.pooler_learning_rate is not None,
            "pooler_learning_rate does not work under DeepSpeed, whose optimizer has one learning rate; use DDP, or "
            "leave it out",
        ),
        (
            is_deepspeed and args.gradient_cache is not None,
            "gradient_cache does not work under DeepSpeed, whose engine has to run every backward pass; leave it out, "
            "or use DDP",
        ),
        (
            # Each forward pass gathers weights, and processes may split their rows into different numbers of chunks.
            is_fsdp and args.gradient_cache is not None,
            "gradient_cache does not work under FSDP, where all processes must make the same number of forward "
            "passes; leave it out, or use DDP",
        ),
        (
            is_sharded and args.shuffling in ("neighbours", "clusters"),
            f"shuffling={args.shuffling} does not work under FSDP or DeepSpeed, where no process has all weights to "
            "embed with; use DDP, or shuffling=words",
        ),
        (
            is_sharded and any(True for _ in trainer.extra_modules.parameters()),
            f"{option_with_parameters} does not work under FSDP or DeepSpeed, whose optimizers know the parameters of "
            "the model only; use DDP, or leave it out",
        ),
    ):
        if is_refused:
            raise InputError(message)
    if is_fsdp:
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
