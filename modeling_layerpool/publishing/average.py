"""
Averages the weights of models of one shape: checkpoints of a run, seeds, or a start and what was trained from it
(WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903; model soups, arXiv 2203.05482).

    python -m modeling_layerpool.publishing.average runs/a runs/b --output_dir runs/average

A plain encoder, such as the checkpoint that a run started from, gets the pooler of the other models, if that adds
nothing to its own pooling before it is trained. See docs/training.md.
"""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from tabulate import tabulate
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..common.checkpoints import load_layerpool
from ..common.errors import InputError, usage_errors
from ..common.state_cache import WITHOUT_EFFECT
from .card_metadata import LIBRARIES_AND_TAGS
from .card_names import is_hub_name, source
from .folders import check_output, written_in_one_step
from .stock_files import is_own_checkpoint


# Fields that no embedding depends on, and one that a saved model has and a new one has not.
UNCOMPARED = {*WITHOUT_EFFECT, "projection_dim", "prompts", "default_prompt_name"}

CARD = """---
{card_data}
---

# {name}

A sentence encoder whose weights are the average of the weights of other models:

{table}

```python
from modeling_layerpool import load_layerpool

model, tokenizer = load_layerpool({location!r})
print(model.encode(["A man is playing a guitar."]).shape)
```

Made by `python -m modeling_layerpool.publishing.average`. The average was not evaluated when this card was written.
"""


def average(
    sources: Sequence[str],
    output: str | os.PathLike,
    *,
    weights: Sequence[float] | None = None,
    revision: str = "main",
    allow_pickle: bool = False,
) -> Path:
    """
    Write the weighted average of sentence encoders in float32, with the tokenizer and the settings of the first one of
    this package, and with a card that names the ingredients.

    Args:
        sources: at least two folders or names on the Hub. At least one is a model of this package.
        output: a folder that is new or empty.
        weights: a number of at least 0 for each source. Default: equal ones. They are scaled to the sum 1.
        revision: branch, tag or commit of those on the Hub.
        allow_pickle: also load pickled weights, which can run code.

    Returns:
        The output folder.

    Raises:
        InputError: a model cannot be opened, the models differ in their shape, pooling or vocabulary, the weights do
            not fit, or the output folder is in use. Nothing is left in `output`.
    """
    output, shares = Path(output), _shares(sources, weights)
    check_output(output)
    own = [name for name in sources if is_own_checkpoint(name, revision)]
    if not own:
        raise InputError(f"{', '.join(sources)}: none is a model of this package, whose pooler the average would have")
    model, tokenizer = load_layerpool(own[0], revision=revision, allow_pickle=allow_pickle)
    sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in model.state_dict().items()}
    for name, share in zip(sources, shares, strict=True):
        other, its_tokenizer = _open_like(name, own, model, revision, allow_pickle)
        if its_tokenizer.get_vocab() != tokenizer.get_vocab():
            raise InputError(f"{name}: has another vocabulary than {own[0]}; models to average have the same one")
        for key, tensor in other.state_dict().items():
            sums[key] += share * tensor.double()
    model.load_state_dict({key: tensor.to(model.state_dict()[key].dtype) for key, tensor in sums.items()})
    with written_in_one_step(output) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        (part / "README.md").write_text(_card(output.name, sources, shares), encoding="utf-8")
    return output


def _shares(sources: Sequence[str], weights: Sequence[float] | None) -> list[float]:
    if len(sources) < 2:
        raise InputError("an average is of at least two models; name more of them")
    weights = [1.0] * len(sources) if weights is None else list(weights)
    if len(weights) != len(sources):
        raise InputError(f"--weights: {len(weights)} for {len(sources)} models; give one for each")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) == 0:
        raise InputError(f"--weights {' '.join(map(str, weights))}: must be at least 0, and not all of them 0")
    return [weight / sum(weights) for weight in weights]


def _open_like(
    name: str, own: Sequence[str], model: PreTrainedModel, revision: str, allow_pickle: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model to average with `model`, which is that of the first of `own`."""
    options = {}
    if name not in own:
        config, parts = model.config, [name for name, _ in model.pooler.named_parameters()]
        if parts and (config.pooler_type != "residual_layers" or parts != ["layer_weights"]):
            raise InputError(
                f"{name}: has no {config.pooler_type} of its own, and a new one would be random; average models of "
                "this package"
            )
        options = {"pooler_type": config.pooler_type, "pooler_layers": config.pooler_layers}
    other, tokenizer = load_layerpool(name, revision=revision, allow_pickle=allow_pickle, **options)
    ours, theirs = ({key: tuple(t.shape) for key, t in m.state_dict().items()} for m in (model, other))
    if ours != theirs or type(other) is not type(model):
        key = next((key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)), None)
        what = f"{type(other).__name__} and {type(model).__name__}" if key is None else key
        raise InputError(
            f"{name}: its shape is another one than that of {own[0]} ({what}); average models of one shape"
        )
    ours, theirs = (_settings(config) for config in (model.config, other.config))
    if ours != theirs:
        key = next(key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key))
        raise InputError(
            f"{name}: its {key} is {theirs.get(key)}, and that of {own[0]} is {ours.get(key)}; average models that "
            "compute the same"
        )
    return other, tokenizer


def _settings(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a configuration that embeddings depend on, apart from those that the shapes of weights show."""
    return {field: value for field, value in config.to_dict().items() if field not in UNCOMPARED}


def _card(name: str, sources: Sequence[str], shares: Sequence[float]) -> str:
    library, tags = LIBRARIES_AND_TAGS["sentence-similarity"]
    on_hub = [name for name in sources if is_hub_name(name)]
    data = ModelCardData(
        library_name=library,
        pipeline_tag="sentence-similarity",
        tags=[*tags, "merge"],
        base_model=on_hub or None,
    )
    rows = [[source(name), f"{share:.4g}"] for name, share in zip(sources, shares, strict=True)]
    table = tabulate(rows, headers=["model", "weight"], tablefmt="github", disable_numparse=True)
    card = CARD.format(card_data=data.to_yaml(), name=name, table=table, location=name)
    return str(ModelCard(card))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m modeling_layerpool.publishing.average",
        description="Average the weights of models of one shape. See docs/training.md.",
    )
    parser.add_argument("sources", nargs="+", help="Folders or Hub names; at least one is a model of this package.")
    parser.add_argument("--output_dir", required=True, help="New or empty folder.")
    parser.add_argument("--weights", type=float, nargs="+", help="A number for each model. Default: equal ones.")
    parser.add_argument("--revision", default="main", help="Branch, tag or commit of those on the Hub.")
    parser.add_argument("--allow_pickle", action="store_true", help="Also load pickled weights, which can run code.")
    arguments = parser.parse_args()
    with usage_errors():
        output = average(
            arguments.sources,
            arguments.output_dir,
            weights=arguments.weights,
            revision=arguments.revision,
            allow_pickle=arguments.allow_pickle,
        )
        print(f"{output}: the average of {len(arguments.sources)} models")


if __name__ == "__main__":
    main()
