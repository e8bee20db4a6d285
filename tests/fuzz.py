"""
Runs the scripts on broken arguments and files, and looks at how each run ends.

    python -m tests.fuzz --cases 20000 --seed 1 [--script run_mlm.py]

Every case is drawn from its script, seed and number alone, and runs in a fork of this process: it starts in a moment,
and whatever it changes in the process (singletons, signal handlers, random state, logging) ends with it.
"""

import os


os.environ["HF_HUB_OFFLINE"] = "1"  # read as transformers is imported: a flag that would reach out has to say so
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import contextlib
import faulthandler
import hashlib
import json
import multiprocessing.process
import random
import re
import resource
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import datasets
import peft  # noqa: F401, this and what follows is imported once and not in each case
import sentence_transformers  # noqa: F401
import torch
import transformers.models.auto.modeling_auto
import transformers.models.modernbert.modeling_modernbert  # noqa: F401
import yaml
from tabulate import tabulate
from transformers.trainer_callback import CallbackHandler

import modeling_layerpool.common.command_line
import modeling_layerpool.publishing.plots
from tests import fuzz_inputs as inputs


SCRIPTS = tuple(inputs.RUNS)
SECONDS = 120  # a case takes a second: what takes so long on a busy machine hangs
MOST_MEMORY = 4 << 30  # more than there is now, so that a case fails and not the machine
MOST_STEPS = 6  # longer plans are valid, too, and are ended here as an early stop would
MOST_WORKERS = 4
SENTENCE = re.compile(r"error: \S+(\s+\S+){2,}")
HEAD = ("head.safetensors", "head.json", "README.md", "trainer_state.json")
TRAINED = ("model.safetensors", "config.json", "tokenizer.json", "README.md", "trainer_state.json")


@dataclass
class Case:
    """One run: its command line, how it was broken, and the folder that it starts in."""

    script: str
    seed: int
    number: int
    words: list[str]
    broken: str
    folder: Path

    @property
    def command(self) -> str:
        return f"python -m tests.fuzz --script {self.script} --seed {self.seed} --only {self.number}"


@dataclass
class Failure:
    """What a case did that no run may do. `kind` and `origin` tell one cause from another."""

    case: Case
    kind: str
    origin: str
    detail: str

    def record(self) -> list:
        return [self.case.script, self.case.number, self.kind, self.origin, self.detail, self.case.broken]

    def __str__(self) -> str:
        return f"{self.kind} at {self.origin}\n  {self.detail}\n  {self.case.broken}\n  {self.case.command}"


class Fuzzer:
    """
    Draws and runs the cases of one script.

    Args:
        script: its file name.
        folder: an empty one, for the inputs and the cases.
    """

    def __init__(self, script: str, folder: Path):
        self.script, self.folder = script, folder
        self.template = folder / "template"
        inputs.build(self.template)
        if script != "run_evaluation.py":
            words = inputs.command_line(inputs.runs(script)[-1] | {"max_steps": 1})
            first = [word for word in words if not word.startswith("--resume")]
            made = Case(script, 0, 0, first, "makes the checkpoint to resume from", self.template)
            if self._run(made)["code"] != 0:
                raise RuntimeError(f"no checkpoint to resume from:\n{self.errors}")

    def case(self, seed: int, number: int) -> Case:
        """Make the folder and the command line of a case."""
        rng = random.Random(f"{self.script} {seed} {number}")
        shutil.rmtree(self.folder / "case", ignore_errors=True)
        folder = self.folder / "case/here/run"  # so deep that `../..` is still watched
        shutil.copytree(self.template, folder, symlinks=True)
        run = rng.randrange(len(inputs.runs(self.script)))
        options, broken = dict(inputs.runs(self.script)[run]), f"run {run}"
        what = rng.choices(["nothing", "flags", "words", "configuration", "data", "model"], [3, 45, 6, 10, 20, 16])[0]
        if rng.random() < 0.15:
            broken += inputs.use_output_folder(rng, folder / options["output_dir"])
        if what == "flags":
            broken += self._break_flags(rng, options)
        elif what in ("data", "model"):
            files = inputs.files_of(options, folder)
            files = [file for file in files if ("data" in file.relative_to(folder).parts) == (what == "data")] or files
            file = rng.choice(files)
            broken += f"; {file.relative_to(folder)}: {inputs.break_file(rng, file)}"
        words = inputs.command_line(options)
        if what == "words":
            words, how = inputs.break_words(rng, words)
            broken += f"; {how}"
        # A command line holds no NUL.
        elif what == "configuration" or rng.random() < 0.2 or "\0" in "".join(words):
            suffix = rng.choice([".json", ".yaml"])
            content = (inputs.dump(options) if suffix == ".json" else yaml.safe_dump(options)).encode()
            if what == "configuration":
                content, how = inputs.break_configuration(rng, options, suffix)
                broken += f"; configuration{suffix}: {how}"
            (folder / f"configuration{suffix}").write_bytes(content)
            words = [f"configuration{suffix}"]
        return Case(self.script, seed, number, words, broken, folder)

    def _break_flags(self, rng: random.Random, options: dict) -> str:
        actions = inputs.flags_of(self.script)
        told = ""
        for name in rng.sample(list(actions), rng.choice([1, 1, 1, 2, 3])):
            value = options[name] = inputs.draw_value(rng, name, actions[name])
            told += f"; {name}={value!r:.60}"
        if any(name.startswith("torch_compile") for name in options):
            # The default backend would call a C++ compiler for a minute.
            options.setdefault("torch_compile_backend", "eager")
        return told

    def check(self, seed: int, number: int) -> tuple[int, list[Failure]]:
        """Run a case: its exit code, and all that is wrong with how it ended."""
        case = self.case(seed, number)
        self.last = case
        top = self.folder / "case"
        before = snapshot(top)
        ended = self._run(case)
        after = snapshot(top)
        code, origin = ended["code"], ended["origin"]
        lines = self.errors.rstrip().splitlines() or [""]
        wrong: list[tuple[str, str]] = []
        if ended["type"]:
            wrong.append((ended["type"], ended["message"]))
        elif code not in (0, 1, 2):
            wrong.append((f"exit code {code}", lines[-1]))
        else:
            if "Traceback (most recent call last)" in self.errors:
                wrong.append(("a traceback was printed", lines[-1]))
            is_usage = any(line.startswith(f"{self.script}: error: ") for line in lines)  # argparse's own
            if code > 0 and not is_usage and [line for line in lines if SENTENCE.fullmatch(line)] != lines[-1:]:
                wrong.append((f"exit code {code} without one sentence", " | ".join(lines[-3:])))
            changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
            if code == 2 and changed:
                wrong.append(("exit code 2, and files were changed", ", ".join(sorted(changed))))
            if code == 0 and ended["plan"]:  # there is none after -h
                wrong += [("exit code 0, and not there", name) for name in missing(ended["plan"], case.folder)]
            for name in sorted(changed & after.keys()):
                if name.endswith(".json") and has_nan(top / name):
                    wrong.append(("NaN in a JSON file", name))
        return code, [Failure(case, kind, origin, detail[:600]) for kind, detail in wrong]

    def _run(self, case: Case) -> dict:
        """Run the script in a fork: exit code; plan; type, message and origin of an exception."""
        scratch = self.folder / "scratch"
        scratch.mkdir()
        pid = os.fork()
        if pid == 0:
            try:
                run_script(case, scratch)
            except BaseException:  # of the harness itself
                traceback.print_exc()
            finally:
                os._exit(99)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # data workers that the case left
        self.output, self.errors = ((scratch / name).read_text(errors="replace") for name in ("stdout", "stderr"))
        path = scratch / "ended.json"
        ended = json.loads(path.read_text()) if path.is_file() else {}
        shutil.rmtree(scratch)
        code = os.waitstatus_to_exitcode(status)
        if code == 99 or not ended:
            hangs = "Timeout (" in self.errors
            frames = re.findall(r'File "(\S+)", line \d+ in (\S+)', self.errors.rpartition("Timeout (")[2])
            frames = [f"{Path(file).name}: {name}" for file, name in frames if is_own(file)]
            ended = {"type": "hangs" if hangs else f"ended by {code}", "message": self.errors[-300:], "plan": {}}
            ended["origin"] = frames[0] if frames else "unknown"
        return ended | {"code": code}


def run_script(case: Case, scratch: Path) -> None:
    """In the fork: run the script as `__main__`, write how it ended into `ended.json`, and end."""
    os.setsid()
    torch.set_num_threads(1)  # the threads of the parent do not live on here, and waiting for them would never end
    for number, name in enumerate(("stdout", "stderr"), 1):
        os.dup2(os.open(scratch / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=2)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MOST_MEMORY, size + MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    datasets.config.HF_DATASETS_CACHE = scratch / "datasets"
    tempfile.tempdir = str(scratch)
    plan = limit_run()
    os.chdir(case.folder)
    script = inputs.ROOT / case.script
    sys.argv = [str(script), *case.words]
    ended = {"type": "", "message": "", "origin": ""}
    code, error = 0, None
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        code, error = end.code or 0, end.__context__
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as failure:
        traceback.print_exc()
        code, error = 1, failure
        ended |= {"type": type(failure).__name__, "message": " | ".join(str(failure).split("\n"))[:1000]}
    if error is not None:
        ended["origin"] = origin_of(error)
    told = {}
    for part in plan:
        told |= {name: getattr(part, name, None) for name in PLAN if hasattr(part, name)}
    (scratch / "ended.json").write_text(json.dumps(ended | {"plan": told}))
    sys.stdout.flush()
    os._exit(code)


PLAN = ("output_dir", "do_train", "do_eval", "do_predict", "plots", "plot_curves", "sts", "retrieval")


def limit_run() -> list:
    """Bound what a valid run may cost. Returns the list that takes the arguments once the script has read them."""
    steps = Counter()
    on_step_end, start, connect = (
        CallbackHandler.on_step_end,
        multiprocessing.process.BaseProcess.start,
        socket.socket.connect,
    )
    read_arguments, plan = modeling_layerpool.common.command_line.read_arguments, []

    def stop_early(self, args, state, control):
        control = on_step_end(self, args, state, control)
        steps["trained"] += 1
        control.should_training_stop = control.should_training_stop or steps["trained"] >= MOST_STEPS
        return control

    def start_few(self):
        steps["started"] += 1
        if steps["started"] > MOST_WORKERS:  # as a machine answers that has too many processes
            raise BlockingIOError(11, "Resource temporarily unavailable")
        start(self)

    def connect_here(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(101, "Network is unreachable")
        return connect(self, address)

    def note_arguments(*args, **kwargs):
        plan.extend(read_arguments(*args, **kwargs))
        return tuple(plan)

    CallbackHandler.on_step_end = stop_early
    multiprocessing.process.BaseProcess.start = start_few
    socket.socket.connect = connect_here
    modeling_layerpool.common.command_line.read_arguments = note_arguments
    return plan


def is_own(file: str) -> bool:
    return Path(file).parent == inputs.ROOT or "/modeling_layerpool/" in file


def origin_of(error: BaseException) -> str:
    """The last line of our own code that an exception passed, and the function of a library that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if is_own(frame.filename)] or frames[-1:]
    origin = [f"{Path(frame.filename).name}:{frame.name}: {frame.line}" for frame in own[-1:]]
    inner = [f"{Path(frame.filename).name}:{frame.name}" for frame in frames[-1:] if frame is not own[-1]]
    return " > ".join(origin + inner)


def snapshot(folder: Path) -> dict[str, str]:
    """All that lies in a folder: files by their content, folders, and links by where they lead."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.md5(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder"
    return found


def missing(plan: dict, folder: Path) -> list[str]:
    """What a run promised and did not write."""
    out, names = folder / plan["output_dir"], []
    if "do_train" not in plan:
        # Labelled pairs alone give nothing to draw.
        names = ["evaluation.json", *(["plots"] if plan["plots"] and (plan["sts"] or plan["retrieval"]) else [])]
    else:
        if plan["do_train"]:
            names += HEAD if plan.get("save_head_only") else TRAINED
        names += ["eval_results.json"] if plan["do_eval"] else []
        names += ["predictions.jsonl", "test_results.json"] if plan["do_predict"] else []
        names += ["curves.png"] if plan.get("plot_curves") else []
    return [name for name in names if not (out / name).exists()]


def has_nan(path: Path) -> bool:
    found = []
    try:
        json.loads(path.read_text(errors="replace"), parse_constant=found.append)
    except (ValueError, RecursionError):
        return True
    return bool(found)


def check_cases(script: str, seed: int, numbers: Iterable[int], folder: Path, show: bool = False):
    """Run the cases of these numbers, and yield the exit code and the failures of each."""
    fuzzer = Fuzzer(script, folder)
    for number in numbers:
        code, failures = fuzzer.check(seed, number)
        if show:
            print(fuzzer.last.broken, fuzzer.last.words, fuzzer.output, fuzzer.errors, f"exit code {code}", sep="\n")
        yield code, failures


def summarize(failures: list[Failure]) -> str:
    """Failures by kind and origin, the most frequent first, each with the command that repeats its first case."""
    groups: dict[tuple[str, str], list[Failure]] = {}
    for failure in failures:
        groups.setdefault((failure.kind, failure.origin), []).append(failure)
    ordered = sorted(groups.values(), key=lambda group: -len(group))
    return "\n".join(f"{len(group)} x {group[0]}" for group in ordered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="of each script")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--script", choices=SCRIPTS, action="append")
    parser.add_argument("--only", type=int, help="run the case of this number, and show what it prints")
    parser.add_argument("--log", type=Path, help="a file for every failure as a line of JSON")
    args = parser.parse_args()
    counts, failures = [], []
    for script in args.script or SCRIPTS:
        codes: Counter = Counter()
        with tempfile.TemporaryDirectory() as folder:
            numbers = range(args.cases) if args.only is None else [args.only]
            for code, found in check_cases(script, args.seed, numbers, Path(folder), show=args.only is not None):
                codes["failed" if found else f"exit {code}"] += 1
                failures += found
                for failure in found if args.log else ():
                    with open(args.log, "a") as file:
                        file.write(json.dumps(failure.record()) + "\n")
        counts.append({"script": script, **{name: codes[name] for name in ("exit 0", "exit 2", "exit 1", "failed")}})
    print(summarize(failures))
    print(tabulate(counts, headers="keys"))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
