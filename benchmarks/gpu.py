"""The hard and the soft step on a GPU, beside plain torch and flash-kmeans (pip install flash-kmeans) on the same data.

    python benchmarks/gpu.py [--shapes 1000000x768x4096,...] [--repeats 5] [--json gpu.json]

Prints one Markdown table for each shape rows x dimensions x prototypes, and writes all figures as JSON. Times are
medians of interleaved repetitions, by CUDA events. "GF/s" counts 2NKd for a hard step and 4NKd for a soft one, whatever
was multiplied to get there, and "of bf16" is its part of the rate of a large torch.mm in bf16, measured first. Labels
are compared with those of float64 scores, posteriors with float64 posteriors, on the first rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from raydkm.ops.batch import BATCH_ROWS, Batch
from raydkm.ops.exact import Grid, Statistics
from raydkm.ops.frame import Frame
from raydkm.ops.scores import Scores
from raydkm.ops.statistics import Bounds, cluster_fields

DEVICE = torch.device("cuda")
SHAPES = "200000x384x1024,100000x768x4096,400000x128x256,1000000x128x65536,1000000x768x4096,10000000x768x4096"
CHECKED = 100_000  # rows whose labels are compared
POSTERIORS = 64  # rows whose posteriors are compared
TILE = 2**26  # scores that plain torch holds at once


@dataclass
class Figure:
    """What one way of computing a step took on one shape."""

    shape: str
    step: str
    way: str
    milliseconds: float
    gflops: float
    of_bf16: float
    peak_mib: float
    accuracy: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--fraction", type=float, default=0.1, help="temperature of the soft step, of T_c")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: torch sees no CUDA device, and nothing here can be measured on a CPU")
    if find_spec("triton") is None:
        sys.exit("benchmarks/gpu.py: Triton is not installed; it comes with CUDA builds of torch")
    torch.backends.cuda.matmul.allow_tf32 = False
    rate = bf16_rate(arguments.repeats)
    name = torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}, bf16 torch.mm {rate / 1e12:.0f} TFLOP/s\n")
    figures: list[Figure] = []
    for shape in arguments.shapes.split(","):
        rows, dim, clusters = map(int, shape.split("x"))
        room = torch.cuda.mem_get_info()[0]
        if 5 * rows * dim + 2**32 > room:
            print(f"{shape}: left out, it needs more than the {room / 2**30:.0f} GiB that are free\n")
            continue
        z, prototypes, temperature = data(rows, dim, clusters, arguments.fraction)
        of_shape = [
            *hard(shape, z, prototypes, rate, arguments.repeats),
            *sums_by_label(shape, z, prototypes, arguments.repeats),
            *soft(shape, z, prototypes, temperature, rate, arguments.repeats),
        ]
        figures += of_shape
        print(table(of_shape))
        arguments.json.write_text(
            json.dumps({"device": name, "bf16": rate, "figures": [asdict(figure) for figure in figures]}, indent=1)
        )
        del z, prototypes
        torch.cuda.empty_cache()


def table(figures: list[Figure]) -> str:
    lines = ["| shape | step | way | ms | GF/s | of bf16 | peak extra MiB | accuracy |", "|---" * 8 + "|"]
    lines += [
        f"| {f.shape} | {f.step} | {f.way} | {f.milliseconds:.2f} | {f.gflops:.0f} | {f.of_bf16:.2f} "
        f"| {f.peak_mib:.0f} | {f.accuracy} |"
        for f in figures
    ]
    return "\n".join(lines) + "\n"


def data(rows: int, dim: int, clusters: int, fraction: float) -> tuple[Tensor, Tensor, float]:
    """Rows around overlapping centres with a decaying spectrum, prototypes near some of them, a temperature."""
    g = torch.Generator(DEVICE).manual_seed(0)
    spectrum = torch.arange(1, dim + 1, device=DEVICE).pow(-0.5)
    centres = torch.randn(clusters, dim, generator=g, device=DEVICE)
    z = torch.empty(rows, dim, device=DEVICE)
    for part in z.split(2**16):
        noise = torch.randn(part.shape, generator=g, device=DEVICE)
        part.copy_((centres[torch.randint(clusters, (len(part),), generator=g, device=DEVICE)] + noise) * spectrum)
    sample = z[: min(rows, 2**16)].double()
    mean = sample.mean(0)
    z -= mean.float()
    covariance = torch.cov(sample.T).view(dim, dim)
    collapse = 2 * float(torch.linalg.eigvalsh(covariance)[-1])
    return z, centres * spectrum - mean.float(), fraction * collapse


def timed(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median milliseconds and peak MiB beyond what was there of each way, in turns after one to warm up."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    peaks = dict.fromkeys(ways, 0.0)
    for turn in range(repeats + 1):
        for way, run in ways.items():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            stop.record()
            torch.cuda.synchronize()
            if turn:
                times[way].append(start.elapsed_time(stop))
            peaks[way] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return {way: (statistics.median(times[way]), peaks[way]) for way in ways}


def bf16_rate(repeats: int) -> float:
    a, b = torch.randn(2, 8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    milliseconds, _ = timed({"mm": lambda: a @ b}, repeats)["mm"]
    return 2 * 8192**3 / (milliseconds / 1e3)


def hard(shape: str, z: Tensor, prototypes: Tensor, rate: float, repeats: int) -> list[Figure]:
    """Labels alone, and whole steps: labels, counts and sums."""
    from raydkm.ops.fused import fused_hard_statistics
    from raydkm.ops.triton_hard import FusedLabels

    frame = Frame.identity("euclidean", z.shape[1])
    scores = Scores.of(prototypes.double().cpu(), torch.zeros(len(prototypes), dtype=torch.float64), 0.0, frame, DEVICE)
    fields = cluster_fields(len(prototypes), Bounds(len(z), 1.0, bound(z)))
    tile = max(1, TILE // len(prototypes))

    def torch_labels(dtype: torch.dtype) -> Tensor:
        theta, bias = scores.prototypes.to(dtype), scores.bias.to(dtype)
        return torch.cat([torch.addmm(bias, part.to(dtype), theta.T).argmax(1) for part in z.split(tile)])

    def step(rows: int) -> None:
        local, into = fused_hard_statistics(scores, frame), Statistics(fields, device=DEVICE)
        for first in range(0, len(z), rows):
            local(Batch(first, z[first : first + rows], None), into)

    labels: dict[str, Callable[[], Tensor]] = {
        "raydkm": lambda: FusedLabels(scores)(z),
        "torch float32": lambda: torch_labels(torch.float32),
        "torch bf16": lambda: torch_labels(torch.bfloat16),
    }
    steps: dict[str, Callable[[], object]] = {
        "raydkm": lambda: step(len(z)),
        "raydkm, 65,536 rows at once": lambda: step(2**16),
        "raydkm, a canonical batch at once": lambda: step(BATCH_ROWS),
    }
    if find_spec("flash_kmeans") is not None:
        from flash_kmeans.assign_euclid_triton import euclid_assign_triton
        from flash_kmeans.centroid_update_triton import triton_centroid_update_sorted_euclid

        squares = torch.cat([part.square().sum(1) for part in z.split(2**16)])[None]

        def flash(rows: Tensor, *, update: bool) -> Tensor:
            centroids = scores.prototypes.to(rows.dtype)[None]
            found = euclid_assign_triton(rows, centroids, squares)
            if update:
                triton_centroid_update_sorted_euclid(rows, found, centroids)
            return found[0].long()

        for rows in (z[None], z.bfloat16()[None]):  # rounded before, as it would be stored
            way = f"flash-kmeans {str(rows.dtype).split('.')[1]}"
            labels[way] = partial(flash, rows, update=False)
            steps[way] = partial(flash, rows, update=True)
    expected = scores.costs.labels(z[:CHECKED])
    accuracy = {way: f"{int((run()[:CHECKED] != expected).sum())} labels wrong" for way, run in labels.items()}
    assign = FusedLabels(scores)
    doubts = [float(assign.screen(z[:CHECKED], split_product=both)[1].double().mean()) for both in (False, True)]
    accuracy["raydkm"] += f"; {doubts[0]:.2%} of rows rechecked, {doubts[1]:.3%} in float64"
    flops = 2 * len(z) * prototypes.numel()
    return [
        *(
            figure(shape, "labels", way, took, flops, rate, accuracy[way])
            for way, took in timed(labels, repeats).items()
        ),
        *(figure(shape, "hard step", way, took, flops, rate) for way, took in timed(steps, repeats).items()),
    ]


def sums_by_label(shape: str, z: Tensor, prototypes: Tensor, repeats: int) -> list[Figure]:
    """The exact sums of a hard step by themselves: atomic additions of all elements, or of runs of sorted labels."""
    from raydkm.ops.segment import segment_sums

    clusters = len(prototypes)
    labels = torch.randint(clusters, (len(z),), generator=torch.Generator(DEVICE).manual_seed(1), device=DEVICE)
    grid = Grid.holding(len(z) * bound(z))

    def by_index() -> Tensor:
        sums = torch.zeros(clusters, z.shape[1], dtype=torch.int64, device=DEVICE)
        for part, where in zip(z.split(2**16), labels.split(2**16), strict=True):
            sums.index_add_(0, where, grid.units(part))
        return sums

    def by_sort() -> Tensor:
        return segment_sums(labels, z, None, grid, clusters)

    same = {
        "index_add_": torch.equal(by_index(), by_index()),
        "sort": torch.equal(by_sort(), by_index()),
    }
    ways = timed({"index_add_": by_index, "sort": by_sort}, repeats)
    return [
        figure(shape, "sums by label", way, took, 0, 1.0, f"{'same' if same[way] else 'OTHER'} bits")
        for way, took in ways.items()
    ]


def soft(shape: str, z: Tensor, prototypes: Tensor, temperature: float, rate: float, repeats: int) -> list[Figure]:
    """Whole soft steps, and what their two products alone take in float32."""
    from raydkm.ops.fused import fused_soft_statistics
    from raydkm.ops.triton_soft import FusedSoft

    zero = torch.zeros(len(prototypes), dtype=torch.float64)
    scores = Scores.of(prototypes.double(), zero, temperature, Frame.identity("euclidean", prototypes.shape[1]), DEVICE)
    frame = Frame.identity("euclidean", z.shape[1])
    fields = cluster_fields(len(prototypes), Bounds(len(z), 1.0, bound(z)))
    tile = max(1, TILE // len(prototypes))

    def fused(rows: int, *, low: bool = False) -> None:
        local, into = fused_soft_statistics(scores, frame, low_precision_sums=low), Statistics(fields, device=DEVICE)
        for first in range(0, len(z), rows):
            local(Batch(first, z[first : first + rows], None), into)

    def torch_posteriors(part: Tensor) -> Tensor:
        return torch.softmax(scores(part).mul_(2 / temperature), 1)

    def plain() -> None:
        sums, counts = torch.zeros_like(prototypes), torch.zeros(len(prototypes), device=DEVICE)
        for part in z.split(tile):
            q = torch_posteriors(part)
            counts += q.sum(0)
            sums.addmm_(q.T, part)

    def products() -> None:
        sums = torch.zeros_like(prototypes)
        for part in z.split(tile):
            sums.addmm_((part @ prototypes.T).T, part)

    ways: dict[str, Callable[[], object]] = {
        "raydkm": lambda: fused(len(z)),
        "raydkm, sums in bf16": lambda: fused(len(z), low=True),
        "raydkm, a canonical batch at once": lambda: fused(BATCH_ROWS),
        "torch float32": plain,
        "torch float32, its products alone": products,
    }
    few = z[:POSTERIORS]
    exact = torch.addmm(scores.bias.double(), few.double(), scores.prototypes.double().T) * (2 / temperature)
    expected, sums = torch.softmax(exact, 1), FusedSoft(scores, low_precision_sums=False)
    one = torch.ones(1, dtype=torch.float64, device=DEVICE)
    found = torch.cat([sums(row[None], one)[0] for row in few])  # the counts of one row are its posterior
    accuracy = {
        "raydkm": f"posteriors within {float((found - expected).abs().max()):.1e}",
        "torch float32": f"posteriors within {float((torch_posteriors(few) - expected).abs().max()):.1e}",
    }
    flops = 4 * len(z) * prototypes.numel()
    return [
        figure(shape, "soft step", way, took, flops, rate, accuracy.get(way, ""))
        for way, took in timed(ways, repeats).items()
    ]


def bound(z: Tensor) -> Tensor:
    """max |z_ij| of each column, (d,) float64 on the CPU."""
    low, high = z.aminmax(dim=0)
    return torch.maximum(-low, high).double().cpu()


def figure(
    shape: str, step: str, way: str, took: tuple[float, float], flops: float, rate: float, accuracy: str = ""
) -> Figure:
    milliseconds, peak = took
    per_second = flops / (milliseconds / 1e3)
    return Figure(shape, step, way, milliseconds, per_second / 1e9, per_second / rate, peak, accuracy)


if __name__ == "__main__":
    main()
