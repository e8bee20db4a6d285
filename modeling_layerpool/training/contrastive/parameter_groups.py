"""Which parameters are trained, and at which learning rate and weight decay."""

import torch
from transformers import PreTrainedModel, Trainer

from ...common.errors import InputError
from ..frozen import freeze_encoder
from .objectives.base import Objective


def choose_trained_parameters(model: PreTrainedModel, args) -> None:
    """Freeze the encoder with `freeze_encoder`. Raise an `InputError` for options without a parameter to act on."""
    has_weights = any(True for _ in model.pooler.parameters())
    if args.freeze_encoder:
        if not has_weights:
            raise InputError(
                f"freeze_encoder leaves nothing to train: pooler_type={model.config.pooler_type} has no weights of "
                "its own; choose one that has some, such as residual_layers or attentive_layers"
            )
        freeze_encoder(model)
    if args.pooler_learning_rate is not None and not has_weights:
        raise InputError(
            f"pooler_learning_rate does nothing: pooler_type={model.config.pooler_type} has no weights of its own"
        )


def pooler_learning_rate(model: PreTrainedModel, args) -> float | None:
    """The learning rate of the pooler if it has its own: the given one, or the one recommended for the pooler."""
    if args.pooler_learning_rate is not None:
        return args.pooler_learning_rate
    # A frozen encoder leaves --learning_rate to the pooler, and DeepSpeed has one rate for all parameters.
    shares_rate = args.freeze_encoder or args.deepspeed_plugin is not None
    return None if shares_rate else model.pooler.learning_rate


def add_parameter_groups(optimizer: torch.optim.Optimizer, trainer: Trainer) -> None:
    """Give the pooler its learning rate, and add the parameters that do not belong to the model."""
    args = trainer.args
    rate = pooler_learning_rate(trainer.model, args)
    if rate is not None:
        pooler = {id(parameter) for parameter in trainer.model.pooler.parameters()}
        for group in list(optimizer.param_groups):
            own = [parameter for parameter in group["params"] if id(parameter) in pooler]
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in pooler]
            optimizer.add_param_group({"params": own, "weight_decay": group["weight_decay"], "lr": rate})
    if trainer.mlm_head is not None:
        decaying = set(trainer.get_decay_parameter_names(trainer.mlm_head.language_model))
        for decays, weight_decay in ((True, args.weight_decay), (False, 0.0)):
            own = [p for name, p in trainer.mlm_head.own_parameters() if (name in decaying) == decays]
            optimizer.add_param_group({"params": own, "weight_decay": weight_decay})
    for objective in _learning_objectives(trainer):
        rate = _objective_learning_rate(objective, args)
        optimizer.add_param_group({"params": list(objective.parameters()), "weight_decay": 0.0, "lr": rate})


def _learning_objectives(trainer: Trainer) -> list[Objective]:
    """The objective, and that of the distillation, if they have parameters."""
    distillation = None if trainer.distillation is None else trainer.distillation.objective
    return [module for module in (trainer.objective, distillation) if module is not None and list(module.parameters())]


def _objective_learning_rate(objective: Objective, args) -> float:
    recommended = objective.parameter_learning_rate
    if recommended is None:
        recommended = args.temperature_learning_rate
    return args.learning_rate if recommended is None else recommended


def learning_rates(trainer: Trainer) -> dict[str, float]:
    """The highest learning rate of each part that is trained: those of [`add_parameter_groups`] and of the rest."""
    args, rates = trainer.args, {}
    if not args.freeze_encoder:
        rates["encoder"] = args.learning_rate
    if any(True for _ in trainer.model.pooler.parameters()):
        rate = pooler_learning_rate(trainer.model, args)
        rates["pooler"] = args.learning_rate if rate is None else rate
    if trainer.mlm_head is not None:
        rates["language modeling head"] = args.learning_rate
    for objective in _learning_objectives(trainer):
        rates[objective.parameter_name] = _objective_learning_rate(objective, args)
    return rates
