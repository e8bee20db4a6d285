"""Where objectives are listed: a new one is a file of its own and a line here."""

from .contrastive import SupervisedObjective, UnsupervisedObjective
from .objective import Objective
from .pairwise import PairwiseObjective


OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective for objective in (UnsupervisedObjective, SupervisedObjective, PairwiseObjective)
}
