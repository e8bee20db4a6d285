"""Evaluation with `accelerate launch`: each process embeds its share of the texts, and all get all embeddings."""

import logging
import os

import datasets
import numpy as np
import torch
import torch.distributed as dist
import transformers

from .encoders import Encoder, query_and_document_encoders


def join_processes() -> None:
    """Join the processes that `accelerate launch` (or torchrun) started. Does nothing if this is the only one.

    Each process takes a GPU of its own, which "cuda" then refers to. The CPUs exchange the embeddings (gloo). Only the
    main process shows progress and warnings.
    """
    if dist.is_initialized() or not dist.is_torchelastic_launched():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("gloo")
    if not is_main_process():
        logging.disable(logging.WARNING)
        transformers.utils.logging.disable_progress_bar()
        datasets.disable_progress_bars()


def is_main_process() -> bool:
    """Whether this process prints and writes: rank 0, or the only process."""
    return not dist.is_initialized() or dist.get_rank() == 0


class ShardedEncoder:
    """An encoder with a copy in each process, of which each embeds a share of the texts.

    Args:
        encoder: the copy of this process.

    Call [`join_processes`] first, and `encode` in all processes with the same texts in the same order. The processes
    take texts in turn, the longest first, and all get all embeddings, float32 (n, d), in the order of the texts. A
    single process embeds all texts. If a process fails, the others lose the connection to it and end too. `queries`
    and `documents` share their work in the same way.
    """

    def __init__(self, encoder: Encoder):
        self.encoder = encoder
        of_queries, of_documents = query_and_document_encoders(encoder)
        self.queries = self if of_queries is encoder else ShardedEncoder(of_queries)
        self.documents = self if of_documents is encoder else ShardedEncoder(of_documents)

    def encode(self, sentences: list[str]) -> np.ndarray:
        if not dist.is_initialized():
            return self.encoder.encode(sentences)
        rank, processes = dist.get_rank(), dist.get_world_size()
        order = sorted(range(len(sentences)), key=lambda index: -len(sentences[index]))
        shares = [order[start::processes] for start in range(min(processes, len(order)))]
        own = torch.zeros(0, 0)
        if rank < len(shares):
            part = self.encoder.encode([sentences[index] for index in shares[rank]])
            own = torch.from_numpy(np.ascontiguousarray(part, np.float32))
        width = torch.tensor(own.shape[1])
        dist.broadcast(width, src=0)  # a process without texts does not know the width
        embeddings = torch.empty(len(sentences), int(width))
        # One share at a time holds all embeddings in memory only once.
        for source, share in enumerate(shares):
            part = own if source == rank else torch.empty(len(share), int(width))
            dist.broadcast(part, src=source)
            embeddings[share] = part
        return embeddings.numpy()
