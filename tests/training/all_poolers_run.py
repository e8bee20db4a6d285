"""Run by test_distributed.py: two steps with each pooler, and with the options that run the encoder more than once."""

import sys

import torch
from datasets import Dataset

from modeling_layerpool import LayerPoolBertConfig, LayerPoolBertModel
from modeling_layerpool.models.modeling_layerpool_poolers import POOLERS
from modeling_layerpool.training import ContrastiveTrainer, ContrastiveTrainingArguments
from tests.tiny import TINY_BERT, make_tokenizer
from tests.training.conftest import triplets


RUNS = [
    *(({"pooler_type": pooler}, {}) for pooler in POOLERS),
    ({"pooler_type": "layer_attention", "pooler_residual": "mean"}, {}),
    ({"pooler_type": "weighted_layers", "pooler_residual": "cls"}, {}),
    ({"pooler_type": "weighted_layers"}, {"gradient_cache": 64}),
    ({"pooler_type": "weighted_layers"}, {"mlm_weight": 0.1}),
    ({"pooler_type": "weighted_layers"}, {"mlm_weight": 0.1, "gradient_cache": 64}),
    ({"pooler_type": "weighted_layers"}, {"gradient_checkpointing": True}),
    ({"pooler_type": "weighted_layers"}, {"freeze_encoder": True, "state_cache": "off"}),
    ({"pooler_type": "weighted_layers"}, {"freeze_encoder": True}),
    ({"pooler_type": "weighted_layers"}, {"objective": "unsupervised"}),
]

if __name__ == "__main__":
    for number, (config, options) in enumerate(RUNS):
        rows = triplets(10)
        if options.get("objective") == "unsupervised":
            rows = [{"text": row["anchor"]} for row in rows]
        args = ContrastiveTrainingArguments(
            output_dir=f"{sys.argv[1]}/{number}",
            per_device_train_batch_size=2,
            max_steps=3,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            **options,
        )
        assert args.world_size == 2
        torch.manual_seed(0)
        model = LayerPoolBertModel(LayerPoolBertConfig(**TINY_BERT, **config))
        trainer = ContrastiveTrainer(
            model, args, train_dataset=Dataset.from_list(rows), processing_class=make_tokenizer()
        )
        trainer.train()
        assert trainer.state.global_step == 3
