"""
Exports a `mean` or `cls` model as a stock encoder of transformers with the pooling of sentence-transformers, which
opens without the code of this package.

    python -m modeling_layerpool.publishing.export_plain FOLDER OUTPUT

The result is opened and compared with the model before OUTPUT is created. See docs/serving.md.
"""

import argparse
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from ..common.checkpoints import load_layerpool
from ..common.errors import InputError, usage_errors
from .convert import SENTENCES, TOLERANCE
from .folders import check_output, written_in_one_step
from .stock_files import added_modules, is_own_checkpoint, stock_config, write_stock_files


POOLINGS = ("mean", "cls")
ONNX_COMMAND = "python -m modeling_layerpool.publishing.export_onnx"


class PlainExport(NamedTuple):
    """A finished export, with the largest difference from the model."""

    output: Path
    model_class: str
    layers: int
    modules: tuple[str, ...]
    max_difference: float

    def __str__(self) -> str:
        return (
            f"{self.output}: {self.model_class}, {self.layers} layers, then {', '.join(self.modules)}; opens without "
            f"remote code\nlargest difference from the model, on {len(SENTENCES)} sentences in float32: "
            f"{self.max_difference:.1e}"
        )


def export_plain(source: str, output: str | os.PathLike, *, revision: str = "main") -> PlainExport:
    """
    Export a model whose pooler is `mean` or `cls`, with its tokenizer, prompts, projection and added modules.

    Args:
        source: a checkpoint of this package: a folder or a name on the Hub.
        output: a folder that is new or empty.
        revision: branch, tag or commit on the Hub.

    Raises:
        InputError: the model cannot be opened, or a stock model cannot express it; the result differs from the model;
            or the output folder is in use. Nothing is left in `output`.
    """
    source, output = str(source), Path(output)
    check_output(output)
    if not is_own_checkpoint(source, revision):
        raise InputError(f"{source}: is not a model of this package; it opens without its code as it is")
    added = added_modules(source, revision)
    model, tokenizer = load_layerpool(source, revision=revision)
    pooling = model.config.pooler_type
    if pooling not in POOLINGS:
        onnx = f"export it to ONNX instead: {ONNX_COMMAND} {source} OUTPUT"
        raise InputError(
            f"{source}: pooler_type={pooling!r} reads several hidden states, and a stock Pooling module only the last "
            f"one; {'serve it with its own code' if pooling == 'hire' else onnx}"
        )
    model.eval()
    tokenizer.model_max_length = min(tokenizer.model_max_length, model.max_tokens)
    encoder = _stock_encoder(source, model)
    projection = model.pooler.projection if isinstance(model.pooler.projection, nn.Linear) else None
    with written_in_one_step(output) as part:
        encoder.save_pretrained(part)
        write_stock_files(
            part,
            source,
            revision,
            tokenizer,
            pooling=pooling,
            width=model.config.hidden_size,
            added=added,
            include_prompt=model.config.include_prompt,
            projection=projection,
        )
        # A default prompt would go before each text in `encode`.
        expected = model.encode_token_ids(tokenizer(list(SENTENCES), truncation=True)["input_ids"])
        difference = (_embeddings(part, tokenizer, pooling, projection) - expected).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):  # also true of NaN
            raise InputError(f"{source}: the exported model's embeddings differ from the model's by {difference:.1e}")
    modules = [f"{pooling} pooling", *["projection"] * (projection is not None)]
    modules += [module.type.rpartition(".")[2] for module in added]
    return PlainExport(output, type(encoder).__name__, model.pooler.states[-1], tuple(modules), difference)


def _stock_encoder(source: str, model: PreTrainedModel) -> PreTrainedModel:
    encoder = type(model.base_model)(stock_config(model))
    for name in encoder.load_state_dict(model.base_model.state_dict(), strict=False).missing_keys:
        if not name.startswith("pooler."):
            raise InputError(
                f"{source}: its pooler reads hidden state {model.pooler.states[-1]}, which has no {name}, but a stock "
                f"{type(encoder).__name__} always has it; export it to ONNX instead: {ONNX_COMMAND} {source} OUTPUT"
            )
        # The encoder's own pooler, which the method does not read. transformers would fill it with random numbers.
        encoder.get_parameter(name).data.zero_()
    return encoder


@torch.inference_mode()
def _embeddings(
    folder: Path, tokenizer: PreTrainedTokenizerBase, pooling: str, projection: nn.Linear | None
) -> torch.Tensor:
    """Embeddings of `SENTENCES`, by the stock classes of transformers."""
    encoder = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = tokenizer(list(SENTENCES), padding=True, truncation=True, return_tensors="pt", padding_side="right")
    states = encoder(**inputs).last_hidden_state
    if pooling == "cls":
        pooled = states[:, 0]
    else:
        mask = inputs["attention_mask"].unsqueeze(-1)
        pooled = (states * mask).sum(dim=1) / mask.sum(dim=1)
    return pooled if projection is None else projection(pooled)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m modeling_layerpool.publishing.export_plain",
        description="Export a mean or cls model as a stock sentence-transformers folder. See docs/serving.md.",
    )
    parser.add_argument("source", help="Checkpoint of this package: a folder or a Hub name.")
    parser.add_argument("output", help="New or empty folder.")
    parser.add_argument("--revision", default="main", help="Branch, tag or commit on the Hub.")
    arguments = parser.parse_args()
    with usage_errors():
        print(export_plain(arguments.source, arguments.output, revision=arguments.revision))


if __name__ == "__main__":
    main()
