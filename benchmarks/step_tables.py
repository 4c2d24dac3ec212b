"""Tables of the step benchmark: medians over the repetitions, and what follows from them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from quality_tables import Table
from step_data import Shape

NOTES = (
    "Medians over the repetitions. GF/s: 2NKd of a hard step over its seconds, 4NKd of a soft one. Of float32, bf16, "
    "int8: GF/s as a part of the rate of torch's product of that precision (tiles of the same d and K, same threads, "
    "same run). Extra memory: the process's peak beyond what it had when the rows were read, of all of the fit. Times: "
    "seconds a step over those of raydkm's step. Inertia: of the final prototypes, over all rows; over the least of "
    "the table. Every method first makes a fit that does not count. raydkm: ADM steps alone; raydkm.fit: the whole "
    "call (survey, moments, final labels) over its steps. Peers: the fit of S steps less one of 1 step, over S - 1 "
    "(difference), or the fit of S steps over S (total), whichever is kinder to the peer. An asterisk: takes no "
    "initial prototypes, and begins at its own."
)


def kinder(one: float | None, total: float, steps: int) -> tuple[float, str]:
    """Seconds a step, by the reading that gives the fewest, and which that is.

    `one` and `total` are the seconds of a fit of one step, if there was one, and of `steps`.
    """
    mean = total / steps
    if one is not None and steps > 1 and 0 < (difference := (total - one) / (steps - 1)) < mean:
        return difference, "difference"
    return mean, "total"


@dataclass(frozen=True)
class Entry:
    """A method's medians; `how` says how its seconds were come by."""

    name: str
    soft: bool
    seconds: float
    extra: float  # bytes
    inertia: float
    how: str
    own_start: bool = False

    @classmethod
    def of(cls, name: str, soft: bool, runs: list[dict[str, Any]], *, own_start: bool = False) -> Entry:
        """From the results of `step_measure.measure`, one a repetition."""

        def middle(key: str) -> float:
            return statistics.median(run[key] for run in runs)

        first = runs[0]
        one = middle("one") if "one" in first else None
        seconds, how = kinder(one, middle("total"), first["steps"])
        if first["scale"] > 1:
            how += f" of 1/{first['scale']:.3g} of the rows"
        return cls(name, soft, seconds * first["scale"], middle("extra"), middle("inertia"), how, own_start)

    def rate(self, shape: Shape) -> float:
        """Operations a second."""
        return shape.work(soft=self.soft) / self.seconds


@dataclass(frozen=True)
class Report:
    """What was found on one shape. `rates` are operations a second by precision, `products` seconds."""

    shape: Shape
    rates: dict[str, float]
    products: float
    entries: list[Entry]
    absent: dict[str, str] = field(default_factory=dict)  # a peer → why it has no figures
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def of(self, name: str) -> Entry | None:
        return next((entry for entry in self.entries if entry.name == name), None)

    def table(self, *, soft: bool) -> Table:
        """One row a method, the fastest step of raydkm first."""
        shown = [entry for entry in self.entries if entry.soft == soft]
        base = self.of("raydkm soft" if soft else "raydkm")
        least = min((entry.inertia for entry in shown), default=1.0)
        headers = ["method", "ms a step", "GF/s", *(f"of {name}" for name in self.rates)]
        headers += ["extra memory, MiB", "times", "inertia", "over least", "seconds from"]
        rows = []
        for entry in shown:
            rate = entry.rate(self.shape)
            rows.append(
                [
                    entry.name + ("*" if entry.own_start else ""),
                    f"{1e3 * entry.seconds:,.1f}",
                    f"{rate / 1e9:,.0f}",
                    *(f"{rate / most:.2f}" for most in self.rates.values()),
                    f"{entry.extra / 2**20:,.0f}",
                    f"{entry.seconds / base.seconds:.2f}" if base else "",
                    f"{entry.inertia:.6g}",
                    f"{entry.inertia / least:.4f}",
                    entry.how,
                ]
            )
        rows += [[name, why] for name, why in self.absent.items() if name.startswith("sklearn.Gauss") == soft]
        return Table(headers, rows)

    def sentences(self) -> list[str]:
        """Rates, checks and the soft step beside its products."""
        rates = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in self.rates.items())
        lines = [f"Matrix rates, GF/s: {rates}."]
        if labels := self.checks.get("labels"):
            lines.append(
                f"Labels: of {labels['rows']:,} rows {labels['differ']} differ from float64, "
                f"{labels['ties']} of them ties within float32 rounding."
            )
        if posteriors := self.checks.get("posteriors"):
            rows, error = posteriors["rows"], posteriors["error"]
            lines.append(f"Posteriors: none of {rows:,} rows is farther from float64 than {error:.1e}.")
        if soft := self.of("raydkm soft"):
            lines.append(
                f"Soft step: {1e3 * soft.seconds:,.1f} ms; its two products alone as float32 torch.mm "
                f"{1e3 * self.products:,.1f} ms; ratio {soft.seconds / self.products:.2f}."
            )
        return lines
