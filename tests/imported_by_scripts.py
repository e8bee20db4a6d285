"""What scripts import from other packages: the server of `tests.processes` imports it once for all of its forks."""

import gc
import sys

import datasets  # noqa: F401
import evaluate  # noqa: F401
import peft  # noqa: F401
import sentence_transformers  # noqa: F401
import sklearn.cluster  # noqa: F401
import tabulate  # noqa: F401
import transformers.hf_argparser
import transformers.models.auto.modeling_auto
import transformers.models.bert.modeling_bert
import transformers.pipelines
import transformers.trainer  # noqa: F401


# The path of a fresh interpreter. A fork is given that of the test process, to which tests add folders.
SYS_PATH = [path for path in sys.path if path]

gc.freeze()  # otherwise a fork would copy the pages that its garbage collector touches
