"""Random draws keyed by what a row holds, not by where or when it arrives.

A row's key is a hash of its bytes, its weight and the seed. The rows with the smallest keys are a uniform sample
without replacement that does not depend on the order of rows, their files or the number of workers. Identical
rows in one canonical batch are told apart by their rank among each other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Key of rows that must not be drawn (weight zero).
NEVER = np.int64(2**63 - 1)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection whose every output bit is mixed."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def content_hashes(rows: NDArray, weight: NDArray[np.float64] | None) -> NDArray[np.uint64]:
    """Hash (n,) of each row's bytes and weight; rows (n, d) of any numeric dtype."""
    octets = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
    if octets.shape[1] % 8:
        octets = np.pad(octets, ((0, 0), (0, -octets.shape[1] % 8)))
    words = octets.view(np.uint64)
    odd = splitmix64(np.arange(1, words.shape[1] + 2, dtype=np.uint64) * _GOLDEN) | np.uint64(1)
    mixed = words * _GOLDEN
    mixed ^= mixed >> np.uint64(32)
    mixed *= odd[:-1]
    hashes = mixed.sum(axis=1, dtype=np.uint64)
    if weight is not None:
        hashes += np.ascontiguousarray(weight).view(np.uint64) * odd[-1]
    return splitmix64(hashes)


def draw_keys(hashes: NDArray[np.uint64], seed: int, weight: NDArray[np.float64] | None) -> NDArray[np.int64]:
    """Non-negative random keys (n,) of one batch's rows, fixed by the hashes and the seed."""
    order = np.argsort(hashes, kind="stable")
    ranked = hashes[order]
    starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
    if len(starts) < len(hashes):  # some rows are identical
        rank = np.arange(len(hashes)) - np.repeat(starts, np.diff(np.append(starts, len(hashes))))
        hashes = hashes.copy()
        hashes[order] += rank.astype(np.uint64) * _GOLDEN
    salt = splitmix64(np.array([seed], dtype=np.uint64) + _GOLDEN)
    keys = (splitmix64(hashes ^ salt) >> np.uint64(1)).astype(np.int64)
    if weight is not None:
        keys[weight == 0] = NEVER
    return keys
