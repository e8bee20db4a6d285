"""Reading files: each kind of broken file ends in one sentence that names the file and the line."""

import gzip
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling_layerpool.common.errors import InputError
from modeling_layerpool.common.rows import check_number, check_text, read_json, read_rows, row_name


def read(path, content):
    path.write_bytes(content)
    return list(read_rows(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,text\na,b\n", "a.csv, line 1: the column 'text' is named twice"),
        (
            "a.jsonl",
            b'{"text": "a", "text": "b"}\n',
            "a.jsonl, line 1: not usable JSON (the name 'text' is given twice)",
        ),
        ("a.jsonl", b'{"a": ' + b"[" * 100_000, "a.jsonl, line 1: JSON that is nested too deeply"),
        ("a.jsonl", b'{"text": "a"}\n{"n": ' + b"7" * 5000 + b"}\n", "a.jsonl, line 2: not usable JSON"),
        ("a.jsonl", '{"text": "ä"}'.encode("utf-16"), "a.jsonl: not valid UTF-8"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n', mtime=0)[:-6], "a.jsonl.gz: not a complete gzip file"),
        ("a.jsonl.gz", b"plain", "a.jsonl.gz: not a complete gzip file"),
        ("a.xlsx", b"PK", "a.xlsx: unknown format"),
        ("a.parquet.gz", b"PAR1", "a.parquet.gz: unknown format"),
        ("a.parquet", b"PAR1", "a.parquet: not a complete parquet file"),
        ("a.parquet", b"", "a.parquet: not a complete parquet file"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path, name, content, message):
    with pytest.raises(InputError) as error:
        read(tmp_path / name, content)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_parquet_file_gives_its_rows_by_number(tmp_path):
    rows = [{"text": f"text {index}", "score": index / 2, "more": None} for index in range(2500)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert list(read_rows(tmp_path / "a.parquet")) == list(enumerate(rows, 1))
    assert row_name("a.parquet", 3) == "a.parquet, row 3"
    assert row_name("a.csv", 3) == "a.csv, line 3"


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_parquet_file_that_is_cut_or_corrupt_is_one_sentence(tmp_path, keep):
    path = tmp_path / "a.parquet"
    texts = random.Random(0)
    rows = [{"text": f"{texts.random()}"} for _ in range(5000)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1000)
    content = path.read_bytes()
    with pytest.raises(InputError, match=r"a\.parquet: not a complete parquet file"):
        read(path, content[: int(keep * len(content))])
    broken = bytearray(content)
    begin = int(keep * len(content))
    broken[begin : begin + 200] = bytes(200)
    with pytest.raises(InputError, match=r"a\.parquet: (not a complete parquet file|cannot be read)") as error:
        read(path, bytes(broken))
    assert "\n" not in str(error.value)


def test_a_parquet_file_with_two_columns_of_one_name_is_refused(tmp_path):
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: the column 'text' is named twice"):
        list(read_rows(tmp_path / "a.parquet"))


def test_a_gzip_file_that_is_corrupt_in_the_middle_is_one_sentence(tmp_path):
    texts = random.Random(0)
    lines = (json.dumps({"text": f"{texts.random()}"}) for _ in range(20_000))
    content = bytearray(gzip.compress("\n".join(lines).encode()))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(InputError, match=r"a\.jsonl\.gz(: not a complete gzip file, broken after|: not valid|, line)"):
        read(tmp_path / "a.jsonl.gz", bytes(content))


@pytest.mark.parametrize("name", ["gone.jsonl", "x" * 300 + ".jsonl", "a\0b.jsonl", "folder"])
@pytest.mark.parametrize("reader", [read_json, lambda path: list(read_rows(path))])
def test_a_file_that_cannot_be_opened_is_one_sentence(tmp_path, reader, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"no such file|cannot be read|is a folder"):
        reader(f"{tmp_path}/{name}")


def test_half_of_a_surrogate_pair_is_named_by_its_character(tmp_path):
    [(_, row)] = read(tmp_path / "a.jsonl", b'{"text": "ab\\ud800"}\n')
    with pytest.raises(InputError, match=r"here: the column 'text' is not valid Unicode .* at character 3"):
        check_text(row["text"], "here", "text")


@pytest.mark.parametrize("value", ["9" * 400, 10**400, float("nan"), "inf", True, None, [1], "1,5"])
def test_a_number_is_finite_or_refused_in_a_short_sentence(value):
    with pytest.raises(InputError, match="the column 'score' must be a") as error:
        check_number(value, "here", "score")
    assert len(str(error.value)) < 150
