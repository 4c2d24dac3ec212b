"""Kernels under Triton's interpreter: on the CPU, in float32 that holds bf16 values."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(INTERPRETED, reason="this is the process that it starts")
def test_kernels_under_the_interpreter() -> None:
    """Runs this file again in a process of its own, for Triton to be imported as an interpreter there alone."""
    pytest.importorskip("triton", reason="Triton is not installed: its kernels are not tested")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(Path(__file__))]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.skipif(INTERPRETED, reason="an interpreter compiles nothing")
def test_kernels_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an H100, with the assembler that comes with Triton; no GPU takes part."""
    triton = pytest.importorskip("triton", reason="Triton is not installed: its kernels are not compiled")
    from triton.backends.compiler import GPUTarget

    from raydkm.ops import segment, triton_hard, triton_product, triton_soft

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {
        **dict.fromkeys(("high", "low", "z_high", "z_low", "theta_high", "theta_low"), "*bf16"),
        **dict.fromkeys(("x", "z", "norms", "bias", "gaps", "logits", "largest", "normaliser", "entropy"), "*fp32"),
        **dict.fromkeys(("factor", "counts", "sums"), "*fp32"),
        **dict.fromkeys(("rows", "dim", "padded", "clusters"), "i32"),
        **dict.fromkeys(("weight", "scale"), "*fp64"),
        "labels": "*i32",
        "order": "*i64",
    }
    tile = {"width": 128, "block_n": 128, "block_k": 128}
    kernels = [
        (triton_product._split, {"width": 128, "block_n": 128, "block_d": 64, "both": True}),
        (triton_hard._best, {**tile, "block_d": 64, "split": False}),
        (triton_hard._best, {**tile, "block_d": 32, "split": True}),
        (triton_soft._softmax, {**tile, "block_d": 32}),
        (triton_soft._sums, {**tile, "block_n": 64, "block_d": 128, "batch_rows": 4096, "split": True}),
        (segment._segment_sums, {"weighted": True, "block_n": 64, "block_d": 64}),
    ]
    for kernel, constants in kernels:
        names = kernel.arg_names
        known = {**types, "labels": "*i64", "sums": "*i64"} if kernel is segment._segment_sums else types
        signature = {name: "constexpr" if name in constants else known[name] for name in names}
        aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in names if signature[name][0] == "*"}
        source = triton.compiler.ASTSource(
            kernel, signature, {(names.index(name),): value for name, value in constants.items()}, aligned
        )
        options = {"num_warps": 4 if kernel is segment._segment_sums else 8, "num_stages": 3}
        if kernel is triton_soft._sums:
            options["num_stages"] = 2
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert compiled.metadata.shared <= 227 * 1024
        if kernel.__name__ in ("_best", "_softmax", "_sums"):
            assert "wgmma" in compiled.asm["ptx"]


if INTERPRETED:
    import numpy as np
    import torch
    from torch import Tensor

    from raydkm.ops.batch import BATCH_ROWS, Batch
    from raydkm.ops.exact import Grid, Statistics
    from raydkm.ops.frame import Frame
    from raydkm.ops.fused import fused_hard_statistics
    from raydkm.ops.scores import Scores
    from raydkm.ops.segment import segment_sums
    from raydkm.ops.statistics import Bounds, cluster_fields, hard_statistics, soft_statistics
    from raydkm.ops.triton_hard import FusedLabels
    from raydkm.ops.triton_product import BLOCK_N, split
    from raydkm.ops.triton_soft import FusedSoft

    CPU = torch.device("cpu")

    def scores_of(prototypes: Tensor, temperature: float = 0.0, log_s: Tensor | None = None) -> Scores:
        log_s = torch.zeros(len(prototypes), dtype=torch.float64) if log_s is None else log_s
        return Scores.of(prototypes.double(), log_s, temperature, Frame.identity("euclidean", prototypes.shape[1]))

    def reference(scores: Scores, z: Tensor) -> Tensor:
        """Float64 scores (n, K), added up in the same order for every prototype."""
        theta = scores.prototypes.double()
        return torch.stack([(row * theta).sum(1) for row in z.double()]) + scores.bias.double()

    def first_best(score: Tensor) -> Tensor:
        return (score == score.amax(1, keepdim=True)).int().argmax(1)

    def normal(g: torch.Generator, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    def scattered(g, n, d, k):
        return normal(g, n, d), normal(g, k, d)

    def duplicated(g, n, d, k):
        half = normal(g, k // 2 + 1, d)
        return normal(g, n, d), torch.cat((half, half))[:k]

    def one_ulp_apart(g, n, d, k):
        half = normal(g, k // 2 + 1, d)
        return normal(g, n, d), torch.cat((half, torch.nextafter(half, torch.tensor(torch.inf))))[:k]

    def exact_ties(g, n, d, k):
        return torch.randint(-2, 3, (n, d), generator=g) / 2, torch.randint(-1, 2, (k, d), generator=g).float()

    def midway(g, n, d, k):
        prototypes = normal(g, k, d)
        pairs = torch.randint(k, (2, n), generator=g)
        return (prototypes[pairs[0]] + prototypes[pairs[1]]) / 2, prototypes

    def huge(g, n, d, k):
        return 1e14 * normal(g, n, d), 1e14 * normal(g, k, d)

    def norms_overflow(g, n, d, k):
        return 1e25 * normal(g, n, d), 1e8 * normal(g, k, d)

    def rows_of_many_magnitudes(g, n, d, k):
        return 10.0 ** torch.randint(-6, 7, (n, 1), generator=g) * normal(g, n, d), normal(g, k, d)

    def one_huge_prototype(g, n, d, k):
        prototypes = normal(g, k, d)
        prototypes[0] *= 1e6
        return normal(g, n, d), prototypes

    def denormal(g, n, d, k):
        return 1e-40 * normal(g, n, d), 1e-40 * normal(g, k, d)

    def squares_underflow(g, n, d, k):
        return 1e-20 * normal(g, n, d), 1e-20 * normal(g, k, d)

    def tiny_rows_of_huge_prototypes(g, n, d, k):
        prototypes = torch.nn.functional.normalize(normal(g, k, d), dim=1)
        return 1e-22 * normal(g, n, d), 1e14 * prototypes

    def far_offset(g, n, d, k):
        return 1000 + normal(g, n, d), 1000 + normal(g, k, d)

    def tight_bundle(g, n, d, k):
        return normal(g, n, d), normal(g, 1, d) + 1e-5 * normal(g, k, d)

    def all_zero(g, n, d, k):
        return torch.zeros(n, d), torch.zeros(k, d)

    CASES = [
        scattered,
        duplicated,
        one_ulp_apart,
        exact_ties,
        midway,
        huge,
        norms_overflow,
        rows_of_many_magnitudes,
        one_huge_prototype,
        denormal,
        squares_underflow,
        tiny_rows_of_huge_prototypes,
        far_offset,
        tight_bundle,
        all_zero,
    ]
    SHAPES = [(1, 1, 1), (130, 17, 129), (70, 70, 300)]

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_labels_are_the_first_best_of_float64(case, shape: tuple[int, int, int]) -> None:
        z, prototypes = case(torch.Generator().manual_seed(sum(shape)), *shape)
        scores = scores_of(prototypes)
        assert torch.equal(FusedLabels(scores)(z), scores.costs.labels(z))

    def test_labels_follow_balance_scalings() -> None:
        g = torch.Generator().manual_seed(0)
        z, prototypes = scattered(g, 100, 20, 40)
        scores = scores_of(prototypes, 20.0, 3 * torch.randn(40, generator=g, dtype=torch.float64))
        assert torch.equal(FusedLabels(scores)(z), scores.costs.labels(z))

    @pytest.mark.parametrize("case", [scattered, far_offset, rows_of_many_magnitudes, denormal, squares_underflow])
    @pytest.mark.parametrize("split_product", [False, True])
    def test_the_bound_covers_every_score_and_splitting_tightens_it(case, split_product: bool) -> None:
        z, prototypes = case(torch.Generator().manual_seed(1), 50, 40, 30)
        scores = scores_of(prototypes)
        labels = FusedLabels(scores)
        operand, theta = split(z, both=split_product, block=BLOCK_N), labels._theta
        low = operand.high @ theta.high.T
        if split_product:
            low += operand.high @ theta.low.T + operand.low @ theta.high.T
        error = (low[:50, :30] + scores.bias - reference(scores, z)).abs()
        bound = labels.error(operand, split_product=split_product)[:50]
        assert bool((error <= bound[:, None]).all())
        coarse = labels.error(split(z, both=False, block=BLOCK_N), split_product=False)[:50]
        assert not split_product or case is not scattered or bool((bound < coarse / 20).all())

    def test_the_recheck_is_for_few_rows() -> None:
        z, prototypes = scattered(torch.Generator().manual_seed(0), 500, 64, 100)
        labels = FusedLabels(scores_of(prototypes))
        _, unsure = labels.screen(z, split_product=False)
        _, still_unsure = labels.screen(z, split_product=True)
        assert 0 < int(unsure.sum()) < 150
        assert int(still_unsure.sum()) < 5

    @pytest.mark.parametrize("dim", [1, 16, 33, 70])
    def test_parts_add_up_and_are_bf16(dim: int) -> None:
        z = normal(torch.Generator().manual_seed(0), 37, dim)
        operand = split(z, both=True, block=64)
        high, low = operand.high[:37, :dim], operand.low[:37, :dim]
        for part in (high, low):
            assert torch.equal(part.bfloat16().float(), part)
        assert bool(((high - z).abs() <= 2.0**-8 * z.abs()).all())
        assert bool(((high + low.double() - z).abs() <= 2.0**-16 * z.abs()).all())
        lost = torch.linalg.vector_norm(z - high - low, dim=1)
        torch.testing.assert_close(operand.norms[2, :37], lost)
        assert not operand.high[37:].any()
        assert not operand.high[:, dim:].any()

    def embeddings(g: torch.Generator, n: int, d: int, k: int) -> tuple[Tensor, Tensor, float]:
        """Centred rows with a decaying spectrum, prototypes among them, and 0.1 T_c."""
        z = normal(g, n, d) / torch.arange(1, d + 1).sqrt()
        prototypes = z[:k] + 0.1 * normal(g, k, d) / torch.arange(1, d + 1).sqrt()
        return z, prototypes, 0.2 * float(torch.linalg.eigvalsh(torch.cov(z.T.double()).view(d, d))[-1])

    def posteriors(scores: Scores, z: Tensor) -> Tensor:
        return torch.softmax(2 / scores.temperature * reference(scores, z), 1)

    @pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 2), (300, 33, 200), (200, 96, 129)], ids=str)
    @pytest.mark.parametrize("low_precision_sums", [False, True])
    def test_soft_sums_are_those_of_float64(shape: tuple[int, int, int], low_precision_sums: bool) -> None:
        g = torch.Generator().manual_seed(0)
        n, d, k = shape
        z, prototypes, temperature = embeddings(g, max(2, n, k), d, k)
        z, weight = z[:n], 3 * torch.rand(n, generator=g, dtype=torch.float64)
        scores = scores_of(prototypes, temperature, 0.3 * torch.randn(k, generator=g, dtype=torch.float64))
        counts, sums, entropy = FusedSoft(scores, low_precision_sums=low_precision_sums)(z, weight)
        q = posteriors(scores, z)
        target = weight[:, None] * q
        assert counts.shape == (1, k)
        assert sums.shape == (1, k, d)
        error = (sums[0] - target.T @ z.double()).abs()
        size = target.T @ z.double().abs()
        assert bool((error <= (2.0**-7 if low_precision_sums else 1e-3) * size + 1e-6).all())
        torch.testing.assert_close(counts[0].double(), target.sum(0), rtol=1e-3, atol=1e-6)
        expected = -(target * torch.log(q.clamp(min=1e-300))).sum()
        torch.testing.assert_close(entropy[0], expected, rtol=1e-4, atol=1e-5)

    def test_posteriors_at_a_tenth_of_the_collapse_temperature_are_within_a_thousandth() -> None:
        z, prototypes, temperature = embeddings(torch.Generator().manual_seed(2), 400, 200, 150)
        scores = scores_of(prototypes, temperature)
        soft, expected = FusedSoft(scores, low_precision_sums=False), posteriors(scores, z)
        for i in range(3):  # the counts of one row are its posterior
            counts, _, _ = soft(z[i : i + 1], torch.ones(1, dtype=torch.float64))
            assert float((counts[0] - expected[i]).abs().max()) < 1e-4
        logits = 2 / temperature * reference(scores, z)
        low = 2 / temperature * (z.bfloat16().double() @ prototypes.bfloat16().double().T + scores.bias)
        assert float((torch.softmax(low, 1) - torch.softmax(logits, 1)).abs().max()) > 1e-3  # one product is not enough

    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
    def test_extreme_logits_stay_finite_and_give_every_row_its_weight(scale: float) -> None:
        z, prototypes = scattered(torch.Generator().manual_seed(0), 40, 5, 9)
        log_s = torch.tensor([0.0] * 8 + [-torch.inf], dtype=torch.float64)
        soft = FusedSoft(scores_of(scale * prototypes, 1e-3, log_s), low_precision_sums=False)
        counts, sums, entropy = soft(scale * z, torch.ones(40, dtype=torch.float64))
        assert float(counts.sum()) == pytest.approx(40, rel=1e-5)
        assert float(counts[0, -1]) == 0
        assert bool(sums.isfinite().all())
        assert -1e-3 <= float(entropy) <= 40 * np.log(9)

    ROWS = BATCH_ROWS + 200

    def batches() -> tuple[Batch, list[Batch]]:
        """All rows as one batch, and as canonical ones."""
        g = torch.Generator().manual_seed(0)
        rows, weight = normal(g, ROWS, 3), 3 * torch.rand(ROWS, generator=g, dtype=torch.float64)
        parts = [
            Batch(first, rows[first : first + BATCH_ROWS].clone(), weight[first : first + BATCH_ROWS].clone())
            for first in range(0, ROWS, BATCH_ROWS)
        ]
        return Batch(0, rows, weight), parts

    @pytest.mark.parametrize("kind", ["hard", "soft"])
    def test_statistics_do_not_depend_on_how_many_batches_come_at_once(
        kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, parts = batches()
        scores = scores_of(normal(torch.Generator().manual_seed(1), 6, 3), 1.0)
        frame = Frame.identity("euclidean", 3)
        bound = whole.rows.abs().amax(0).double()
        fields = cluster_fields(6, Bounds(ROWS, 3.0, bound))
        monkeypatch.setattr("raydkm.ops.statistics.serves", lambda scores: True)
        if kind == "hard":
            local = hard_statistics(scores, frame, precision="auto")
        else:
            local = soft_statistics(scores, frame, bound=bound, precision="auto")
        at_once, apart = Statistics(fields), Statistics(fields)
        local(whole, at_once)
        for batch in reversed(parts):
            local(batch, apart)
        assert torch.equal(at_once.buffer, apart.buffer)
        assert at_once["rows"] == ROWS
        assert float(at_once["counts"].sum()) == pytest.approx(float(whole.weights().sum()), rel=1e-6)
        if kind == "soft":
            q = posteriors(scores, whole.rows) * whole.weights()[:, None]
            torch.testing.assert_close(at_once["counts"], q.sum(0), rtol=1e-4, atol=0)
            torch.testing.assert_close(at_once["sums"], q.T @ whole.rows.double(), rtol=1e-4, atol=1e-2)

    def test_fused_hard_statistics_are_those_of_torch_bit_for_bit() -> None:
        g = torch.Generator().manual_seed(0)
        z, prototypes = scattered(g, 500, 7, 300)
        frame, scores = Frame.identity("euclidean", 7), scores_of(prototypes)
        fields = cluster_fields(300, Bounds(500, 1.0, z.abs().amax(0).double()))
        fused, plain, seen = Statistics(fields), Statistics(fields), []
        batch = Batch(40, z, None)
        fused_hard_statistics(scores, frame, on_labels=lambda first, labels: seen.append((first, labels)))(batch, fused)
        hard_statistics(scores, frame, precision="fp32")(batch, plain)
        assert torch.equal(fused.buffer, plain.buffer)
        assert [first for first, _ in seen] == [40]
        assert torch.equal(torch.cat([labels for _, labels in seen]), first_best(reference(scores, z)))

    @pytest.mark.parametrize("shape", [(1, 1, 1), (300, 20, 7), (200, 65, 400)], ids=str)
    @pytest.mark.parametrize("weighted", [False, True])
    def test_sums_by_sorting_are_those_of_index_add(shape: tuple[int, int, int], weighted: bool) -> None:
        g = torch.Generator().manual_seed(0)
        n, d, k = shape
        z, labels = normal(g, n, d), torch.randint(k, (n,), generator=g)
        weight = torch.rand(n, generator=g, dtype=torch.float64) if weighted else None
        grid = Grid(torch.randint(-5, 45, (d,), generator=g, dtype=torch.int32))
        units = grid.units(z if weight is None else z * weight[:, None])
        expected = torch.zeros(k, d, dtype=torch.int64).index_add_(0, labels, units)
        assert torch.equal(segment_sums(labels, z, weight, grid, k), expected)
