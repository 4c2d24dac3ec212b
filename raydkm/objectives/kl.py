"""DEPICT (Dizaji et al., ICCV 2017): KL(q || p) with a balancing term: l1 = l3 = 1, l2 = 0.

From s = 1 the published closed form of the targets, q ~ p / (sum_j p_jk)^(1/2).

With l2 = 0 nothing asks for certain posteriors: any p of a uniform marginal has a loss of 0 but for the penalty, and a
penalty of weight would pull the fit to the uniform p. So lambda is small here, and the fit stays near where it began.
"""

from raydkm.objectives.logistic import LogisticObjective, Mixture


class KullbackLeibler(LogisticObjective):
    ridge = 1e-3

    @staticmethod
    def mixture(given: Mixture) -> Mixture:
        return 1.0, 0.0, 1.0
