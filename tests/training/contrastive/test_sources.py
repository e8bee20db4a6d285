import pytest
from datasets import Dataset

from modeling_layerpool.training import OBJECTIVES, ContrastiveTrainingArguments
from modeling_layerpool.training.contrastive.arguments import DataArguments
from modeling_layerpool.training.contrastive.sources import Source, parse_sources, read_sources
from tests.training.contrastive.test_data import write


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("owner/name", Source("owner/name", {"train": "train"})),
        ("owner/name:triplet", Source("owner/name", {"config": "triplet", "train": "train"})),
        ("owner/name:triplet:dev=0.5", Source("owner/name", {"config": "triplet", "train": "dev"}, 0.5)),
        ("owner/name::train[:100]", Source("owner/name", {"train": "train[:100]"})),
        ("mine.parquet=3", Source("mine.parquet", None, 3.0)),
        ("mine.jsonl.gz", Source("mine.jsonl.gz")),
    ],
)
def test_a_source_is_a_file_or_a_dataset_with_its_parts(value, expected):
    other = "other.jsonl" if expected.weight is None else "other.jsonl=1"
    assert parse_sources([], [value, other], None, "train")[0] == expected


def test_configuration_and_split_hold_for_a_dataset_without_its_own():
    [source] = parse_sources([], ["owner/name"], "triplet", "dev")
    assert source == Source("owner/name", {"config": "triplet", "train": "dev"})
    assert source.label == "owner/name (triplet), split dev"


def test_a_file_with_an_equals_sign_in_its_name_is_read(tmp_path):
    path = write(tmp_path / "a=2.jsonl", {"anchor": "a", "positive": "p"})
    assert parse_sources([path], [], None, "train") == [Source(path)]
    assert parse_sources([f"{path}=2", "b.jsonl=1"], [], None, "train")[0] == Source(path, None, 2.0)


def test_files_and_datasets_get_our_names_and_at_most_so_many_rows(tmp_path, monkeypatch):
    def load_hub(name, config, split, streaming):
        assert (name, config, split, streaming) == ("owner/name", "c", "train", False)
        return Dataset.from_dict({"question": ["q"] * 3, "answer": ["a"] * 3})

    monkeypatch.setattr("modeling_layerpool.training.contrastive.sources.load_hub", load_hub)
    path = write(tmp_path / "a.jsonl", *[{"query": "q", "answer": "a"}] * 3)
    columns = ["anchor=question", "anchor=query", "positive=answer"]
    data = DataArguments(dataset_name=["owner/name:c", path], columns=columns, max_train_samples=2)

    args = ContrastiveTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    found = read_sources(data, args, OBJECTIVES["supervised"]())
    assert list(found) == ["owner/name (c)", path]
    assert found["owner/name (c)"].to_list() == [{"anchor": "q", "positive": "a"}] * 2
    assert len(found[path]) == 2
    data.column_names.check_seen()
