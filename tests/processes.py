"""
Scripts in processes of their own, which start in a moment.

A short run in a fresh Python mostly imports torch and transformers. Here each process is a fork of a server that has
imported them, and has computed nothing: it has no threads, has drawn no random number and has no state of a run. Nor
has it imported this package, so that a process can also be one in which the package is not installed.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path


ROOT = Path(__file__).parent.parent
SECONDS = 600

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.imported_by_scripts"])


class Running:
    """
    A process that runs a script, or `-m` and a module, in a process group of its own, which the workers of its data
    loaders share.
    """

    def __init__(self, *words, cwd=ROOT, **environment):
        self._folder = tempfile.TemporaryDirectory()
        self.words = [str(word) for word in words]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""} | environment
        self._process = _server.Process(target=_run, args=(self.words, cwd, environment, self._folder.name))
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def finish(self, seconds=SECONDS) -> subprocess.CompletedProcess:
        """Wait for its end. Kills it, and raises `subprocess.TimeoutExpired`, after so many seconds."""
        self._process.join(seconds)
        code = self.poll()
        if code is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.join()
        told = [(Path(self._folder.name) / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
        self._folder.cleanup()
        if code is None:
            raise subprocess.TimeoutExpired(self.words, seconds, *told)
        return subprocess.CompletedProcess(self.words, code, *told)


def _run(words: list[str], cwd: Path, environment: dict[str, str], folder: str) -> None:
    from .imported_by_scripts import SYS_PATH  # only the server and its forks have it imported

    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as in a process of its own
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path[:] = [str(ROOT), *SYS_PATH]
    for number, name in enumerate(("stdout", "stderr"), 1):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    code = 0
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            sys.path.insert(0, str(cwd))
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, os.path.dirname(words[0]))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    # Only here nothing refers to the script's objects any longer, as when an interpreter ends: its workers may end.
    sys.exit(code)


def flags(options: dict) -> Iterator[str]:
    """The words of a command line: True is a flag alone, and None leaves it out."""
    for name, value in options.items():
        if value is True:
            yield f"--{name}"
        elif isinstance(value, list):
            yield from (f"--{name}", *map(str, value))
        elif value is not None:
            yield from (f"--{name}", str(value))


def start_group(*words, processes, cwd=ROOT) -> list[Running]:
    """Start a script on several processes, as `accelerate launch` and `torchrun` set them up; by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "TORCHELASTIC_RUN_ID": "none"}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [Running(*words, cwd=cwd, RANK=str(rank), LOCAL_RANK=str(rank), **group) for rank in range(processes)]


def launch(*words, processes=1, cwd=ROOT) -> subprocess.CompletedProcess:
    """
    Run a script to its end, on one process or on several. What they print stands in the order of their ranks; when one
    fails, the others are killed.
    """
    if processes == 1:
        return Running(*words, cwd=cwd).finish()
    group = start_group(*words, processes=processes, cwd=cwd)
    end = time.monotonic() + SECONDS
    while any(process.poll() is None for process in group) and time.monotonic() < end:
        if any(process.poll() for process in group):
            time.sleep(1)  # others may be about to fail by themselves
            for process in group:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        time.sleep(0.02)
    done = [process.finish(1) for process in group]
    code = next((one.returncode for one in done if one.returncode), 0)
    printed = ("".join(getattr(one, name) for one in done) for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(done[0].args, code, *printed)


def start_accelerate(*words, cwd=ROOT) -> Running:
    """Start the real `accelerate launch`, whose processes are Pythons of their own."""
    return Running("-m", "accelerate.commands.launch", *words, cwd=cwd, PYTHONPATH=str(ROOT))


def accelerate_launch(*words, processes=2, cwd=ROOT) -> subprocess.CompletedProcess:
    """Run a script through the real `accelerate launch`. `--cpu --num_processes 2` would start one process."""
    return start_accelerate(
        *("--multi_gpu", "--num_machines", "1", "--main_process_port", "0", "--num_processes", processes),
        *("--mixed_precision", "no", "--dynamo_backend", "no", *words),
        cwd=cwd,
    ).finish()


# An installed copy of the package must not help.
HIDE_THE_PACKAGE = """
import os, sys
import transformers.dynamic_module_utils
assert not any(name.partition(".")[0] == "modeling_layerpool" for name in sys.modules)
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "modeling_layerpool":
            raise ModuleNotFoundError("No module named 'modeling_layerpool'")
sys.meta_path.insert(0, Hide())
transformers.dynamic_module_utils.HF_MODULES_CACHE = os.path.abspath("modules")
"""


def run_without_the_package(code, *arguments, cwd) -> subprocess.CompletedProcess:
    """Run code in a folder, in a process that has not imported the package and cannot."""
    script = cwd / "without_the_package.py"
    script.write_text(HIDE_THE_PACKAGE + textwrap.dedent(code), encoding="utf-8")
    done = launch(script, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return done
