"""The arguments of a script."""

import json
import sys
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from .errors import InputError


def read_arguments(*types: type, description: str) -> tuple[Any, ...]:
    """One instance of each argument class, from the command line or the one json or yaml file that it names."""
    parser = HfArgumentParser(types, description=description)
    try:
        is_file = len(sys.argv) == 2 and Path(sys.argv[1]).suffix in (".json", ".yaml", ".yml")
        return parser.parse_args_into_dataclasses(_flags_of_file(sys.argv[1]) if is_file else None)
    except (ValueError, TypeError, OSError, yaml.YAMLError) as error:  # what the library's argument classes raise
        raise InputError(str(error)) from error


def _flags_of_file(path: str) -> list[str]:
    """The content of a JSON or YAML file as flags, so that both are read and checked in the same way."""
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))  # JSON is YAML
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected names and values of arguments")
    flags = []
    for name, value in content.items():
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags
