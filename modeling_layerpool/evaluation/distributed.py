"""Evaluation on the processes of `accelerate launch`: each embeds its share of the texts, and all get all of them."""

import logging
import os

import datasets
import numpy as np
import torch
import torch.distributed as dist
import transformers

from .encoders import Encoder, query_and_document_encoders


def join_processes() -> None:
    """Join the processes that `accelerate launch` (or torchrun) started; nothing if this is the only one.

    On GPUs each process takes its own: "cuda" means it from then on. Embeddings are exchanged between CPUs (gloo).
    Progress and warnings are those of the main process; the others say only what is an error.
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
    """Whether this process is the one that prints and writes: rank 0, or the only one."""
    return not dist.is_initialized() or dist.get_rank() == 0


class ShardedEncoder:
    """An encoder of which each process has a copy, and each text is embedded by one of them.

    Args:
        encoder: the copy of this process.

    [`join_processes`] comes first. Then `encode` has to be called on all processes, with the same texts in the same
    order: texts are dealt out in turn, the longest first, and every process gets all embeddings, float32 (n, d), in
    the order of the texts. With a single process it asks the encoder for all. A process that fails ends: the others
    then lose their connection to it and end as well. Its `queries` and `documents` share the work in the same way.
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
        dist.broadcast(width, src=0)  # a process without texts does not know it
        embeddings = torch.empty(len(sentences), int(width))
        # one share at a time, so that all embeddings are held once
        for source, share in enumerate(shares):
            part = own if source == rank else torch.empty(len(share), int(width))
            dist.broadcast(part, src=source)
            embeddings[share] = part
        return embeddings.numpy()
