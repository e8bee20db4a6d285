"""Mine search pairs from the documentation of this machine's Python standard library.

Every documented function, class, method and module gives one pair: what it says it does (the first sentence of its
docstring) against its qualified name, its signature and the rest of its text. Whole top-level modules go to train,
dev or test, so that a score on test is a score on modules that training never saw.

    python examples/stdlib_search/mine_docs.py --output_dir demo/data
"""

import argparse
import ast
import hashlib
import importlib
import inspect
import json
import re
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm


# Modules that do not document the standard library (tests, tools, jokes) or repeat another module's documentation.
SKIPPED_MODULES = {
    "antigravity",
    "idlelib",
    "lib2to3",
    "ntpath",
    "nturl2path",
    "pydoc_data",
    "test",
    "this",
    "turtledemo",
}
SKIPPED_FILES = {"__main__.py", "setup.py"}
SKIPPED_FOLDERS = {"_bundled", "lib2to3", "site-packages", "test", "tests"}

# Modules at least partly in C, without source to parse. Importing them has no side effects; missing ones are skipped.
IMPORTED_MODULES = (
    *("array", "atexit", "binascii", "builtins", "bz2", "cmath", "collections", "contextvars", "datetime", "decimal"),
    *("faulthandler", "fcntl", "functools", "gc", "grp", "io", "itertools", "lzma", "marshal", "math", "mmap", "os"),
    *("pwd", "re", "resource", "select", "signal", "socket", "sqlite3", "ssl", "struct", "sys", "syslog", "termios"),
    *("time", "unicodedata", "weakref", "zlib"),
)

TEST_MODULES = {"heapq", "shutil", "textwrap"}  # the demo's questions are about these
DEV_SHARE, TEST_SHARE = 10, 20  # percent of the modules
SPLIT_SEED = 12  # with this seed, dev and test also get about these shares of the entries
MAX_EVALUATED = 250  # larger modules go to train, so that none dominates a measurement

MIN_SUMMARY_WORDS, MAX_SUMMARY_WORDS = 4, 40
MAX_SIGNATURE_WORDS, MAX_TEXT_WORDS = 30, 100

SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bvs)(?<!\bcf)(?<!\.\.)[.!?](?=\s|$)")
EMPTY_SUMMARY = re.compile(
    r"(alias|see|deprecated|usage|internal|undocumented|todo|xxx|part of)\b|>>>|[:@]\w+", re.IGNORECASE
)
RETURN_ARROW = r"(?:\s*[-=]>[^\n]*?(?:\.(?=\s)|(?=\n|$)))?"  # "-> int" up to the end of its line or sentence


@dataclass(frozen=True)
class Entry:
    """A documented name: a user would search for `summary` and should find `document`."""

    module: str
    name: str
    signature: str
    summary: str
    text: str

    @property
    def title(self) -> str:
        return self.name + self.signature

    @property
    def document(self) -> str:
        return f"{self.title} {self.text}".strip()

    @property
    def is_public(self) -> bool:
        return not any(part.startswith("_") for part in self.name.split("."))


def mine(output_dir: str | Path) -> Counter:
    """Write `train.jsonl`, and `dev/` and `test/` in BEIR's layout, into `output_dir`; return the number of each."""
    output_dir = Path(output_dir)
    modules = sorted(name for name in sys.stdlib_module_names - SKIPPED_MODULES if not name.startswith("_"))
    found = [entry for module in tqdm(modules, desc="modules", unit="") for entry in entries_of(module)]
    entries = list(without_repeats(filter(is_usable, found)))
    if not entries:
        raise SystemExit(
            f"error: no documentation in {library_folder()}: this Python comes without its library sources"
        )

    sizes = Counter(entry.module for entry in entries if entry.is_public)
    splits = {"train": [], "dev": [], "test": []}
    for entry in entries:
        split = split_of(entry.module, sizes[entry.module])
        # Private functions are good training data, but nobody searches for them.
        if split == "train" or entry.is_public:
            splits[split].append(entry)

    pairs = ({"anchor": entry.summary, "positive": entry.document} for entry in splits["train"])
    write_json_lines(output_dir / "train.jsonl", pairs)
    for split in ("dev", "test"):
        write_retrieval(output_dir / split, splits[split])
    return Counter({split: len(members) for split, members in splits.items()})


def split_of(module: str, size: int) -> str:
    """Return the split of a top-level module: a stable hash of its name, except for named and very large modules."""
    if module in TEST_MODULES:
        return "test"
    percentile = int(hashlib.sha256(f"{SPLIT_SEED} {module}".encode()).hexdigest(), 16) % 100
    if size > MAX_EVALUATED or percentile >= DEV_SHARE + TEST_SHARE:
        return "train"
    return "dev" if percentile < DEV_SHARE else "test"


def entries_of(module: str) -> Iterator[Entry]:
    """Every documented name of a top-level module and its submodules, those of its sources first."""
    for path in source_files(module):
        yield from parsed_entries(module, path)
    if module in IMPORTED_MODULES:
        yield from inspected_entries(module)


def is_usable(entry: Entry) -> bool:
    """Return whether the summary is informative and does not contain its answer."""
    words = entry.summary.split()
    own_name = entry.name.rpartition(".")[2]
    # "split" is also an English word; "assertEqual", "HTTPServer" and "copy_file" are the answer itself.
    is_plain_word = own_name.islower() and own_name.isalpha()
    return (
        MIN_SUMMARY_WORDS <= len(words) <= MAX_SUMMARY_WORDS
        and sum(word.strip(".,:;()'\"").isalpha() for word in words) >= MIN_SUMMARY_WORDS - 1
        and not EMPTY_SUMMARY.match(entry.summary)
        and (entry.name.count(".") == 0 or entry.name not in entry.summary)
        and (is_plain_word or own_name not in entry.summary)
        and letters(entry.summary) not in letters(entry.document)
        and (entry.title != entry.module or bool(entry.text))
    )


def without_repeats(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Keep the first entry of each name and of each summary: a query has one answer, and is in one split."""
    names, summaries = set(), set()
    for entry in entries:
        if entry.name not in names and letters(entry.summary) not in summaries:
            yield entry
            names.add(entry.name)
            summaries.add(letters(entry.summary))


def letters(text: str) -> str:
    """Return the words of a text without case, punctuation and spacing, for comparison."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def make_entry(module: str, name: str, signature: str | None, docstring: str) -> Entry:
    """Split a docstring; use its signature if there is no other ("max(iterable) -> value")."""
    written, summary, text = split_docstring(docstring, name.rpartition(".")[2])
    signature = written if signature is None else signature
    return Entry(module, name, shorten(signature, MAX_SIGNATURE_WORDS), summary, shorten(text, MAX_TEXT_WORDS))


def split_docstring(docstring: str, name: str) -> tuple[str, str, str]:
    """Return the signature that the docstring opens with ("" for none), its first sentence, and the rest."""
    docstring, signature = inspect.cleandoc(docstring), ""
    opening = re.compile(rf"(?:[\w.]+\.)?{re.escape(name)}(\((?:[^()]|\([^()]*\))*\)){RETURN_ARROW}[ \t:-]*\s*")
    while match := opening.match(docstring):
        signature = signature or match[1]
        docstring = docstring[match.end() :]
    paragraph, _, rest = docstring.partition("\n\n")
    paragraph = " ".join(paragraph.split()).lstrip("+-* ")
    end = SENTENCE_END.search(paragraph)
    end = end.end() if end else len(paragraph)
    return signature, paragraph[:end].strip(), f"{paragraph[end:]} {rest}"


def shorten(text: str, max_words: int) -> str:
    """The first words of a text, single-spaced."""
    return " ".join(text.split()[:max_words])


def library_folder() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def source_files(module: str) -> list[Path]:
    """The Python files of a top-level module, in a fixed order; none for a module in C."""
    root = library_folder()
    files = [root / f"{module}.py", *sorted((root / module).rglob("*.py"))]
    return [
        file
        for file in files
        if file.is_file()
        and file.name not in SKIPPED_FILES
        and not SKIPPED_FOLDERS.intersection(file.relative_to(root).parts)
    ]


def parsed_entries(module: str, path: Path) -> Iterator[Entry]:
    """The entries of one source file, which is read but not run; a file that cannot be parsed has none."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    name = ".".join(path.relative_to(library_folder()).with_suffix("").parts).removesuffix(".__init__")
    if docstring := ast.get_docstring(tree):
        yield make_entry(module, name, "", docstring)
    yield from parsed_members(module, name, tree)


def parsed_members(module: str, prefix: str, parent: ast.AST) -> Iterator[Entry]:
    """The functions and classes in the body of a module or class, also those under an `if` or `try`."""
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.If | ast.Try | ast.ExceptHandler):
            yield from parsed_members(module, prefix, node)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("__"):
            continue
        name = f"{prefix}.{node.name}"
        if docstring := ast.get_docstring(node):
            yield make_entry(module, name, parsed_signature(node, parent), docstring)
        if isinstance(node, ast.ClassDef):
            yield from parsed_members(module, name, node)


def parsed_signature(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, parent: ast.AST) -> str:
    """How a function, method or class is called, as source: `(n, iterable, key=None)`; "" for a property."""
    if isinstance(node, ast.ClassDef):
        constructors = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
        return parsed_signature(constructors[0], node) if constructors else "()"
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    if any(decorator.endswith("property") for decorator in decorators):
        return ""
    arguments = ast.unparse(node.args)
    if isinstance(parent, ast.ClassDef) and "staticmethod" not in decorators:
        arguments = re.sub(r"^\w+(, )?(/(, |$))?", "", arguments)  # self or cls
    return f"({arguments})"


def inspected_entries(module: str) -> Iterator[Entry]:
    """The entries of the built-in functions and types of an imported module."""
    try:
        imported = importlib.import_module(module)
    except ImportError:
        return
    prefix = "" if module == "builtins" else f"{module}."
    for name, member in sorted(vars(imported).items()):
        if name.startswith("_") or not is_own_builtin(module, member):
            continue
        yield from inspected_entry(module, prefix + name, member)
        for inner, attribute in sorted(vars(member).items()) if inspect.isclass(member) else ():
            if not inner.startswith("_") and (inspect.isroutine(attribute) or inspect.isdatadescriptor(attribute)):
                yield from inspected_entry(module, f"{prefix}{name}.{inner}", attribute)


def is_own_builtin(module: str, member: object) -> bool:
    """Whether a module's member is a built-in function or a class of its own, rather than one that it imported."""
    if not (inspect.isbuiltin(member) or inspect.isclass(member)):
        return False
    home = getattr(member, "__module__", None) or module
    return home.removeprefix("_") == module or (module == "os" and home in ("nt", "posix"))


def inspected_entry(module: str, name: str, member: object) -> Iterator[Entry]:
    docstring = inspect.getdoc(member)
    if isinstance(docstring, str) and docstring.strip():
        yield make_entry(module, name, inspected_signature(member), docstring)


def inspected_signature(member: object) -> str | None:
    """How a built-in is called; "" for an attribute, None where only the docstring may know."""
    if inspect.isdatadescriptor(member):
        return ""
    try:
        signature = str(inspect.signature(getattr(member, "__func__", member)))
    except Exception:  # it evaluates the defaults as written: select.poll().register in 3.13 is an AttributeError
        return None
    return re.sub(r"^\(\$?(self|type|cls)\b(, )?(/, |/)?", "(", signature)


def write_json_lines(path: Path, rows: Iterable[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def write_retrieval(folder: Path, entries: list[Entry]) -> None:
    """Write a BEIR folder: a query for each entry, whose one right answer is the entry's document."""
    names = [entry.name for entry in entries]
    queries = [f"q{number}" for number in range(1, len(entries) + 1)]
    documents = ({"_id": entry.name, "title": entry.title, "text": entry.text} for entry in entries)
    write_json_lines(folder / "corpus.jsonl", documents)
    rows = ({"_id": query, "text": entry.summary} for query, entry in zip(queries, entries, strict=True))
    write_json_lines(folder / "queries.jsonl", rows)
    relevant = "".join(f"{query}\t{name}\t1\n" for query, name in zip(queries, names, strict=True))
    (folder / "qrels_test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{relevant}", encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Mine search pairs from the documentation of the standard library.")
    parser.add_argument("--output_dir", default="demo/data", help="folder for train.jsonl, dev/ and test/")
    output_dir = parser.parse_args().output_dir
    counts = mine(output_dir)
    print(f"{output_dir}: " + ", ".join(f"{count:,} {split}" for split, count in counts.items()))


if __name__ == "__main__":
    main()
