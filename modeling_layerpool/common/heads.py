"""
Many classifiers on one frozen encoder, which answer from one forward pass.

Notation: `b` texts, `n` hidden states that any head reads, `h` width, `c` labels.
"""

import copy
import os
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..models.modeling_layerpool_poolers import build_pooler
from .checkpoint_files import HEAD_FILE, loading_errors
from .checkpoints import load_layerpool
from .checksums import encoder_checksum
from .errors import InputError
from .head_files import WEIGHTS_FILE, HeadDescription, read_weights
from .labels import LabelNames
from .rows import shown


# Texts that go through the encoder before the heads: their states are all that is kept in memory.
WINDOW = 1024


class Head(nn.Module):
    """
    The pooler and the classifier of one task.

    Args:
        name: the name of the task.
        description: the content of its `head.json`.
        config: the configuration of a model of the encoder, with the fields of this pooler.
    """

    def __init__(self, name: str, description: HeadDescription, config: PreTrainedConfig):
        super().__init__()
        self.name, self.description = name, description
        self.labels = LabelNames(description.problem_type, tuple(description.labels))
        self.pooler = build_pooler(config)
        self.classifier = nn.Linear(config.projection_dim or config.pooled_width, len(self.labels.names))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """The logits `(b, c)` for the states that this pooler reads, `(b, its states, 2, h)`."""
        return self.classifier(self.pooler.pool_states(states.to(self.classifier.weight.dtype))[0])


class Heads(nn.Module):
    """
    An encoder and the heads of many tasks, which answer from one forward pass. Use [`load_heads`] to open them.

    Args:
        encoder: a layer-pooled encoder that reads all states that any head reads.
        tokenizer: its tokenizer.
        heads: the heads.
    """

    def __init__(self, encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, heads: Sequence[Head]):
        super().__init__()
        self.encoder, self.tokenizer, self.heads = encoder, tokenizer, nn.ModuleList(heads)
        self.eval()

    def predict(
        self,
        texts: Sequence[str] | Sequence[tuple[str, str]],
        *,
        max_tokens_per_batch: int | None = None,
        show_progress_bar: bool = False,
    ) -> dict[str, list[dict[str, Any]]]:
        """
        The predictions of all heads. The encoder runs once over each text; heads with another maximum length take
        another forward pass, because they see other tokens.

        Args:
            texts: the texts, or pairs of texts.
            max_tokens_per_batch, show_progress_bar: as in `encode`.

        Returns:
            By the name of each head, for each text its `prediction` and the `scores` of all classes, as in the
            `predictions.jsonl` of `run_classification.py`.

        Raises:
            InputError: the heads are for pairs and a text is none, or the reverse.
        """
        if isinstance(texts, str):
            raise InputError("texts must be a list of texts or of pairs, not one text")
        takes_pairs = self.heads[0].description.takes_pairs
        for index, text in enumerate(texts):
            if isinstance(text, str) == takes_pairs:
                expected = "pairs of texts" if takes_pairs else "single texts"
                raise InputError(f"text {index} is {shown(text)}, but these heads classify {expected}")
        predictions: dict[str, list[dict[str, Any]]] = {head.name: [] for head in self.heads}
        with logging.tqdm(total=len(texts), desc="Classifying", disable=not show_progress_bar) as progress:
            for begin in range(0, len(texts), WINDOW):
                window = texts[begin : begin + WINDOW]
                for head, logits in self._logits(window, max_tokens_per_batch):
                    predictions[head.name] += head.labels.predictions(logits.float().cpu().numpy())
                progress.update(len(window))
        return predictions

    @torch.inference_mode()
    def _logits(
        self, texts: Sequence[str] | Sequence[tuple[str, str]], max_tokens_per_batch: int | None
    ) -> Iterator[tuple[Head, torch.Tensor]]:
        """Each head and its logits `(b, c)`."""
        for limit in {head.description.max_seq_length for head in self.heads}:
            self.tokenizer.model_max_length = limit
            states = self.encoder.encode_states(
                texts, self.tokenizer, max_tokens_per_batch=max_tokens_per_batch, convert_to_numpy=False
            )  # (b, n, 2, h)
            for head in self.heads:
                if head.description.max_seq_length == limit:
                    indices = [self.encoder.pooler.states.index(state) for state in head.pooler.states]
                    yield head, head(states[:, indices])


def load_heads(
    *folders: str | os.PathLike,
    encoder: str | os.PathLike | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
) -> Heads:
    """
    Open heads that [`save_head`] saved, together with the one encoder that they were trained on.

    ```python
    >>> heads = load_heads("runs/mr", "runs/trec")
    >>> heads.predict(["Who wrote this dull film?"])
    {"mr": [{"prediction": ..., "scores": ...}], "trec": [...]}
    ```

    Args:
        folders: folders of heads. The name of a folder is the name of its head.
        encoder: where the encoder is, a folder or a Hub model ID. Default: the name that the heads have saved.
        revision: branch, tag or commit of the encoder on the Hub. Default: the saved one, or `"main"` for `encoder`.
        allow_pickle: accept weights of the encoder that are pickled, if there are no safetensors. Default: False.

    Returns:
        The heads and the encoder, on the CPU and in evaluation mode. `.to(device)` moves both.

    Raises:
        InputError: a folder holds no head or a broken one; two heads have the same name; the heads name different
            encoders, or some are for pairs and others are not; or the encoder cannot be opened, or has other weights
            than the one that a head was trained on.
    """
    if not folders:
        raise InputError("load_heads needs the folder of at least one head")
    opened: dict[str, tuple[str | os.PathLike, HeadDescription]] = {}
    for folder in folders:
        name = Path(os.path.abspath(folder)).name
        if name in opened:
            raise InputError(f"{folder}: another head is also named {name!r}; rename one of the two folders")
        opened[name] = (folder, HeadDescription.read(folder))
    first, of_first = next(iter(opened.values()))
    for folder, description in opened.values():
        if description.takes_pairs != of_first.takes_pairs:
            pairs, single = (folder, first) if description.takes_pairs else (first, folder)
            raise InputError(f"{pairs}: classifies pairs of texts, but {single} single texts; open them separately")
        if encoder is None and description.encoder_name != of_first.encoder_name:
            raise InputError(
                f"{folder}: its encoder is {description.encoder_name}, but that of {first} is "
                f"{of_first.encoder_name}; open them separately, or name the encoder if it is the same one"
            )
    if encoder is None:
        encoder, revision = of_first.encoder, revision or of_first.revision
    layers = sorted({layer for _, description in opened.values() for layer in description.pooler["pooler_layers"]})
    try:
        # This pooler reads the states of all heads and has no weights.
        model, tokenizer = load_layerpool(
            str(encoder),
            revision=revision or "main",
            allow_pickle=allow_pickle,
            pooler_type="concat_layers",
            pooler_layers=layers,
            projection_dim=None,
            prompts=None,
            default_prompt_name=None,
            include_prompt=True,
        )
    except InputError as error:
        raise InputError(f"{first}: its encoder cannot be opened: {error}") from error
    checksum = cache(partial(encoder_checksum, model))
    for folder, description in opened.values():
        if checksum(max(description.pooler["pooler_layers"])) != description.encoder_checksum:
            raise InputError(
                f"{folder}: {encoder} has other weights than the encoder that this head was trained on "
                f"({description.encoder_name}); give the folder or name of that one as encoder"
            )
    heads = [_open_head(name, folder, description, model.config) for name, (folder, description) in opened.items()]
    return Heads(model, tokenizer, heads)


def _open_head(name: str, folder: str | os.PathLike, description: HeadDescription, config: PreTrainedConfig) -> Head:
    """A head with its weights, in evaluation mode."""
    tensors = read_weights(folder)
    config = copy.deepcopy(config)
    for option, value in description.pooler.items():
        setattr(config, option, value)
    # On the meta device, no random numbers are drawn for weights that are replaced below.
    with loading_errors(str(Path(folder, HEAD_FILE)), "does not describe a head"), torch.device("meta"):
        head = Head(name, description, config)
    expected = {key: tuple(tensor.shape) for key, tensor in head.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if found != expected:
        key = min(key for key in expected.keys() | found.keys() if found.get(key) != expected.get(key))
        raise InputError(
            f"{Path(folder, WEIGHTS_FILE)}: does not fit {HEAD_FILE}: the shape of {key} is {found.get(key)} rather "
            f"than {expected.get(key)}"
        )
    head.load_state_dict(tensors, assign=True)
    return head
