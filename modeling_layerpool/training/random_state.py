"""The state of all random generators that a forward pass draws from, kept and returned to."""

import contextlib
from collections.abc import Iterator

import torch
from torch.utils.checkpoint import get_device_states, set_device_states


class RandomState:
    """The generators of the CPU and of the devices of `tensors`, as they are when this is made."""

    def __init__(self, *tensors: torch.Tensor):
        self.cpu_state = torch.get_rng_state()
        self.devices, self.device_states = get_device_states(*tensors)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Draw again what was drawn since, and leave the generators as they were before."""
        with torch.random.fork_rng(devices=self.devices):
            torch.set_rng_state(self.cpu_state)
            set_device_states(self.devices, self.device_states)
            yield
