"""
An exponential moving average of the trained weights, which is what a run evaluates and saves.

A checkpoint's model is the average, too. The weights to go on training from are in a file next to it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from ..common.errors import InputError


TRAINING_WEIGHTS = "training_weights.safetensors"


class MovingAverage(TrainerCallback):
    """
    After each step, `average = d * average + (1 - d) * weights` with `d = min(decay, (1 + steps) / (10 + steps))`, so
    that the weights of the start do not stay in it for long.

    Args:
        model: the model as it is trained. Only parameters that are trained are averaged.
        decay: the part of the average that a step keeps.

    Raises:
        InputError: a weight is in half precision, in which an average does not move.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        half = next((name for name, weight in self.trained.items() if weight.dtype.itemsize < 4), None)
        if half is not None:
            raise InputError(
                f"ema needs weights in float32, and {half} is in {self.trained[half].dtype}, in which an average "
                "would not move; leave --dtype out (--bf16 and --fp16 work)"
            )
        self.start()

    def start(self) -> None:
        """Begin with the weights as they are."""
        self.averages = {name: weight.detach().clone() for name, weight in self.trained.items()}
        self.is_average = False  # which of the two the model holds now

    def on_step_end(self, args, state, control, **kwargs):
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        weights = [weight.detach() for weight in self.trained.values()]
        torch._foreach_lerp_(list(self.averages.values()), weights, 1 - decay)

    def on_train_begin(self, args, state, control, **kwargs):
        if self.is_average:  # left by an earlier training
            self.start()

    def on_train_end(self, args, state, control, **kwargs):
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self.is_average = True  # as the model of every checkpoint is
        else:
            self._exchange()

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """With the average in the model; the weights to train come back afterwards."""
        if self.is_average:
            yield
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        self.is_average = not self.is_average
        for name, weight in self.trained.items():
            weight.data, self.averages[name] = self.averages[name], weight.data

    def save(self, folder: str) -> None:
        """Write the weights to go on training from, while the average is in the model."""
        save_file(dict(self.averages), os.path.join(folder, TRAINING_WEIGHTS))

    def resume(self, folder: str) -> None:
        """Take the model's weights, just read from a checkpoint, as the average, and go on from those next to it."""
        self.start()
        weights = load_file(os.path.join(folder, TRAINING_WEIGHTS))
        for name, weight in self.trained.items():
            weight.data.copy_(weights[name])


def check_resumable(folder: str, decay: float | None) -> None:
    """Raise an `InputError` if a checkpoint has an average and the run does not, or the other way round."""
    is_averaged = os.path.isfile(os.path.join(folder, TRAINING_WEIGHTS))
    if is_averaged and decay is None:
        raise InputError(f"{folder}: its model is an average of --ema, from which training cannot go on; give --ema")
    if decay is not None and not is_averaged:
        raise InputError(f"{folder}: was saved without --ema, and has no average to go on with; leave --ema out")
