"""The example of a card and what it prints, computed with the trained model."""

import logging
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, pipeline

from ..common.card_facts import CardFacts
from ..common.labels import LabelNames
from .card_names import name_of


logger = logging.getLogger(__name__)

SENTENCES = ["A man is playing a guitar.", "Somebody makes music.", "The stock market fell."]


def printed_by_example(
    facts: CardFacts, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, is_pair: bool = False
) -> str | None:
    """
    What the first example of the card prints, or None for a model that is spread over processes, and if it fails.

    Args:
        model: the trained model; its mode is restored.
        is_pair: whether a classifier reads pairs of texts.
    """
    if facts.is_sharded:
        return None
    was_training = model.training
    model.eval()
    try:
        if facts.task == "sentence-similarity":
            embeddings = model.encode(SENTENCES, tokenizer, normalize=True)
            return str((embeddings @ embeddings.T).round(2))
        if facts.is_head:
            name = (facts.hub_model_id or name_of(facts.output_dir)).rpartition("/")[2]
            return f"{name} {_prediction(facts, model, tokenizer, is_pair)}"
        run = pipeline(facts.task, model=model, tokenizer=tokenizer, device=model.device)
        if facts.task == "fill-mask":
            guesses = run(f"A man is playing a {facts.mask_token}.")
            return "\n".join(f"{guess['token_str']} {round(guess['score'], 3)}" for guess in guesses)
        text = {"text": SENTENCES[0], "text_pair": SENTENCES[1]} if is_pair else SENTENCES[0]
        answers = run(text, truncation=True, top_k=None)
        return "\n".join(f"{answer['label']} {round(answer['score'], 3)}" for answer in answers)
    except Exception as error:  # no error of an example may cost a finished run its card
        logger.warning("the model card is written without the output of its example: %s", error)
        return None
    finally:
        model.train(was_training)


@torch.inference_mode()
def _prediction(facts: CardFacts, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, is_pair: bool) -> Any:
    """The prediction of a head, which the run has together with its encoder."""
    inputs = tokenizer(*SENTENCES[: 2 if is_pair else 1], truncation=True, return_tensors="pt").to(model.device)
    logits = model(**inputs).logits.float().cpu().numpy()
    prediction = LabelNames(facts.problem_type, tuple(facts.labels)).predictions(logits)[0]["prediction"]
    return round(prediction, 3) if facts.problem_type == "regression" else prediction
