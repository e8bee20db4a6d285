import pytest
from datasets import Dataset

from modeling_layerpool.training import ContrastiveTrainer, ContrastiveTrainingArguments


WORDS = [
    "red",
    "blue",
    "green",
    "big",
    "small",
    "cat",
    "dog",
    "house",
    "tree",
    "river",
    "runs",
    "sleeps",
    "jumps",
    "eats",
    "sees",
    "over",
    "under",
    "near",
]


def triplets(count):
    """Rows of different lengths; every text is there once."""
    return [
        {
            column: " ".join(WORDS[(row * 7 + place * (row % 5 + 1)) % len(WORDS)] for place in range(row % 6 + 2))
            + f" {column} {row}"
            for column in ("anchor", "positive", "negative")
        }
        for row in range(count)
    ]


@pytest.fixture
def make_trainer(tiny_model, tokenizer, tmp_path):
    def make(rows=14, name="run", model=None, train_dataset=None, **options):
        known = {"evaluator", "eval_dataset", "callbacks", "write_model_card", "dataset_weights", "text_embeddings"}
        if not isinstance(options.get("objective"), str):  # a name is an argument
            known.add("objective")
        for_trainer = {key: options.pop(key) for key in known & set(options)}
        arguments = {
            "output_dir": str(tmp_path / name),
            "per_device_train_batch_size": 4,
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "seed": 1,
        }
        return ContrastiveTrainer(
            model or tiny_model(pooler_type="layer_attention"),
            ContrastiveTrainingArguments(**(arguments | options)),
            train_dataset=Dataset.from_list(triplets(rows)) if train_dataset is None else train_dataset,
            processing_class=tokenizer,
            **for_trainer,
        )

    return make
