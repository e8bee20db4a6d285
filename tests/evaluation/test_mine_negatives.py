"""Mined negatives are those of the definition and of sentence-transformers, and can be trained on."""

import dataclasses
import json
import runpy

import numpy as np
import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from modeling_layerpool.evaluation.loading import load_encoder
from modeling_layerpool.evaluation.mine_negatives import MiningOptions, main, mine_negatives
from tests.files import write_rows
from tests.processes import ROOT, flags


WHO = ("A man", "A woman", "The old dog", "A small child", "My teacher")
WHAT = ("plays the guitar", "eats an apple", "runs in the park", "reads a long book", "sleeps on the sofa")
WHERE = ("at night", "in the rain")
PAIRS = [(f"{who} {what}.", f"{who} {what} {where}.") for who in WHO for what in WHAT for where in WHERE]
ANCHORS, POSITIVES = [list(texts) for texts in zip(*PAIRS[:40], strict=True)]  # two positives an anchor
CORPUS = [f"{what} {where}?" for what in WHAT for where in WHERE]
OPTIONS = {
    "nearest": {"relative_margin": None},
    "margins": {"relative_margin": 0.02, "absolute_margin": 0.05, "num_negatives": 2},
    "ranks": {"relative_margin": None, "range_min": 3, "range_max": 9, "num_negatives": 3},
    "scores": {"relative_margin": None, "max_score": 0.6, "min_score": 0.3, "range_max": 30},
    "strict": {"relative_margin": 0.5, "num_negatives": 4},
}


class RandomEncoder:
    """Gives each text its own random vector."""

    def encode(self, sentences):
        def vector(text):
            return np.random.default_rng(list(text.encode())).normal(size=6).astype(np.float32)

        return np.stack([vector(text) for text in sentences])


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def by_definition(encoder, anchors, positives, corpus, options):
    """Every text for every row, one after the other."""
    vector = {text: encoder.encode([text])[0] for text in {*anchors, *positives, *corpus}}
    documents = list(dict.fromkeys([*corpus, *positives]))
    negatives = []
    for anchor in anchors:
        own = [positive for other, positive in zip(anchors, positives, strict=True) if other == anchor]
        lowest = min(cosine(vector[anchor], vector[positive]) for positive in own)
        near = []
        for text in documents:
            score = cosine(vector[anchor], vector[text])
            is_kept = text != anchor and text not in own
            is_kept &= options.relative_margin is None or score <= lowest - abs(lowest) * options.relative_margin
            is_kept &= options.absolute_margin is None or score <= lowest - options.absolute_margin
            is_kept &= options.max_score is None or score <= options.max_score
            is_kept &= options.min_score is None or score >= options.min_score
            if is_kept:
                near.append((-score, text))
        window = [text for _, text in sorted(near)][: options.range_max][options.range_min :]
        enough = len(window) >= options.num_negatives
        negatives.append(window[: options.num_negatives] if enough else [])
    return negatives


@pytest.mark.parametrize("neighbour_search", ["exact", "faiss"])
@pytest.mark.parametrize("name", OPTIONS)
def test_negatives_are_those_of_the_definition(name, neighbour_search):
    # In a range as large as the corpus, the search finds all that the definition looks at.
    options = MiningOptions(**({"range_max": 60} | OPTIONS[name]))
    corpus = [*CORPUS, *ANCHORS[:4]]  # some anchors are candidates of the others, never of themselves
    mined = mine_negatives(RandomEncoder(), ANCHORS, POSITIVES, corpus, options, neighbour_search=neighbour_search)
    expected = by_definition(RandomEncoder(), ANCHORS, POSITIVES, corpus, options)
    assert mined.negatives == expected
    assert any(expected)
    vector = {text: RandomEncoder().encode([text])[0] for text in {*ANCHORS, *POSITIVES, *corpus}}
    scores = [
        cosine(vector[anchor], vector[text]) for anchor, texts in zip(ANCHORS, expected, strict=True) for text in texts
    ]
    np.testing.assert_allclose(mined.negative_scores, scores, atol=1e-6)
    own = [cosine(vector[anchor], vector[text]) for anchor, text in zip(ANCHORS, POSITIVES, strict=True)]
    np.testing.assert_allclose(mined.positive_scores, own, atol=1e-6)


def test_negatives_are_those_of_sentence_transformers(minilm):
    stock = SentenceTransformer(minilm, device="cpu")
    encoder = load_encoder(minilm, device="cpu")
    pairs = Dataset.from_dict({"anchor": ANCHORS, "positive": POSITIVES})
    for given in OPTIONS.values():
        options = MiningOptions(**given)
        expected = mine_hard_negatives(
            pairs,
            stock,
            corpus=CORPUS,
            output_format="n-tuple",
            verbose=False,
            **{name: getattr(options, name) for name in (*OPTIONS["scores"], *OPTIONS["margins"], "range_min")},
        )
        mined = mine_negatives(encoder, ANCHORS, POSITIVES, CORPUS, options, show_progress_bar=False)
        rows = [
            (anchor, positive, *texts)
            for anchor, positive, texts in zip(ANCHORS, POSITIVES, mined.negatives, strict=True)
            if texts
        ]
        assert sorted(rows) == sorted(tuple(row.values()) for row in expected)


def test_random_negatives_are_candidates_and_the_seed_repeats_them():
    options = MiningOptions(sampling="random", num_negatives=2, range_max=10, relative_margin=None)
    drawn = mine_negatives(RandomEncoder(), ANCHORS, POSITIVES, CORPUS, options).negatives
    assert drawn == mine_negatives(RandomEncoder(), ANCHORS, POSITIVES, CORPUS, options).negatives
    window = dataclasses.replace(options, sampling="top", num_negatives=10)
    candidates = mine_negatives(RandomEncoder(), ANCHORS, POSITIVES, CORPUS, window).negatives
    for texts, allowed in zip(drawn, candidates, strict=True):
        assert len(set(texts)) == 2
        assert set(texts) <= set(allowed)
    other = dataclasses.replace(options, seed=1)
    assert drawn != mine_negatives(RandomEncoder(), ANCHORS, POSITIVES, CORPUS, other).negatives


def test_queries_and_documents_have_their_own_encoders():
    class Asymmetric(RandomEncoder):
        queries, documents = RandomEncoder(), RandomEncoder()
        queries.encode = lambda sentences: RandomEncoder().encode([f"query: {text}" for text in sentences])

    options = MiningOptions(relative_margin=None)
    mined = mine_negatives(Asymmetric(), ANCHORS, POSITIVES, CORPUS, options).negatives
    prefixed = [f"query: {text}" for text in ANCHORS]
    assert mined == mine_negatives(RandomEncoder(), prefixed, POSITIVES, CORPUS, options).negatives


@pytest.fixture
def mine(tmp_path, monkeypatch, capsys, tiny_folder):
    """Runs the command in a folder with the file pairs.jsonl, and returns exit code, output and error."""
    monkeypatch.chdir(tmp_path)
    rows = [{"query": anchor, "answer": positive} for anchor, positive in PAIRS]
    write_rows((tmp_path / "pairs.jsonl"), rows)
    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS))
    defaults = {
        "model_name_or_path": tiny_folder,
        "train_file": "pairs.jsonl",
        "output_file": "triplets.jsonl",
        "columns": ["anchor=query", "positive=answer"],
        "relative_margin": 0.0,
    }

    def run(**options):
        monkeypatch.setattr("sys.argv", ["mine_negatives", *flags(defaults | options)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def test_the_file_is_trained_on(mine, tmp_path, tiny_folder, monkeypatch, capsys):
    code, out, _ = mine(corpus_file="corpus.txt", num_negatives=2)
    assert code == 0
    rows = [json.loads(line) for line in (tmp_path / "triplets.jsonl").read_text().splitlines()]
    assert f"triplets.jsonl: {len(rows)} of {len(PAIRS)} rows; negatives in each: 2" in out
    assert all(list(row) == ["anchor", "positive", "negative_1", "negative_2"] for row in rows)
    given = {"model_name_or_path": tiny_folder, "train_file": "triplets.jsonl", "output_dir": "out", "max_steps": 1}
    monkeypatch.setattr("modeling_layerpool.publishing.model_card.draw", lambda path, *args: None)
    monkeypatch.setattr("sys.argv", ["run_contrastive.py", *flags(given | {"report_to": "none"})])
    runpy.run_path(str(ROOT / "run_contrastive.py"), run_name="__main__")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_single_negative_is_the_column_negative(mine, tmp_path):
    assert mine()[0] == 0
    row = json.loads((tmp_path / "triplets.jsonl").read_text().splitlines()[0])
    assert list(row) == ["anchor", "positive", "negative"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relative_margin": 1.9}, "no row has 1 negatives; choose from more candidates"),
        ({"range_max": 2, "num_negatives": 3}, "range_max=2 leaves 2 candidates after range_min=0; raise it to at"),
        ({"max_score": 2}, "max_score=2.0 must be at least -1 and at most 1"),
        ({"sampling": "best"}, "invalid choice: 'best'"),
        ({"output_file": "pairs.jsonl"}, "--output_file pairs.jsonl: exists; name a new file"),
        ({"output_file": "triplets.csv"}, "--output_file triplets.csv: must end in .jsonl"),
        ({"columns": ["anchor=question"]}, "no column 'anchor'"),
        ({"train_file": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"model_name_or_path": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_no_file(mine, tmp_path, options, message):
    code, _, err = mine(**options)
    assert code == 2
    assert message in err
    assert not {path.name for path in tmp_path.iterdir()} - {"pairs.jsonl", "corpus.txt", "tiny"}
