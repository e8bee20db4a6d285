"""Run by test_trainer.py on several processes: saves the gradients and the log of every step of a small run."""

import sys

import torch
from transformers import AutoConfig, AutoModelForMaskedLM, TrainerCallback

from modeling_layerpool.training import MaskedLanguageTrainer, TokenContrastArguments
from tests.training.masked_lm.batches import VOCABULARY, Collator, blocks, draw_by_rows


GLOBAL_BATCH = 4


class Recorder(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.steps.append({name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters()})


if __name__ == "__main__":
    folder, expected_world_size, objective = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "bert",
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        pad_token_id=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
    )
    arguments = TokenContrastArguments(
        output_dir=f"{folder}/out",
        objective=objective,
        token_negatives=7 if objective == "taco" else 50,
        per_device_train_batch_size=GLOBAL_BATCH // expected_world_size,
        train_sampling_strategy="sequential",
        num_train_epochs=1,
        max_grad_norm=0.0,
        learning_rate=0.0,
        save_strategy="no",
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
    )
    assert arguments.world_size == expected_world_size, arguments.world_size
    recorder = Recorder()
    trainer = MaskedLanguageTrainer(
        AutoModelForMaskedLM.from_config(config).double(),
        arguments,
        data_collator=Collator(),
        train_dataset=blocks(7),
        eval_dataset=blocks(5),
        callbacks=[recorder],
    )
    draw_by_rows(trainer)
    trainer.train()
    metrics = trainer.evaluate()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    if arguments.process_index == 0:
        torch.save({"gradients": recorder.steps, "log": log, "eval": metrics}, f"{folder}/result.pt")
