"""Sentence encoders that read all of their layers, as ordinary Hugging Face models."""

import sys

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from .common import checkpoints, errors
from .common.checkpoints import MODELS, load_layerpool
from .common.head_files import save_head
from .common.heads import load_heads
from .common.state_cache import cached_states
from .models import modeling_layerpool_packing
from .models.configuration_layerpool_bert import LayerPoolBertConfig
from .models.configuration_layerpool_deberta_v2 import LayerPoolDebertaV2Config
from .models.configuration_layerpool_distilbert import LayerPoolDistilBertConfig
from .models.configuration_layerpool_electra import LayerPoolElectraConfig
from .models.configuration_layerpool_modernbert import LayerPoolModernBertConfig
from .models.configuration_layerpool_mpnet import LayerPoolMPNetConfig
from .models.configuration_layerpool_roberta import LayerPoolRobertaConfig
from .models.modeling_layerpool import LayerPoolModelOutput
from .models.modeling_layerpool_bert import LayerPoolBertForSequenceClassification, LayerPoolBertModel
from .models.modeling_layerpool_deberta_v2 import LayerPoolDebertaV2ForSequenceClassification, LayerPoolDebertaV2Model
from .models.modeling_layerpool_distilbert import (
    LayerPoolDistilBertForSequenceClassification,
    LayerPoolDistilBertModel,
)
from .models.modeling_layerpool_electra import LayerPoolElectraForSequenceClassification, LayerPoolElectraModel
from .models.modeling_layerpool_modernbert import (
    LayerPoolModernBertForSequenceClassification,
    LayerPoolModernBertModel,
)
from .models.modeling_layerpool_mpnet import LayerPoolMPNetForSequenceClassification, LayerPoolMPNetModel
from .models.modeling_layerpool_roberta import LayerPoolRobertaForSequenceClassification, LayerPoolRobertaModel


__version__ = "0.1.0"

# The auto classes open our checkpoints without trust_remote_code where the package is imported; and every save carries
# the code, so that they open elsewhere too.
for _classes in MODELS:
    AutoConfig.register(_classes.config.model_type, _classes.config, exist_ok=True)
    _classes.config.register_for_auto_class()
    for _auto_class, _model in (
        (AutoModel, _classes.embedding),
        (AutoModelForSequenceClassification, _classes.sequence_classification),
    ):
        _auto_class.register(_classes.config, _model, exist_ok=True)
        _model.register_for_auto_class(_auto_class.__name__)

# The modules that were documented before they moved into folders, under their old names.
for _module in (checkpoints, errors, modeling_layerpool_packing):
    sys.modules[f"{__name__}.{_module.__name__.rpartition('.')[2]}"] = _module

__all__ = [
    "LayerPoolBertConfig",
    "LayerPoolBertForSequenceClassification",
    "LayerPoolBertModel",
    "LayerPoolDebertaV2Config",
    "LayerPoolDebertaV2ForSequenceClassification",
    "LayerPoolDebertaV2Model",
    "LayerPoolDistilBertConfig",
    "LayerPoolDistilBertForSequenceClassification",
    "LayerPoolDistilBertModel",
    "LayerPoolElectraConfig",
    "LayerPoolElectraForSequenceClassification",
    "LayerPoolElectraModel",
    "LayerPoolMPNetConfig",
    "LayerPoolMPNetForSequenceClassification",
    "LayerPoolMPNetModel",
    "LayerPoolModelOutput",
    "LayerPoolModernBertConfig",
    "LayerPoolModernBertForSequenceClassification",
    "LayerPoolModernBertModel",
    "LayerPoolRobertaConfig",
    "LayerPoolRobertaForSequenceClassification",
    "LayerPoolRobertaModel",
    "__version__",
    "cached_states",
    "load_heads",
    "load_layerpool",
    "save_head",
]
