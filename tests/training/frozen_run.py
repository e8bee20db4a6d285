"""Run by test_frozen.py, on one process or several: trains a pooler on the stored states of its encoder."""

import os
import sys

import torch
from datasets import Dataset

from modeling_layerpool import LayerPoolBertConfig, LayerPoolBertModel
from modeling_layerpool.training import ContrastiveTrainer, ContrastiveTrainingArguments
from tests.tiny import TINY_BERT, make_tokenizer
from tests.training.conftest import triplets


if __name__ == "__main__":
    folder, processes = sys.argv[1], int(sys.argv[2])
    torch.manual_seed(0)
    arguments = ContrastiveTrainingArguments(
        output_dir=f"{folder}/out",
        per_device_train_batch_size=4 // processes,
        num_train_epochs=2,
        max_grad_norm=0.0,
        optim="sgd",
        freeze_encoder=True,
        state_cache="float32",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    assert arguments.world_size == processes, arguments.world_size
    trainer = ContrastiveTrainer(
        LayerPoolBertModel(LayerPoolBertConfig(**TINY_BERT, pooler_activation="relu")),
        arguments,
        train_dataset=Dataset.from_list(triplets(11)),
        processing_class=make_tokenizer(),
    )
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save(trainer.model.pooler.state_dict(), os.path.join(folder, "weights.pt"))
