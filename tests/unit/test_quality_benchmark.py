"""The pure parts of `benchmarks/quality.py`: what it parses, measures, tabulates and writes."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import quality_page
from quality_analyses import Seeded, Setting
from quality_data import DIGITS, DataSet, Place
from quality_methods import DEFAULT, Budget, Fit, Method, Outcome, Result, check, entropy, inertia, score
from quality_tables import SetReport, Table, spread, table_of_methods

BUDGET = Budget(seeds=2, threads=1, max_steps=100, limit=5)
VOID = {"meta", "link", "br", "hr", "img", "input"}


def result(acc: float, inertia: float = 10.0, steps: int = 7) -> Result:
    return Result(
        acc=acc,
        nmi=0.5,
        ari=0.4,
        inertia=inertia,
        marginal_entropy=1.0,
        duplicates=0,
        smallest=1000,
        largest=2000,
        steps=steps,
        seconds=0.25,
        objective=(3.0, 2.0, 1.5),
    )


OUTCOMES: dict[str, Outcome] = {
    "kmeans": [result(0.7), result(0.8, inertia=12.0)],
    "sr-kmeans:balance=0.9": [result(0.75), result(0.75, steps=100)],
    "k-means-constrained": "did not end in 5 s (seed 0) <&>",
}


@pytest.mark.parametrize(
    ("text", "paths", "metric"),
    [
        ("so=text.parquet:embedding:label:20:cosine", ("text.parquet",), "cosine"),
        ("so=s3://bucket/a:b=c:embedding:label:20:euclidean", ("s3://bucket/a:b=c",), "euclidean"),
    ],
)
def test_a_data_set_is_parsed_from_its_end(text: str, paths: tuple[str, ...], metric: str) -> None:
    assert Place.parse(text) == Place("so", paths, "embedding", "label", 20, metric)


def test_digits_is_a_data_set_without_a_path() -> None:
    assert Place.parse("digits") is DIGITS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mnist", "NAME=PATH"),
        ("a=b:c:d:10", "NAME=PATH"),
        ("=b:c:d:10:cosine", "NAME=PATH"),
        ("a=b::d:10:cosine", "NAME=PATH"),
        ("a=b:c:d:ten:cosine", "K must be"),
        ("a=b:c:d:0:cosine", "K must be"),
        ("a=b:c:d:10:manhattan", "METRIC must be"),
    ],
)
def test_a_data_set_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Place.parse(text)


def test_a_method_is_parsed_with_its_options() -> None:
    method = Method.parse("sr-kmeans:temperature=0.1Tc,balance=0.9,anneal=40")
    assert (method.kind, method.is_peer) == ("sr-kmeans", False)
    assert method.options == {"temperature": "0.1Tc", "balance": 0.9, "anneal": 40}
    assert isinstance(method.options["anneal"], int)
    assert Method.parse("sklearn.KMeans:n_init=10").is_peer
    assert [Method.parse(name).name for name in DEFAULT] == [*DEFAULT]


@pytest.mark.parametrize("text", ["kmeanz", "", "kmeans:", "kmeans:n_init", "kmeans:=3", "kmeans:n_init=1,"])
def test_a_method_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no method|is not NAME"):
        Method.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kmeans:balnce=1", "did you mean 'balance'"),
        ("kmeans:balance=2", "balance"),
        ("sklearn.KMeans:balance=1", "unexpected keyword argument 'balance'"),
    ],
)
def test_an_impossible_option_is_refused_before_any_work(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(Method.parse(text), 10, "euclidean", BUDGET)


def test_default_methods_are_possible() -> None:
    for name in DEFAULT:
        check(Method.parse(name), 10, "cosine", BUDGET)


def test_spread() -> None:
    assert spread([1.0, 2.0], 2) == "1.50 ± 0.71"
    assert spread([1.0], 3) == "1.000"


def test_figures_of_a_clustering() -> None:
    x = np.array([[0.0, 0], [2, 0], [5, 5], [5, 7]], dtype=np.float32)
    assert inertia(x, np.array([0, 0, 2, 2])) == pytest.approx(4)
    assert entropy(np.array([2, 0, 2])) == pytest.approx(math.log(2))
    assert entropy(np.array([4, 0])) == 0


def test_inertia_of_offset_rows_keeps_its_digits() -> None:
    x = np.array([[1e5], [1e5 + 2]], dtype=np.float32)
    assert inertia(x, np.array([0, 0])) == 2


def test_the_markdown_table_has_a_row_a_method() -> None:
    head, rule, *rows = table_of_methods(OUTCOMES, clusters=10, max_steps=100).markdown().splitlines()
    assert "log K = 2.303" in head
    assert {line.count("|") for line in (head, rule, *rows)} == {11}
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in OUTCOMES]
    assert "| 0.750 ± 0.071 |" in rows[0]
    assert "| 1.1000 ± 0.1414 |" in rows[0]
    assert "1,000–2,000" in rows[0]
    assert "54 ± 66* |" in rows[1]
    assert "did not end in 5 s" in rows[2]


def test_bars_in_cells_do_not_part_markdown_cells() -> None:
    assert Table(["a"], [["k-means||"]]).markdown().endswith("| k-means\\|\\| |")


class Reader(HTMLParser):
    """Checks that tags are closed in order; keeps the rows of every table and the ids."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[str]] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "th" and ("scope", "row") in attrs:
            self.tables[-1].append("")
        self.outside += [value for key, value in attrs if key in ("src", "href") and value and value[0] != "#"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-2:] == ["tr", "th"] and "tbody" in self.open:
            self.tables[-1][-1] += data


def test_the_page_is_whole_and_has_a_row_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_page, "get_plotlyjs", lambda: "/* plotly.js */")
    setting = Setting(0.1, 0.9, lam=2.0, acc=[0.7, 0.8], objective=[-1.0, -2.0], marginal_entropy=[1.0, 1.1])
    seeded = Seeded("kmeans", "k-means||", 4, inertia=[10.0, 11.0], acc=[0.7, 0.8])
    reports = [
        SetReport("digits", "4,000 × 64", 10, OUTCOMES, [setting], [seeded]),
        SetReport("<other>", "4,000 × 64", 10, {"kmeans": OUTCOMES["kmeans"]}),
    ]
    text = quality_page.page(reports, BUDGET, "python benchmarks/quality.py --set 'a&b'", convergence=True)
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    assert reader.outside == []
    methods, *_, other = reader.tables
    assert methods == [*OUTCOMES]
    assert other == ["kmeans"]
    assert len(reader.tables) == 1 + 3 + 1 + 1
    assert "did not end in 5 s (seed 0) &lt;&amp;&gt;" in text
    assert "--set &#x27;a&amp;b&#x27;" in text
    assert text.count("/* plotly.js */") == 1
    assert text.count('class="plot"') == 4 + 2


def test_a_fit_is_scored(rng: np.random.Generator) -> None:
    x = rng.standard_normal((30, 2)).astype(np.float32)
    found = Fit(np.arange(30) % 3, x[[0, 1, 1]], steps=2, seconds=1.0)
    scored = score(found, DataSet("three", x, np.arange(30) % 3, 3, "euclidean", Path("unread")))
    assert (scored.acc, scored.duplicates, scored.smallest) == (1.0, 1, 10)
