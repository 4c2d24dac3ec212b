"""What is known from the last pass saves work, and changes no label and no bit of a sum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raydkm.ops.batch import Batch
from raydkm.ops.exact import Statistics
from raydkm.ops.frame import Frame
from raydkm.ops.hard import HardAssignment
from raydkm.ops.last import LastPass
from raydkm.ops.leading import Directions
from raydkm.ops.scores import Scores
from raydkm.ops.statistics import Bounds, cluster_fields, hard_statistics
from tests.unit.ops.test_hard import CASES, PRECISIONS, reference, scores_of

ROWS, DIM, CLUSTERS = 600, 48, 300


def some_moved(g: torch.Generator, prototypes: Tensor, rows: Tensor, part: float, how: str) -> Tensor:
    """Prototypes of which a part has moved: a bit, onto rows, or onto other prototypes."""
    moves = torch.rand(len(prototypes), generator=g) < part
    others = torch.randint(len(prototypes), (len(prototypes),), generator=g)
    to = {
        "ulp": torch.nextafter(prototypes, torch.tensor(torch.inf)),
        "rows": rows[torch.randint(len(rows), (len(prototypes),), generator=g)],
        "others": prototypes[others],
    }[how]
    return torch.where(moves[:, None], to, prototypes)


@pytest.mark.parametrize("how", ["ulp", "rows", "others"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_labels_are_those_of_float64_whatever_has_moved(case, precision: str, how: str) -> None:
    g = torch.Generator().manual_seed(5)
    z, prototypes = case(g, ROWS, DIM, CLUSTERS)
    last, directions = LastPass(), Directions.of(z)
    tile = last.tile(0, len(z))
    for part in (0.0, 0.0, 0.02, 0.5, 1.0):
        prototypes = some_moved(g, prototypes, z, part, how)
        scores = scores_of(prototypes)
        labels = HardAssignment(scores, precision, directions, last)(z, tile)
        assert torch.equal(labels, reference(scores, z))
        tile.labels.copy_(labels)
        tile.labels[::7] = -1


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_rows_may_begin_at_any_prototype(case, precision: str) -> None:
    g = torch.Generator().manual_seed(6)
    z, prototypes = case(g, ROWS, DIM, CLUSTERS)
    last, scores = LastPass(), scores_of(prototypes)
    tile = last.tile(0, len(z))
    tile.labels.copy_(torch.randint(CLUSTERS, (len(z),), generator=g))
    assert torch.equal(HardAssignment(scores, precision, last=last)(z, tile), reference(scores, z))


def test_rows_of_prototypes_that_stand_still_are_compared_with_moved_ones_alone() -> None:
    g = torch.Generator().manual_seed(0)
    prototypes = torch.randn(CLUSTERS, DIM, generator=g)
    z = prototypes[torch.randint(CLUSTERS, (ROWS,), generator=g)] + 0.1 * torch.randn(ROWS, DIM, generator=g)
    last, scores = LastPass(), scores_of(prototypes)
    tile = last.tile(0, len(z))
    wrong = HardAssignment(scores, last=last)(z, tile).roll(1).int()
    tile.labels.copy_(wrong)  # no prototype has moved: these are kept without a look at any
    assert torch.equal(HardAssignment(scores, last=last)(z, tile), wrong.long())
    other = scores_of(torch.cat((prototypes[:1] + 0.5, prototypes[1:])))
    found = HardAssignment(other, last=last)(z, tile)
    expected = torch.where(reference(other, z) == 0, 0, wrong)
    kept = (wrong != 0) & (
        (reference(other, z) == 0) | (other(z).gather(1, wrong.long()[:, None])[:, 0] > other(z)[:, 0])
    )
    assert torch.equal(found[kept], expected[kept].long())


def test_a_score_has_moved_with_its_bias_alone() -> None:
    prototypes, last = torch.randn(10, 3), LastPass()
    last.moved(scores_of(prototypes))
    log_s = torch.zeros(10, dtype=torch.float64)
    log_s[4] = 1.0
    assert last.moved(scores_of(prototypes, log_s, 1.0)).tolist() == [4]


@pytest.mark.parametrize("weighted", [False, True])
def test_sums_go_on_from_those_of_the_last_pass(weighted: bool) -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(5000, 9, generator=g)
    weight = torch.rand(5000, generator=g, dtype=torch.float64) if weighted else None
    batches = [Batch(at, x[at : at + 4096], None if weight is None else weight[at : at + 4096]) for at in (0, 4096)]
    fields = cluster_fields(40, Bounds(len(x), 1.0, x.abs().amax(0).double()))
    frame, last, directions = Frame.identity("euclidean", 9), LastPass(), Directions.of(x)
    prototypes = x[:40].clone()

    def summed(scores: Scores, into: Statistics, known: LastPass | None) -> Statistics:
        local = hard_statistics(scores, frame, precision="auto", directions=directions, last=known)
        for batch in batches:
            local(batch, into)
        return into

    for step in range(4):
        scores = scores_of(prototypes)
        found = summed(scores, last.begin(fields), last)
        assert torch.equal(found.buffer, summed(scores, Statistics(fields), None).buffer)
        prototypes[step::5] += 0.3
    last.forget()
    assert not last.known
    assert int(last.begin(fields).buffer.abs().sum()) == 0


def test_how_many_directions_pay_is_asked_less_and_less_often() -> None:
    directions, asked = Directions.of(torch.randn(50, 8)), []
    for step in range(1, 17):
        chosen = directions.chosen(lambda some, step=step: asked.append(step) or some.first(3))
        assert chosen is not None
    assert asked == [1, 2, 4, 8, 16]
