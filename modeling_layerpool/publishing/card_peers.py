"""Published and measured scores of other encoders, for the cards of encoders of their size."""

from collections.abc import Mapping
from typing import Any, NamedTuple


# STS test sets by their usual name and number of pairs: other numbers of pairs belong to other sets of that name.
PAIRS = {"sts12": 3108, "sts13": 1500, "sts14": 3750, "sts15": 3000, "sts16": 1186, "stsb": 1379, "sickr": 4927}
# A model is of the same size if neither has more than this many times the parameters of the other.
SIZE_RATIO = 1.5

_SIMCSE = "[Gao et al. 2021](https://arxiv.org/abs/2104.08821), table 5"


class Peer(NamedTuple):
    """An encoder, its number of parameters, and its Spearman correlations (x 100) on the sets of `PAIRS`."""

    name: str
    parameters: int
    scores: Mapping[str, float]
    source: str


PEERS = (
    Peer(
        "all-MiniLM-L6-v2",
        22_713_216,
        {"stsb": 82.03, "sickr": 77.15},
        "measured with `run_evaluation.py`",
    ),
    Peer(
        "unsup-simcse-bert-base-uncased",
        109_482_240,
        dict(zip(PAIRS, (68.40, 82.41, 74.38, 80.91, 78.56, 76.85, 72.23), strict=True)),
        _SIMCSE,
    ),
    Peer(
        "sup-simcse-bert-base-uncased",
        109_482_240,
        dict(zip(PAIRS, (75.30, 84.67, 80.19, 85.40, 80.82, 84.25, 80.39), strict=True)),
        _SIMCSE,
    ),
)


def peers_on(sts: Mapping[str, Mapping[str, Any]], parameters: int) -> tuple[list[str], list[Peer]]:
    """
    The sets that were scored and that other encoders of this size were scored on, and these encoders.

    Args:
        sts: the scores of each STS set by its name, with their number of `"pairs"`.
        parameters: the number of parameters of the model that was scored.
    """
    names = [name for name, scores in sts.items() if PAIRS.get(name) == scores.get("pairs")]
    peers = [
        peer
        for peer in PEERS
        if 1 / SIZE_RATIO <= peer.parameters / parameters <= SIZE_RATIO and peer.scores.keys() & set(names)
    ]
    return [name for name in names if any(name in peer.scores for peer in peers)], peers
