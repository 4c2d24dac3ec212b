"""k-means: hard targets, the limit T -> 0 (Lloyd 1982).

With balance, labels are argmin_k ||z - theta'_k||^2 - T log s_k: the temperature is the price scale of the
scalings, as in frequency-sensitive competitive learning (Banerjee and Ghosh 2004).
"""

from raydkm.objectives.distance import DistanceObjective


class KMeans(DistanceObjective):
    hard = True

    def loss(self, distortion: float, entropy: float, imbalance: float, temperature: float) -> float:
        return distortion + temperature * imbalance
