"""The objectives. A new one is a file beside these, a line here and a row in the parametrised tests."""

from raydkm.objectives.base import Objective, State, Terms
from raydkm.objectives.distance import DistanceObjective
from raydkm.objectives.kmeans import KMeans
from raydkm.objectives.soft_kmeans import SoftKMeans
from raydkm.objectives.sr_kmeans import SRKMeans

OBJECTIVES: dict[str, type[DistanceObjective]] = {
    "kmeans": KMeans,
    "soft-kmeans": SoftKMeans,
    "sr-kmeans": SRKMeans,
}

__all__ = ["OBJECTIVES", "Objective", "State", "Terms"]
