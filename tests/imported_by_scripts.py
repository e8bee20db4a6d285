"""What the scripts import: the server that `tests.processes` forks imports it once for all of them."""

import datasets  # noqa: F401
import evaluate  # noqa: F401
import peft  # noqa: F401
import sentence_transformers  # noqa: F401
import transformers.models.auto.modeling_auto
import transformers.trainer  # noqa: F401

import run_classification  # noqa: F401
import run_contrastive  # noqa: F401
import run_evaluation  # noqa: F401
import run_mlm  # noqa: F401
