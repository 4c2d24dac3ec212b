"""Soft k-means at a fixed temperature: the free energy of Rose, Gurewitz and Fox (1990).

F = (1/N) sum q ||z - theta'||^2 + (T/N) sum q log q + T gamma KL(q_hat || u)
"""

from raydkm.objectives.distance import DistanceObjective


class SoftKMeans(DistanceObjective):
    def loss(self, distortion: float, entropy: float, imbalance: float, temperature: float) -> float:
        return distortion + temperature * (imbalance - entropy)
