"""The private parts of transformers and torch that the training needs: a release that changes one is named here."""

import inspect
import re
import resource
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, Trainer

from modeling_layerpool.training import ContrastiveTrainer, MaskedLanguageTrainer, compat
from modeling_layerpool.training.base import LayerPoolTrainer
from modeling_layerpool.training.classification import ClassificationTrainer


# The private methods of the Trainer that are overridden or called, with their arguments.
METHODS = {
    "_save_checkpoint": ["model", "trial"],
    "_get_output_dir": ["trial"],
    "_save_rng_state": ["output_dir"],
    "_save": ["output_dir", "state_dict"],
    "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
    "_init_training_state": [
        "max_steps",
        "num_update_steps_per_epoch",
        "num_train_epochs",
        "resume_from_checkpoint",
        "trial",
    ],
    "_determine_best_metric": ["metrics", "trial"],
    "_evaluate": ["trial", "ignore_keys_for_eval", "skip_scheduler"],
}
# The methods whose place in a saving or resuming run matters, and those that call them.
CALLERS = {
    "_save_checkpoint": "_maybe_log_save_evaluate",
    "_save_rng_state": "_save_checkpoint",
    "_save": "save_model",
    "_load_from_checkpoint": "train",
    "_init_training_state": "_inner_training_loop",
    "_determine_best_metric": "_maybe_log_save_evaluate",
    "_evaluate": "_maybe_log_save_evaluate",
}


@pytest.mark.parametrize("name", METHODS)
def test_private_methods_of_the_trainer_are_there(name):
    release = f"transformers {transformers.__version__}"
    method = getattr(Trainer, name, None)
    assert method is not None, f"{release} removed or renamed Trainer.{name}; adapt training/compat.py"
    arguments = list(inspect.signature(method).parameters)[1:]
    assert arguments == METHODS[name], f"{release} changed Trainer.{name} to {arguments}; adapt training/compat.py"


@pytest.mark.parametrize(("name", "caller"), CALLERS.items())
def test_the_trainer_still_calls_them(name, caller):
    release = f"transformers {transformers.__version__}"
    source = inspect.getsource(getattr(Trainer, caller))
    assert f"self.{name}(" in source, (
        f"{release} no longer calls Trainer.{name} in {caller}; check the moment of its hook in training/compat.py"
    )


def test_the_random_state_is_the_last_file_before_the_state_and_the_removal_of_older_checkpoints():
    source = inspect.getsource(Trainer._save_checkpoint)
    calls = [
        "save_model",
        "_save_optimizer_and_scheduler",
        "_save_scaler",
        "_save_rng_state",
        "save_to_json",
        "rotate_checkpoints",
    ]
    found = [call for call in re.findall(r"\w+(?=\()", source) if call in calls]
    assert found == calls, (
        f"transformers {transformers.__version__} writes a checkpoint in another order ({', '.join(found)}); "
        "TrainerHooks.complete_checkpoint has to come after all files but the state"
    )


def test_private_methods_are_overridden_in_the_compat_module_only():
    assert {name for name in vars(compat.TrainerHooks) if name in METHODS} == set(METHODS) - {"_get_output_dir"}
    for trainer in (LayerPoolTrainer, ContrastiveTrainer, ClassificationTrainer, MaskedLanguageTrainer):
        private = {name for name in vars(trainer) if re.match(r"_[a-z]", name) and hasattr(Trainer, name)}
        assert not private, f"{trainer.__name__} overrides {private}"


def test_other_private_names_are_used_in_the_compat_module_only():
    folder = Path(compat.__file__).parent
    private = re.compile(r"\._(attn_implementation|forward_hooks|prepare_inputs?|train_batch_size|wrap_model)\b")
    for path in folder.rglob("*.py"):
        if path.name != "compat.py":
            assert not private.search(path.read_text(encoding="utf-8")), path.name


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_attention_that_was_chosen_is_known(implementation):
    config = BertConfig(attn_implementation=implementation)
    assert hasattr(config, "_attn_implementation"), (
        f"transformers {transformers.__version__} renamed config._attn_implementation; adapt training/compat.py"
    )
    assert compat.attention_implementation(config) == implementation
    with torch.device("meta"):
        assert compat.attention_implementation(BertModel(config).config) == implementation


def test_forward_hooks_are_known():
    module = torch.nn.Linear(1, 1)
    assert hasattr(module, "_forward_hooks"), (
        f"torch {torch.__version__} renamed Module._forward_hooks; adapt training/compat.py"
    )
    assert not compat.has_forward_hooks(module)
    handle = module.register_forward_hook(lambda *args: None)
    assert compat.has_forward_hooks(module)
    handle.remove()
    assert not compat.has_forward_hooks(module)


@pytest.mark.parametrize("save", [torch.save, save_file])
def test_a_file_that_does_not_fit_is_a_write_error(save, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(Exception) as failed:  # noqa: PT011, the type is what differs
            save({"weight": torch.ones(10_000)}, tmp_path / "weights")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert compat.is_write_error(failed.value), (
        f"{save.__module__} now says {failed.value!r} of a file that does not fit"
    )


def test_other_errors_are_no_write_errors():
    assert not compat.is_write_error(ValueError("a number is too large"))


def test_a_resumed_run_with_steps_as_shares_is_not_told_of_other_arguments(make_trainer, tmp_path, caplog):
    options = {"max_steps": 4, "logging_steps": 0.05, "save_strategy": "steps", "save_steps": 0.5}
    make_trainer(**options).train()
    trainer = make_trainer(name="again", **options)
    with caplog.at_level("WARNING", logger="transformers"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert "do not match" not in caplog.text
    assert (trainer.args.logging_steps, trainer.args.save_steps) == (0.05, 0.5)
