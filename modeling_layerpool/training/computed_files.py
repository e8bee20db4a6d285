"""Files of values that all processes of a run compute together, once."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from accelerate import PartialState

from ..common.computed_file import ComputedFile
from ..common.text_embeddings import EmbeddingFile, IdentifiedEncoder, TextEmbeddings
from .batching import local_rows
from .distributed import errors_of_all, same_on_all


# Folders in an output folder. Pushes to the Hub leave out names with an underscore.
STATES_FOLDER, EMBEDDINGS_FOLDER = "_states", "_embeddings"

logger = logging.getLogger(__name__)


def compute_together(file: ComputedFile, who: str, show_progress_bar: bool = True) -> None:
    """
    Compute a file unless it is complete. Each process computes a part of it, and all of them must call this.

    Args:
        who: what computes the values, for a message: `"The encoder"`.
    """
    file.path = same_on_all(file.path)
    folder = file.path.parent
    if not same_on_all(not file.is_complete()):
        logger.info(f"The {file.CONTENT} of {file} are read from {folder}.")
        return
    logger.info(f"{who} computes the {file.CONTENT} of {file} into {folder}, once.")
    state = PartialState()
    file.part = same_on_all(file.part)
    own = local_rows(range(file.shape[0]), state.process_index, state.num_processes)
    with file.complete() if state.is_main_process else nullcontext():
        state.wait_for_everyone()  # the main process has reserved the space
        with errors_of_all():
            file.fill(own.start, own.stop, state.is_main_process and show_progress_bar)
    state.wait_for_everyone()


def embed_texts(
    texts: Iterable[str],
    encoders: Mapping[str, Sequence[IdentifiedEncoder]],
    folder: str | Path,
    *,
    show_progress_bar: bool = True,
) -> TextEmbeddings:
    """
    Embeddings of texts by other encoders, each computed once and then read from a file.

    Args:
        texts: the texts, which may repeat.
        encoders: the encoders of each group, for example `{"teacher": [load_encoder(name)]}`.
        folder: folder of the files, which runs on the same texts can share.
        show_progress_bar: show a progress bar while embeddings are computed.

    Raises:
        InputError: the embeddings do not fit on the disk, or are not finite.
    """
    distinct = list(dict.fromkeys(texts))
    files: dict[str, list[Path]] = {}
    for group, of_group in encoders.items():
        files[group] = []
        for encoder in of_group:
            file = EmbeddingFile(encoder, distinct, folder)
            compute_together(file, f"The {group}", show_progress_bar)
            files[group].append(file.path)
    return TextEmbeddings(distinct, files)
