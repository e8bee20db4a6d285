"""The help of the scripts: a page of the options to know with --help, all of them in full with --help_all."""

import argparse
import re
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from transformers import HfArgumentParser


WIDTHS = (80, 100)  # of a page of help, whatever the terminal
NAME_WIDTH = 28
FIRST = "options to begin with"
OTHERS = "options of transformers"


class HelpfulParser(HfArgumentParser):
    """
    A parser whose `--help` has one line for each option of our own, in the groups of the argument classes.

    An argument class names its group in `GROUP`; those of its fields that it inherits belong to the group of the base
    class that declares them. Its dictionary `SHOWN` has the fields of transformers that `--help` shows in its group
    too, and what it says about them. The fields in its tuple `DETAILS`, which only matter together with another
    option, are named at the end of their group without a text.

    Args:
        types: the argument classes.
        first: the options of the first group, by name.
        options: those of `argparse.ArgumentParser`.
    """

    def __init__(self, types: Sequence[type], first: Sequence[str], **options: Any):
        # Base classes come first: an inherited field belongs to the group of the class that declares it.
        bases = [base for argument_class in types for base in reversed(argument_class.__mro__) if is_dataclass(base)]
        declared = {field.name: base for base in reversed(bases) for field in fields(base)}
        self.titles = {name: vars(base).get("GROUP", OTHERS) for name, base in declared.items()}
        self.shown: dict[str, str] = {}
        for base in bases:
            self.shown |= vars(base).get("SHOWN", {})
            self.titles |= dict.fromkeys(vars(base).get("SHOWN", ()), vars(base).get("GROUP"))
        self.titles |= dict.fromkeys(first, FIRST)
        self.fields: dict[str, str] = {}  # the field that a flag sets, without dashes: also --no_name and aliases
        self.first = first
        self.lines: dict[str, str] = {}  # what --help says about an option, by name
        self.details = {name for base in bases for name in vars(base).get("DETAILS", ())}
        self.groups: dict[str, Any] = {}
        # Abbreviations are off, since the model card redacts flags by their full names. The command in a description
        # can be pasted, as it is not wrapped.
        options |= {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(types, usage="%(prog)s [arguments.yaml] --name value ...", **options)
        super().add_argument(
            "--help_all", action=_HelpAll, help="Show all options in full, those of transformers too."
        )

    def add_argument(self, *flags: str, **options: Any) -> Any:
        if "-h" in flags:
            return super().add_argument(*flags, **options)
        name = options.get("dest", flags[0].lstrip("-"))
        self.fields |= dict.fromkeys((flag.lstrip("-").replace("-", "_") for flag in flags), name)
        default, text = options.get("default"), options.get("help") or ""
        if options.get("action") == "store_false":
            options["help"] = f"Turn off --{name}."
        else:
            has_default = default not in (None, [], argparse.SUPPRESS) and default is not False
            default = f"{getattr(default, 'value', default)}"
            note = "required" if options.get("required") else default if has_default else ""
            self.lines[name] = _line(self.shown.get(name, text), note)
            if has_default and "Default:" not in text:
                options["help"] = f"{text} Default: {default}."
        title = self.titles.get(name, OTHERS)
        if title not in self.groups:
            self.groups[title] = self.add_argument_group(title)
        return self.groups[title].add_argument(*flags, **options)

    def format_help(self) -> str:
        """The short help. `super().format_help()` is the one of all options."""
        width = min(max(shutil.get_terminal_size().columns, WIDTHS[0]), WIDTHS[1])
        parts = [f"usage: {self.format_usage().removeprefix('usage: ').strip()}", (self.description or "").strip()]
        titles = dict.fromkeys([FIRST, *self.titles.values()])
        for title in titles:
            names = [name for name in self.lines if self.titles.get(name, OTHERS) == title]
            if title == FIRST:
                names = [name for name in self.first if name in self.lines]
            if title == OTHERS or not names:
                continue
            lines = [f"{title}:"]
            column = min(NAME_WIDTH, max(len(name) for name in names)) + 6
            for name in (name for name in names if name not in self.details):
                start = f"  --{name}".ljust(column - 1) + " "
                lines.append(start + _cut(self.lines[name], width - len(start)))
            if details := [f"--{name}" for name in names if name in self.details]:
                options = {"initial_indent": "  also: ", "subsequent_indent": " " * 8, "break_on_hyphens": False}
                lines.append(textwrap.fill(" ".join(details), width, **options))
            parts.append("\n".join(lines))
        parts.append("--help_all shows all options in full, also those of transformers.")
        return "\n\n".join(parts) + "\n"

    def format_help_all(self) -> str:
        return super().format_help()


class _HelpAll(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=options["help"])

    def __call__(self, parser: HelpfulParser, *_: Any) -> None:
        print(parser.format_help_all(), end="")
        parser.exit()


def _line(text: str, note: str) -> str:
    """The first sentence of a help text, with a note, such as the default, at its end."""
    sentence = re.split(r"(?<=\.) (?=[A-Z`'-])", " ".join(text.split()))[0].rstrip(".")
    return f"{sentence} [{'on' if note == 'True' else note}]" if note else sentence


def _cut(line: str, width: int) -> str:
    """A line that fits, shortened before the default at its end."""
    if len(line) <= width:
        return line
    sentence, bracket, note = line.rpartition(" [") if line.endswith("]") else (line, "", "")
    end = bracket + note
    return textwrap.shorten(sentence, width - len(end), placeholder=" ...") + end
