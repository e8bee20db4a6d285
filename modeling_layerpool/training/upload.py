"""What a push to the Hub uploads of the folder of a finished run."""

import shlex
from pathlib import Path

from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects
from tabulate import tabulate
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..common.errors import InputError
from .run_arguments import RunArguments


# As `Trainer.push_to_hub` has them.
LEFT_OUT = ["_*", f"{PREFIX_CHECKPOINT_DIR}-*"]


def files_to_upload(folder: Path) -> tuple[list[str], list[str]]:
    """The files below a folder that `Trainer.push_to_hub` uploads, and those that it leaves out."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    uploaded = list(filter_repo_objects(files, ignore_patterns=[*LEFT_OUT, *DEFAULT_IGNORE_PATTERNS]))
    return uploaded, sorted(set(files) - set(uploaded))


def describe_upload(args: RunArguments) -> str:
    """
    The repository, the files and their sizes. Nothing is uploaded, and the Hub is not asked.

    Raises:
        InputError: the output folder has no model.
    """
    folder = Path(args.output_dir)
    if not (folder / "config.json").is_file():
        raise InputError(f"--dry_run lists the files of a finished run, and {folder} holds no model; train it first")
    name = args.hub_model_id or folder.absolute().name
    where = name if "/" in name else f"{name}, in the account of your token"
    uploaded, left_out = files_to_upload(folder)
    sizes = {file: (folder / file).stat().st_size for file in uploaded}
    rows = [*sizes.items(), ("total", sum(sizes.values()))]
    table = tabulate([(file, _size(size)) for file, size in rows], tablefmt="plain", colalign=("left", "right"))
    roots = dict.fromkeys(file.partition("/")[0] for file in left_out)
    excluded = [word for pattern in LEFT_OUT for word in ("--exclude", pattern)]
    return "\n".join(
        [
            f"{folder} holds these files for the Hub ({where}); nothing was uploaded.",
            "",
            table,
            "",
            f"left out: {', '.join(roots) or 'nothing'}",
            "",
            "A run with --push_to_hub uploads them at its end. To upload them now:",
            shlex.join(["hf", "upload", name, str(folder), ".", *excluded]),
        ]
    )


def _size(number: int) -> str:
    power = min(3, (len(str(number)) - 1) // 3)
    return f"{number / 1000**power:,.{0 if power == 0 else 1}f} {('bytes', 'kB', 'MB', 'GB')[power]}"
