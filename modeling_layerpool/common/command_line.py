"""Reads the arguments of a script from the command line and a file, and checks their types and ranges."""

import difflib
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import yaml

from .errors import InputError, one_line
from .help_text import HelpfulParser
from .rows import check_file, read_json, reading_errors, shown


CONFIG_SUFFIXES = (".json", ".yaml", ".yml")
# torch and NumPy count in 32 or 64 bits. No argument here needs a larger number.
LARGEST_INTEGER = 2**31 - 1
LARGEST_FLOAT = 3.4e38  # torch computes in float32


@dataclass(frozen=True)
class Range:
    """The allowed values of a number. `above` and `below` exclude the bound, `at_least` and `at_most` include it."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    # A special value such as -1 for "not set".
    or_equal_to: float | None = None

    def __contains__(self, value: float) -> bool:
        return value == self.or_equal_to or (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        text = " and ".join(f"{word} {bound:,}" for word, bound in bounds.items() if bound is not None)
        return text if self.or_equal_to is None else f"{text}, or {self.or_equal_to}"


def check_arguments(arguments: Any) -> None:
    """
    Check every field of an argument class. Its `__post_init__` calls this first.

    The class variable `RANGES` gives the ranges of numbers; those of base classes apply too. Numbers without a range
    must be finite, and texts must be valid Unicode without null characters.

    Raises:
        InputError: names the field, its value and the allowed values.
    """
    ranges: dict[str, Range] = {}
    for base in reversed(type(arguments).__mro__):
        ranges |= vars(base).get("RANGES", {})
    for field in fields(arguments):
        value = getattr(arguments, field.name, None)
        if isinstance(value, list) and "list" not in str(field.type):  # argparse returns [] for --name=--
            raise InputError(f"{field.name} must be one value")
        if value == [] and field.default is None:
            raise InputError(f"{field.name} must be at least one value")
        choices = field.metadata.get("choices")
        for item in value if isinstance(value, (list, tuple)) else [value]:
            _check_value(field.name, item, ranges.get(field.name))
            if choices is not None and isinstance(item, str) and item not in choices:
                raise InputError(f"{field.name}={shown(item)} is unknown; use one of {', '.join(choices)}")


def _check_value(name: str, value: Any, allowed: Range | None) -> None:
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise InputError(f"{name}={json.dumps(value[:60])} holds a character that is not valid in a text")
        if allowed is not None:
            raise InputError(f"{name}={shown(value)} must be a number")
    elif isinstance(value, bool):
        if allowed is not None:  # False would pass for 0
            raise InputError(f"{name}={value} must be a number")
    elif isinstance(value, (int, float)):
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name}={value} must be a finite number")
        if allowed is not None and value not in allowed:
            raise InputError(f"{name}={shown(value)} must be {allowed}")
        if abs(value) > (LARGEST_INTEGER if isinstance(value, int) else LARGEST_FLOAT):
            raise InputError(f"{name}={shown(value)} is too large a number")


def check_used(arguments: Any, is_read: Mapping[str, bool], reason: str) -> None:
    """
    Refuse options that were given but have no effect.

    Args:
        arguments: an instance of an argument class.
        is_read: for each option, by name, whether it is read at all with the given other options.
        reason: the condition under which it has no effect: `"without --shuffling"`.

    Raises:
        InputError: an option that is not read has another value than its default.
    """
    for field in fields(arguments):
        if not is_read.get(field.name, True) and getattr(arguments, field.name) != field.default:
            raise InputError(f"{field.name} does nothing {reason}; leave it out")


def read_arguments(*types: type, description: str, first: Sequence[str] = ()) -> tuple[Any, ...]:
    """
    One instance of each argument class, from the command line, which may begin with a JSON or YAML file of arguments.

    Flags after the file replace its values. `sys.argv` holds flags instead of the file afterwards, so that the command
    of a model card needs no file. The last instance has the arguments that were given, by name, as its attribute
    `given`.

    Args:
        types: the argument classes.
        description: the text above the options in `--help`.
        first: the options that `--help` shows first, by name.

    Raises:
        InputError: the file is broken, an argument is unknown, or its class refuses a value.
    """
    parser = HelpfulParser(types, first, description=description)
    flags = sys.argv[1:]
    if flags and Path(flags[0]).suffix in CONFIG_SUFFIXES:
        given = _fields_of(flags[1:], parser)
        of_file = _flags_of_file(flags[0])
        kept = [words for name, words in of_file.items() if parser.fields.get(name, name) not in given]
        flags = [word for words in kept for word in words] + flags[1:]
        sys.argv[1:] = flags
    try:
        values, unknown = parser.parse_known_args(flags)
        if unknown:
            raise _unknown(unknown[0], list(parser.fields))
        instances = parser.parse_args_into_dataclasses(flags, look_for_args_file=False)
    except InputError:
        raise
    except Exception as error:  # the argument classes of transformers run much code, and read files
        reason = one_line(error)
        kind = "" if isinstance(error, ValueError) and reason else f"{type(error).__name__}: "
        raise InputError(f"{kind}{reason}") from error
    given = _fields_of(flags, parser)
    instances[-1].given = {name: value for name, value in vars(values).items() if name in given}
    return instances


def _fields_of(words: Sequence[str], parser: HelpfulParser) -> set[str]:
    """The names of the fields that the words of a command line set."""
    names = (word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--"))
    return {parser.fields[name] for name in names if name in parser.fields}


def _unknown(word: str, names: Sequence[str]) -> InputError:
    if Path(word).suffix in CONFIG_SUFFIXES:
        return InputError(f"{word}: a file of arguments goes before the flags, which replace its values")
    name = word.partition("=")[0]
    similar = difflib.get_close_matches(name.removeprefix("--").replace("-", "_"), names, n=1)
    fix = f"did you mean --{similar[0]}?" if similar else "--help lists the arguments"
    return InputError(f"{name}: unknown argument; {fix}")


def write_arguments(given: Mapping[str, Any], path: Path) -> None:
    """
    Write the arguments of a run as a YAML file that [`read_arguments`] takes, without those that belong to one start
    only: the token, the checkpoint to resume from, and the permission to overwrite.
    """
    left_out = ("hub_token", "overwrite_output_dir", "resume_from_checkpoint")
    kept = {name: value for name, value in given.items() if name not in left_out}
    plain = {name: value.value if isinstance(value, Enum) else value for name, value in kept.items()}
    path.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")


_BOOLEAN = "tag:yaml.org,2002:bool"


class _UniqueKeysLoader(yaml.SafeLoader):
    """
    YAML in which a repeated name is an error, and only true and false are booleans.

    By default the last one of repeated names counts, and `no` is false, also in `save_strategy: no`.
    """

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOLEAN]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.YAMLError(f"{twice!r} is given twice")
        return super().construct_mapping(node, deep)


_UniqueKeysLoader.add_implicit_resolver(_BOOLEAN, re.compile("true|True|false|False"), list("tTfF"))


def _as_json(value: dict, where: str) -> str:
    try:
        return json.dumps(value)
    except (ValueError, TypeError, RecursionError) as error:  # YAML has dates, and values that contain themselves
        raise InputError(f"{where} cannot be written as JSON ({error})") from error


def _flags_of_file(path: str) -> dict[str, list[str]]:
    """The content of a JSON or YAML file as flags by name, so that argparse converts and checks the values of both.

    `HfArgumentParser.parse_yaml_file` converts no types: 1e-5, a text in YAML 1.1, would stay a text.
    """
    check_file(path)
    if path.endswith(".json"):
        content = read_json(path)
    else:
        with reading_errors(path):
            try:
                content = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeysLoader)
            except UnicodeDecodeError as error:
                raise InputError(f"{path}: not valid UTF-8 ({error.reason})") from error
            except RecursionError as error:
                raise InputError(f"{path}: YAML that is nested too deeply") from error
            except (yaml.YAMLError, ValueError) as error:  # a ValueError means an impossible date, for example
                raise InputError(f"{path}: not valid YAML ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected names and values of arguments, got {type(content).__name__}")
    flags = {}
    for name, value in content.items():
        if isinstance(value, list):
            if any(isinstance(item, (list, dict)) for item in value):
                raise InputError(f"{path}: {name} must be one value or a list of values, got {shown(value)}")
            flags[name] = [f"--{name}", *map(str, value)]
        elif value is not None:
            flags[name] = [f"--{name}={_as_json(value, f'{path}: {name}') if isinstance(value, dict) else value}"]
    return flags
