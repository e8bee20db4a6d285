"""
The trainer of masked language models, alone or with token-level contrast.

Notation: `rows` and `length` of a batch, `m` its masked tokens, `h` width, `v` vocabulary. A sequence is a text
between its special tokens, or the part of one that lies in a block. Sequences of a batch have different numbers; -1 is
the padding.
"""

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate.utils import send_to_device
from datasets import Dataset, IterableDataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import EvalLoopOutput, has_length

from ...common.card_facts import CardFacts
from ...common.checkpoint_files import check_vocabulary
from ...common.errors import InputError
from ...common.positions import first_position, position_limit
from ...models.modeling_layerpool_packing import at_least_float32
from ..base import Evaluator, LayerPoolTrainer
from ..batching import GlobalBatchSampler, StreamedBatches
from ..distributed import same_on_all
from ..masking import predicted_index
from ..mlm_head import head_only_at
from .arguments import MaskedLanguageArguments, TokenContrastArguments
from .attention import attention_inside, check_attention_inside
from .blocks import BlockCollator, BlockReader, BlockSampler, StreamedBlocks, ValidationSampler
from .evaluation_sums import EvaluationSums
from .token_contrast import CITATION, contrast_tokens, similarity_sums


# The seed of the masks of validation texts. It does not depend on the run, so that all runs are measured on the same
# masks.
VALIDATION_SEED = 0
# Batch fields that are not input of the model.
NOT_MODEL_INPUTS = ("labels", "predicted_index", "sequence_ids", "content", "row_numbers")


class MaskedLanguageTrainer(LayerPoolTrainer):
    r"""
    Trains any masked language model with its own loss and, under the objective `taco`, with token-level contrast.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A masked language model from `AutoModelForMaskedLM`.
        args ([`MaskedLanguageArguments`], or [`TokenContrastArguments`] with a collator of your own):
            The options of the run. `per_device_train_batch_size` counts blocks.
        train_dataset, eval_dataset (`datasets.Dataset` or, to train on, `datasets.IterableDataset`, *optional*):
            The rows of [`tokenize_texts`], which are packed into blocks, each time with other masks. Validation texts
            always have the same masks. With a `data_collator`: any rows that it makes batches of.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The tokenizer of the texts. Required without a `data_collator`.
        data_collator (`Callable`, *optional*):
            Defaults to one that packs and masks texts. Another one returns a batch with these fields of shape
            `(rows, length)`:

            - `input_ids`, masked, and `labels`, -100 for tokens that are not predicted;
            - `sequence_ids`: the document or sentence of each token, -1 for padding. Each sequence lies in one piece,
              and no number occurs twice in a batch;
            - `content`: whether a token is neither special nor padding;
            - `attention_mask`, 0 for padding, for attention over the whole row; or `position_ids` that restart from 0
              with each sequence, and no `attention_mask`, for attention inside each sequence.

            All other fields go to the model, except `row_numbers`, which errors name.
        evaluator (`Callable`, *optional*):
            Called with model and tokenizer at each evaluation, on the main process. Its metrics are logged as
            `eval_<name>`.

    Other arguments, and the errors of a training, are those of
    [`~modeling_layerpool.training.base.LayerPoolTrainer`].

    Both terms of the loss are means over the batch of all processes: over its predicted tokens and over its anchors.
    They are logged as `mlm_loss` and `token_contrast_loss`, averaged since the last log. An evaluation measures them
    over all of its data, and `eval_perplexity`, the exponential of `eval_mlm_loss`, and `eval_masked_accuracy`, in
    percent. Each process draws negatives from its own batch, in training with torch's default generator. An evaluation
    seeds the generators and restores them, so that it masks and draws the same each time.

    Raises:
        InputError: the model does not have the subtracted state; the texts do not make a batch; `max_seq_length` is
            beyond the positions of the model; the tokenizer has no mask token, or more tokens than the model; or the
            model cannot keep attention inside sequences.
    """

    # The loss is a mean over the batch, so the Trainer has to divide it by the accumulation steps.
    loss_is_scaled_for_ga = False
    METRICS: ClassVar = {
        "loss": False,
        "mlm_loss": False,
        "perplexity": False,
        "masked_accuracy": True,
        "token_contrast_loss": False,
        "similarity_within": True,
        "similarity_between": False,
    }

    @classmethod
    def metrics_of(cls, args: TokenContrastArguments) -> dict[str, bool]:
        """The metrics of validation texts with these arguments, and whether higher is better."""
        unmeasured = set() if args.measure_similarity else {"similarity_within", "similarity_between"}
        if args.objective == "mlm" and not args.measure_similarity:
            unmeasured.add("token_contrast_loss")
        return {name: more_is_better for name, more_is_better in cls.METRICS.items() if name not in unmeasured}

    def __init__(
        self,
        model: PreTrainedModel,
        args: TokenContrastArguments,
        *,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]] | None = None,
        evaluator: Evaluator | None = None,
        **kwargs: Any,
    ):
        layers, index = model.config.num_hidden_layers, args.subtracted_index
        if index is not None and index not in range(-layers - 1, layers + 1):
            raise InputError(f"subtracted_state={index}, but the model has the hidden states 0 to {layers}")
        if index in (-1, layers):
            raise InputError(
                f"subtracted_state={index} is the last hidden state itself; subtracting it leaves nothing"
            )
        self.packs_texts = data_collator is None
        if self.packs_texts:
            _check_texts_fit(model, processing_class, args)
            data_collator = _block_collator(args, processing_class, args.sampling_seed)
        self.evaluator = evaluator
        self._first_position: int | None = None  # found, and the model checked, when positions first restart
        self._evaluation: EvaluationSums | None = None
        self._logged = torch.zeros(3, device=args.device)  # sums of both terms, and the number of batches
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            # The Trainer refuses to evaluate without a dataset; an evaluator alone needs none.
            eval_dataset=Dataset.from_dict({"length": []}) if eval_dataset is None and evaluator else eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if self.packs_texts and isinstance(train_dataset, Dataset):
            blocks = self.make_batch_sampler(args.least_rows).rows
            if blocks < args.least_rows:
                raise InputError(
                    f"the training texts make {blocks} block(s) of {args.max_seq_length} tokens, and "
                    f"{args.least_rows} are needed"
                )

    # --- data ---

    def make_batch_sampler(self, batch_size: int, **options: Any) -> GlobalBatchSampler:
        if not self.packs_texts:
            return super().make_batch_sampler(batch_size, **options)
        lengths = self.train_dataset["length"][:]
        return BlockSampler(lengths, self.args.max_seq_length, self.args.block_packing, batch_size, **options)

    def rows_to_collate(self, sampler: GlobalBatchSampler) -> Dataset | BlockReader:
        return BlockReader(self.train_dataset, sampler.rows) if self.packs_texts else self.train_dataset

    def stream_batches(self, batch_size: int, **options: Any) -> StreamedBatches:
        if not self.packs_texts:
            return super().stream_batches(batch_size, **options)
        length, packing, seed = self.args.max_seq_length, self.args.block_packing, self.args.sampling_seed
        return StreamedBlocks(self.train_dataset, length, packing, batch_size, seed=seed, **options)

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> DataLoader:
        """The validation blocks of this process, in the order of the texts, masked with a seed of their own."""
        if not self.packs_texts:
            return super().get_eval_dataloader(eval_dataset)
        args = self.args
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        sampler = ValidationSampler(
            dataset["length"][:],
            args.max_seq_length,
            args.block_packing,
            args.eval_batch_size * args.world_size,
            rank=args.process_index,
            world_size=args.world_size,
            shuffle=False,
        )
        collator = _block_collator(args, self.processing_class, VALIDATION_SEED)
        reader = BlockReader(dataset, sampler.rows)
        return DataLoader(reader, batch_sampler=sampler, collate_fn=collator, **self.worker_options())

    # --- loss ---

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ):
        """The masked-LM loss, and under `taco` the weighted token contrast, of one batch."""
        args = self.args
        labels, sequence_ids, content = (inputs[name] for name in ("labels", "sequence_ids", "content"))
        is_taco = args.objective == "taco"
        is_measured = self._evaluation is not None and args.measure_similarity
        index = inputs["predicted_index"] if "predicted_index" in inputs else predicted_index(labels)
        # A compiled model would keep the indices of its first batch.
        needs_all_logits = return_outputs or args.torch_compile
        model_inputs = self._model_inputs(inputs)
        with nullcontext() if needs_all_logits else head_only_at(self.model, index):
            outputs = model(**model_inputs, output_hidden_states=is_taco or is_measured)
        logits = outputs.logits.flatten(0, 1)
        if len(logits) == labels.numel():
            logits = logits[index]
        predicted_labels = labels.flatten()[index]
        # The model's own loss is NaN for a batch with nothing to predict, and not every model accepts a divisor.
        mlm_loss = F.cross_entropy(
            at_least_float32(logits),
            predicted_labels,
            reduction="sum",
            label_smoothing=args.label_smoothing_factor,
        )
        mlm_loss = mlm_loss / max(1, len(index))
        predicted = torch.tensor(len(index), device=labels.device)
        contrast, anchors, states = mlm_loss.new_zeros(()), predicted.new_zeros(()), None
        if is_taco or is_measured:
            states = at_least_float32(outputs.hidden_states[-1])
            if args.subtracted_index is not None:
                states = states - outputs.hidden_states[args.subtracted_index]
            generator = None if self._evaluation is None else self._evaluation.generator
            contrast, anchors = contrast_tokens(states, labels, sequence_ids, content, args, generator)
        if self._evaluation is not None:
            right = (logits.argmax(dim=-1) == predicted_labels).sum()
            similarity = similarity_sums(states, sequence_ids, content) if is_measured else None
            self._evaluation.add(mlm_loss, right, predicted, contrast, anchors, similarity)
        elif model.training:
            mlm_loss, contrast = self._weigh(torch.stack([mlm_loss, contrast]), torch.stack([predicted, anchors]))
            self._logged += torch.stack([mlm_loss, contrast, torch.ones_like(mlm_loss)]).detach()
        loss = mlm_loss + args.token_contrast_weight * contrast if is_taco else mlm_loss
        return (loss, {"logits": outputs.logits}) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        return super().training_step(model, _with_predicted_index(inputs), *args)

    def _model_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        inputs = {name: value for name, value in batch.items() if name not in NOT_MODEL_INPUTS}
        if "position_ids" in inputs:
            needs_mask = "attention_mask" not in inputs
            if self._first_position is None:
                if needs_mask:
                    check_attention_inside(self.model)
                self._first_position = first_position(self.model)
            inputs["position_ids"] = inputs["position_ids"] + self._first_position
            if needs_mask:
                inputs["attention_mask"] = attention_inside(self.model, batch["sequence_ids"])
        return inputs

    def _weigh(self, means: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """
        Weigh the means of this process so that their mean over the processes is the mean over all that they count.
        """
        if self.args.world_size == 1:
            return means
        total = counts.clone()
        dist.all_reduce(total)
        return means * counts * self.args.world_size / total.clamp(min=1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._logged[2] > 0:
            sums = self._logged.clone()
            if self.args.world_size > 1:
                dist.all_reduce(sums)
            mlm_loss, contrast, batches = sums.tolist()
            logs["mlm_loss"] = mlm_loss / batches
            if self.args.objective == "taco":
                logs["token_contrast_loss"] = contrast / batches
            self._logged.zero_()
        super().log(logs, start_time)

    # --- evaluation ---

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """The step of transformers, without the logits if only the loss is needed."""
        if not prediction_loss_only:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = send_to_device(_with_predicted_index(inputs), self.args.device)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def evaluation_loop(
        self, dataloader: DataLoader, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """The loop of transformers without logits, over the evaluation data if there are any; then the evaluator."""
        output = EvalLoopOutput(predictions=None, label_ids=None, metrics={}, num_samples=0)
        metrics: dict[str, float] = {}
        if not has_length(dataloader) or len(dataloader) > 0:
            seed = self.args.seed + self.args.process_index
            self._evaluation = EvaluationSums(self.args.device, seed)
            try:
                with torch.random.fork_rng(devices=[]):
                    torch.default_generator.manual_seed(seed)  # the CPU's alone, which a collator may mask with
                    output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
                metrics = self._evaluation.metrics()
            finally:
                self._evaluation = None
            metrics["loss"] = metrics["mlm_loss"]
            if self.args.objective == "taco":
                metrics["loss"] += self.args.token_contrast_weight * metrics["token_contrast_loss"]
            elif not self.args.measure_similarity:
                del metrics["token_contrast_loss"]
        if self.evaluator is not None:
            metrics |= self._run_evaluator()
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def _run_evaluator(self) -> dict[str, float]:
        metrics = {}
        if self.args.process_index == 0:
            was_training = self.model.training
            self.model.eval()
            metrics = self.evaluator(self.model, self.processing_class)
            self.model.train(was_training)
        return same_on_all(metrics)

    def card_facts(self) -> CardFacts:
        args, facts, is_taco = self.args, super().card_facts(), self.args.objective == "taco"
        settings = {"objective": "masked language modeling"}
        if is_taco:
            settings["objective"] += f" + {args.token_contrast_weight:g} x token contrast (TACO)"
            settings["token contrast"] = (
                f"temperature {args.token_temperature:g}, window {args.token_window}, {args.token_negatives} "
                f"negatives, anchors: {args.token_anchors}, subtracted: {args.subtracted_state}"
            )
        settings["masked"] = (
            f"{args.mlm_probability:.0%} of the tokens: 80 % replaced by the mask, 10 % by random tokens, 10 % kept"
        )
        attention = "inside each text" if args.attend_within_documents else "over the whole block"
        settings["blocks"] = f"{args.max_seq_length} tokens, {args.block_packing}, attention {attention}"
        settings["blocks in a batch"] = f"{facts.batch_size}, all processes together"
        if args.gradient_accumulation_steps > 1:
            settings["batches in a step"] = f"{args.gradient_accumulation_steps}"
        return replace(
            facts,
            task="fill-mask",
            model={"vocabulary": f"{len(self.processing_class):,} tokens", **facts.model},
            settings=settings,
            citations=[CITATION] if is_taco else [],
            mask_token=self.processing_class.mask_token,
        )


# The name from before the two trainers became one.
TokenContrastTrainer = MaskedLanguageTrainer


def _with_predicted_index(inputs: dict[str, Any]) -> dict[str, Any]:
    """Add the indices of the predicted tokens while the batch is still on the CPU, so that no device is waited for."""
    return {**inputs, "predicted_index": predicted_index(inputs["labels"])}


def _block_collator(args: MaskedLanguageArguments, tokenizer: PreTrainedTokenizerBase, seed: int) -> BlockCollator:
    return BlockCollator(
        tokenizer,
        args.max_seq_length,
        args.mlm_probability,
        attend_within_documents=args.attend_within_documents,
        seed=seed,
    )


def _check_texts_fit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: MaskedLanguageArguments
) -> None:
    limit = position_limit(model)
    if args.max_seq_length > limit:
        raise InputError(f"max_seq_length={args.max_seq_length} is beyond the {limit} positions of the model")
    check_vocabulary(model, tokenizer)
    if args.attend_within_documents and "position_ids" not in inspect.signature(model.forward).parameters:
        raise InputError(
            f"a model of type {model.config.model_type!r} takes no positions, which attend_within_documents needs; "
            "leave it out"
        )
