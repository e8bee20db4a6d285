"""
Old checkpoints as folders of this package: layer-wise attention pooling and SimCSE, as their authors' code saves them.

    python -m modeling_layerpool.publishing.convert SOURCE OUTPUT [--kind layer-attention|simcse] [--mlp keep|drop]

Every tensor of SOURCE is used or is on the list of those that are known to be left out, and what comes out is compared
with the authors' formula before it is there. See docs/converting.md.
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

from ..common.checkpoint_files import check_sizes, load_tokenizer, loading_errors, read_config
from ..common.checkpoints import MODELS, EncoderClasses
from ..common.errors import InputError, usage_errors
from .folders import check_output, written_in_one_step


KINDS = ("layer-attention", "simcse")
# The encoders of the authors' code.
ENCODER_TYPES = ("bert", "roberta", "xlm-roberta")
MLP_CHOICES = ("keep", "drop")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")

WORDS = "embeddings.word_embeddings.weight"
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

QUERY_KEY_VALUE = {f"attn.{name}.0.weight": name for name in ("query", "key", "value")}
POSITIONS = r"(bert\.|roberta\.)?embeddings\.position_ids"
LEFT_OUT = {
    POSITIONS: "the numbers of the positions, which are counted anew",
    r"(bert|roberta)\.pooler\.dense\.(weight|bias)": "the encoder's own pooler, which the method does not read",
    r"(lm_head|cls)\..+": "the head of a masked language model, a help in training",
}
DROPPED = "SimCSE's MLP, by --mlp drop"

# Of several lengths: one without a word, and one that is cut.
SENTENCES = (
    "A man is playing a guitar.",
    "Layers!",
    "The quick brown fox jumps over the lazy dog, and nobody asks why.",
    "",
    "On and on it goes. " * 200,
)
# Of the largest number in the embeddings, where that is above 1. Rounding in float32 stays far below it.
TOLERANCE = 2e-5


class Parts(NamedTuple):
    """The tensors of a checkpoint, by what they are for."""

    encoder: dict[str, torch.Tensor]  # by their names in the plain encoder
    head: dict[str, torch.Tensor]  # `query`, `key`, `value`, and `weight` and `bias` of the MLP
    left_out: dict[str, str]  # by their names in the checkpoint, with the reason


class Conversion(NamedTuple):
    """What was converted, and how well the result agrees with the authors' formula."""

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
    Convert a checkpoint, and check the result, before it takes its place.

    Args:
        source: a folder with `model.safetensors` or `pytorch_model.bin`, or such a file; `config.json` and the
            tokenizer next to it. Pickles are opened without running code from them.
        output: a folder that is new or empty.
        kind: `"layer-attention"` (Oh et al. 2022) or `"simcse"` (Gao et al. 2021). By default what the keys say.
        mlp: of SimCSE, `"keep"` where its MLP is part of the embedding (supervised models), `"drop"` where it was used
            in training only (unsupervised ones): nothing in the checkpoint says which it is.

    Raises:
        InputError: the source is not of a layout known, or not in all of its tensors; the output folder is in use; or
            the result does not agree with the formula. Nothing is left in `output`.
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
            f"{path}: supervised SimCSE embeds with its MLP and unsupervised SimCSE without it; say which with --mlp "
            "keep or --mlp drop"
        )
    if kind == "layer-attention" and mlp is not None:
        raise InputError(f"{path}: --mlp is for SimCSE; layer-wise attention pooling always has its MLP")
    options = {"pooler_type": "cls"} if mlp == "drop" else {"pooler_type": "layer_attention"}
    if mlp == "keep":
        options["pooler_layers"] = [-1]
    with loading_errors(str(path.parent / "config.json")):
        model = classes.embedding(classes.config.from_pretrained(path.parent, **options)).eval()
        original = type(model.base_model)(model.config, add_pooling_layer=False).eval()
    parts = sort_tensors(path, tensors, kind, original, drop_mlp=mlp == "drop")
    tokenizer = read_tokenizer(path.parent, original.config.vocab_size)

    original.load_state_dict(parts.encoder)
    prefix = f"{model.base_model_prefix}."
    state = {prefix + name: tensor for name, tensor in parts.encoder.items()}
    model.load_state_dict(state | {f"pooler.{name}": tensor for name, tensor in pooler_weights(parts.head).items()})
    with written_in_one_step(output) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        saved = classes.embedding.from_pretrained(part, dtype=torch.float32)
        difference, largest = compare(original, parts.head, saved, tokenizer)
        if not difference <= TOLERANCE * max(1.0, largest):  # and so if it is nan
            raise InputError(
                f"{path}: the converted model's embeddings differ from the original formula's by {difference:.1e}; "
                "config.json may ask for what this package does not compute"
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


# --- what is there ---


def find_weights(source: Path) -> Path:
    """The file of the weights: safetensors, if there are both."""
    if source.is_file():
        return source
    if not source.is_dir():
        raise InputError(
            f"{source}: no such folder or file; a model of the Hub is downloaded first (hf download NAME --local-dir "
            "FOLDER)"
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
            raise InputError(f"{folder}: is a model of this package already")
    raise InputError(
        f"{folder}: a model of type {model_type!r}; those that are converted are {', '.join(ENCODER_TYPES)}"
    )


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
        raise InputError(f"{path}: holds something else than tensors by name")
    return tensors


def detect_kind(path: Path, names: Iterable[str]) -> str:
    """Which of `KINDS` the names of the tensors are those of."""
    if any(name.startswith("attn.") for name in names):
        return "layer-attention"
    if any(name.startswith("mlp.") for name in names):
        return "simcse"
    if "pooler.dense.weight" in names:
        raise InputError(
            f"{path}: a published SimCSE has the same tensors as any encoder; if this is one, say --kind simcse"
        )
    raise InputError(
        f"{path}: neither layer-wise attention pooling (no attn.*) nor SimCSE (no mlp.*); an encoder alone is opened "
        "as it is, with a pooler_type"
    )


def sort_tensors(
    path: Path, tensors: dict[str, torch.Tensor], kind: str, encoder: nn.Module, *, drop_mlp: bool
) -> Parts:
    """
    Divide the tensors among encoder, head and those left out.

    Raises:
        InputError: a tensor is unknown, missing, there twice, of another shape or dtype than it should be, or not
            finite.
    """
    # Published SimCSE models have no prefix: they are those of an `AutoModel`.
    prefixes = [f"{encoder.base_model_prefix}.", *([""] if kind == "simcse" else [])]
    prefix = next((prefix for prefix in prefixes if prefix + WORDS in tensors), None)
    if prefix is None:
        wanted = " or ".join(prefix + WORDS for prefix in prefixes)
        raise InputError(f"{path}: has no encoder of the type that config.json names ({wanted})")
    shapes = {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    width = encoder.config.hidden_size
    mlp = "mlp.dense." if prefix else "pooler.dense."
    places = {f"{mlp}weight": "weight", f"{mlp}bias": "bias"}
    head_shapes = {"weight": (width, width), "bias": (width,)}
    if kind == "layer-attention":
        places |= QUERY_KEY_VALUE
        head_shapes |= {"weight": (width, 2 * width)} | dict.fromkeys(QUERY_KEY_VALUE.values(), (width, width))

    found: dict[str, str] = {}  # names in the checkpoint, by those in encoder and head
    parts, unknown, misfits = Parts({}, {}, {}), [], []
    for name, tensor in tensors.items():
        reason = next((reason for pattern, reason in LEFT_OUT.items() if re.fullmatch(pattern, name)), None)
        if reason is not None:
            if re.fullmatch(POSITIONS, name) and tensor.flatten().tolist() != list(range(tensor.numel())):
                raise InputError(f"{path}: {name} does not count from 0, and other positions cannot be expressed")
            parts.left_out[name] = reason
            continue
        if name in places:
            part, place, shape = parts.head, places[name], head_shapes[places[name]]
        else:
            part, place = parts.encoder, name.removeprefix(prefix)
            for old, new in OLD_NAMES.items():
                place = f"{place.removesuffix(old)}{new}" if place.endswith(old) else place
            if not name.startswith(prefix) or place not in shapes:
                unknown.append(name)
                continue
            shape = shapes[place]
        if place in part:
            raise InputError(f"{path}: {found[place]} and {name} are one tensor by two names")
        found[place] = name
        if tensor.shape != shape:
            misfits.append(f"{name} is {tuple(tensor.shape)} rather than {tuple(shape)}")
        part[place] = tensor
    missing = [prefix + place for place in shapes if place not in parts.encoder]
    missing += [name for name in places if name not in tensors]
    for problem, names in (("unknown", unknown), ("missing", missing), ("of another shape", misfits)):
        if names:
            raise InputError(f"{path}: {_count(names)} {problem}, taken as {kind}: {_list(names)}")
    for place, tensor in [*parts.encoder.items(), *parts.head.items()]:
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise InputError(f"{path}: {found[place]} is {tensor.dtype}, which float32 does not hold exactly")
        if not tensor.isfinite().all():
            raise InputError(f"{path}: {found[place]} holds numbers that are not finite")
    if drop_mlp:
        parts.left_out.update((name, DROPPED) for name in places)
        parts.head.clear()
    return Parts(
        {place: tensor.float() for place, tensor in parts.encoder.items()},
        {place: tensor.float() for place, tensor in parts.head.items()},
        parts.left_out,
    )


def read_tokenizer(folder: Path, vocabulary: int) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, if it goes with as many word embeddings."""
    tokenizer = load_tokenizer(str(folder))
    if len(tokenizer) > vocabulary:
        raise InputError(f"{folder}: the tokenizer knows {len(tokenizer)} tokens, the encoder {vocabulary}")
    return tokenizer


# --- what becomes of it ---


def pooler_weights(head: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The parameters of the `layer_attention` pooler: those of layer-wise attention pooling, or SimCSE's MLP.

    `tanh(W c + b)` is layer-wise attention pooling whose second half is 0: `W_p = [W ; 0]`, and query, key and value
    are 0. Training leaves it so, as their gradients are 0, too.
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
    """The largest difference between the model and the formula, sentence by sentence; and the largest number there."""
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


def _list(names: list[str], shown: int = 5) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m modeling_layerpool.publishing.convert",
        description="Convert an old checkpoint into a folder of this package. See docs/converting.md.",
    )
    parser.add_argument(
        "source", help="A folder with the weights, config.json and the tokenizer, or the file of the weights in it."
    )
    parser.add_argument("output", help="A new folder, or an empty one.")
    parser.add_argument("--kind", choices=KINDS, help="The layout of the source. Default: what its tensors say.")
    parser.add_argument(
        "--mlp",
        choices=MLP_CHOICES,
        help="Of SimCSE: keep its MLP (supervised models) or drop it (unsupervised ones).",
    )
    arguments = parser.parse_args()
    with usage_errors():
        print(convert(arguments.source, arguments.output, kind=arguments.kind, mlp=arguments.mlp))


if __name__ == "__main__":
    main()
