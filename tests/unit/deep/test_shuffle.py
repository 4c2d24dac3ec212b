"""Shuffled rows: every row once an epoch, in an order that does not depend on the workers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raydkm.deep.shuffle import Shuffle, permuted


@given(total=st.integers(1, 3000), key=st.integers(0, 2**40))
def test_it_is_a_permutation(total: int, key: int) -> None:
    found = permuted(torch.arange(total), total, key)
    assert torch.equal(found.sort().values, torch.arange(total))


def test_keys_give_orders_that_have_nothing_to_do_with_each_other() -> None:
    total = 20_000
    orders = [permuted(torch.arange(total), total, key).double() for key in range(4)]
    orders.append(torch.arange(total).double())
    correlation = np.corrcoef(torch.stack(orders).numpy()) - np.eye(5)
    assert abs(correlation).max() < 4 / total**0.5


@pytest.mark.parametrize("cuts", [[0, 1000], [0, 300, 1000], [0, 0, 999, 1000]])
def test_workers_share_the_steps_of_an_epoch(cuts: list[int]) -> None:
    alone = Shuffle(1000, 0, 1000, 96, seed=3)
    parts = [Shuffle(1000, start, stop, 96, seed=3) for start, stop in pairwise(cuts)]
    seen = []
    for step in range(alone.steps):
        whole = alone.share(epoch=2, step=step)
        shares = [part.share(epoch=2, step=step) for part in parts]
        together = torch.full((whole.size,), -1)
        for share in shares:
            assert share.size == whole.size
            together[share.slots] = share.rows
        assert torch.equal(together, whole.rows)
        assert 96 <= whole.size < 192
        seen.append(whole.rows)
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(1000))


def test_epochs_differ() -> None:
    shuffle = Shuffle(1000, 0, 1000, 100, seed=0)
    assert not torch.equal(shuffle.share(0, 0).rows, shuffle.share(1, 0).rows)


def test_fewer_rows_than_a_batch_are_one_step() -> None:
    shuffle = Shuffle(10, 0, 10, 512, seed=0)
    assert shuffle.steps == 1
    assert shuffle.share(0, 0).size == 10
