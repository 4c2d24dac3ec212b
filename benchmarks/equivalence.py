"""Where SR-K-means is mutual information, and where it is not: the paper's equivalence, measured.

    python benchmarks/equivalence.py DATA.parquet --column embedding --clusters 20 --metric cosine

The equivalence (Jabi et al., arXiv 1810.04246) drops the log-partition of the posterior p. For sr-kmeans fitted at
several temperatures T = lambda K this prints, of the model's two readings q and p:

- L_SR - L_MI without log-partition, and (1/T) sum (q_hat - 1/K) ||theta'||^2, which it must equal;
- the log-partition that was dropped, 2/N sum log sum_j exp(theta_j z_i + b_j), and the full L_MI;
- the part of the rows whose argmax q is argmax p;
- the full L_MI that objective mi reaches at the same lambda, and how far its clusters agree with those of q (NMI).

Without DATA: scikit-learn's digits.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score

import raydkm
from raydkm.api.fit import fit_model
from raydkm.config import configure
from raydkm.data.parquet import ParquetTable

FRACTIONS = (0.02, 0.05, 0.1, 0.25, 0.5, 0.9)


def readings(model: raydkm.Model, x: np.ndarray) -> dict[str, float]:
    """The terms of both losses at the model's targets q, in float64."""
    z = model.frame()(torch.from_numpy(x)).double()
    theta, temperature = model.prototypes.double(), model.temperature
    q = torch.log_softmax(-torch.cdist(z, theta).square() / temperature + model.log_s, 1)
    share = q.exp().mean(0)
    scores = z @ (theta / temperature).T + 0.5 * share.log()
    partition = torch.logsumexp(scores, 1)
    q_exp, negative_entropy = q.exp(), float((q.exp() * q).sum(1).mean())
    distortion = float((q_exp * torch.cdist(z, theta).square()).sum(1).mean())
    penalty = float(theta.square().sum()) / (temperature * model.clusters)  # lambda sum ||theta' / T||^2
    balance = float((share * share.log()).sum())
    dropped = 2 * float(partition.mean())
    without = -2 * float((q_exp * scores).sum(1).mean()) + balance + negative_entropy + penalty
    sr = (distortion - float(z.square().sum(1).mean())) / temperature + negative_entropy
    return {
        "difference": sr - without,
        "predicted": float(((share - 1 / model.clusters) * theta.square().sum(1)).sum()) / temperature,
        "dropped": dropped,
        "full": without + dropped,
        "agree": float((q.argmax(1) == scores.argmax(1)).double().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*")
    parser.add_argument("--column", default="pixels")
    parser.add_argument("--clusters", type=int, default=10)
    parser.add_argument("--metric", default="euclidean")
    arguments = parser.parse_args()
    if arguments.data:
        table = ParquetTable.open(arguments.data, arguments.column)
        x = np.concatenate([block.rows for block in table.read()])
    else:
        x = load_digits().data
    options = {"clusters": arguments.clusters, "metric": arguments.metric}
    print(f"{len(x):,} x {x.shape[1]}, K = {arguments.clusters}, {arguments.metric}")
    print(
        "| T / T_c | L_SR − L_MI without log-partition | predicted | log-partition | full L_MI | argmax p = argmax q |",
        end="",
    )
    print(" full L_MI of `mi` | NMI of their clusters |")
    print("|---|---|---|---|---|---|---|---|")
    for fraction in FRACTIONS:
        model, labels = fit_model(x, *configure({**options, "temperature": f"{fraction}Tc", "tol": 1e-8}))
        found = readings(model, x)
        lam = model.temperature / arguments.clusters
        mi = {**options, "objective": "mi", "temperature": model.temperature, "lam": lam}
        peer, others = fit_model(x, *configure(mi))
        reached = peer.history[-1]["objective"] - float(np.log(arguments.clusters))
        print(
            f"| {fraction} | {found['difference']:.6f} | {found['predicted']:.6f} | {found['dropped']:.3f} | "
            f"{found['full']:.3f} | {100 * found['agree']:.1f} % | {reached:.3f} | "
            f"{normalized_mutual_info_score(labels, others):.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
