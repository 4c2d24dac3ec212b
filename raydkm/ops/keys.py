"""Random draws keyed by what a row holds, not by where or when it arrives.

A row's key is -log(u) / w, with w its weight and u in (0, 1) from a hash of its values, its weight and the seed. The
m smallest keys are a weighted sample without replacement (Efraimidis and Spirakis 2006; bottom-k sketches with
exponential ranks, Cohen and Kaplan 2007) that does not depend on the order of rows, their files, their dtype or the
number of workers. Identical rows share their key, and one of them stands for all; but where a canonical batch has many
of them they are told apart, by the number of that batch, so that a value as frequent as that is surely drawn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: From so many identical rows in a canonical batch on (0.2 % of it) each has a key of its own.
MANY_COPIES = 8

#: Numbers that are hashed at a time.
AT_ONCE = 2**18

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection whose every output bit is mixed."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def content_hashes(rows: NDArray, weight: NDArray[np.float64] | None) -> NDArray[np.uint64]:
    """Hash (n,) of each row's values and weight; rows (n, d) of any numeric dtype, which does not matter."""
    size = max(1, AT_ONCE // rows.shape[1])
    parts = [slice(start, start + size) for start in range(0, max(1, len(rows)), size)]
    return np.concatenate([_hashes(rows[part], None if weight is None else weight[part]) for part in parts])


def _hashes(rows: NDArray, weight: NDArray[np.float64] | None) -> NDArray[np.uint64]:
    single = np.ascontiguousarray(rows, dtype=np.float32)
    octets = single.view(np.uint8)
    if octets.shape[1] % 8:
        octets = np.pad(octets, ((0, 0), (0, -octets.shape[1] % 8)))
    hashes = _sums_of_words(octets.view(np.uint64), first=1)
    if weight is not None:
        hashes += _sums_of_words(np.ascontiguousarray(weight).view(np.uint64)[:, None], first=-1)
    if rows.dtype == np.float64 and (rest := rows - single).any():  # what float32 does not hold, exactly
        hashes += _sums_of_words(np.ascontiguousarray(rest).view(np.uint64), first=2**32)
    return splitmix64(hashes)


def _sums_of_words(words: NDArray[np.uint64], first: int) -> NDArray[np.uint64]:
    """A sum (n,) of the mixed words of each row (n, m); zeros add nothing, columns are numbered from `first` on."""
    odd = splitmix64((np.arange(words.shape[1]) + first).astype(np.uint64) * _GOLDEN) | np.uint64(1)
    mixed = words * _GOLDEN
    mixed ^= mixed >> np.uint64(32)
    mixed *= odd
    return mixed.sum(axis=1, dtype=np.uint64)


def draw_keys(
    hashes: NDArray[np.uint64], weight: NDArray[np.float64] | None, seed: int, batch: int
) -> NDArray[np.float64]:
    """Positive keys (n,) of the rows of canonical batch number `batch`; infinite where the weight is zero."""
    order = np.argsort(hashes, kind="stable")
    ranked = hashes[order]
    starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
    copies = np.diff(np.append(starts, len(hashes)))
    if (copies >= MANY_COPIES).any():
        rank = np.arange(len(hashes)) - np.repeat(starts, copies)
        place = splitmix64(rank.astype(np.uint64) * _GOLDEN + np.uint64(batch))
        hashes = hashes.copy()
        hashes[order] += np.where((rank > 0) & np.repeat(copies >= MANY_COPIES, copies), place, np.uint64(0))
    salt = splitmix64(np.array([seed], dtype=np.uint64) + _GOLDEN)
    uniform = ((splitmix64(hashes ^ salt) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    keys = -np.log(uniform)
    if weight is None:
        return keys
    return np.divide(keys, weight, out=np.full_like(keys, np.inf), where=weight > 0)


def sample_weights(weight: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
    """Weights (m,) that make the rows with keys below `threshold` stand for all rows: w / P(key < threshold).

    With an infinite threshold, that is, where all rows are sampled, these are the rows' own weights.
    """
    return weight / -np.expm1(-weight * threshold)
