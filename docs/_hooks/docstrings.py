"""
Converts docstrings from Hugging Face's style to the Google style that griffe parses.

- An entry such as ``name (`int`, *optional*):`` loses its parentheses, since the signature has the type; a shape moves
  to the description. Several names in one line become separate entries.
- [`Name`] becomes a link if the reference documents `Name`, and inline code otherwise.
- The return value gets its type from the signature.
- Arguments that `**kwargs` passes on get their own section.
- The help text of a dataclass field becomes its docstring, and its default becomes its value.
"""

import ast
import re
from collections.abc import Iterator
from typing import Any

from griffe import (
    Attribute,
    Docstring,
    ExprCall,
    ExprDict,
    ExprKeyword,
    Extension,
    Function,
    Module,
    NameResolutionError,
    Object,
)


ARGUMENTS = re.compile(r"^Args:\n(?P<entries>(?:(?: +.*)?(?:\n|\Z))+)", re.MULTILINE)
START_OF_ENTRY = re.compile(r"^ {4}(?=\S)", re.MULTILINE)
ENTRY = re.compile(r"(?P<names>\w+(?:, \w+)*)(?: \((?P<type>.*)\))?:(?P<description>.*)", re.DOTALL)
SHAPE = re.compile(r"of (?P<shape>(?:shape `|any shape|the same shape).*?)(?:, \*optional\*.*)?$")
RETURNS = re.compile(r"^Returns:\n    (?:`[\w.]+`: )?", re.MULTILINE)
REFERENCE = re.compile(r"\[`(?P<name>~?[\w.]+)`\](?![\[(])")


class HuggingFaceDocstrings(Extension):
    def on_package(self, *, pkg: Module, **kwargs: Any) -> None:
        objects = list(_objects(pkg))
        paths = {obj.name: obj.path for obj in objects}
        for obj in objects:
            if isinstance(obj, Attribute):
                _read_field(obj)
            if obj.docstring is not None:
                text = ARGUMENTS.sub(lambda match, obj=obj: _separate_entries(match, obj), obj.docstring.value)
                if isinstance(obj, Function) and obj.returns is not None:
                    # Otherwise griffe takes the text before the first colon for the type.
                    text = RETURNS.sub(f"Returns:\n    {obj.returns}: ", text)
                obj.docstring.value = REFERENCE.sub(lambda match, obj=obj: _link(match["name"], obj, paths), text)


def _objects(parent: Object) -> Iterator[Object]:
    for member in parent.members.values():
        if not member.is_alias:
            yield member
            yield from _objects(member)


def _read_field(attribute: Attribute) -> None:
    call = attribute.value
    if not (isinstance(call, ExprCall) and call.canonical_path == "dataclasses.field"):
        return
    given = {argument.name: argument.value for argument in call.arguments if isinstance(argument, ExprKeyword)}
    metadata = given.get("metadata")
    if attribute.docstring is None and isinstance(metadata, ExprDict):
        texts = {ast.literal_eval(str(key)): text for key, text in zip(metadata.keys, metadata.values, strict=True)}
        attribute.docstring = Docstring(_text(str(texts["help"])), parent=attribute)
    if "default_factory" not in given:
        attribute.value = given.get("default")


def _text(source: str) -> str:
    """The value of a string in the source, with `...` for the expressions of an f-string."""
    node = ast.parse(source, mode="eval").body
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(part.value if isinstance(part, ast.Constant) else "..." for part in parts)


def _separate_entries(section: re.Match[str], obj: Object) -> str:
    own, passed_on = [], []
    names = {parameter.name for parameter in getattr(obj, "parameters", ())}
    for text in START_OF_ENTRY.split(section["entries"])[1:]:
        entry = ENTRY.fullmatch(text)
        if entry is None:  # griffe reports the error
            own.append(f"    {text}")
            continue
        shape = SHAPE.search(entry["type"] or "")
        shape = f" {shape['shape'][0].upper()}{shape['shape'][1:]}. " if shape else ""
        for name in entry["names"].split(", "):
            is_passed_on = "kwargs" in names and name not in names
            (passed_on if is_passed_on else own).append(f"    {name}:{shape}{entry['description'].rstrip()}\n")
    others = ["\nKeyword Args:\n", *passed_on] if passed_on else []
    return "".join(["Args:\n", *own, *others, "\n"])


def _link(name: str, obj: Object, paths: dict[str, str]) -> str:
    shown = name.rpartition(".")[2] if name.startswith("~") else name
    first, _, rest = name.lstrip("~").partition(".")
    try:
        path = obj.resolve(first)
    except NameResolutionError:
        path = paths.get(first, first)
    identifier = f"{path}.{rest}" if rest else path
    return f'<autoref identifier="{identifier}" optional><code>{shown}</code></autoref>'
