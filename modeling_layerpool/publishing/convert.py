"""
Converts checkpoints of layer-wise attention pooling and SimCSE, in their authors' layout, to folders of this package.

    python -m modeling_layerpool.publishing.convert SOURCE OUTPUT [--kind layer-attention|simcse] [--mlp keep|drop]

Every tensor of SOURCE is used, or is known to be left out. The result is compared with the authors' formula before
OUTPUT is created. See docs/converting.md.
"""

import argparse
import os
import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..common.checkpoint_files import check_sizes, check_vocabulary, load_tokenizer, loading_errors, read_config
from ..common.checkpoints import MODELS, EncoderClasses
from ..common.errors import InputError, usage_errors
from ..common.prompts import saved_prompts
from ..common.rows import enumerated
from .folders import check_output, written_in_one_step


KINDS = ("layer-attention", "simcse")
# The encoders that the authors' code supports.
ENCODER_TYPES = ("bert", "roberta", "xlm-roberta")
MLP_CHOICES = ("keep", "drop")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")

WORDS = "embeddings.word_embeddings.weight"
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

QUERY_KEY_VALUE = {f"attn.{name}.0.weight": name for name in ("query", "key", "value")}
POSITIONS = r"(bert\.|roberta\.)?embeddings\.position_ids"
LEFT_OUT = {
    POSITIONS: "the position numbers, which the model makes itself",
    r"(bert|roberta)\.pooler\.dense\.(weight|bias)": "the encoder's own pooler, which the method does not read",
    r"(lm_head|cls)\..+": "the masked language modeling head, used in training only",
}
DROPPED = "SimCSE's MLP, by --mlp drop"

# Sentences of several lengths: one is empty, and one is cut.
SENTENCES = (
    "A man is playing a guitar.",
    "Layers!",
    "The quick brown fox jumps over the lazy dog, and nobody asks why.",
    "",
    "On and on it goes. " * 200,
)
# Relative to the largest number in the embeddings if that is above 1. Rounding in float32 stays far below it.
TOLERANCE = 2e-5


class Parts(NamedTuple):
    """The tensors of a checkpoint by their use."""

    encoder: dict[str, torch.Tensor]  # by their names in the plain encoder
    head: dict[str, torch.Tensor]  # `query`, `key`, `value`, and `weight` and `bias` of the MLP
    left_out: dict[str, str]  # by their names in the checkpoint, with the reason


class Conversion(NamedTuple):
    """A finished conversion, with the largest difference from the authors' formula."""

    output: Path
    kind: str
    model_class: str
    pooler_type: str
    tensors: int
    left_out: dict[str, str]
    max_difference: float

    def __str__(self) -> str:
        lines = [
            f"{self.output}: {self.model_class}, pooler {self.pooler_type}, from {self.tensors} tensors ({self.kind})"
        ]
        for reason in dict.fromkeys(self.left_out.values()):
            names = [name for name, why in self.left_out.items() if why == reason]
            lines.append(f"left out: {', '.join(names)} ({reason})")
        lines.append(
            f"largest difference from the original formula, on {len(SENTENCES)} sentences in float32: "
            f"{self.max_difference:.1e}"
        )
        return "\n".join(lines)


def convert(
    source: str | os.PathLike, output: str | os.PathLike, *, kind: str | None = None, mlp: str | None = None
) -> Conversion:
    """
    Convert a checkpoint, and check the result before the output folder is created.

    Args:
        source: a folder with `model.safetensors` or `pytorch_model.bin`, or such a file, with `config.json` and the
            tokenizer next to it. Pickles are opened without running code from them.
        output: a folder that is new or empty.
        kind: `"layer-attention"` (Oh et al. 2022) or `"simcse"` (Gao et al. 2021). Default: detected from the keys.
        mlp: for SimCSE, `"keep"` if its MLP is part of the embedding (supervised models), or `"drop"` if only training
            used it (unsupervised models). The checkpoint does not say which.

    Raises:
        InputError: the layout of the source or one of its tensors is unknown; the output folder is in use; or the
            result does not agree with the formula. Nothing is left in `output`.
    """
    source, output = Path(source), Path(output)
    for option, value, choices in (("kind", kind, KINDS), ("mlp", mlp, MLP_CHOICES)):
        if value not in (None, *choices):
            raise InputError(f"{option}={value!r} is unknown; use one of {', '.join(choices)}")
    path = find_weights(source)
    check_output(output)
    classes = encoder_classes(path.parent)
    tensors = read_tensors(path)
    kind = kind or detect_kind(path, tensors)
    if kind == "simcse" and mlp is None:
        raise InputError(
            f"{path}: supervised SimCSE embeds with its MLP and unsupervised SimCSE without it; choose --mlp keep "
            "or --mlp drop"
        )
    if kind == "layer-attention" and mlp is not None:
        raise InputError(f"{path}: --mlp is for SimCSE; layer-wise attention pooling always has its MLP")
    options = {"pooler_type": "cls"} if mlp == "drop" else {"pooler_type": "layer_attention"}
    if mlp == "keep":
        options["pooler_layers"] = [-1]
    options |= saved_prompts(str(path.parent), "main", {})
    with loading_errors(str(path.parent / "config.json")):
        model = classes.embedding(classes.config.from_pretrained(path.parent, **options)).eval()
        original = type(model.base_model)(model.config, add_pooling_layer=False).eval()
    parts = sort_tensors(path, tensors, kind, original, drop_mlp=mlp == "drop")
    tokenizer = load_tokenizer(str(path.parent))
    check_vocabulary(original, tokenizer, str(path.parent))

    original.load_state_dict(parts.encoder)
    prefix = f"{model.base_model_prefix}."
    state = {prefix + name: tensor for name, tensor in parts.encoder.items()}
    model.load_state_dict(state | {f"pooler.{name}": tensor for name, tensor in pooler_weights(parts.head).items()})
    with written_in_one_step(output) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        saved = classes.embedding.from_pretrained(part, dtype=torch.float32)
        difference, largest = compare(original, parts.head, saved, tokenizer)
        if not difference <= TOLERANCE * max(1.0, largest):  # also true of NaN
            raise InputError(
                f"{path}: the converted model's embeddings differ from the original formula's by {difference:.1e}; "
                "config.json may ask for an option that this package does not support"
            )
    return Conversion(
        output=output,
        kind=kind,
        model_class=classes.embedding.__name__,
        pooler_type=options["pooler_type"],
        tensors=len(parts.encoder) + len(parts.head),
        left_out=parts.left_out,
        max_difference=difference,
    )


# --- reading ---


def find_weights(source: Path) -> Path:
    """The file of the weights; safetensors if there are both."""
    if source.is_file():
        return source
    if not source.is_dir():
        raise InputError(
            f"{source}: no such folder or file; download a Hub model first (hf download NAME --local-dir FOLDER)"
        )
    path = next((source / name for name in WEIGHTS if (source / name).is_file()), None)
    if path is None:
        raise InputError(f"{source}: has no weights ({' or '.join(WEIGHTS)}, in one file)")
    return path


def encoder_classes(folder: Path) -> EncoderClasses:
    """The classes of the encoder that `config.json` names."""
    config = read_config(str(folder))
    model_type = config.get("model_type", "bert")
    for classes in MODELS:
        if model_type in ENCODER_TYPES and model_type in classes.config.encoder_model_types:
            check_sizes(str(folder), config, classes.config)
            return classes
        if model_type == classes.config.model_type:
            raise InputError(f"{folder}: is already a model of this package")
    raise InputError(f"{folder}: a model of type {model_type!r}; supported are {', '.join(ENCODER_TYPES)}")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, by name. A pickle is opened without running code from it."""
    with loading_errors(str(path), "could not be read"):
        try:
            tensors = (
                load_file(path)
                if path.suffix == ".safetensors"
                else torch.load(path, map_location="cpu", weights_only=True)
            )
        except pickle.UnpicklingError as error:
            raise InputError(
                f"{path}: a damaged pickle, or one that cannot be opened without running its code"
            ) from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise InputError(f"{path}: is not a dictionary of tensors")
    return tensors


def detect_kind(path: Path, names: Iterable[str]) -> str:
    """The one of `KINDS` that the names of the tensors belong to."""
    if any(name.startswith("attn.") for name in names):
        return "layer-attention"
    if any(name.startswith("mlp.") for name in names):
        return "simcse"
    if "pooler.dense.weight" in names:
        raise InputError(
            f"{path}: a published SimCSE has the same tensors as any encoder; if this is one, give --kind simcse"
        )
    raise InputError(
        f"{path}: neither layer-wise attention pooling (no attn.*) nor SimCSE (no mlp.*); a plain encoder needs "
        "no conversion: open it with a pooler_type"
    )


def sort_tensors(
    path: Path, tensors: dict[str, torch.Tensor], kind: str, encoder: nn.Module, *, drop_mlp: bool
) -> Parts:
    """
    Divide the tensors into those of the encoder, those of the head, and those to leave out.

    Raises:
        InputError: a tensor is unknown, missing, present twice, not finite, or of a wrong shape or dtype.
    """
    # Published SimCSE models have no prefix, as they were saved from an `AutoModel`.
    prefixes = [f"{encoder.base_model_prefix}.", *([""] if kind == "simcse" else [])]
    prefix = next((prefix for prefix in prefixes if prefix + WORDS in tensors), None)
    if prefix is None:
        expected = " or ".join(prefix + WORDS for prefix in prefixes)
        raise InputError(f"{path}: has no encoder of the type that config.json names ({expected})")
    shapes = {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    width = encoder.config.hidden_size
    mlp = "mlp.dense." if prefix else "pooler.dense."
    head_names = {f"{mlp}weight": "weight", f"{mlp}bias": "bias"}
    head_shapes = {"weight": (width, width), "bias": (width,)}
    if kind == "layer-attention":
        head_names |= QUERY_KEY_VALUE
        head_shapes |= {"weight": (width, 2 * width)} | dict.fromkeys(QUERY_KEY_VALUE.values(), (width, width))

    found: dict[str, str] = {}  # names in the checkpoint, by names in encoder and head
    parts, unknown, misfits = Parts({}, {}, {}), [], []
    for name, tensor in tensors.items():
        reason = next((reason for pattern, reason in LEFT_OUT.items() if re.fullmatch(pattern, name)), None)
        if reason is not None:
            if re.fullmatch(POSITIONS, name) and tensor.flatten().tolist() != list(range(tensor.numel())):
                raise InputError(f"{path}: {name} does not count from 0; other positions are not supported")
            parts.left_out[name] = reason
            continue
        if name in head_names:
            part, new_name, shape = parts.head, head_names[name], head_shapes[head_names[name]]
        else:
            part, new_name = parts.encoder, name.removeprefix(prefix)
            for old, new in OLD_NAMES.items():
                new_name = f"{new_name.removesuffix(old)}{new}" if new_name.endswith(old) else new_name
            if not name.startswith(prefix) or new_name not in shapes:
                unknown.append(name)
                continue
            shape = shapes[new_name]
        if new_name in part:
            raise InputError(f"{path}: {found[new_name]} and {name} are two names of one tensor")
        found[new_name] = name
        if tensor.shape != shape:
            misfits.append(f"{name} is {tuple(tensor.shape)} rather than {tuple(shape)}")
        part[new_name] = tensor
    missing = [prefix + name for name in shapes if name not in parts.encoder]
    missing += [name for name in head_names if name not in tensors]
    for problem, names in (("unknown", unknown), ("missing", missing), ("of another shape", misfits)):
        if names:
            raise InputError(f"{path}: {_count(names)} {problem}, taken as {kind}: {enumerated(names, most=5)}")
    for name, tensor in [*parts.encoder.items(), *parts.head.items()]:
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise InputError(f"{path}: {found[name]} is {tensor.dtype}, which float32 cannot hold exactly")
        if not tensor.isfinite().all():
            raise InputError(f"{path}: {found[name]} holds numbers that are not finite")
    if drop_mlp:
        parts.left_out.update((name, DROPPED) for name in head_names)
        parts.head.clear()
    return Parts(
        {name: tensor.float() for name, tensor in parts.encoder.items()},
        {name: tensor.float() for name, tensor in parts.head.items()},
        parts.left_out,
    )


# --- converting ---


def pooler_weights(head: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The parameters of the `layer_attention` pooler, from layer-wise attention pooling or from SimCSE's MLP.

    `tanh(W c + b)` is layer-wise attention pooling with `W_p = [W ; 0]` and with query, key and value 0. Training
    keeps those at 0, as their gradients are 0.
    """
    if not head:
        return {}
    weight = head["weight"]
    nothing = torch.zeros_like(weight)
    maps = {f"{name}.weight": head.get(name, nothing) for name in QUERY_KEY_VALUE.values()}
    if "query" not in head:
        weight = torch.cat([weight, nothing], dim=1)
    return maps | {"projection.weight": weight, "projection.bias": head["bias"]}


def original_embedding(states: list[torch.Tensor], head: dict[str, torch.Tensor]) -> torch.Tensor:
    """The embedding `(h,)` of one sentence, from all of its hidden states `(t, h)`, as the authors define it."""
    vector = states[-1][0]
    if "query" in head:

        def apply(name: str, x: torch.Tensor) -> torch.Tensor:
            x = head[name] @ x
            return torch.where(x < 0, 11 / 48 * x, x)

        values = [apply("value", state.mean(dim=0)) for state in states]
        keys = [apply("key", state.mean(dim=0)) for state in states]
        read = []
        for state in states:
            query = apply("query", state[0])
            shares = torch.stack([query @ key / len(states) for key in keys]).softmax(dim=0)
            read.append(sum(share * value for share, value in zip(shares, values, strict=True)))
        vector = torch.cat([vector, sum(read) / len(states)])
    return (head["weight"] @ vector + head["bias"]).tanh() if head else vector


@torch.inference_mode()
def compare(
    original: PreTrainedModel,
    head: dict[str, torch.Tensor],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[float, float]:
    """The largest difference between the model and the formula, and the formula's largest number."""
    limit = min(tokenizer.model_max_length, model.max_tokens)
    token_ids = tokenizer(list(SENTENCES), truncation=True, max_length=limit)["input_ids"]
    embeddings = []
    for sentence in token_ids:
        states = original(input_ids=torch.tensor([sentence]), output_hidden_states=True).hidden_states
        embeddings.append(original_embedding([state[0] for state in states], head))
    expected = torch.stack(embeddings)
    return (model.encode_token_ids(token_ids) - expected).abs().max().item(), expected.abs().max().item()


def _count(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m modeling_layerpool.publishing.convert",
        description="Convert a checkpoint of layer-wise attention pooling or SimCSE. See docs/converting.md.",
    )
    parser.add_argument(
        "source", help="Folder with the weights, config.json and the tokenizer, or the file of the weights in it."
    )
    parser.add_argument("output", help="New or empty folder.")
    parser.add_argument("--kind", choices=KINDS, help="Layout of the source. Default: detected.")
    parser.add_argument(
        "--mlp",
        choices=MLP_CHOICES,
        help="Keep SimCSE's MLP (supervised models) or drop it (unsupervised models).",
    )
    arguments = parser.parse_args()
    with usage_errors():
        print(convert(arguments.source, arguments.output, kind=arguments.kind, mlp=arguments.mlp))


if __name__ == "__main__":
    main()
