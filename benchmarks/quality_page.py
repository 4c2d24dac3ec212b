"""The page of the quality benchmark: one HTML file that needs no other, and for its tables no JavaScript."""

from __future__ import annotations

import html
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version

import quality_plots as plots
from plotly.offline import get_plotlyjs
from quality_analyses import SENSITIVITY_SEEDS
from quality_methods import Budget
from quality_tables import NOTES, SetReport, Table, table_of_initialisation, table_of_methods, tables_of_sensitivity

TITLE = "Quality of raydkm's objectives"

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --paper: #ffffff; --line: #d8dee4; --row: #f6f8fa;
  --link: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #a0a8b2; --paper: #14171b; --line: #343b44;
  --row: #1c2127; --link: #7db7f0; } }
body { margin: 0 auto; padding: 1.5rem; max-width: 78rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .25rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p, nav { margin: .35rem 0; max-width: 60rem; } .soft { color: var(--soft); } a { color: var(--link); }
nav a { margin-right: 1rem; }
pre { padding: .7rem .9rem; background: var(--row); border: 1px solid var(--line); border-radius: 6px;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; white-space: normal; color: var(--soft); font-weight: 600; }
th:first-child { text-align: left; font-weight: 500; } tbody tr:nth-child(even) { background: var(--row); }
td.why { text-align: left; color: var(--soft); font-style: italic; }
.plot { min-width: 58rem; }
"""

SCRIPT = """
const dark = matchMedia("(prefers-color-scheme: dark)");
function draw() {
  const css = getComputedStyle(document.documentElement);
  const ink = css.getPropertyValue("--ink").trim(), line = css.getPropertyValue("--line").trim();
  for (const place of document.querySelectorAll(".plot")) {
    const figure = JSON.parse(place.nextElementSibling.textContent), layout = figure.layout;
    layout.font.color = ink;
    for (const key of Object.keys(layout).filter(key => /^[xy]axis/.test(key)))
      Object.assign(layout[key], {gridcolor: line, linecolor: line, zeroline: false, automargin: false});
    Plotly.react(place, figure.data, layout, {responsive: true, displayModeBar: false});
  }
}
dark.addEventListener("change", draw);
draw();
"""


def page(reports: list[SetReport], budget: Budget, command: str, *, convergence: bool) -> str:
    """The whole page.

    Parameters
    ----------
    reports : list of SetReport
    budget : Budget
    command : str
        That made it.
    convergence : bool
        Whether to plot the course of the objectives.
    """
    parts: list[str] = []
    for number, report in enumerate(reports):
        parts += _section(report, f"set-{number}", budget, convergence)
    links = "".join(f'<a href="#set-{i}">{html.escape(report.name)}</a>' for i, report in enumerate(reports))
    seeds = f"{budget.seeds} seed{'s' if budget.seeds > 1 else ''}"
    return document(
        TITLE,
        f"""<p>Objectives of raydkm beside scikit-learn and k-means-constrained: same rows, same float32,
same threads, {seeds}, at most {budget.max_steps} steps; GaussianMixture (diagonal covariances) and
k-means-constrained (equal sizes) at most {budget.limit:g} s a fit.</p>
<p class="soft">{html.escape(machine(budget.threads))}</p>
<pre>{html.escape(command)}</pre>
<nav>{links}</nav>
<noscript><p>The plots need JavaScript; the tables do not.</p></noscript>
{chr(10).join(parts)}""",
    )


def document(title: str, body: str) -> str:
    """A page by itself, whose plots are drawn where `SCRIPT` finds them."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{title}</h1>
{body}
<script>{get_plotlyjs()}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def machine(threads: int) -> str:
    """Processor, threads and versions, in one line."""
    packages = ("raydkm", "scikit-learn", "torch", "numpy", "scipy", "plotly")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    cores = f"{threads} threads of {os.cpu_count()} processors"
    return f"{processor()}, {cores}; Python {platform.python_version()}, {versions}"


def processor() -> str:
    """The processor's name, as the system tells it."""
    if sys.platform == "linux":
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _section(report: SetReport, anchor: str, budget: Budget, convergence: bool) -> Iterator[str]:
    yield f'<h2 id="{anchor}">{html.escape(report.name)}</h2>\n<p class="soft">{html.escape(report.described)}</p>'
    yield _wide(table_of_methods(report.outcomes, report.clusters, budget.max_steps))
    yield f'<p class="soft">{html.escape(NOTES)}</p>'
    yield _plot(plots.figure_of_methods(report.outcomes, report.clusters))
    if convergence:
        yield f"<h3>Convergence on {html.escape(report.name)}</h3>"
        yield (
            '<p class="soft">Each method’s own objective after each step, as its history has it, on its own scale; '
            "blue is seed 0. While sr-kmeans is annealed its temperature falls, and its objective with it.</p>"
        )
        yield _plot(plots.figure_of_convergence(report.outcomes))
    if report.sensitivity:
        yield f"<h3>Sensitivity of sr-kmeans to temperature and balance on {html.escape(report.name)}</h3>"
        yield (
            f'<p class="soft">{SENSITIVITY_SEEDS} seeds a cell. T_c is the temperature above which all prototypes '
            "coincide. The objective’s scale depends on T and β: compare it within a cell, not between them.</p>"
        )
        yield _plot(plots.figure_of_sensitivity(report.sensitivity))
        for title, table in tables_of_sensitivity(report.sensitivity).items():
            yield f"<h3>{title}</h3>{_wide(table)}"
    if report.initialisation:
        yield f"<h3>Initialisation on {html.escape(report.name)}</h3>"
        yield (
            f'<p class="soft">A point a seed ({budget.seeds}), a stroke at their mean; blue with one start, orange '
            "with the best of several: raydkm’s restarts are short fits of its seeding sample, scikit-learn’s are "
            "whole fits.</p>"
        )
        yield _plot(plots.figure_of_initialisation(report.initialisation))
        yield _wide(table_of_initialisation(report.initialisation))


def _wide(table: Table) -> str:
    return f'<div class="wide">{table.html()}</div>'


def _plot(figure: plots.go.Figure) -> str:
    height = f'style="height: {figure.layout.height}px"'
    data = f'<script type="application/json">{plots.as_json(figure)}</script>'
    return f'<div class="wide"><div class="plot" {height}></div>{data}</div>'
