"""The page of the scaling benchmark: log-log plots with fitted lines, in one HTML file that needs no other."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from quality_page import document
from quality_plots import BLUE, GREY, ORANGE, as_json

if TYPE_CHECKING:
    from scaling import Line


TITLE = "Cost of a step"
COLOURS = {"kmeans": BLUE, "sr-kmeans": ORANGE}


def page(lines: list[Line], names: dict[str, str], described: str) -> str:
    """The whole page."""
    plot = figure(lines, names)
    return document(
        TITLE,
        f"""<p>{html.escape(described)}. Points: median milliseconds of a step. Lines: least squares of the
logarithms, with their slopes; below them, by how much each time lies off its line.</p>
<div class="wide"><div class="plot" style="height: {plot.layout.height}px"></div>
<script type="application/json">{as_json(plot)}</script></div>""",
    )


def figure(lines: list[Line], names: dict[str, str]) -> go.Figure:
    """One column an axis: above, times and fitted lines; below, residuals in percent."""
    axes = list(dict.fromkeys(line.axis for line in lines))
    plot = make_subplots(
        2, len(axes), subplot_titles=axes, row_heights=[0.72, 0.28], vertical_spacing=0.1, horizontal_spacing=0.05
    )
    for line in lines:
        column, colour = axes.index(line.axis) + 1, COLOURS[line.objective]
        x, milliseconds = [*line.sizes], [1e3 * seconds for seconds in line.seconds]
        dots = {"mode": "markers", "marker": {"color": colour, "size": 8}}
        plot.add_trace(
            go.Scatter(x=x, y=milliseconds, name=names[line.objective], showlegend=column == 1, **dots), 1, column
        )
        if len(x) > 1:
            stroke = {"mode": "lines", "line": {"color": colour, "width": 1.5}, "showlegend": False}
            plot.add_trace(go.Scatter(x=x, y=[1e3 * seconds for seconds in line.fitted], **stroke), 1, column)
            off = [100 * (at / fit - 1) for at, fit in zip(line.seconds, line.fitted, strict=True)]
            plot.add_trace(go.Scatter(x=x, y=off, showlegend=False, **dots), 2, column)
            slope = {"text": f"slope {line.fit[0]:.2f}", "showarrow": False, "font": {"color": colour}}
            below = 0.08 * list(names).index(line.objective)
            plot.add_annotation(x=0.04, y=0.97 - below, xref="x domain", yref="y domain", row=1, col=column, **slope)
    for column in range(1, len(axes) + 1):
        ticks = sorted({size for line in lines if line.axis == axes[column - 1] for size in line.sizes})
        plot.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{size:,}" for size in ticks], col=column)
    plot.update_yaxes(type="log", row=1)
    plot.update_yaxes(title_text="ms", row=1, col=1)
    plot.update_yaxes(title_text="off the line, %", row=2, col=1)
    plot.add_hline(0, line={"color": GREY, "width": 1}, row=2, col="all")
    plot.update_layout(
        template="none",
        height=560,
        margin={"l": 55, "r": 16, "t": 40, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 12},
        legend={"orientation": "h", "x": 0, "y": -0.12, "yanchor": "top"},
    )
    return plot
