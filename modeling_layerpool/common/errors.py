"""The one error that means "the input is wrong, not the program", and how a script ends on it."""

import contextlib
import sys
from collections.abc import Iterator


class InputError(ValueError):
    """Input that cannot be used. The message is one sentence that names the file, line or field, and the fix."""


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turn an [`InputError`] into its sentence on standard error and exit code 2, as argparse does for a wrong flag.

    Every other exception passes through with its traceback: it is a bug or a failing machine, not a usage error.
    """
    try:
        yield
    except InputError as error:
        # A data worker's error arrives with the worker's traceback before the sentence.
        sentence = str(error).rpartition(f"{InputError.__name__}: ")[2].strip()
        # A name with a line break in it is shown as one line.
        print("error: " + r"\n".join(sentence.splitlines()), file=sys.stderr)
        sys.exit(2)
