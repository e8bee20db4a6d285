"""Reads the arguments of a script from the command line or a file, and checks their types and ranges."""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from .errors import InputError, one_line
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
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
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


def read_arguments(*types: type, description: str) -> tuple[Any, ...]:
    """
    One instance of each argument class, from the command line or from the JSON or YAML file that is its only word.

    Raises:
        InputError: the file is broken, or its class refuses a value.
    """
    # Abbreviations are off, since the model card redacts flags by their full names.
    formatter = argparse.RawDescriptionHelpFormatter  # so that the command in a description can be pasted
    parser = _Parser(types, description=description, allow_abbrev=False, formatter_class=formatter)
    is_file = len(sys.argv) == 2 and Path(sys.argv[1]).suffix in CONFIG_SUFFIXES
    flags = _flags_of_file(sys.argv[1]) if is_file else sys.argv[1:]
    try:
        return parser.parse_args_into_dataclasses(flags, look_for_args_file=False)
    except InputError:
        raise
    except Exception as error:  # the argument classes of transformers run much code, and read files
        reason = one_line(error)
        kind = "" if isinstance(error, ValueError) and reason else f"{type(error).__name__}: "
        raise InputError(f"{kind}{reason}") from error


class _Parser(HfArgumentParser):
    """
    Shows each default once in --help, and the fields of an argument class that has a `GROUP`, and of its subclasses,
    under that title.
    """

    def __init__(self, types: Sequence[type], **options: Any):
        # Base classes come first: an inherited field belongs to the group of the class that declares it.
        bases = [base for argument_class in types for base in reversed(argument_class.__mro__) if is_dataclass(base)]
        declared = {field.name: base for base in reversed(bases) for field in fields(base)}
        self.titles = {name: base.GROUP for name, base in declared.items() if "GROUP" in vars(base)}
        self.groups: dict[str, Any] = {}
        super().__init__(types, **options)

    def add_argument(self, *flags: str, **options: Any) -> Any:
        name = options.get("dest", flags[0].lstrip("-"))
        default, text = options.get("default"), options.get("help") or ""
        if options.get("action") == "store_false":
            options["help"] = f"Turn off --{name}."
        elif default not in (None, [], argparse.SUPPRESS) and default is not False and "Default:" not in text:
            options["help"] = f"{text} Default: {getattr(default, 'value', default)}."
        title = self.titles.get(name)
        if title is None:
            return super().add_argument(*flags, **options)
        if title not in self.groups:
            self.groups[title] = self.add_argument_group(title)
        return self.groups[title].add_argument(*flags, **options)


class _UniqueKeysLoader(yaml.SafeLoader):
    """YAML in which a repeated name is an error. By default the last one counts."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.YAMLError(f"{twice!r} is given twice")
        return super().construct_mapping(node, deep)


def _as_json(value: dict, where: str) -> str:
    try:
        return json.dumps(value)
    except (ValueError, TypeError, RecursionError) as error:  # YAML has dates, and values that contain themselves
        raise InputError(f"{where} cannot be written as JSON ({error})") from error


def _flags_of_file(path: str) -> list[str]:
    """The content of a JSON or YAML file as flags, so that argparse converts and checks the values of both.

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
    flags = []
    for name, value in content.items():
        if isinstance(value, list):
            if any(isinstance(item, (list, dict)) for item in value):
                raise InputError(f"{path}: {name} must be one value or a list of values, got {shown(value)}")
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={_as_json(value, f'{path}: {name}') if isinstance(value, dict) else value}")
    return flags
