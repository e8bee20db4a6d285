"""
Runs the main of run_evaluation.py and notes which texts this process embedded.

    python noting_evaluation.py FOLDER FAILING_RANK --model_name_or_path ...

writes `FOLDER/<rank>.json`. The process of FAILING_RANK (-1: none) fails as it is asked for its first text.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

import run_evaluation
from modeling_layerpool.evaluation import ShardedEncoder
from modeling_layerpool.evaluation.encoders import LayerPoolEncoder
from tests.evaluation.data import VectorEncoder


folder, failing_rank, *arguments = sys.argv[1:]
rank = os.environ.get("RANK", "0")
embedded = []
encode = LayerPoolEncoder.encode


def noting_encode(self, sentences):
    if rank == failing_rank:
        raise MemoryError("the device of this process is full")
    embedded.extend(self.prompt + sentence for sentence in sentences)
    return encode(self, sentences)


LayerPoolEncoder.encode = noting_encode
sys.argv[1:] = arguments
run_evaluation.main()

# fewer texts than processes: some have none to embed
few = VectorEncoder({"a": [1, 2]})
np.testing.assert_array_equal(ShardedEncoder(few).encode(["a"]), [[1, 2]])
note = {"embedded": embedded, "calls_for_few": few.calls}
Path(folder, f"{rank}.json").write_text(json.dumps(note), encoding="utf-8")
