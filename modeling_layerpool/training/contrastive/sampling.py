"""The order of the rows in contrastive training, of one dataset or of several."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, concatenate_datasets

from ...common.errors import InputError
from ..base import LayerPoolTrainer, check_rows
from ..batching import GlobalBatchSampler, MixedBatchSampler, NoDuplicatesBatchSampler
from .arguments import ContrastiveTrainingArguments
from .neighbours import NeighbourBatchSampler


class Mixture:
    """
    Several training datasets, of which each batch takes one.

    Args:
        parts: for each dataset its tokenized rows and its text columns.
        weights: the share of each dataset in the batches. Default: by its rows.

    Raises:
        InputError: a dataset does not make a batch, the weights do not fit, or an option needs one dataset.
    """

    def __init__(
        self,
        parts: Mapping[str, tuple[Dataset, list[str]]],
        weights: Mapping[str, float] | None,
        args: ContrastiveTrainingArguments,
    ):
        if weights is not None and (weights.keys() != parts.keys() or min(weights.values(), default=0) <= 0):
            raise InputError(f"dataset_weights={dict(weights)} needs a weight above 0 for each of {', '.join(parts)}")
        if args.shuffling != "random":
            raise InputError(f"shuffling={args.shuffling} orders the rows of one dataset, not several; leave it out")
        for name, (dataset, _) in parts.items():
            check_rows(dataset, max(2, args.least_rows), name)
        of_parts = [columns for _, columns in parts.values()]
        if args.freeze_encoder and any(columns != of_parts[0] for columns in of_parts):
            raise InputError("freeze_encoder needs datasets with the same columns; leave it out, or give one of them")
        self.sizes = {name: len(dataset) for name, (dataset, _) in parts.items()}
        self.weights = weights
        self.columns = max(of_parts, key=len)
        every = dict.fromkeys(column for columns in of_parts for column in columns)
        self.every_column = [*self.columns, *(column for column in every if column not in self.columns)]
        # A row has None in a column that its dataset lacks.
        self.dataset = concatenate_datasets([dataset for dataset, _ in parts.values()])

    def describe(self) -> dict[str, str]:
        """The rows of each dataset, and its share of the batches: `"1,200 rows, 40% of the batches"`."""
        shares = self.weights or self.sizes
        total = sum(shares.values())
        return {name: f"{rows:,} rows, {shares[name] / total:.0%} of the batches" for name, rows in self.sizes.items()}


def make_batch_sampler(trainer: LayerPoolTrainer, batch_size: int, **options: Any) -> GlobalBatchSampler:
    """
    Batches in the order of `shuffling`, or without repeated texts if `no_duplicates` is set; of several datasets, each
    batch from one of them.

    Args:
        trainer: a [`ContrastiveTrainer`].
        options: those of [`GlobalBatchSampler`].
    """
    args, dataset, mixture = trainer.args, trainer.train_dataset, trainer.mixture
    if args.shuffling != "random":
        return NeighbourBatchSampler(
            list(dataset[f"{trainer.columns[0]}_input_ids"]),
            trainer.embed,
            batch_size,
            shuffling=args.shuffling,
            group_size=args.group_size,
            search=args.neighbour_search,
            refresh_steps=args.refresh_steps,
            show_progress_bar=not args.disable_tqdm and trainer.is_world_process_zero(),
            **options,
        )

    def texts_of(rows: Dataset) -> list[set[int]]:
        """The identities of the texts of each row."""
        names = [name.removesuffix("_input_ids") for name in rows.column_names if name.endswith("_input_ids")]
        columns = [trainer.prompts.text_ids(rows, name) for name in names]
        return [set(row) - {None} for row in zip(*columns, strict=True)]

    def sampler_of(rows: Dataset) -> GlobalBatchSampler:
        if args.no_duplicates:
            return NoDuplicatesBatchSampler(texts_of(rows), batch_size, **options)
        return GlobalBatchSampler(len(rows), batch_size, **options)

    if mixture is None:
        return sampler_of(dataset)
    samplers, begin = [], 0
    for size in mixture.sizes.values():
        samplers.append(sampler_of(dataset.select(range(begin, begin + size))))
        begin += size
    return MixedBatchSampler(samplers, mixture.weights and [mixture.weights[name] for name in mixture.sizes])
