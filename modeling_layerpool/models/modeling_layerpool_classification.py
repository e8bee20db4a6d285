"""
A classifier on the pooled vector.

Notation: `b` sentences in padded input, `s` sentences in packed input, `c` labels.
"""

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple


class LayerPoolClassificationMixin:
    """
    A model with a linear classifier on the sentence embedding. Comes before the encoder's class.

    The classifier of a plain encoder's checkpoint reads another vector: train the classifier before use.
    `ignore_mismatched_sizes=True` starts a new one if the number of labels differs.
    """

    # The loss is a mean over the batch: transformers' Trainer has to divide it by the number of accumulated batches.
    accepts_loss_kwargs = False

    def __init__(self, config):
        super().__init__(config)
        self.dropout = nn.Dropout(self.classifier_dropout)
        self.classifier = nn.Linear(self.embedding_dim, config.num_labels)
        self.post_init()

    @property
    def classifier_dropout(self) -> float:
        """Dropout probability of the embedding, under the name that the encoder's own classifier has for it."""
        names = ("classifier_dropout", "cls_dropout", "seq_classif_dropout", "hidden_dropout_prob")
        return next(rate for name in names if (rate := getattr(self.config, name, None)) is not None)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        sequence_ids: torch.LongTensor | None = None,
        sequence_starts: torch.LongTensor | None = None,
        encoder_states: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        r"""
        The logits `(b, c)`, packed `(s, c)`, and with `labels` the loss. The arguments are those of
        [`~LayerPoolMixin.pool`] and:

        Args:
            labels (`torch.Tensor` of shape `(b,)` or `(b, c)`, packed `(s,)` or `(s, c)`, *optional*):
                One label for each sentence. `config.problem_type` says their meaning, as in transformers:
                `"regression"` (numbers, squared error), `"single_label_classification"` (a class index, cross-entropy)
                or `"multi_label_classification"` (a 0 or 1 for each class, binary cross-entropy). The default
                is the first for a single label, the second for integers, and else the third.
        """
        outputs = self.pool(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            sequence_ids,
            sequence_starts,
            encoder_states=encoder_states,
            **kwargs,
        )
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = ["LayerPoolClassificationMixin"]
