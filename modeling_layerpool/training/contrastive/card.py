"""What the model card says about a contrastive run."""

from dataclasses import replace
from typing import TYPE_CHECKING

from ...common.card_facts import CardFacts, with_pooler
from ..frozen import TRAINED_FROZEN
from .objectives.info_nce import GUIDE, GUIDE_CITATION
from .parameter_groups import pooler_learning_rate


if TYPE_CHECKING:
    from .trainer import ContrastiveTrainer


def contrastive_facts(trainer: "ContrastiveTrainer", facts: CardFacts) -> CardFacts:
    """The facts of any training, with those of the objective and of the batches."""
    args, objective, model = trainer.args, trainer.objective, trainer.model
    facts = with_pooler(facts, model, {"embedding": f"{model.embedding_dim} numbers, compared by cosine"})
    settings = objective.settings(trainer.columns or []) | trainer.prompts.settings()
    citations = objective.citations()
    if trainer.distillation is not None:
        term = trainer.distillation
        settings |= term.objective.distillation_settings() | {"weight of the distillation": f"{term.weight:g}"}
        citations += term.objective.citations()
    if GUIDE in (trainer.text_embeddings or ()):
        citations.append(GUIDE_CITATION)
    if args.mlm_weight > 0:
        settings["masked language modeling"] = f"weight {args.mlm_weight:g}, {args.mlm_probability:.0%} of the tokens"
    negatives = trainer.most_negatives(facts.batch_size)
    compared = f": at most {negatives} negatives for an anchor" if negatives else ""
    settings["rows in a batch"] = f"{facts.batch_size}, all processes together{compared}"
    if args.shuffling != "random":
        settings["order of the rows"] = f"by {args.shuffling} of the first texts, {args.group_size} of them together"
    if trainer.mixture is not None:
        settings["datasets, in the order above"] = "; ".join(trainer.mixture.describe().values())
    if args.gradient_accumulation_steps > 1:
        settings["batches in a step"] = f"{args.gradient_accumulation_steps} (this adds no negatives)"
    settings |= facts.settings
    if args.freeze_encoder:
        settings["trained"] = TRAINED_FROZEN
    if (rate := pooler_learning_rate(model, args)) is not None:
        settings["learning rate of the pooler"] = f"{rate:g}"
    citations += facts.citations
    return replace(facts, task="sentence-similarity", settings=settings, citations=citations)
