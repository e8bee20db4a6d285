"""Sentence encoders that read all of their layers, as ordinary Hugging Face models."""

from transformers import AutoConfig, AutoModel

from .checkpoints import MODELS
from .configuration_layerpool import LayerPoolBertConfig
from .modeling_layerpool import LayerPoolBertModel, LayerPoolModelOutput


__version__ = "0.1.0"

# AutoConfig and AutoModel open our checkpoints without trust_remote_code where the package is imported; and every save
# carries the code, so that they open elsewhere too.
for _model in MODELS:
    AutoConfig.register(_model.config_class.model_type, _model.config_class, exist_ok=True)
    AutoModel.register(_model.config_class, _model, exist_ok=True)
    _model.config_class.register_for_auto_class()
    _model.register_for_auto_class("AutoModel")

__all__ = ["LayerPoolBertConfig", "LayerPoolBertModel", "LayerPoolModelOutput", "__version__"]
