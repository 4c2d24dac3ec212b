"""Steps that go on from the last one make the same bits as steps that do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raydkm.config import configure
from raydkm.data.source import RowSource
from raydkm.engine import loop
from raydkm.engine.comm import Solo
from raydkm.engine.fit import Fitted, fit_rows

CPU = torch.device("cpu")


def fitted(x: np.ndarray, weight: np.ndarray | None, threads: int, repeats: bool, **options) -> Fitted:
    config, *_ = configure(
        {"objective": "kmeans", "max_steps": 12, "n_init": 1, "seed_rows": 300, "seed": 1, **options}
    )
    source = RowSource.from_array(x, weight)
    source.repeats = repeats
    return fit_rows(source, Solo(), config, threads=threads, device=CPU)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"balance": 0.5},
        {"max_share": 0.02},
        {"empty": "farthest"},
        {"empty": "keep"},
        {"metric": "cosine"},
    ],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_fit_is_the_same_whether_or_not_labels_are_kept(
    options: dict, weighted: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    centres = 4 * rng.standard_normal((60, 16))
    x = (centres[rng.integers(60, size=9000)] + rng.standard_normal((9000, 16))).astype(np.float32)
    weight = rng.random(9000) if weighted else None
    known: list[bool] = []
    begin = loop.LastPass.begin
    monkeypatch.setattr(loop.LastPass, "begin", lambda self, fields: known.append(self.known) or begin(self, fields))
    one = fitted(x, weight, 2, repeats=True, clusters=200, **options)
    assert known.count(True) == one.state.step - 1  # in all steps after the first
    known.clear()
    other = fitted(x, weight, 1, repeats=False, clusters=200, **options)
    assert known == []
    assert torch.equal(one.state.prototypes, other.state.prototypes)
    assert torch.equal(one.state.log_s, other.state.log_s)
    assert [entry["objective"] for entry in one.history] == [entry["objective"] for entry in other.history]
    assert one.state.step > 3
