from __future__ import annotations

import json

import numpy as np
import pytest

from raydkm.engine.assign import Assignment
from raydkm.serve import schemas
from raydkm.serve.schemas import AssignReply, reply_json


@pytest.mark.parametrize("top", [None, 3])
@pytest.mark.parametrize("rows", [1, 7, 8, 50])
def test_a_reply_in_parts_is_the_whole_reply(monkeypatch: pytest.MonkeyPatch, rows: int, top: int | None) -> None:
    monkeypatch.setattr(schemas, "REPLY_ROWS", 7)
    rng = np.random.default_rng(0)
    found = Assignment(
        rng.integers(0, 9, (rows, top or 1)).astype(np.int32),
        rng.random((rows, top or 1), np.float32),
        rng.random(rows, np.float32),
        rng.random(rows, np.float32),
    )
    reply = AssignReply.model_validate(json.loads(reply_json(found, "abc", top)), strict=True)
    assert reply.model == "abc"
    assert (reply.cluster, reply.posterior) == (found.clusters[:, 0].tolist(), found.posteriors[:, 0].tolist())
    assert (reply.distance, reply.entropy) == (found.distance.tolist(), found.entropy.tolist())
    assert reply.top_clusters == (None if top is None else found.clusters.tolist())
    assert reply.top_posteriors == (None if top is None else found.posteriors.tolist())
