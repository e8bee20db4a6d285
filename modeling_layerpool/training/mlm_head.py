"""The head of a masked language model: on predicted tokens alone, and on other encoders."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from ..common.checkpoint_files import loading_errors


logger = logging.getLogger(__name__)


@contextmanager
def head_only_at(model: PreTrainedModel, places: torch.Tensor) -> Iterator[None]:
    """
    Within this context the head of a masked language model gets the tokens at `places` only.

    The vocabulary's logits of all tokens are most of the work and of the memory of a small model, and six of seven of
    them are thrown away: heads work on each token alone. Hidden states that the model returns are those of all tokens.

    Args:
        model: as `AutoModelForMaskedLM` gives it, whose head reads the first output of its `base_model`. One that is
            built otherwise is left as it is: its logits are then those of all tokens.
        places (`torch.LongTensor` of shape `(m,)`): in the flattened batch `(rows * length,)`; logits `(1, m, v)`.
    """
    if model.base_model is model:
        yield
        return

    def select(module: nn.Module, args: tuple, output: Any) -> None:
        if isinstance(output, ModelOutput) and output[0].dim() == 3:
            name = next(iter(output))
            output[name] = output[name].flatten(0, 1)[places].unsqueeze(0)

    handle = model.base_model.register_forward_hook(select)
    try:
        yield
    finally:
        handle.remove()


class MaskedLanguageHead(nn.Module):
    """
    The head of one of transformers' masked language models, on the hidden states of another encoder.

    Its parameters are its own ones; word embeddings that it is tied to stay the encoder's.

    Args:
        language_model: as `AutoModelForMaskedLM` gives it. Its encoder is thrown away.
        encoder: whose hidden states and word embeddings take that one's place.
    """

    def __init__(self, language_model: PreTrainedModel, encoder: PreTrainedModel):
        super().__init__()
        setattr(language_model, language_model.base_model_prefix, _HiddenStates())
        words = encoder.get_input_embeddings().weight
        if language_model.config.tie_word_embeddings:
            language_model.get_output_embeddings().weight = words
        # Not registered as a module: then the tied embeddings would be optimised and saved with the head, too.
        self.__dict__["language_model"] = language_model.train()
        self.__dict__["words"] = words
        for name, parameter in self.own_parameters():
            self.register_parameter(name.replace(".", "_"), parameter)

    def own_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters, by their names in transformers' model."""
        return [(name, p) for name, p in self.language_model.named_parameters() if p is not self.words]

    @classmethod
    def of_encoder(
        cls,
        encoder: PreTrainedModel,
        checkpoint: str | None = None,
        *,
        revision: str = "main",
        allow_pickle: bool = False,
    ) -> "MaskedLanguageHead":
        """
        The head of a checkpoint on a layer-pooled encoder, or a new one where the checkpoint has none. Its weights
        have the dtype of the encoder.

        Args:
            encoder: a layer-pooled encoder.
            checkpoint: a folder or a Hub name. Default: None, for a new head.
            revision: branch, tag or commit on the Hub. Default: `"main"`.
            allow_pickle: accept weights that are pickled, if there are no safetensors. Default: False.

        Raises:
            InputError: the checkpoint could not be loaded.
        """
        fields = encoder.config.to_dict()
        for name in ("model_type", "architectures", "auto_map"):
            fields.pop(name, None)
        config = AutoConfig.for_model(type(encoder.config).encoder_model_types[0], **fields)
        if checkpoint is None:
            return cls(AutoModelForMaskedLM.from_config(config, dtype=encoder.dtype), encoder)
        with loading_errors(checkpoint):
            language_model, info = AutoModelForMaskedLM.from_pretrained(
                checkpoint,
                config=config,
                revision=revision,
                use_safetensors=None if allow_pickle else True,
                output_loading_info=True,
                dtype=encoder.dtype,
            )
        absent = [key for key in info["missing_keys"] if not key.startswith(f"{language_model.base_model_prefix}.")]
        if absent:
            logger.warning(f"{checkpoint}: has no head for masked language modelling; it starts anew")
        return cls(language_model, encoder)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Of hidden states `(m, h)` the logits of the vocabulary, `(m, v)`."""
        return self.language_model(inputs_embeds=hidden_states.unsqueeze(0)).logits.squeeze(0)


class _HiddenStates(nn.Module):
    """In the place of an encoder: gives back what it is given as embeddings."""

    def forward(self, *args: Any, inputs_embeds: torch.Tensor, **kwargs: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=inputs_embeds)
