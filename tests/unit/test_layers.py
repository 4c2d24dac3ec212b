"""Imports go strictly down; ray and faiss are imported where the design says, and nowhere else."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import raydkm

ROOT = Path(raydkm.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}

#: Bottom to top. A module imports its own package and packages of lower levels, never a sibling of its level.
LEVELS = {
    "errors": 0,
    "atomic": 1,
    "ops": 1,
    "objectives": 2,
    "features": 2,
    "config": 3,
    "assigner": 4,
    "data": 4,  # writes through atomic
    "model": 5,
    "engine": 6,
    "deep": 7,
    "api": 8,
    "callbacks": 8,
    "serve": 8,
    "estimator": 9,
    "cli": 9,
    "__main__": 10,
    "": 9,  # raydkm/__init__.py
}


def part_of(module: str) -> str:
    """The part of the package (a key of LEVELS) that a module belongs to."""
    return module.partition(".")[2].partition(".")[0]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports, also inside functions, and whether for type checking alone."""

    def walk(node: ast.AST, typing_only: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((f"{node.module}.{alias.name}", typing_only) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.body:
                yield from walk(child, True)
            for child in node.orelse:
                yield from walk(child, typing_only)
        else:
            for child in ast.iter_child_nodes(node):
                yield from walk(child, typing_only)

    yield from walk(ast.parse(path.read_text()), False)


def own(module: str) -> set[str]:
    """The parts of raydkm that a module imports."""
    inside = {name for name, _ in imports(MODULES[module]) if name.partition(".")[0] == "raydkm"}
    return {part_of(name) for name in inside}


def outside(module: str) -> set[str]:
    return {name.partition(".")[0] for name, typing_only in imports(MODULES[module]) if not typing_only}


def is_wiring(module: str) -> bool:
    """Whether it is one that imports ray."""
    return module.startswith(("raydkm.engine.ray_", "raydkm.serve.ray_"))


def test_every_module_has_a_level() -> None:
    assert {part_of(module) for module in MODULES} == set(LEVELS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_strictly_down(module: str) -> None:
    here = part_of(module)
    upwards = {part for part in own(module) - {here} if LEVELS[part] >= LEVELS[here]}
    assert not upwards


@pytest.mark.parametrize("module", [module for module in MODULES if part_of(module) == "ops"])
def test_ops_know_nothing_of_the_rest(module: str) -> None:
    assert own(module) <= {"ops", "errors"}


@pytest.mark.parametrize("module", [module for module in MODULES if part_of(module) == "data"])
def test_data_know_nothing_of_the_engine_and_its_users(module: str) -> None:
    assert own(module) <= {"data", "ops", "errors", "config", "atomic"}


@pytest.mark.parametrize("module", MODULES)
def test_ray_and_faiss_are_imported_in_their_places_alone(module: str) -> None:
    if not is_wiring(module):
        assert "ray" not in outside(module)
    if module != "raydkm.ops.nearest":
        assert "faiss" not in outside(module)


def test_the_places_of_ray_and_faiss_do_import_them() -> None:
    assert "ray" in outside("raydkm.engine.ray_train")
    assert "ray" in outside("raydkm.serve.ray_serve")
    assert "faiss" in outside("raydkm.ops.nearest")


def test_modules_that_import_ray_are_imported_inside_functions_alone() -> None:
    for module, path in MODULES.items():
        if is_wiring(module):
            continue
        tree = ast.parse(path.read_text())
        at_import = {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module is not None}
        assert not {name for name in at_import if is_wiring(name)}, module


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_arrays_and_files_are_fitted_assigned_and_served_where_there_is_no_ray(tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["ray"] = None
import numpy as np, pyarrow as pa, pyarrow.parquet as pq, raydkm
x = np.random.default_rng(0).standard_normal((50, 3))
model = raydkm.fit(x, clusters=3, out={str(tmp_path / "model")!r})
pq.write_table(pa.table({{"x": x.tolist()}}), {str(tmp_path / "x.parquet")!r})
raydkm.fit({str(tmp_path / "x.parquet")!r}, column="x", clusters=3)
report = raydkm.assign(raydkm.load({str(tmp_path / "model")!r}), {str(tmp_path / "x.parquet")!r}, column="x",
                       out={str(tmp_path / "out")!r})
labels = raydkm.DKMeans(3, random_state=0).fit(x).predict(x)
print(report["rows"], len(labels), "ray.train" in sys.modules)
"""
    assert python(code).split() == ["50", "50", "False"]


def test_help_loads_neither_torch_nor_ray() -> None:
    code = """
import sys
from raydkm.cli import main
try:
    main(["fit", "--help"])
except SystemExit as ended:
    assert not ended.code
print(sorted({"torch", "ray", "sklearn", "faiss"} & set(sys.modules)))
"""
    assert python(code).splitlines()[-1] == "[]"


def test_the_public_names_are_found_and_no_other() -> None:
    for name in ("DKMeans", "Model", "assign", "evaluate", "fit", "load"):
        assert name in dir(raydkm)
        assert getattr(raydkm, name).__module__.startswith("raydkm.")
    with pytest.raises(AttributeError, match="no attribute 'cluster'"):
        raydkm.cluster  # noqa: B018
