"""Soft and regularised k-means, SR-K-means (Jabi et al., arXiv 1810.04246), T = lambda K.

    L_SR = (1/(lambda K N)) [ sum q ||z - theta'||^2 - sum ||z||^2 ] + (1/N) sum q log q + gamma KL(q_hat || u)

z is measured from the frame's origin, on which only the constant sum ||z||^2 depends. Soft k-means minimises the
same function times T; the two differ in how their objective is scaled, and in the discriminative reading of the
model: theta_k = theta'_k / (lambda K), b_k = log(q_hat_k) / 2.
"""

from raydkm.objectives.distance import DistanceObjective


class SRKMeans(DistanceObjective):
    def loss(self, distortion: float, entropy: float, imbalance: float, temperature: float) -> float:
        return distortion / temperature - entropy + imbalance

    def constant(self, temperature: float) -> float:
        return -self.second_moment / temperature
