"""The error for wrong input, and how a script exits on it."""

import contextlib
import sys
from collections.abc import Iterator


class InputError(ValueError):
    """The input cannot be used. The message is one sentence that names the file, line or field, and the fix."""


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turn an [`InputError`] into its sentence on standard error and exit code 2, as argparse does for a wrong flag.

    Every other exception keeps its traceback, since it means a bug or a failing machine.
    """
    try:
        yield
    except InputError as error:
        # The error of a data worker has the worker's traceback before the sentence.
        sentence = str(error).rpartition(f"{InputError.__name__}: ")[2].strip()
        # A file name may contain a line break.
        print("error: " + r"\n".join(sentence.splitlines()), file=sys.stderr)
        sys.exit(2)
