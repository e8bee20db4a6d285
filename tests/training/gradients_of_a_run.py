"""Run by test_distributed.py, on one process or several: saves the gradients of every step of a small run."""

import sys

import torch
from datasets import Dataset
from transformers import TrainerCallback

from modeling_layerpool import LayerPoolBertConfig, LayerPoolBertModel
from modeling_layerpool.training import ContrastiveTrainer, ContrastiveTrainingArguments
from modeling_layerpool.training.computed_files import embed_texts
from modeling_layerpool.training.masking import TokenMasking
from tests.tiny import TINY_BERT, make_tokenizer
from tests.training.conftest import triplets
from tests.training.contrastive.test_distill import RandomEncoder


GLOBAL_BATCH = 4


class Recorder(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        gradients["alpha"] = trainer.objective.inverse_temperature.grad.clone()
        if trainer.mlm_head is not None:
            gradients |= {name: p.grad.clone() for name, p in trainer.mlm_head.named_parameters()}
        self.steps.append(gradients)


class EveryFifthToken(TokenMasking):
    """Masks by the tokens alone, so that it does not matter which rows share a process."""

    def __call__(self, input_ids, content, key):
        chosen = content & (input_ids % 5 == 0)
        return input_ids.masked_fill(chosen, self.mask_token_id), input_ids.masked_fill(~chosen, -100)


if __name__ == "__main__":
    folder, expected_world_size = sys.argv[1], int(sys.argv[2])
    gradient_cache, has_terms = int(sys.argv[3]) or None, sys.argv[4] == "True"
    torch.manual_seed(0)
    config = LayerPoolBertConfig(
        **TINY_BERT,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pooler_activation="relu",
    )
    arguments = ContrastiveTrainingArguments(
        output_dir=f"{folder}/out",
        per_device_train_batch_size=GLOBAL_BATCH // expected_world_size,
        num_train_epochs=1,
        max_grad_norm=0.0,
        learning_rate=1e-4,
        learn_temperature=True,
        symmetric=True,
        hard_negative_weight=1.0,
        gradient_cache=gradient_cache,
        mlm_weight=0.5 if has_terms else 0.0,
        row_length=32,
        save_strategy="no",
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
    )
    assert arguments.world_size == expected_world_size, arguments.world_size
    # 11 rows: two whole batches and one of 3, which two processes cannot halve. Row 9 repeats row 2's texts.
    rows = triplets(11)
    rows[9] = rows[2]
    recorder = Recorder()
    others = None
    if has_terms:
        texts = [text for row in rows for text in row.values()]
        encoders = {"teacher": [RandomEncoder(5)], "guide": [RandomEncoder(3)]}
        others = embed_texts(texts, encoders, f"{folder}/embeddings", show_progress_bar=False)
    trainer = ContrastiveTrainer(
        LayerPoolBertModel(config).double(),
        arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=make_tokenizer(),
        text_embeddings=others,
        callbacks=[recorder],
    )
    if has_terms:
        trainer.mlm_head.double()
        trainer.data_collator.collate.masking = EveryFifthToken(trainer.processing_class)
    # Ahead of the callback that clears the gradient of the temperature.
    trainer.callback_handler.callbacks.sort(key=lambda callback: not isinstance(callback, Recorder))
    trainer.train()
    names = ("loss", "mlm_loss", "distill_loss")
    losses = [entry[name] for entry in trainer.state.log_history for name in names if name in entry]
    assert len(losses) == (9 if has_terms else 3)
    if arguments.process_index == 0:
        torch.save({"gradients": recorder.steps, "losses": losses}, f"{folder}/result.pt")
