"""
LoRA (Hu et al., ICLR 2022, arXiv 2106.09685) with PEFT: the weights of the encoder are frozen; low-rank matrices added
to its linear layers, and the pooler, are trained.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel, Trainer

from ..common.checkpoint_files import read_json_object
from ..common.errors import InputError
from .compat import has_forward_hooks


if TYPE_CHECKING:
    from peft import PeftModel


# The adapter without the model, in the output folder.
ADAPTER_FOLDER = "adapter"
ADAPTER_CONFIG = "adapter_config.json"
# Settings that the adapters of a checkpoint and of the model must share, by their names here and in PEFT.
SHARED = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_target_modules": "target_modules"}


def require_peft() -> None:
    """Raise an `InputError` if PEFT is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise InputError("use_lora needs PEFT: pip install peft")


def has_adapter(model: nn.Module) -> bool:
    """Whether a model is a `PeftModel`, from [`add_lora`] or from PEFT's own `get_peft_model`."""
    if importlib.util.find_spec("peft") is None:
        return False
    from peft import PeftModel  # an extra

    return isinstance(model, PeftModel)


def add_lora(
    model: PreTrainedModel,
    *,
    r: int = 16,
    lora_alpha: int = 32,
    lora_dropout: float = 0.0,
    target_modules: Sequence[str] | None = None,
) -> "PeftModel":
    r"""
    Freeze a layer-pooled model and add LoRA to linear layers of its encoder. The modules on top of the encoder (the
    pooler, a classifier) are trained in full.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A layer-pooled model. It is changed in place.
        r (`int`, *optional*, defaults to 16):
            The rank of the added matrices.
        lora_alpha (`int`, *optional*, defaults to 32):
            The update is multiplied by `lora_alpha / r`.
        lora_dropout (`float`, *optional*, defaults to 0.0):
            The dropout probability of their inputs, in training.
        target_modules (sequence of `str`, *optional*):
            The ends of the names of the encoder's linear layers to adapt, such as `query`. Defaults to all of them.

    Returns:
        `peft.PeftModel`: a model that passes `encode`, `config` and all other attributes on to `model`.

    Raises:
        InputError: PEFT is not installed, or the encoder has no such linear layer.
    """
    require_peft()
    from peft import LoraConfig, get_peft_model  # an extra

    linear = linear_layers(model)
    known = sorted({name.rpartition(".")[2] for name in linear})
    for target in target_modules or ():
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            raise InputError(
                f"lora_target_modules: the encoder has no linear layer {target!r} to adapt; use {', '.join(known)}"
            )
    children = model.named_children()
    heads = [name for name, child in children if child is not model.base_model and list(child.parameters())]
    config = LoraConfig(
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=list(target_modules or known),
        modules_to_save=heads or None,  # PEFT rejects modules without parameters, such as a mean pooler
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:  # the pooler may read no layer of the encoder, or none of the target modules
        raise InputError(f"use_lora finds no linear layer to adapt: {str(error).splitlines()[0]}") from error


def linear_layers(model: PreTrainedModel) -> list[str]:
    """
    Names, inside the encoder, of the linear layers that may be adapted.

    A layer that the pooler reads with a hook (`embeddings_project` of a narrow ELECTRA) is left out: PEFT wraps it,
    and the hook would read the output without the update of LoRA.
    """
    modules = model.base_model.named_modules()
    return [name for name, module in modules if isinstance(module, nn.Linear) and not has_forward_hooks(module)]


def check_adapter(model: "PeftModel") -> None:
    """Raise an `InputError` if an adapter wraps a layer that the pooler reads with a hook; see [`linear_layers`]."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # an extra

    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and has_forward_hooks(module.base_layer):
            target = name.rpartition(".")[2]
            raise InputError(f"the pooler reads {target!r} without its adapter; take it out of the target modules")


def lora_settings(model: "PeftModel") -> dict[str, str]:
    """Names and values that describe the adapter of [`add_lora`] in the table of the run and in the model card."""
    config = model.peft_config[model.active_adapter]
    trained, all_parameters = model.get_nb_trainable_parameters()
    total = all_parameters - trained  # LoRA adds its weights to the model's own, which stay
    in_full = "".join(f", {name} in full" for name in sorted(config.modules_to_save or ()))
    return {
        "LoRA": f"rank {config.r}, alpha {config.lora_alpha}, dropout {config.lora_dropout:g}, on "
        f"{', '.join(sorted(config.target_modules))}{in_full}",
        "trainable parameters": f"{trained:,}, which is {trained / total:.2%} of the model's {total:,}",
    }


def check_checkpoint(checkpoint: str, model: nn.Module) -> None:
    """
    Raise an `InputError` unless a checkpoint holds an adapter like the model's, or none for a model without one.

    transformers would load the weights that fit, or none, and continue.
    """
    if not Path(checkpoint).is_dir():
        return  # transformers raises an error
    path = Path(checkpoint, ADAPTER_CONFIG)
    if not has_adapter(model):
        if path.is_file():
            raise InputError(f"{checkpoint}: holds an adapter; resume it with --use_lora")
        return
    adapter = model.active_adapter
    if adapter != "default":
        path = Path(checkpoint, adapter, ADAPTER_CONFIG)  # where PEFT saves one with a name
    if not path.is_file():
        raise InputError(f"{checkpoint}: holds no adapter; resume it without --use_lora")
    saved, own = read_json_object(path), model.peft_config[adapter].to_dict()
    for option, name in SHARED.items():
        first, second = (
            sorted(value) if isinstance(value, (list, set)) else value for value in (saved.get(name), own.get(name))
        )
        if first != second:
            raise InputError(f"{checkpoint}: was trained with {option}={first}, which cannot become {second}")


def save_and_merge(trainer: Trainer) -> None:
    """
    Save the adapter as `adapter/` in `args.output_dir`, then replace the trainer's model by the ordinary model with
    the adapter merged into its weights. All processes must call this.
    """
    if trainer.args.should_save:
        folder = Path(trainer.args.output_dir, ADAPTER_FOLDER)
        trainer.model.save_pretrained(folder)
        (folder / "README.md").unlink()  # PEFT's empty template; the run writes a card of its own
    trainer.model = trainer.model_wrapped = trainer.model.merge_and_unload()
