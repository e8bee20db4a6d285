"""`layer_negatives`: the loss against a slow float64 reference on the padded texts, and what is refused."""

import copy

import pytest
import torch
from datasets import Dataset

from modeling_layerpool.common.errors import InputError
from modeling_layerpool.training import add_lora
from tests.training.conftest import triplets
from tests.training.test_losses import cosine, same_values_and_gradients


TEXTS = Dataset.from_dict({"text": [row["anchor"] for row in triplets(8)]})
RESIDUAL = {"pooler_type": "residual_layers", "pooler_residual": "mean"}


@pytest.fixture
def make(make_trainer, tiny_model):
    def with_model(**options):
        pooler = options.pop("pooler", RESIDUAL)
        defaults = {"train_dataset": TEXTS, "objective": "unsupervised", "layer_negatives": [1, 2]}
        options.setdefault("model", tiny_model(**pooler))
        return make_trainer(**defaults | options)

    return with_model


def reference(model, texts, states, temperature):
    """Each text against all texts, and against states of both of their views, one number at a time. No dropout."""
    embeddings, negatives = [], []
    for ids in texts:
        output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        embeddings.append(output.pooler_output[0])
        negatives += 2 * [output.hidden_states[state][0].mean(dim=0) for state in states]
    total = 0
    for own in embeddings:
        similar = torch.exp(cosine(own, own) / temperature)
        others = [torch.exp(cosine(own, other) / temperature) for other in [*embeddings, *negatives]]
        total = total - torch.log(similar / sum(others))
    return total / len(embeddings)


@pytest.mark.parametrize("pooler", [RESIDUAL, {"pooler_type": "layer_attention", "pooler_activation": "relu"}])
def test_the_loss_has_the_intermediate_states_of_all_texts_as_negatives(make, pooler):
    trainer = make(pooler=pooler, temperature=0.2)
    model = trainer.model.double().eval()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    fast = trainer.compute_loss(model, batch)
    slow = reference(model, [trainer.train_dataset[i]["text_input_ids"] for i in range(4)], [1, 2], 0.2)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    same_values_and_gradients(fast, slow, weights)


def test_gradient_caching_gives_the_gradient_of_the_plain_step(make):
    gradients = {}
    for cache in (None, 16):
        trainer = make(name=f"cache {cache}", gradient_cache=cache)
        trainer.model.double().eval()
        trainer.model.train = lambda mode=True, model=trainer.model: setattr(model, "training", mode)
        trainer.current_gradient_accumulation_steps = 1
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
        assert (cache is None) == ("chunks" not in batch)
        trainer.training_step(trainer.model, batch)
        gradients[cache] = {name: p.grad for name, p in trainer.model.named_parameters()}
    for name, gradient in gradients[None].items():
        torch.testing.assert_close(gradients[16][name], gradient, atol=1e-10, rtol=1e-8, msg=name)


def test_a_run_trains_and_its_card_names_the_states(make):
    trainer = make(max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2
    facts = trainer.card_facts()
    assert facts.settings["negatives of hidden states"] == "1, 2"
    assert any("chen2023alleviating" in citation for citation in facts.citations)
    assert trainer.most_negatives(4) == 3 + 4 * 2 * 2
    assert not trainer.model.pooler._forward_pre_hooks


def test_a_copy_of_the_model_and_a_merged_adapter_are_evaluated_too(make, tiny_model):
    trainer = make(model=add_lora(tiny_model(**RESIDUAL)), eval_dataset=TEXTS, max_steps=1)
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    trainer.model = trainer.model.merge_and_unload()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, abs=1e-4)
    trainer.model = copy.deepcopy(trainer.model)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"torch_compile": True}, "layer_negatives reads hidden states where torch_compile cannot"),
        ({"layer_negatives": [3]}, r"layer_negatives 3: must be different hidden states that .* \(0, 1, 2\)"),
        ({"layer_negatives": [9]}, "layer_negatives 9: must be different hidden states"),
        ({"layer_negatives": [1, 1]}, "layer_negatives 1 1: must be different"),
        ({"layer_negatives": [-1]}, "layer_negatives=-1 must be at least 0"),
        ({"pooler": {"pooler_type": "mean"}}, r"pooler_type=mean reads below the highest one \(none\)"),
        ({"pooler": {"pooler_type": "concat_layers"}}, "are others with pooler_type=concat_layers"),
        ({"pooler": {"pooler_type": "hire"}}, "are others with pooler_type=hire"),
        ({"objective": "supervised", "train_dataset": None}, "layer_negatives does nothing with objective=supervised"),
    ],
)
def test_states_that_cannot_be_negatives_are_one_sentence(make, options, message):
    with pytest.raises(InputError, match=message):
        make(**options)
