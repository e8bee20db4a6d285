"""Shared code of the benchmarks: the peak memory of a process, a line about the machine, and cosines."""

import os
import platform
import resource
import subprocess
import sys

import numpy as np
import torch


def peak_mib() -> float:
    """The largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if platform.system() == "Darwin" else 2**10)


def in_own_process(*flags: object, **environment: str) -> list[float]:
    """Run this command again with more flags, and return the numbers in the last line that it prints."""
    command = [sys.executable, *sys.argv, *map(str, flags)]
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
    return [float(number) for number in done.stdout.strip().splitlines()[-1].split()]


def machine() -> str:
    return f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads"


def cosines(embeddings: np.ndarray) -> np.ndarray:
    """The cosine of each row of the first half with the same row of the second half."""
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    one, other = np.split(units, 2)
    return (one * other).sum(1)
