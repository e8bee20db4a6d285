"""
Exports a sentence encoder to ONNX: token ids and mask in, sentence embeddings out, for any number and length of texts.
The folder has the layout that sentence-transformers and optimum open.

    python -m modeling_layerpool.publishing.export_onnx MODEL OUTPUT [--opset 20] [--int8]

The file is run in ONNX Runtime and compared with the model before OUTPUT is created. See docs/onnx.md.
"""

import argparse
import importlib.util
import logging
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ..common.checkpoints import load_layerpool
from ..common.errors import InputError, usage_errors
from .folders import check_output, written_in_one_step
from .stock_files import added_modules, stock_config, write_stock_files


MODEL_FILE = "onnx/model.onnx"
INT8_FILE = "onnx/model_int8.onnx"
OUTPUTS = ("last_hidden_state", "pooler_output")
DEFAULT_OPSET = 20
NEEDED = ("onnx", "onnxscript", "onnxruntime")
# Batch sizes and lengths on which the exported file is compared with the model.
SHAPES = ((1, 1), (1, 2), (3, 7), (64, 16), (2, 128), (1, 512))
# The largest difference from the model, relative to the largest number in the embeddings if that is above 1.
TOLERANCE = 1e-4


class Export(NamedTuple):
    """A finished export, with its differences from the model."""

    output: Path
    opset: int
    mib: float
    max_difference: float
    int8_mib: float | None = None
    int8_cosine: float | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.output / MODEL_FILE}: opset {self.opset}, {self.mib:.1f} MiB; largest difference from the model "
            f"{self.max_difference:.1e}, batches of 1 to 64, up to {max(length for _, length in SHAPES)} tokens"
        ]
        if self.int8_mib is not None:
            lines.append(
                f"{self.output / INT8_FILE}: {self.int8_mib:.1f} MiB; mean cosine to the model's embeddings, on "
                f"random tokens, {self.int8_cosine:.4f}"
            )
        return "\n".join(lines)


class _Embedding(nn.Module):
    """
    The model with the inputs and the outputs of the file.

    optimum knows no output but `last_hidden_state (b, t, d)`, which other tools pool. It holds the embedding at every
    token, so that the first token and the token mean are the embedding too.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = self.model(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        return embedding.unsqueeze(1).expand(-1, input_ids.shape[1], -1), embedding


def export_onnx(
    source: str, output: str | os.PathLike, *, opset: int = DEFAULT_OPSET, int8: bool = False, revision: str = "main"
) -> Export:
    """
    Export a sentence encoder, with its tokenizer and the files of sentence-transformers.

    Args:
        source: a checkpoint of this package or of a plain encoder: a folder or a name on the Hub.
        output: a folder that is new or empty. `onnx/model.onnx` takes `input_ids` and `attention_mask`, both `(b, t)`
            in int64, and returns in float32 `last_hidden_state (b, t, d)`, the embedding at every token, and
            `pooler_output (b, d)`, the embedding.
        opset: the version of ONNX's operators, at least 18.
        int8: also write `onnx/model_int8.onnx`, with matrix products in 8 bits (dynamic quantization).
        revision: branch, tag or commit on the Hub.

    Raises:
        InputError: the model cannot be opened or exported; the file differs from the model by more than `TOLERANCE`;
            the output folder is in use; or a package is missing. Nothing is left in `output`.
    """
    output = Path(output)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"exporting needs {', '.join(missing)}: pip install {' '.join(missing)}")
    if opset < 18:
        raise InputError(f"opset={opset} is too old for the exporter; use at least 18")
    check_output(output)
    added = added_modules(source, revision)
    model, tokenizer = load_layerpool(source, revision=revision)
    if model.config.pooler_type == "hire":
        raise InputError(f"{source}: pooler_type='hire' cannot be exported: its GRUs read packed sequences")
    if not model.config.include_prompt:
        raise InputError(
            f"{source}: include_prompt=False cannot be exported to ONNX, where the length of a prompt is not known; a "
            "model with pooler_type='mean' can be exported by modeling_layerpool.publishing.export_plain"
        )
    model = model.eval().float()
    with written_in_one_step(output) as part:
        path = part / MODEL_FILE
        path.parent.mkdir()
        try:
            _export(model, path, opset)
        except Exception as error:  # the exporter raises errors of many types
            raise InputError(
                f"{source}: {type(model).__name__} could not be exported ({_first_line(error)})"
            ) from error
        difference, largest = _compare(model, path)
        if not difference <= TOLERANCE * max(1.0, largest):
            raise InputError(
                f"{source}: the exported file's embeddings differ from the model's by {difference:.1e}; try another "
                "opset or other versions of torch and onnxscript"
            )
        done = Export(output, opset, _mib(path), difference)
        if int8:
            quantized = part / INT8_FILE
            _quantize(path, quantized)
            done = done._replace(int8_mib=_mib(quantized), int8_cosine=_mean_cosine(model, quantized))
        stock_config(model).save_pretrained(part)
        tokenizer.model_max_length = min(tokenizer.model_max_length, model.max_tokens)
        write_stock_files(part, source, revision, tokenizer, pooling="cls", width=model.embedding_dim, added=added)
    return done


def _export(model: PreTrainedModel, path: Path, opset: int) -> None:
    input_ids, attention_mask = _inputs(model, 2, 7)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=model.max_tokens)
    # The exporter recommends other packages, and warns about its own internals.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Embedding(model),
            (input_ids, attention_mask),
            dynamo=True,
            dynamic_shapes={name: {0: batch, 1: length} for name in ("input_ids", "attention_mask")},
            input_names=["input_ids", "attention_mask"],
            output_names=list(OUTPUTS),
            opset_version=opset,
            verbose=False,
        )
    program.save(path)


def _quantize(path: Path, quantized: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    file = onnx.load(path)
    # The exporter records intermediate shapes, which no longer hold when weights are transposed.
    del file.graph.value_info[:]
    logging.getLogger().addFilter(_no_advice)
    try:
        quantize_dynamic(file, quantized, weight_type=QuantType.QInt8)
    finally:
        logging.getLogger().removeFilter(_no_advice)


def _no_advice(record: logging.LogRecord) -> bool:
    return "pre-processing" not in record.getMessage()


def _inputs(model: PreTrainedModel, batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens in texts of random lengths; the first text has the full length."""
    generator = torch.Generator().manual_seed(batch * 1000 + length)
    padding = model.config.pad_token_id or 0
    input_ids = torch.randint(model.config.vocab_size, (batch, length), generator=generator)
    input_ids[input_ids == padding] = (padding + 1) % model.config.vocab_size
    lengths = torch.randint(1, length + 1, (batch, 1), generator=generator)
    lengths[0] = length
    attention_mask = (torch.arange(length) < lengths).long()
    return input_ids.masked_fill(attention_mask == 0, padding), attention_mask


def _embeddings(model: PreTrainedModel, path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Embeddings of the model and of the file for each of `SHAPES`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = []
    for batch, length in SHAPES:
        input_ids, attention_mask = _inputs(model, batch, min(length, model.max_tokens))
        with torch.inference_mode():
            expected = model(input_ids=input_ids, attention_mask=attention_mask).pooler_output.numpy()
        feed = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        found.append((expected, session.run(["pooler_output"], feed)[0]))
    return found


def _compare(model: PreTrainedModel, path: Path) -> tuple[float, float]:
    """The largest difference between the embeddings of model and file, and the largest number in them."""
    found = _embeddings(model, path)
    return (
        max(float(np.abs(one - other).max()) for one, other in found),
        max(float(np.abs(one).max()) for one, _ in found),
    )


def _mean_cosine(model: PreTrainedModel, path: Path) -> float:
    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    return float(np.concatenate([(unit(one) * unit(other)).sum(1) for one, other in _embeddings(model, path)]).mean())


def _mib(path: Path) -> float:
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) / 2**20


def _first_line(error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m modeling_layerpool.publishing.export_onnx",
        description="Export a sentence encoder to ONNX. See docs/onnx.md.",
    )
    parser.add_argument("source", help="Checkpoint of this package or of a plain encoder: a folder or a Hub name.")
    parser.add_argument("output", help="New or empty folder.")
    parser.add_argument(
        "--opset", type=int, default=DEFAULT_OPSET, help=f"ONNX opset, at least 18. Default: {DEFAULT_OPSET}."
    )
    parser.add_argument("--int8", action="store_true", help="Also write a file with 8-bit matrix products.")
    parser.add_argument("--revision", default="main", help="Branch, tag or commit on the Hub.")
    arguments = parser.parse_args()
    with usage_errors():
        print(
            export_onnx(
                arguments.source,
                arguments.output,
                opset=arguments.opset,
                int8=arguments.int8,
                revision=arguments.revision,
            )
        )


if __name__ == "__main__":
    main()
