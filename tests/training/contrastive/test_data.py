import gzip
import json

import pytest
from datasets import Dataset

from modeling_layerpool.common.columns import ColumnNames
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.training import OBJECTIVES
from modeling_layerpool.training.contrastive.data import load_file, tokenize_dataset
from modeling_layerpool.training.data import load_hub, rename_columns


SUPERVISED = OBJECTIVES["supervised"]()
UNSUPERVISED = OBJECTIVES["unsupervised"]()


def write(path, *lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(path)


def test_a_jsonl_file_gives_its_needed_columns_and_line_numbers(tmp_path):
    path = write(
        tmp_path / "t.jsonl", {"positive": "p1", "anchor": "a1", "id": 7}, "", {"anchor": "a2", "positive": "p2"}
    )
    assert load_file(path, SUPERVISED).to_list() == [
        {"row_number": 1, "anchor": "a1", "positive": "p1"},
        {"row_number": 3, "anchor": "a2", "positive": "p2"},
    ]


def test_columns_have_the_names_of_the_user_and_errors_name_these(tmp_path):
    names = ColumnNames.parse(["anchor=query", "positive=answer"], ("anchor", "positive"))
    path = write(tmp_path / "t.jsonl", {"query": "q1", "answer": "a1", "positive": 7}, {"query": "q2", "answer": " "})
    with pytest.raises(InputError, match=r"t\.jsonl, line 2: the column 'answer' is empty"):
        load_file(path, SUPERVISED, columns=names)
    path = write(tmp_path / "t.jsonl", {"query": "q1", "answer": "a1", "positive": 7})
    rows = [{"row_number": 1, "anchor": "q1", "positive": "a1"}]
    assert load_file(path, SUPERVISED, columns=names).to_list() == rows
    assert list(load_file(path, SUPERVISED, streaming=True, columns=names)) == rows


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_gets_our_names(streaming):
    names = ColumnNames.parse(["anchor=positive", "positive=anchor", "negative=n"], ("anchor", "positive", "negative"))
    dataset = Dataset.from_dict({"anchor": ["a"], "positive": ["p"], "negative": ["x"], "n": ["n"]})
    renamed = rename_columns(dataset.to_iterable_dataset() if streaming else dataset, names)
    assert list(renamed) == [{"anchor": "p", "positive": "a", "negative": "n"}]


def test_every_format_gives_the_same_rows(tmp_path):
    rows = [{"anchor": 'a "1", x', "positive": "p1"}, {"anchor": "ä2", "positive": "p 2"}]
    jsonl = write(tmp_path / "t.jsonl", *rows)
    csv = write(tmp_path / "t.csv", "anchor,positive", '"a ""1"", x",p1', "ä2,p 2")
    tsv = write(tmp_path / "t.tsv", "anchor\tpositive", 'a "1", x\tp1', "ä2\tp 2")
    packed = tmp_path / "t.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "t.jsonl").read_bytes()))
    parquet = str(tmp_path / "t.parquet")
    Dataset.from_list(rows).to_parquet(parquet)
    for path in (jsonl, csv, tsv, str(packed), parquet):
        assert load_file(path, SUPERVISED).remove_columns("row_number").to_list() == rows, path


def test_a_txt_file_is_the_column_text(tmp_path):
    path = write(tmp_path / "t.txt", "one", "", "  two ")
    assert load_file(path, UNSUPERVISED).to_list() == [
        {"row_number": 1, "text": "one"},
        {"row_number": 3, "text": "two"},
    ]


def test_a_changed_file_is_read_again(tmp_path):
    path = write(tmp_path / "t.txt", "one")
    assert load_file(path, UNSUPERVISED)["text"] == ["one"]
    write(tmp_path / "t.txt", "two")
    assert load_file(path, UNSUPERVISED)["text"] == ["two"]


def test_streaming_gives_the_same_rows(tmp_path):
    path = write(tmp_path / "t.txt", "one", "two")
    assert list(load_file(path, UNSUPERVISED, streaming=True)) == load_file(path, UNSUPERVISED).to_list()


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("missing.jsonl", None, "missing.jsonl: no such file"),
        ("empty.jsonl", [], "empty.jsonl: the file is empty"),
        ("table.xlsx", ["x"], "table.xlsx: unknown format; use one of .jsonl"),
        ("t.jsonl", [{"anchor": "a", "positive": "p"}, "{broken"], "t.jsonl, line 2: not valid JSON"),
        ("t.jsonl", ["[1]"], "t.jsonl, line 1: expected one JSON object a line, got list"),
        ("t.jsonl", [{"anchor": "a"}], "t.jsonl, line 1: no column 'positive', which the supervised objective needs"),
        ("t.jsonl", [{"anchor": "a", "positive": "p"}, {"anchor": "a"}], "t.jsonl, line 2: no column 'positive'"),
        ("t.jsonl", [{"anchor": "a", "positive": None}], "t.jsonl, line 1: the column 'positive' is missing or null"),
        ("t.jsonl", [{"anchor": "a", "positive": " "}], "t.jsonl, line 1: the column 'positive' is empty"),
        ("t.jsonl", [{"anchor": 3, "positive": "p"}], "t.jsonl, line 1: the column 'anchor' must be a text, got int"),
        (
            "t.jsonl",
            [{"anchor": "a", "positive": "p", "negative": "n", "negative_1": "m"}],
            "t.jsonl, line 1: has both 'negative' and 'negative_1'",
        ),
        ("t.csv", ["anchor,positive", "a,p", "a"], "t.csv, line 3: 1 fields where the header names 2"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(tmp_path, name, lines, message):
    path = tmp_path / name
    if lines is not None:
        write(path, *lines)
    with pytest.raises(InputError) as error:
        load_file(str(path), SUPERVISED)
    assert str(error.value).startswith(f"{tmp_path}/{message}")


@pytest.mark.parametrize("column", ["negative_0", "negative_01"])
def test_a_negative_that_would_not_be_read_is_refused(column):
    with pytest.raises(InputError, match=f"'{column}' is not read; number negatives from negative_1 on"):
        SUPERVISED.select_columns(["anchor", "positive", column, "negative_1"], "data")


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = write(tmp_path / "t.csv", "anchor,positive,anchor", "a,p,b")
    with pytest.raises(InputError, match=r"t\.csv, line 1: .*'anchor'"):
        load_file(path, SUPERVISED)


def test_weight_on_negatives_that_are_not_there_is_refused():
    objective = OBJECTIVES["supervised"](hard_negative_weight=1.0)
    with pytest.raises(InputError, match="hard_negative_weight does nothing without a column 'negative'"):
        objective.select_columns(["anchor", "positive"], "data")


def test_numbered_negatives_come_in_their_order():
    available = ["anchor", "negative_10", "negative_2", "positive"]
    assert SUPERVISED.select_columns(available, "data") == ["anchor", "positive", "negative_2", "negative_10"]


def test_a_dataset_of_the_hub_that_cannot_be_reached_is_one_sentence():
    with pytest.raises(InputError, match="dataset 'nobody/nothing' cannot be loaded"):
        load_hub("nobody/nothing", None, "train")


def test_tokenising_counts_cuts_and_keeps_the_place(tokenizer):
    dataset = Dataset.from_dict({"anchor": ["one two", "word " * 50], "positive": ["three", "four"], "other": [1, 2]})
    tokenized = tokenize_dataset(dataset, ["anchor", "positive"], tokenizer, 16, "data")
    assert set(tokenized.column_names) == {"row_number", "tokens", "anchor_input_ids", "positive_input_ids"}
    assert [len(ids) for ids in tokenized["anchor_input_ids"]] == [4, 16]
    assert tokenized["tokens"] == [7, 19]
    assert tokenized["row_number"] == [0, 1]
    assert tokenized[0]["anchor_input_ids"] == tokenizer("one two")["input_ids"]


def test_an_empty_text_of_a_dataset_is_named_by_its_row(tokenizer):
    dataset = Dataset.from_dict({"text": ["one", None]})
    with pytest.raises(InputError, match="data, row 1: the column 'text' is missing or null"):
        tokenize_dataset(dataset, ["text"], tokenizer, 16, "data")
