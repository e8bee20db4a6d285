"""However the arguments, data or checkpoints of a script are broken, it ends with its results or with one sentence."""

import sys

import pytest


if sys.platform != "linux":
    pytest.skip("cases are forks, bounded as Linux can", allow_module_level=True)

from tests.fuzz import SCRIPTS, check_cases, summarize


SEED = 0
CASES = 20  # of each part; `python -m tests.fuzz` runs as many as one has time for


@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize("script", SCRIPTS)
def test_broken_input_ends_in_one_sentence_and_leaves_nothing_behind(script, part, tmp_path):
    ended = check_cases(script, SEED, range(part * CASES, (part + 1) * CASES), tmp_path)
    failures = [failure for _, found in ended for failure in found]
    assert not failures, summarize(failures)
