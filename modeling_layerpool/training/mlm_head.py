"""The head of a masked language model, computed for predicted tokens only, and on other encoders."""

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
def head_only_at(model: PreTrainedModel, index: torch.Tensor) -> Iterator[None]:
    """
    Compute the head of a masked language model for the tokens at `index` only, within this context.

    In a small model the logits of the vocabulary take most of the time and memory, and six of seven tokens are not
    predicted. The hidden states that the model returns are still those of all tokens.

    Args:
        model: a model from `AutoModelForMaskedLM` whose head reads the first output of its `base_model`. Other models
            are left unchanged and return the logits of all tokens.
        index (`torch.LongTensor` of shape `(m,)`): indices into the flattened batch `(rows * length,)`. The logits
            have the shape `(1, m, v)`.
    """
    if model.base_model is model:
        yield
        return

    def select(module: nn.Module, args: tuple, output: Any) -> None:
        if isinstance(output, ModelOutput) and output[0].dim() == 3:
            name = next(iter(output))
            output[name] = output[name].flatten(0, 1)[index].unsqueeze(0)

    handle = model.base_model.register_forward_hook(select)
    try:
        yield
    finally:
        handle.remove()


class MaskedLanguageHead(nn.Module):
    """
    The head of a masked language model of transformers, on the hidden states of another encoder.

    It holds the parameters of the head only. Tied word embeddings belong to the encoder.

    Args:
        language_model: a model from `AutoModelForMaskedLM`. Its encoder is discarded.
        encoder: the encoder that replaces it, with its word embeddings.
    """

    def __init__(self, language_model: PreTrainedModel, encoder: PreTrainedModel):
        super().__init__()
        setattr(language_model, language_model.base_model_prefix, _HiddenStates())
        words = encoder.get_input_embeddings().weight
        if language_model.config.tie_word_embeddings:
            language_model.get_output_embeddings().weight = words
        # Registered as modules, the tied embeddings would be optimized and saved with the head.
        self.__dict__["language_model"] = language_model.train()
        self.__dict__["words"] = words
        for name, parameter in self.own_parameters():
            self.register_parameter(name.replace(".", "_"), parameter)

    def own_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters of the head, by their names in the model of transformers."""
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
        The head of a checkpoint on a layer-pooled encoder, or a new head if the checkpoint has none. Its weights have
        the dtype of the encoder.

        Args:
            encoder: a layer-pooled encoder.
            checkpoint: a folder or a Hub model ID. Default: None, for a new head.
            revision: branch, tag or commit on the Hub. Default: `"main"`.
            allow_pickle: accept pickled weights if the checkpoint has no safetensors. Default: False.

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
            logger.warning(f"{checkpoint}: has no head for masked language modeling; a new one is initialized")
        return cls(language_model, encoder)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The logits of the vocabulary `(m, v)` for hidden states `(m, h)`."""
        return self.language_model(inputs_embeds=hidden_states.unsqueeze(0)).logits.squeeze(0)


class _HiddenStates(nn.Module):
    """Replaces an encoder: returns the embeddings that it is given as hidden states."""

    def forward(self, *args: Any, inputs_embeds: torch.Tensor, **kwargs: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=inputs_embeds)
