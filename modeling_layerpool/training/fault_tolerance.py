"""Runs that break: checkpoints known to be complete, one saved on SIGTERM, and a clear error on a full disk."""

import contextlib
import json
import logging
import os
import shutil
import signal
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import seed_worker, sort_checkpoints

from .compat import is_write_error
from .distributed import cpu_group, world_size
from .lora import has_adapter


MANIFEST = "complete.json"
PART = f"{MANIFEST}.part"
# The exit code that shells report after SIGTERM, so that no scheduler takes the run for finished.
PREEMPTED = 128 + signal.SIGTERM
# Seconds between SIGTERM and SIGKILL on common clusters.
GRACE = 30

logger = logging.getLogger(__name__)


class CheckpointWriteError(RuntimeError):
    """
    A checkpoint or model could not be written. The message names the folder, the space needed and the space free.
    """


class Preempted(SystemExit):
    """SIGTERM ended the training, after it had saved a checkpoint."""

    def __init__(self):
        super().__init__(PREEMPTED)


# --- complete checkpoints ---


def write_manifest(folder: str | os.PathLike) -> None:
    """
    Write the size and checksum of every file of a checkpoint into its manifest.

    transformers writes its state after this, and then removes older checkpoints. So a checkpoint with a manifest and a
    state is complete, and an interrupted save leaves the previous checkpoint.
    """
    folder = Path(folder)
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (MANIFEST, PART, TRAINER_STATE_NAME):
            files[path.relative_to(folder).as_posix()] = (path.stat().st_size, _checksum(path))
    part = folder / PART
    part.write_text(json.dumps(files, indent=1))
    os.replace(part, folder / MANIFEST)


def _checksum(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def find_defect(checkpoint: str | os.PathLike) -> str | None:
    """Why a checkpoint cannot be resumed from, as half a sentence that names the file; None for a complete one."""
    folder = Path(checkpoint)
    try:
        if not folder.is_dir():
            return "no checkpoint there"
        if not (folder / MANIFEST).is_file():
            return f"{MANIFEST} is missing: it was not written to its end, or with --save_only_model"
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            files = {name: (int(size), int(checksum)) for name, (size, checksum) in manifest.items()}
        except (ValueError, TypeError, AttributeError, OverflowError):
            return f"{MANIFEST} is corrupt"
        for name, (size, checksum) in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} bytes, not {size:,}"
            if _checksum(path) != checksum:
                return f"{name} is corrupt"
        if not (folder / TRAINER_STATE_NAME).is_file():
            return f"{TRAINER_STATE_NAME} is missing: it was not written to its end"
        try:
            json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["global_step"]
        except (ValueError, TypeError, KeyError):
            return f"{TRAINER_STATE_NAME} is corrupt"
    except OSError as error:
        return f"{error.filename or 'a file'} cannot be read ({error.strerror})"
    return None


def last_whole_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The last complete checkpoint; each later one is logged with its defect."""
    for checkpoint in reversed(sort_checkpoints(str(output_dir))):
        defect = find_defect(checkpoint)
        if defect is None:
            return checkpoint
        logger.warning(f"{checkpoint} is skipped: {defect}")
    return None


# --- a full disk ---


@contextlib.contextmanager
def write_errors(trainer: Trainer, folder: str) -> Iterator[None]:
    """Turn a failure to write into a [`CheckpointWriteError`]."""
    try:
        yield
    except Exception as error:
        if isinstance(error, CheckpointWriteError) or not is_write_error(error):
            raise
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        needed, free = _bytes_needed(trainer), shutil.disk_usage(trainer.args.output_dir).free
        raise CheckpointWriteError(
            f"{folder}: could not be written to its end; a checkpoint needs about {needed / 1e6:,.1f} MB, "
            f"{free / 1e6:,.1f} MB are free ({cause}). Make room and resume "
            "from the last complete checkpoint with --resume_from_checkpoint true"
        ) from error


def _bytes_needed(trainer: Trainer) -> int:
    """The size of the weights that are saved and of the optimizer's state."""
    tensors = [*trainer.model.parameters(), *trainer.model.buffers()]
    if has_adapter(trainer.model):
        tensors = [parameter for parameter in tensors if parameter.requires_grad]
    if trainer.optimizer is not None:
        tensors += [value for state in trainer.optimizer.state.values() for value in state.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if torch.is_tensor(tensor))


@contextlib.contextmanager
def remove_if_incomplete(trainer: Trainer, checkpoint: str) -> Iterator[None]:
    """Remove a checkpoint whose writing fails, so that it takes no room from the next one."""
    if trainer.args.should_save:
        # Files of an earlier run in this folder must not mark an incomplete checkpoint as complete.
        for name in (MANIFEST, TRAINER_STATE_NAME):
            Path(checkpoint, name).unlink(missing_ok=True)
    with write_errors(trainer, checkpoint):
        try:
            yield
        except Exception:
            if find_defect(checkpoint) is not None:
                shutil.rmtree(checkpoint, ignore_errors=True)
            raise


# --- SIGTERM ---


@contextlib.contextmanager
def save_on_sigterm(trainer: Trainer) -> Iterator[None]:
    """
    In this context, SIGTERM to any process ends the training on all of them: they finish the step, save a checkpoint
    and raise [`Preempted`].

    `enable_jit_checkpoint` of transformers waits three seconds, may save in the middle of a step, whose random numbers
    are then drawn twice, lets each process stop at its own step, and continues as if the training had finished. A
    handler that is already installed, by that option or by the application, is kept.
    """
    callback = _SigtermCallback()
    trainer.add_callback(callback)
    is_free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    installs = is_free and threading.current_thread() is threading.main_thread()
    if installs:
        signal.signal(signal.SIGTERM, callback.receive)
    try:
        yield
    finally:
        if installs:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        trainer.remove_callback(callback)


class _SigtermCallback(TrainerCallback):
    def __init__(self):
        self.received = False
        self.stops = False
        # On the CPU, because asking the other processes at every step must not wait for the device.
        self.group = cpu_group() if world_size() > 1 else None

    def receive(self, signum, frame):
        self.received = True

    def _agree(self) -> bool:
        """Whether any process has received the signal; the same answer on all of them."""
        received = torch.tensor([int(self.received)])
        if self.group is not None:
            dist.all_reduce(received, op=dist.ReduceOp.MAX, group=self.group)
        self.stops = bool(received.item())
        return self.stops

    def on_step_end(self, args, state, control, **kwargs):
        # The last step of an epoch or run is saved at the end of the epoch, after an evaluation that may be due there.
        if self._agree() and not (control.should_training_stop or float(state.epoch).is_integer()):
            control.should_save = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.stops:
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        if self.stops or self._agree():
            if state.is_world_process_zero:
                logger.warning(
                    f"SIGTERM: saved step {state.global_step} of {state.max_steps} in {args.output_dir}; resume with "
                    "--resume_from_checkpoint true"
                )
            raise Preempted


def init_worker(worker_id: int, num_workers: int, rank: int) -> None:
    """
    Initialize a data worker, which ends some time after SIGTERM and not at once.

    A cluster sends SIGTERM to every process of a job, but the current step still needs its data workers.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
    seed_worker(worker_id, num_workers, rank)
