"""MI-ADM: L2-regularised mutual information (Jabi et al., arXiv 1810.04246): l1 = l2 = l3 = 1.

With l2 = l3 the two cross entropies make -(2/N) sum q log p, and targets are q ~ p^2 s with beta = 1/2; from s = 1 the
published closed form q ~ p^2 / (sum_j p_jk^2)^(1/2).
"""

from raydkm.objectives.logistic import LogisticObjective, Mixture


class MutualInformation(LogisticObjective):
    @staticmethod
    def mixture(given: Mixture) -> Mixture:
        return 1.0, 1.0, 1.0
