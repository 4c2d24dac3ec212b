"""The objectives. A new one is a file beside these, a line here and a row in the parametrised tests."""

from raydkm.objectives.base import Objective, Setting, State, Terms
from raydkm.objectives.kl import KullbackLeibler
from raydkm.objectives.kmeans import KMeans
from raydkm.objectives.mi import MutualInformation
from raydkm.objectives.sinkhorn import Sinkhorn
from raydkm.objectives.soft_kmeans import SoftKMeans
from raydkm.objectives.sr_kmeans import SRKMeans
from raydkm.objectives.tim import TransductiveInformation

OBJECTIVES: dict[str, type[Objective]] = {
    "kmeans": KMeans,
    "soft-kmeans": SoftKMeans,
    "sr-kmeans": SRKMeans,
    "mi": MutualInformation,
    "kl": KullbackLeibler,
    "tim": TransductiveInformation,
    "sinkhorn": Sinkhorn,
}

__all__ = ["OBJECTIVES", "Objective", "Setting", "State", "Terms"]
