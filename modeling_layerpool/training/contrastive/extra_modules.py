"""Modules that are trained in addition to the model: the objective, and the head of masked language modeling."""

import os

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from ...common.errors import InputError
from ..distributed import average_gradients


class ExtraModules(nn.ModuleDict):
    """Modules by name. A checkpoint keeps each one that has a state in `<name>.safetensors`."""

    def save(self, folder: str) -> None:
        for name, module in self.items():
            if state := module.state_dict():
                save_file(state, os.path.join(folder, f"{name}.safetensors"))

    def load(self, folder: str) -> None:
        for name, module in self.items():
            path = os.path.join(folder, f"{name}.safetensors")
            if module.state_dict():
                if not os.path.isfile(path):
                    raise InputError(f"{path}: no such file, but the {name} has learned parameters to resume")
                module.load_state_dict(load_file(path))


class ExtraModulesCallback(TrainerCallback):
    """Averages and clears gradients of the extra modules, which the Trainer does for the model only."""

    def __init__(self, modules: ExtraModules):
        self.modules = modules

    def on_step_begin(self, args, state, control, **kwargs):
        self.modules["objective"].on_step_begin(state.global_step / state.max_steps)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        average_gradients(list(self.modules.parameters()))

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.modules.zero_grad()

    def on_train_end(self, args, state, control, **kwargs):
        # The Trainer has loaded the best model by now.
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self.modules.load(state.best_model_checkpoint)
