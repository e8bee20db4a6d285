"""The registry of objectives: a new one is a file of its own and a line here."""

from .angle import AngleObjective
from .base import Objective
from .distill import DistillObjective
from .info_nce import SupervisedObjective, UnsupervisedObjective
from .pairwise import PairwiseObjective


OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective
    for objective in (
        UnsupervisedObjective,
        SupervisedObjective,
        PairwiseObjective,
        AngleObjective,
        DistillObjective,
    )
}
