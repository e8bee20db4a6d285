"""
Orders of the rows that put similar first texts into one batch, where each is a hard negative of the others
(Chernyavskiy et al., NAACL 2022, arXiv 2110.15725).

Notation: `n` rows, `u` distinct first texts, `h` width, `g` texts in a group.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sklearn.cluster import KMeans
from transformers.utils import logging

from ...common.errors import InputError
from ...common.nearest_texts import NEIGHBOUR_SEARCHES, FaissSearch  # noqa: F401 - documented under this module
from ..batching import GlobalBatchSampler, local_rows
from ..distributed import same_on_all


SHUFFLINGS = ("random", "neighbours", "words", "clusters")
# Similarities computed at once: 2^24 take 64 MiB in float32.
BLOCK_SIMILARITIES = 2**24
# Rounds of k-means. Few rows still change their cluster after so many.
CLUSTER_ROUNDS = 10


def group_by_neighbours(
    embeddings: torch.Tensor,
    group_size: int,
    generator: torch.Generator,
    show_progress_bar: bool = False,
    search: str = "exact",
) -> list[list[int]]:
    """
    Groups of texts and their nearest neighbors: in random order, each text that is still free takes the `g - 1` free
    texts with the highest cosine.

    The paper searches 200 neighbors of each text, which may all be taken. Here every group but the last one is full.

    Args:
        embeddings: `(u, h)`.
        group_size: texts in a group.
        generator: draws the order.
        show_progress_bar: whether to show how many texts are grouped.
        search: `"exact"`, or `"faiss"` for an approximate search that is faster for a large u ([`FaissSearch`]).

    Returns:
        The groups as lists of indices, each index once: the leading text, then its neighbors by decreasing cosine.
    """
    units = torch.nn.functional.normalize(embeddings.float(), dim=-1)
    find = NEIGHBOUR_SEARCHES[search](units)
    order = torch.randperm(len(units), generator=generator).tolist()
    is_free = torch.ones(len(units), dtype=torch.bool)
    groups: list[list[int]] = []
    with logging.tqdm(total=len(units), desc="Grouping neighbors", disable=not show_progress_bar) as progress:
        begin = 0
        while begin < len(order):
            # The leaders of a block search the same free texts. Earlier leaders take some of them, so each leader gets
            # more candidates than it needs.
            free = is_free.nonzero().squeeze(-1)
            if len(free) == 0:
                break
            size = max(1, min(1024, BLOCK_SIMILARITIES // len(free)))
            leaders: list[int] = []
            while begin < len(order) and len(leaders) < size:
                if is_free[order[begin]]:
                    leaders.append(order[begin])
                begin += 1
            count = min(len(free), 8 * group_size + 1)
            for leader, candidates in zip(leaders, find(leaders, free, count), strict=True):
                if not is_free[leader]:
                    continue
                is_free[leader] = False
                candidates = candidates[candidates >= 0]
                members = candidates[is_free[candidates]][: group_size - 1]
                if len(members) < group_size - 1 and len(candidates) < len(free):
                    rest = is_free.nonzero().squeeze(-1)  # all candidates were taken: search every free text
                    similarities = units[rest.to(units.device)] @ units[leader]
                    members = rest[similarities.topk(min(group_size - 1, len(rest))).indices.cpu()]
                is_free[members] = False
                groups.append([leader, *members.tolist()])
                progress.update(len(groups[-1]))
    return groups


def group_by_words(texts: Sequence[Sequence[int]], group_size: int, generator: torch.Generator) -> list[list[int]]:
    """
    The paper's cheap variant: in random order, each text that is still free takes up to `g - 1` free texts that share
    one of its tokens, chosen at random.

    Args:
        texts: the token ids of each text.
        group_size: texts in a group.
        generator: draws the order and the tokens.
    """
    order = torch.randperm(len(texts), generator=generator).tolist()
    draws = torch.rand(len(texts), generator=generator).tolist()
    holders: dict[int, list[int]] = {}
    for text in order:
        for token in set(texts[text]):
            holders.setdefault(token, []).append(text)
    # A token of every text, such as [CLS], does not tell texts apart.
    common = {token for token, sharing in holders.items() if len(sharing) == len(texts)}
    is_free = [True] * len(texts)
    groups = []
    for leader in order:
        if not is_free[leader]:
            continue
        is_free[leader] = False
        members = [leader]
        tokens = sorted(set(texts[leader]) - common)
        sharing = holders[tokens[int(draws[leader] * len(tokens))]] if tokens else []
        while sharing and len(members) < group_size:
            text = sharing.pop()  # removed, so that the total time is linear
            if is_free[text]:
                is_free[text] = False
                members.append(text)
        groups.append(members)
    return groups


def group_by_clusters(embeddings: torch.Tensor, group_size: int, generator: torch.Generator) -> list[list[int]]:
    """
    Clusters of k-means (by cosine) with `g` texts on average, in a random order.

    Args:
        embeddings: `(u, h)`.
        group_size: texts in a cluster on average.
        generator: draws the first centers and the order.
    """
    # scikit-learn adds up what its threads computed in any order. In float32, a resumed run could get other clusters.
    # The trainer reports NaN at its next logging step, where scikit-learn would end the run with a traceback.
    units = torch.nn.functional.normalize(embeddings.cpu().double(), dim=-1).nan_to_num_().numpy()
    count = max(1, len(units) // group_size)
    # n_init=1 and random first centers: k-means++ would take longer than all rounds for this many clusters.
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    clustering = KMeans(count, init="random", n_init=1, max_iter=CLUSTER_ROUNDS, random_state=seed, copy_x=False)
    groups: list[list[int]] = [[] for _ in range(count)]
    for text, cluster in enumerate(clustering.fit_predict(units)):
        groups[cluster].append(text)
    return [groups[index] for index in torch.randperm(count, generator=generator).tolist() if groups[index]]


# The order of the rows of the current epoch. A checkpoint keeps it, because the weights that decided it change.
PLAN_FILE = "batch_plan.safetensors"


def load_plan(checkpoint: str) -> tuple[list[int], int]:
    """The `plan` and the `plan_epoch` that a [`NeighbourBatchSampler`] saved in a checkpoint."""
    path = os.path.join(checkpoint, PLAN_FILE)
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file, but --shuffling needs the order of the rows to resume")
    plan = load_file(path)
    return plan["rows"].tolist(), plan["epoch"].item()


class NeighbourBatchSampler(GlobalBatchSampler):
    """
    Batches of groups of rows with similar first texts.

    The groups of an epoch are concatenated, reversed as in the paper, and split into batches. Rows with the same first
    text count as one text and stay together. Every row comes once an epoch.

    Args:
        first_texts: the token ids of each row's first text.
        embed: returns `(u, h)` for u lists of token ids, with the current weights.
        shuffling: `"neighbours"`, `"words"` (which needs no embeddings) or `"clusters"`.
        group_size: distinct first texts in a group.
        search: search of `"neighbours"`: `"exact"` or `"faiss"`.
        refresh_steps: number of batches after which the remaining rows are grouped again. Default: once an epoch.
        show_progress_bar: whether to show progress.

    `plan` holds the rows of the epoch in order, as far as the order is known.
    """

    def __init__(
        self,
        first_texts: Sequence[Sequence[int]],
        embed: Callable[[list[Sequence[int]]], torch.Tensor],
        *args: Any,
        shuffling: str = "neighbours",
        group_size: int = 5,
        search: str = "exact",
        refresh_steps: int | None = None,
        show_progress_bar: bool = False,
        **kwargs: Any,
    ):
        super().__init__(len(first_texts), *args, **kwargs)
        self.first_texts = first_texts
        self.embed = embed
        self.shuffling = shuffling
        self.group_size = group_size
        self.search = search
        self.refresh_steps = refresh_steps
        self.show_progress_bar = show_progress_bar
        self.plan: list[int] = []
        self.plan_epoch: int | None = None
        self.seconds = 0.0

    def save_plan(self, checkpoint: str) -> None:
        plan = {"rows": torch.tensor(self.plan), "epoch": torch.tensor(self.plan_epoch)}
        save_file(plan, os.path.join(checkpoint, PLAN_FILE))

    def arrange(self, rows: Sequence[int], draw: int) -> list[int]:
        """The rows in an order in which similar first texts are adjacent."""
        begin = time.perf_counter()
        by_text: dict[tuple[int, ...], list[int]] = {}
        for row in rows:
            by_text.setdefault(tuple(self.first_texts[row]), []).append(row)
        texts = list(by_text)
        generator = torch.Generator().manual_seed(draw)
        if self.shuffling == "words":
            groups = group_by_words(texts, self.group_size, generator)
        elif self.shuffling == "clusters":
            groups = group_by_clusters(self.embed(texts), self.group_size, generator)
        else:
            embeddings = self.embed(texts)
            groups = group_by_neighbours(
                embeddings, self.group_size, generator, self.show_progress_bar, search=self.search
            )
        rows_of = list(by_text.values())
        ordered = [row for group in groups for text in group for row in rows_of[text]]
        # Cosines may differ in their last bit between devices: a row could be in two batches, and another in none.
        ordered = same_on_all(ordered[::-1])
        self.seconds += time.perf_counter() - begin
        return ordered

    def __iter__(self) -> Iterator[list[int]]:
        if self.plan_epoch != self.epoch:
            self.plan, self.plan_epoch = [], self.epoch
        span = self.rows if self.refresh_steps is None else self.refresh_steps * self.batch_size
        # The seed and the epoch determine all draws of the epoch, so that resuming repeats them.
        draw = (self.seed * 1_000_003 + self.epoch) * 1_000_003
        for number in range(len(self)):
            begin = number * self.batch_size
            if begin >= len(self.plan):
                known = set(self.plan)
                left = [row for row in range(self.rows) if row not in known]
                self.plan += self.arrange(left, draw + begin)[:span]
            batch = self.plan[begin : begin + self.batch_size]
            yield list(local_rows(batch, self.rank, self.world_size))
