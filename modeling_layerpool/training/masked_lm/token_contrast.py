"""
TACO (Fu et al., ACL 2022, arXiv 2204.04163): masked language modelling plus token-level contrast, for any encoder.

What a token's context adds to it, `g = H_l - H_0`, its global semantics, is to be similar among neighbours of one
sequence and different from that of other sequences. Notation: `rows` and `length` of a batch, `s = rows * length` its
places, `k` negatives, `h` width. A sequence is a document or a sentence: what tokens share their semantics with.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from datasets import IterableDataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer_utils import EvalLoopOutput

from ...common.errors import InputError
from ..base import LayerPoolTrainer
from ..batching import EpochDataLoader, GlobalBatchSampler, StreamedBatches
from ..distributed import world_size
from ..losses import token_contrast
from ..masking import predicted_places
from ..mlm_head import head_only_at
from .arguments import TokenContrastArguments
from .attention import attention_inside, check_attention_inside, first_position


CITATION = """@inproceedings{fu2022contextual,
  title = {Contextual Representation Learning beyond Masked Language Modeling},
  author = {Fu, Zhiyi and Zhou, Wangchunshu and Xu, Jingjing and Zhou, Hao and Li, Lei},
  booktitle = {ACL},
  year = {2022}
}"""

# Batch fields that are not input of the model.
NOT_OF_THE_MODEL = ("labels", "predicted_places", "sequence_ids", "content", "row_numbers")


# --- positives and negatives ---


@dataclass
class _Content:
    """
    Where the content tokens of each sequence are. All of it has shapes that do not depend on the data, so that a
    device is never asked.

    Args:
        sequence: a number below s for each place, counted from 0, `(s,)`. Padding belongs to some sequence or other.
        rank: how many content tokens stand before each place, `(s,)`.
        first: the rank of the first content token of each place's sequence, `(s,)`.
        count: the content tokens of each place's sequence, `(s,)`.
        places: the place of the content token of each rank, `(s,)`, 0 behind the last one.
        total: content tokens of the batch, a scalar.
    """

    sequence: torch.Tensor
    rank: torch.Tensor
    first: torch.Tensor
    count: torch.Tensor
    places: torch.Tensor
    total: torch.Tensor

    @classmethod
    def of(cls, sequence_ids: torch.Tensor, content: torch.Tensor) -> "_Content":
        starts = torch.ones_like(content)
        starts[:, 1:] = sequence_ids[:, 1:] != sequence_ids[:, :-1]
        sequence = starts.flatten().cumsum(dim=0) - 1
        flat = content.flatten()
        is_content = flat.long()
        rank = is_content.cumsum(dim=0) - is_content
        counts = torch.zeros_like(rank).scatter_add_(0, sequence, is_content)
        before = counts.cumsum(dim=0) - counts
        place = torch.arange(len(rank), device=rank.device)
        # A place without content writes behind the last rank; that one is cut off.
        places = rank.new_zeros(len(rank) + 1).scatter_(0, torch.where(flat, rank, len(rank)), place)[:-1]
        return cls(sequence, rank, before[sequence], counts[sequence], places, is_content.sum())


def sample_token_pairs(
    sequence_ids: torch.Tensor,
    content: torch.Tensor,
    anchors: torch.Tensor | None = None,
    *,
    window: int = 5,
    negatives: int = 50,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Draw a positive and negatives for every token of a batch, as TACO does, on the device of the batch.

    The positive stands at an offset drawn uniformly from `{-(window // 2), .., -1, 1, .., window // 2}`, counted in
    places of the row. Where that is outside the sequence, or no content, it is a uniformly random other content token
    of the sequence. The negatives are drawn uniformly, with replacement, from the content tokens of the other
    sequences of the batch, those in the same row included. A token is no anchor if it is no content, if it is the only
    content of its sequence, or if no other sequence has any: a batch of one sequence has no anchors at all.

    Nothing waits for the device, and the same generator draws the same pairs; how many numbers are drawn depends on
    shapes alone.

    Args:
        sequence_ids (`torch.LongTensor` of shape `(rows, length)`):
            The sequence that each token belongs to, -1 for padding. Each one lies in one piece, within a row.
        content (`torch.BoolTensor` of shape `(rows, length)`):
            The tokens that are neither special nor padding.
        anchors (`torch.BoolTensor` of shape `(rows, length)`, *optional*):
            The only tokens that may be anchors. Positives and negatives are drawn from all content.
        window (`int`, *optional*, defaults to 5): the width W in which positives lie; at least 2.
        negatives (`int`, *optional*, defaults to 50): K, of each anchor.
        generator (`torch.Generator`, *optional*): on the device of the batch; the default one if not given.

    Returns:
        `positive_index (s,)`, -1 where a place is no anchor, and `negative_index (s, k)`: places in the flattened
        batch, as [`~modeling_layerpool.training.losses.token_contrast`] takes them.
    """
    content = content & (sequence_ids >= 0)
    known = _Content.of(sequence_ids, content)
    length, size = content.shape[1], content.numel()
    flat = content.flatten()
    place = torch.arange(size, device=flat.device)

    def draw(below: torch.Tensor | int, *shape: int) -> torch.Tensor:
        # So many more numbers than can be below that the remainder is uniform to 1 in 2^30 and better.
        numbers = torch.randint(2**62, shape, device=flat.device, generator=generator)
        return numbers % (below.clamp(min=1) if isinstance(below, torch.Tensor) else below)

    half = window // 2
    offset = draw(2 * half, size) - half
    offset += offset >= 0  # 0 is left out
    near = place + offset
    column = place % length + offset
    inside = (column >= 0) & (column < length)
    near = near.clamp(0, size - 1)
    inside &= (known.sequence[near] == known.sequence) & flat[near]
    other = known.first + draw(known.count - 1, size)
    other += other >= known.rank  # the token itself is left out
    positive = torch.where(inside, near, known.places[other.clamp(max=size - 1)])

    foreign = known.total - known.count
    drawn = draw(foreign.unsqueeze(1), size, negatives)
    drawn += (drawn >= known.first.unsqueeze(1)) * known.count.unsqueeze(1)  # its own sequence is left out
    negative = known.places[drawn.clamp(max=size - 1)]

    is_anchor = flat & (known.count > 1) & (foreign > 0)
    if anchors is not None:
        is_anchor &= anchors.flatten()
    return torch.where(is_anchor, positive, -1), negative


# --- the paper's analysis ---


def semantic_similarity(
    states: torch.Tensor, sequence_ids: torch.Tensor, content: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    How alike the global semantics of tokens are: the measure by which TACO is motivated (section 3 of the paper).

    Args:
        states (`torch.Tensor` of shape `(rows, length, h)`): `g = H_l - H_0` of every token.
        sequence_ids (`torch.LongTensor` of shape `(rows, length)`): the sequence of each token, -1 for padding.
        content (`torch.BoolTensor` of shape `(rows, length)`): the tokens that count.

    Returns:
        Two scalars: the mean cosine over all pairs of different tokens of one sequence, and over all pairs of tokens
        of different sequences. Exact, in linear time. NaN where there is no such pair.
    """
    sums, pairs = _similarity_sums(states, sequence_ids, content).view(2, 2).unbind(dim=1)
    within, between = torch.where(pairs > 0, sums / pairs, torch.nan)
    return within, between


def _similarity_sums(states: torch.Tensor, sequence_ids: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
    """Sum of cosines and number of pairs within sequences, and the same between them, `(4,)`."""
    content = content & (sequence_ids >= 0)
    known = _Content.of(sequence_ids, content)
    units = F.normalize(_at_least_float32(states).flatten(0, 1), dim=-1)
    # The sum over all pairs is the square of the sum.
    units = units * content.flatten().unsqueeze(1)
    sums = torch.zeros_like(units).index_add_(0, known.sequence, units)
    sums = sums.to(_widest(sums.device))  # large numbers are subtracted from each other
    of_sequences = sums.square().sum()
    everything = sums.sum(dim=0).square().sum()
    own = units.to(sums.dtype).square().sum()
    pairs_of_sequences = (known.count * content.flatten()).sum()
    within = of_sequences - own, pairs_of_sequences - known.total
    between = everything - of_sequences, known.total.square() - pairs_of_sequences
    return torch.stack([number.to(sums.dtype) for number in (*within, *between)])


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


class TokenContrastTrainer(LayerPoolTrainer):
    r"""
    Trains any masked language model with its own loss and, under the objective `taco`, with token-level contrast.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A masked language model, as `AutoModelForMaskedLM` gives it.
        args ([`TokenContrastArguments`]):
            The options of the run and of the contrast.
        train_dataset, eval_dataset (`datasets.Dataset` or `datasets.IterableDataset`, *optional*):
            Whatever the collator makes batches of.
        data_collator (`Callable`):
            Makes of rows a batch with, all of shape `(rows, length)`:

            - `input_ids`, masked, and `labels`, -100 where nothing is to be predicted;
            - `sequence_ids`: the document or sentence of each token, -1 for padding; each one in one piece, and no
              number twice in a batch;
            - `content`: whether a token is neither special nor padding;
            - `attention_mask`, 0 for padding, for attention over the whole row; or, for attention inside each
              sequence, `position_ids` that restart from 0 with it, and no `attention_mask`.

            Anything else but `row_numbers`, which an error names, goes to the model.
        write_model_card (`Callable`, *optional*):
            Called with this trainer to write the card of `args.output_dir`. Default: the card of transformers.

    Other arguments are the Trainer's. Both terms are means over the batch of all processes, over its predicted tokens
    and over its anchors; with accumulation the Trainer averages the batches. They are logged as `mlm_loss` and
    `token_contrast_loss`, means since the last log; at evaluation, with `eval_` before, over all of its data.
    Negatives are drawn from the batch of each process. The numbers that the draw takes are those of torch's default
    generator, in training; evaluation seeds it anew and puts it back, so that it masks and draws the same each time.

    Raises:
        InputError: several devices without `accelerate launch`, a subtracted state that the model does not have, or
            attention inside sequences with a model that cannot keep to it.
        NonFiniteLossError: the loss is NaN or infinite; raised at the next logging or saving step.
        CheckpointWriteError: a checkpoint could not be written, as on a full disk; older ones stay whole.
    """

    # The loss is a mean over the batch: the Trainer divides it by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: PreTrainedModel,
        args: TokenContrastArguments,
        *,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]],
        **kwargs: Any,
    ):
        if args.n_gpu > 1:
            raise InputError(
                f"{args.n_gpu} devices are visible to one process: start one process for each with `accelerate "
                "launch`, or choose one with CUDA_VISIBLE_DEVICES"
            )
        layers, index = model.config.num_hidden_layers, args.subtracted_index
        if index is not None and index not in range(-layers - 1, layers + 1):
            raise InputError(f"subtracted_state={index}, but the model has the hidden states 0 to {layers}")
        if index in (-1, layers):
            raise InputError(f"subtracted_state={index} is the last hidden state, of which nothing would be left")
        super().__init__(model, args, data_collator=data_collator, **kwargs)
        self._logged = torch.zeros(3, device=args.device)  # sums of both terms, and batches
        self._evaluation: _Evaluation | None = None
        self._attention_is_checked = False

    # --- data ---

    def get_train_dataloader(self) -> DataLoader:
        """
        Batches of this process. Not prepared by accelerate: they are already its share, and it would cut again; and
        The order of transformers comes from the global random state, of which a resumed run has another.
        """
        args = self.args
        workers = {"collate_fn": self.data_collator, **self.worker_options()}
        place = {"rank": args.process_index, "world_size": args.world_size}
        batch_size = self._train_batch_size * args.world_size
        if isinstance(self.train_dataset, IterableDataset):
            # A worker without a shard of the stream would have nothing to do.
            workers["num_workers"] = min(workers["num_workers"], self.train_dataset.num_shards)
            return DataLoader(StreamedBatches(self.train_dataset, batch_size, **place), batch_size=None, **workers)
        sampler = GlobalBatchSampler(
            len(self.train_dataset),
            batch_size,
            **place,
            shuffle=args.train_sampling_strategy != "sequential",
            seed=args.seed if args.data_seed is None else args.data_seed,
            drop_last=args.dataloader_drop_last,
        )
        return EpochDataLoader(self.train_dataset, batch_sampler=sampler, **workers)

    # --- loss ---

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ):
        """The masked-LM loss, and under `taco` the weighted token contrast, of one batch."""
        labels, sequence_ids, content = (inputs[name] for name in ("labels", "sequence_ids", "content"))
        is_taco = self.args.objective == "taco"
        measured = self._evaluation is not None and self.args.measure_similarity
        places = inputs["predicted_places"] if "predicted_places" in inputs else predicted_places(labels)
        # A compiled model would keep to the places of its first batch.
        only_there = nullcontext() if return_outputs or self.args.torch_compile else head_only_at(self.model, places)
        model_inputs = self._model_inputs(inputs)
        with only_there:
            outputs = model(**model_inputs, output_hidden_states=is_taco or measured)
        logits = outputs.logits.flatten(0, 1)
        if len(logits) == labels.numel():
            logits = logits[places]
        predicted_labels = labels.flatten()[places]
        # Not by the model: its loss is NaN where a batch has nothing to predict, and not all of them take a divisor.
        mlm_loss = F.cross_entropy(
            _at_least_float32(logits),
            predicted_labels,
            reduction="sum",
            label_smoothing=self.args.label_smoothing_factor,
        )
        predicted = torch.tensor(len(places), device=labels.device)
        mlm_loss = mlm_loss / max(1, len(places))
        contrast, anchors = mlm_loss.new_zeros(()), predicted.new_zeros(())
        if is_taco or measured:
            states = self._semantics(outputs.hidden_states)
            contrast, anchors = self._token_contrast(states, labels, sequence_ids, content)
        if self._evaluation is not None:
            self._count(logits, predicted_labels)
            similarity = _similarity_sums(states, sequence_ids, content) if measured else None
            self._evaluation.add(mlm_loss, predicted, contrast, anchors, similarity)
        elif model.training:
            mlm_loss, contrast = self._weigh(torch.stack([mlm_loss, contrast]), torch.stack([predicted, anchors]))
            self._logged += torch.stack([mlm_loss, contrast, torch.ones_like(mlm_loss)]).detach()
        loss = mlm_loss + self.args.token_contrast_weight * contrast if is_taco else mlm_loss
        return (loss, {"logits": outputs.logits}) if return_outputs else loss

    def _count(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """What an evaluation counts of the predicted tokens of a batch: logits `(m, v)` and labels `(m,)`."""

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        # While the batch is still on the CPU, so that no device is waited for.
        return super()._prepare_inputs({**inputs, "predicted_places": predicted_places(inputs["labels"])})

    def _model_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        inputs = {name: value for name, value in batch.items() if name not in NOT_OF_THE_MODEL}
        if "position_ids" in inputs:
            inputs["position_ids"] = inputs["position_ids"] + first_position(self.model)
            if "attention_mask" not in inputs:
                if not self._attention_is_checked:
                    check_attention_inside(self.model)
                    self._attention_is_checked = True
                inputs["attention_mask"] = attention_inside(self.model, batch["sequence_ids"])
        return inputs

    def _semantics(self, hidden_states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """`g = H_l - H_0` of every token, `(rows, length, h)`, in at least float32."""
        last, index = _at_least_float32(hidden_states[-1]), self.args.subtracted_index
        return last if index is None else last - hidden_states[index]

    def _token_contrast(
        self, states: torch.Tensor, labels: torch.Tensor, sequence_ids: torch.Tensor, content: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean over this process's anchors, and their number."""
        which = self.args.token_anchors
        positive_index, negative_index = sample_token_pairs(
            sequence_ids,
            content,
            None if which == "all" else (labels != -100) == (which == "masked"),
            window=self.args.token_window,
            negatives=self.args.token_negatives,
            generator=None if self._evaluation is None else self._evaluation.generator,
        )
        loss = token_contrast(
            states.flatten(0, 1), positive_index, negative_index, temperature=self.args.token_temperature
        )
        return loss, (positive_index >= 0).sum()

    def _weigh(self, means: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Means of this process, so weighted that the mean over the processes is that over all they are means of."""
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
        """As in transformers, which makes all logits even where only the loss is asked for."""
        if not prediction_loss_only:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """As in transformers, with the terms of the loss over all tokens of the data."""
        seed = self.args.seed + self.args.process_index
        self._evaluation = _Evaluation(self.args.device, seed)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)  # what the collator masks by, and the CPU's alone
                output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            metrics = self._evaluation.metrics()
        finally:
            self._evaluation = None
        loss = metrics["mlm_loss"]
        if self.args.objective == "taco":
            loss += self.args.token_contrast_weight * metrics["token_contrast_loss"]
        elif not self.args.measure_similarity:
            del metrics["token_contrast_loss"]
        metrics["loss"] = loss
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output


class _Evaluation:
    """Sums over the batches of an evaluation, kept on the device, and the generator of its draws."""

    def __init__(self, device: torch.device, seed: int):
        self.generator = torch.Generator(device).manual_seed(seed)
        # Of both terms the sum and its divisor, and of the similarities within and between sequences.
        self.sums = torch.zeros(8, dtype=_widest(device), device=device)

    def add(
        self,
        mlm_loss: torch.Tensor,
        predicted: torch.Tensor,
        contrast: torch.Tensor,
        anchors: torch.Tensor,
        similarity: torch.Tensor | None,
    ) -> None:
        terms = torch.stack([mlm_loss * predicted, predicted, contrast * anchors, anchors]).detach()
        similarity = torch.zeros_like(terms) if similarity is None else similarity.detach()
        self.sums += torch.cat([terms, similarity])

    def metrics(self) -> dict[str, float]:
        if world_size() > 1:
            dist.all_reduce(self.sums)
        sums = self.sums.tolist()
        names = ("mlm_loss", "token_contrast_loss", "similarity_within", "similarity_between")
        found = dict(zip(names, zip(sums[::2], sums[1::2], strict=True), strict=True))
        # A loss over nothing is 0, as in training; a similarity of nothing is none.
        return {name: total / max(1.0, count) for name, (total, count) in found.items() if count > 0 or "loss" in name}
