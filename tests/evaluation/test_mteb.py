"""MTEB opens a saved folder and reports the same scores as our own evaluation."""

import mteb
import pytest
import torch
from datasets import Dataset, DatasetDict
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from sentence_transformers import SentenceTransformer

from modeling_layerpool.common.checkpoints import load_layerpool
from modeling_layerpool.evaluation import evaluate_sts, load_encoder


def metadata(name, kind, main_score):
    return TaskMetadata(
        name=name,
        description="Of a file.",
        dataset={"path": "local/none", "revision": "1"},
        type=kind,
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=main_score,
        date=("2026-01-01", "2026-01-01"),
        domains=["Written"],
        task_subtypes=[],
        license="not specified",
        annotations_creators="derived",
        dialect=[],
        sample_creation="found",
        bibtex_citation="",
    )


WORDS = ("guitar", "dog", "stock market", "Python list", "river", "engine")
PAIRS = [(f"A {one} in the morning.", f"This is about a {other}.") for one in WORDS for other in WORDS]
SCORES = [5.0 * (one == other) + 0.01 * i for i, (one, other) in enumerate((a, b) for a in WORDS for b in WORDS)]


class LocalSTS(AbsTaskSTS):
    metadata = metadata("LocalSTS", "STS", "cosine_spearman")
    min_score, max_score = 0, 6

    def load_data(self, **kwargs):
        one, other = zip(*PAIRS, strict=True)
        rows = {"sentence1": list(one), "sentence2": list(other), "score": SCORES}
        self.dataset = DatasetDict({"test": Dataset.from_dict(rows)})
        self.data_loaded = True


@pytest.mark.parametrize("pooler_type", ["mean", "layer_attention"])
def test_mteb_gives_a_saved_folder_the_score_that_our_evaluation_gives(
    minilm, tmp_path, pooler_type, record_difference
):
    torch.manual_seed(0)
    model, tokenizer = load_layerpool(minilm, pooler_type=pooler_type)
    folder = str(tmp_path / "model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    opened = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    results = mteb.evaluate(opened, [LocalSTS()], cache=None, show_progress_bar=False)
    measured = results.task_results[0].get_score()
    one, other = zip(*PAIRS, strict=True)
    expected = evaluate_sts(load_encoder(folder, trust_remote_code=True), list(one), list(other), SCORES)["spearman"]
    assert 100 * measured == pytest.approx(expected, abs=1e-4)
    record_difference("mteb", "Spearman of a local STS task, against ours", abs(measured - expected / 100))
