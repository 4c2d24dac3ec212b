from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydkm.errors import ConfigError
from raydkm.features.stages import STAGES, Stage, dims_of, parse

stages = st.sampled_from(sorted(set(STAGES) - {"neighbours"})).flatmap(
    lambda name: st.builds(
        Stage,
        st.just(name),
        {"never": st.none(), "always": st.integers(1), "maybe": st.none() | st.integers(1)}[STAGES[name]],
    )
)


@given(st.lists(stages, min_size=1), st.sampled_from(["", " "]))
def test_what_is_written_is_read(written: list[Stage], space: str) -> None:
    assert parse(f",{space}".join(map(str, written))) == tuple(written)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", r"stage '': must be one of center, standardize, .*, neighbours"),
        ("center,", "stage '': must be one of"),
        ("PCA:3", "stage 'PCA': must be one of"),
        ("pca", "pca: say how many dimensions, as pca:64"),
        ("neighbours", "neighbours: say how many hops, as neighbours:1"),
        ("center:3", "center:3: center takes no number"),
        ("pca:0", "'0' is no positive number of dimensions"),
        ("rff:-2", "'-2' is no positive"),
        ("rff:2.5", "'2.5' is no positive"),
        ("lda:", "'' is no positive"),
        ("neighbours:2,center", "neighbours can only be the last stage"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse(text)


@pytest.mark.parametrize(
    ("text", "dims"),
    [
        ("center,unit,whiten", (7, 7, 7)),
        ("pca:7,pca:3,rff:500,neighbours:4", (7, 3, 500, 500)),
        ("lda", (4,)),
        ("lda:2,nystrom:9", (2, 9)),
        ("pca:3,lda", (3, 3)),
    ],
)
def test_dimensions_after_each_stage(text: str, dims: tuple[int, ...]) -> None:
    assert dims_of(parse(text), dim=7, clusters=5) == dims


@pytest.mark.parametrize(
    ("text", "clusters", "told"),
    [
        ("pca:8", 5, "pca:8: there are only 7 dimensions"),
        ("pca:3,pca:4", 5, "pca:4: there are only 3 dimensions"),
        ("lda:5", 5, "lda:5: 5 clusters in 7 dimensions have at most 4"),
        ("lda", 1, "at least 2 clusters"),
    ],
)
def test_more_dimensions_than_there_are_are_refused(text: str, clusters: int, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        dims_of(parse(text), dim=7, clusters=clusters)


def test_reading_stages_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from raydkm.features.stages import parse; print(parse('lda')[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("lda\n", 0), done.stderr
