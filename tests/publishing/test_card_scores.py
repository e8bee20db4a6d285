import json
import re
import sys

import pytest
from huggingface_hub import ModelCard

import run_evaluation
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.evaluation.sts import STS_DATASETS
from modeling_layerpool.publishing import update_model_card
from modeling_layerpool.publishing.card_peers import PAIRS, PEERS, peers_on
from tests.evaluation.data import write_pairs, write_retrieval


CARD = """---
license: mit
model-index:
- name: mine
  results:
  - task: {type: semantic-similarity, name: Semantic Similarity}
    dataset: {name: dev.jsonl, type: dev.jsonl}
    metrics:
    - {type: spearman, value: 80.0, name: Spearman}
---

# mine

**Spearman 80.00 on the development data: `dev.jsonl`, 8 pairs.** <!-- headline -->

## Results

The first ones.

## Intended use

Search.

## Limits

- The model was evaluated on the development data above only: on no test set, no other task and no other domain.
- Others.
"""
STS = {"stsb": {"spearman": 81.234, "pearson": 80.0, "pairs": 1379}, "mine": {"spearman": 70.0, "pairs": 12345}}
RETRIEVAL = {"scifact": {"ndcg@10": 64.51, "mrr@10": float("nan"), "queries": 300}}
RESULTS = {"sts": STS, "retrieval": RETRIEVAL, "versions": {"torch": "2.13.0"}, "date": "2026-01-02T03:04:05+00:00"}


@pytest.fixture
def folder(tiny_folder, tmp_path):
    (tmp_path / "tiny" / "README.md").write_text(CARD, encoding="utf-8")
    return tmp_path / "tiny"


def update(folder, results=RESULTS, built_in=()):
    return update_model_card(folder, results, built_in).read_text(encoding="utf-8")


def scores_of(card):
    return {(one.dataset_name, one.metric_type): one.metric_value for one in ModelCard(card).data.eval_results}


def test_scores_come_into_the_metadata_the_tables_the_first_sentence_and_the_limits(folder):
    card = update(folder, built_in=["stsb"])
    assert scores_of(card) == {
        ("dev.jsonl", "spearman"): 80.0,
        (STS_DATASETS["stsb"], "spearman"): 81.234,
        (STS_DATASETS["stsb"], "pearson"): 80.0,
        ("mine", "spearman"): 70.0,
        ("scifact", "ndcg@10"): 64.51,
    }
    assert ModelCard(card).data.license == "mit"
    sentence = "Spearman 75.62 on average over 2 STS sets, nDCG@10 64.51 on the retrieval set `scifact`."
    assert f"\n**{sentence}** <!-- headline -->\n" in card
    for row in (("stsb", "81.23", "80.00", "1,379"), ("mine", "70.00", "", "12,345"), ("scifact", "64.51", "300")):
        assert re.search(r"^\| *" + r" *\| *".join(map(re.escape, row)) + r" *\|$", card, re.MULTILINE), row
    assert re.search(r"^\| average +\| 75\.62 ", card, re.MULTILINE)
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == ["Results", "Evaluation", "Intended use", "Limits"]
    assert "on no test set" not in card
    assert (
        "- The model was evaluated on the data above only: on no other task and no other domain.\n- Others.\n" in card
    )
    assert "Last measured on 2026-01-02. Versions: torch 2.13.0." in card


def test_a_second_evaluation_replaces_its_own_sets_and_keeps_the_others(folder):
    first = update(folder)
    assert update(folder) == first
    card = update(folder, RESULTS | {"sts": {"stsb": {"spearman": 90.0, "pairs": 1379}}, "retrieval": {}})
    assert scores_of(card) == {
        ("dev.jsonl", "spearman"): 80.0,
        ("stsb", "spearman"): 90.0,
        ("mine", "spearman"): 70.0,
        ("scifact", "ndcg@10"): 64.51,
    }
    assert "**Spearman 80.00 on average over 2 STS sets, nDCG@10 64.51 on the retrieval set `scifact`.**" in card
    assert card.count("## Evaluation") == 1


def test_a_set_is_in_the_metadata_once_whether_it_came_from_the_hub_or_from_a_file(folder):
    results = {"sts": {"stsb": {"spearman": 1.0, "pairs": 1379}}, "transfer": {"mrpc": {"accuracy": 2.0, "rows": 9}}}
    for built_in in ((), ("stsb", "mrpc"), ()):
        card = update(folder, results, built_in)
        found = scores_of(card).keys() - {("dev.jsonl", "spearman")}
        assert {name for name, _ in found} == (
            {STS_DATASETS["stsb"], "nyu-mll/glue"} if built_in else {"stsb", "mrpc"}
        )
        if built_in:
            parts = {(one.dataset_config, one.dataset_split) for one in ModelCard(card).data.eval_results[1:]}
            assert parts == {(None, "test"), ("mrpc", None)}


def test_a_name_cannot_leave_the_comment(folder):
    name = "a --> | b"
    results = RESULTS | {"sts": {name: {"spearman": 50.0, "pairs": 8}}, "retrieval": {}}
    for _ in range(2):
        card = update(folder, results)
    assert json.loads(re.search(r"<!-- evaluation: (.*) -->", card)[1])["sts"] == results["sts"]
    assert card.count("<!-- evaluation: ") == 1


def test_a_card_of_another_tool_gets_a_section_at_its_end(folder):
    (folder / "README.md").write_text("# theirs\n\nText.\n", encoding="utf-8")
    card = update(folder)
    assert "# theirs\n\nText.\n\n<!-- evaluation: " in card
    assert card.endswith("<!-- end of evaluation -->\n")
    assert ModelCard(card).data.model_name == "tiny"
    assert update(folder) == card


def test_a_folder_without_a_card_or_with_a_broken_one_is_one_sentence(folder):
    (folder / "README.md").write_text("---\nmodel-index: 3\n---\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"README\.md: its metadata cannot be read"):
        update(folder)
    (folder / "README.md").unlink()
    with pytest.raises(InputError, match=r"tiny: has no README\.md, so there is no model card to add scores to"):
        update(folder)


# --- other models ---


def test_models_are_compared_on_the_same_test_sets_and_at_the_same_size_only():
    for parameters, expected in (
        (22_600_000, ["all-MiniLM-L6-v2"]),
        (110_000_000, ["unsup-simcse-bert-base-uncased", "sup-simcse-bert-base-uncased"]),
        (50_000_000, []),
        (400_000_000, []),
    ):
        names, peers = peers_on(STS, parameters)
        assert [peer.name for peer in peers] == expected
        assert names == (["stsb"] if expected else [])
    for other in ({"stsb": {"pairs": 1500}}, {"mine": {"pairs": 1379}}, {"stsb": {}}, {}):
        assert peers_on(other, 22_600_000) == ([], [])


def test_the_published_averages_are_those_of_the_paper():
    """Gao et al. 2021, table 5, last column."""
    averages = {
        peer.name: round(sum(peer.scores.values()) / 7, 2) for peer in PEERS if peer.scores.keys() == PAIRS.keys()
    }
    assert averages == {"unsup-simcse-bert-base-uncased": 76.25, "sup-simcse-bert-base-uncased": 81.57}


def test_the_card_shows_the_models_of_its_size(folder, monkeypatch):
    assert "of its size" not in update(folder)  # there is none as small as this
    monkeypatch.setattr("modeling_layerpool.publishing.card_scores._parameters", lambda folder: 22_000_000)
    card = update(folder)
    table = re.search(r"^\| model .*?\n\n", card, re.MULTILINE | re.DOTALL)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    assert rows[0] == ["model", "parameters", "stsb", "source"]
    assert rows[2] == ["**this model**", "22.0 M", "81.23", "see above"]
    assert rows[3] == ["all-MiniLM-L6-v2", "22.7 M", "82.03", "measured with `run_evaluation.py`"]


# --- run_evaluation.py ---


@pytest.fixture
def evaluate(folder, tmp_path, monkeypatch, capsys):
    def main(*arguments, model=folder):
        words = [
            "--output_dir",
            str(tmp_path / "out"),
            "--model_name_or_path",
            str(model),
            "--update_card",
            *arguments,
        ]
        monkeypatch.setattr(sys, "argv", ["run_evaluation.py", *words])
        try:
            run_evaluation.main()
        except SystemExit as end:
            return end.code, capsys.readouterr().err
        return 0, ""

    return main


def test_the_script_adds_what_it_measured(evaluate, folder, tmp_path):
    sts, retrieval = write_pairs(tmp_path / "pairs.jsonl"), write_retrieval(tmp_path / "retrieval")
    assert evaluate("--sts", f"a={sts}", "--retrieval", f"b={retrieval}")[0] == 0
    found = scores_of((folder / "README.md").read_text(encoding="utf-8"))
    results = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert found["a", "spearman"] == results["sts"]["a"]["spearman"]
    assert found["b", "ndcg@10"] == results["retrieval"]["b"]["ndcg@10"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            ["--max_seq_length", "8"],
            "--update_card: the card is of the model as it is saved; leave out --max_seq_length",
        ),
        (["--pooling", "cls"], "leave out --pooling"),
    ],
)
def test_scores_of_another_setting_do_not_come_into_the_card(evaluate, folder, tmp_path, options, reason):
    sts = write_pairs(tmp_path / "pairs.jsonl")
    code, error = evaluate("--sts", f"a={sts}", *options)
    assert code == 2
    assert reason in error
    assert (folder / "README.md").read_text(encoding="utf-8") == CARD


def test_a_model_without_a_card_is_refused_before_it_is_measured(evaluate, folder, tmp_path):
    sts = write_pairs(tmp_path / "pairs.jsonl")
    code, error = evaluate("--sts", f"a={sts}", model="someone/model")
    assert (code, error.count("\n")) == (2, 1)
    assert "someone/model is no folder on this machine; download the model first" in error
    (folder / "README.md").unlink()
    assert evaluate("--sts", f"a={sts}")[0] == 2
    assert not (tmp_path / "out").exists()
