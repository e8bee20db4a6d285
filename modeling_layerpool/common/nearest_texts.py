"""Search for the texts whose embeddings are nearest, exactly or with FAISS."""

import importlib.util

import numpy as np
import torch

from .errors import InputError


class ExactSearch:
    """Finds the nearest free texts by computing all similarities."""

    def __init__(self, units: torch.Tensor):
        self.units = units

    def __call__(self, texts: list[int], free: torch.Tensor, count: int) -> torch.Tensor:
        """
        Args:
            texts: indices of the texts whose neighbors are searched.
            free (`torch.LongTensor` of shape `(f,)`): indices of the texts that may be found.
            count: number of neighbors of each text, at most f.

        Returns:
            Free texts by decreasing cosine, `(len(texts), count)`, on the CPU; -1 where none was found.
        """
        pool = self.units[free.to(self.units.device)]
        return free[(self.units[texts] @ pool.T).topk(count, dim=1).indices.cpu()]


class FaissSearch:
    """
    Finds near free texts with an inverted-file index of FAISS: usually the nearest ones, in a fraction of the time.

    The index has about `4 * sqrt(u)` cells, of which the nearest `CELLS` are searched.

    Raises:
        InputError: FAISS is not installed.
    """

    CELLS = 32
    # Texts and rounds for learning a cell. FAISS warns if there are fewer texts.
    TEXTS_FOR_A_CELL = 39
    ROUNDS = 4

    def __init__(self, units: torch.Tensor):
        require_faiss()
        import faiss  # an extra

        self.faiss = faiss
        self.units = units.cpu().numpy()
        size, width = self.units.shape
        cells = max(1, min(round(4 * size**0.5), size // self.TEXTS_FOR_A_CELL))
        self.index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
        self.index.cp.max_points_per_centroid = self.TEXTS_FOR_A_CELL
        self.index.cp.niter = self.ROUNDS
        self.index.train(self.units)
        self.index.add(self.units)

    def __call__(self, texts: list[int], free: torch.Tensor, count: int) -> torch.Tensor:
        is_free = np.zeros(len(self.units), dtype=bool)
        is_free[free.numpy()] = True
        selector = self.faiss.IDSelectorBitmap(np.packbits(is_free, bitorder="little"))
        parameters = self.faiss.SearchParametersIVF(sel=selector, nprobe=self.CELLS)
        return torch.from_numpy(self.index.search(self.units[texts], count, params=parameters)[1])


NEIGHBOUR_SEARCHES = {"exact": ExactSearch, "faiss": FaissSearch}


def require_faiss() -> None:
    """Raise an `InputError` if FAISS is not installed."""
    if importlib.util.find_spec("faiss") is None:
        raise InputError("neighbour_search=faiss needs FAISS: pip install faiss-cpu")
