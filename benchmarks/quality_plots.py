"""Figures of the quality benchmark, with plotly. Colours of text, axes and grids are the page's, light or dark."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from quality_analyses import Seeded, Setting
from quality_methods import Outcome, Result
from quality_tables import best_inertia

BLUE, ORANGE, GREEN, PURPLE, GREY = "#3b82c4", "#e07b39", "#2a9d74", "#a566b3", "#8a8f98"
BLUES, PURPLES = ["#eaf2fa", "#6aa8de"], ["#f4ecf7", "#b98ac6"]  # light enough for dark figures on them
LINE = 22  # pixels of a row of methods
PANELS_A_ROW = 4


def figure_of_methods(outcomes: dict[str, Outcome], clusters: int) -> go.Figure:
    """Agreement, inertia, marginal entropy and seconds of each method: means, and bars from least to largest."""
    shown = {name: runs for name, runs in outcomes.items() if not isinstance(runs, str)}
    titles = ["agreement with labels", "inertia / best", "marginal entropy, nats", "seconds"]
    figure = make_subplots(1, 4, shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.025)
    for key, title, colour in (("acc", "ACC", BLUE), ("nmi", "NMI", ORANGE), ("ari", "ARI", GREEN)):
        figure.add_trace(_dots(shown, key, 1.0, colour, title), 1, 1)
    figure.add_trace(_dots(shown, "inertia", best_inertia(outcomes), PURPLE), 1, 2)
    figure.add_trace(_dots(shown, "marginal_entropy", 1.0, PURPLE), 1, 3)
    figure.add_trace(_dots(shown, "seconds", 1.0, PURPLE), 1, 4)
    figure.add_vline(math.log(clusters), line={"dash": "dot", "color": GREY, "width": 1.5}, row=1, col=3)
    figure.update_yaxes(categoryorder="array", categoryarray=[*reversed(shown)], type="category")
    figure.update_xaxes(nticks=6)
    figure.update_xaxes(type="log", dtick="D2", row=1, col=4)
    figure.update_xaxes(title_text="dotted: log K, equal sizes", row=1, col=3)
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top"})
    return _finished(figure, 150 + LINE * len(shown), left=190)


def _dots(shown: dict[str, list[Result]], key: str, unit: float, colour: str, legend: str | None = None) -> go.Scatter:
    values = {name: [getattr(run, key) / unit for run in runs] for name, runs in shown.items()}
    means = [_mean(of) for of in values.values()]
    above = [max(of) - mean for of, mean in zip(values.values(), means, strict=True)]
    below = [mean - min(of) for of, mean in zip(values.values(), means, strict=True)]
    return go.Scatter(
        x=means,
        y=[*values],
        error_x={"array": above, "arrayminus": below, "symmetric": False, "thickness": 1.5, "width": 3},
        mode="markers",
        marker={"color": colour, "size": 8},
        name=legend or key,
        showlegend=legend is not None,
        hovertemplate="%{y}: %{x:.4g}<extra></extra>",
    )


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def figure_of_convergence(outcomes: dict[str, Outcome]) -> go.Figure:
    """The objective against the step, each method on its own scale; the first seed's course strong, others faint."""
    shown = {
        name: runs
        for name, runs in outcomes.items()
        if not isinstance(runs, str) and any(run.objective for run in runs)
    }
    rows = max(1, math.ceil(len(shown) / PANELS_A_ROW))
    figure = make_subplots(
        rows, PANELS_A_ROW, subplot_titles=[*shown], horizontal_spacing=0.065, vertical_spacing=0.28 / rows
    )
    for panel, runs in enumerate(shown.values()):
        place = {"row": panel // PANELS_A_ROW + 1, "col": panel % PANELS_A_ROW + 1}
        for seed, run in reversed([*enumerate(runs)]):
            figure.add_trace(
                go.Scatter(
                    x=[*range(1, len(run.objective) + 1)],
                    y=[*run.objective],
                    mode="lines",
                    line={"color": GREY if seed else BLUE, "width": 1.2 if seed else 2.4},
                    opacity=0.6 if seed else 1,
                    showlegend=False,
                    hovertemplate=f"seed {seed}, step %{{x}}: %{{y:.6g}}<extra></extra>",
                ),
                **place,
            )
        if panel + PANELS_A_ROW >= len(shown):
            figure.update_xaxes(title_text="step", **place)
    figure.update_xaxes(type="log", dtick="D2")
    figure.update_yaxes(nticks=6)
    return _finished(figure, 60 + 220 * rows, left=55)


def figure_of_sensitivity(settings: list[Setting]) -> go.Figure:
    """ACC and objective over temperature and balance, the mean over the seeds."""
    titles = ["ACC", "objective reached"]
    figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.12)
    quantities = (("acc", BLUES, 0.44, "%{z:.3f}"), ("objective", PURPLES, 1.0, "%{z:.4g}"))
    for column, (key, scale, bar, text) in enumerate(quantities, start=1):
        figure.add_trace(
            go.Heatmap(
                x=[f"{setting.balance:g}" for setting in settings],
                y=[f"{setting.fraction:g}" for setting in settings],
                z=[_mean(getattr(setting, key)) for setting in settings],
                colorscale=scale,
                texttemplate=text,
                textfont={"color": "#1f2328"},
                colorbar={"x": bar, "thickness": 12, "outlinewidth": 0},
                xgap=1,
                ygap=1,
                hovertemplate="β %{x}, T / T_c %{y}: " + text + "<extra></extra>",
            ),
            1,
            column,
        )
    figure.update_xaxes(type="category", title_text="balance β")
    figure.update_yaxes(type="category", autorange="reversed")
    figure.update_yaxes(title_text="T / T_c", row=1, col=1)
    return _finished(figure, 380, left=60)


def figure_of_initialisation(fits: list[Seeded]) -> go.Figure:
    """Inertia of every seed, beside the best of all, by seeding and number of restarts."""
    methods = [*dict.fromkeys(fit.method for fit in fits)]
    figure = make_subplots(1, len(methods), shared_yaxes=True, subplot_titles=methods, horizontal_spacing=0.03)
    best = min(value for fit in fits for value in fit.inertia)
    for fit in fits:
        column = methods.index(fit.method) + 1
        values, name = [value / best for value in fit.inertia], f"{fit.init}, n_init {fit.n_init}"
        several = fit.n_init > 1
        points = go.Scatter(
            x=values,
            y=[name] * len(values),
            mode="markers",
            marker={"color": ORANGE if several else BLUE, "size": 9, "opacity": 0.55},
            showlegend=False,
            hovertemplate="%{y}: %{x:.5f}<extra></extra>",
        )
        mean = go.Scatter(
            x=[_mean(values)],
            y=[name],
            mode="markers",
            marker={"symbol": "line-ns-open", "color": ORANGE if several else BLUE, "size": 18, "line": {"width": 2}},
            showlegend=False,
            hovertemplate="%{y}: mean %{x:.5f}<extra></extra>",
        )
        figure.add_traces([points, mean], rows=1, cols=column)
    names = [*dict.fromkeys(f"{fit.init}, n_init {fit.n_init}" for fit in fits)]
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=names[::-1])
    figure.update_xaxes(matches="x", nticks=6, title_text="inertia / best")
    return _finished(figure, 130 + 32 * len(names), left=150)


def _finished(figure: go.Figure, height: int, left: int) -> go.Figure:
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": left, "r": 16, "t": 40, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="closest",
        font={"size": 12},
    )
    figure.update_annotations(font_size=13)
    return figure


def as_json(figure: go.Figure) -> str:
    """The figure for a script element of a page."""
    text: Any = figure.to_json()
    return text.replace("<", "\\u003c")
