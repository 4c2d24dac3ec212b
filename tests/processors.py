"""Run the unit tests as other processors would, and on data moved by one unit in the last place.

    python tests/processors.py                          every restriction
    python tests/processors.py avx2 -k discriminants    one of them, with pytest's arguments

Each library is restricted by its own variable. Numba compiles anew, into a cache of the restriction.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from numpy._core._multiarray_umath import __cpu_dispatch__

ROOT = Path(__file__).parent.parent

#: Kernels of NumPy that need AVX-512.
_NUMPY_AVX512 = [name for name in __cpu_dispatch__ if "512" in name or name == "X86_V4"]

_NO_AMX = {
    "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
    "NUMBA_CPU_NAME": "znver4",  # loops as an AMD processor with AVX-512 has them
    "NUMBA_CPU_FEATURES": "-sse4a",  # which other makers' processors lack
}

_AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+avx2",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": " ".join(_NUMPY_AVX512),
    "FAISS_OPT_LEVEL": "AVX2",  # releases with one library for each level
    "FAISS_SIMD_LEVEL": "AVX2",  # releases that choose at run time
    "ARROW_USER_SIMD_LEVEL": "AVX2",
}

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}

#: Environment of each restriction.
RESTRICTIONS: dict[str, dict[str, str]] = {
    "no-amx": _NO_AMX,
    "avx2": _AVX2,
    "one-thread": _ONE_THREAD,
    "perturbed": {"RAYDKM_PERTURB": "0"},
}


def run(name: str, arguments: list[str]) -> int:
    """Run pytest under a restriction; return its exit status."""
    environment = {**os.environ, **RESTRICTIONS[name], "NUMBA_CACHE_DIR": str(ROOT / "build" / "numba" / name)}
    paths = [] if any(argument.startswith("tests/") for argument in arguments) else ["tests/unit"]
    command = [sys.executable, "-m", "pytest", "-q", *paths, *arguments]
    if name == "one-thread" and hasattr(os, "sched_setaffinity"):
        command = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0))), *command]
    sys.stderr.write(f"== {name}: {' '.join(f'{key}={value}' for key, value in RESTRICTIONS[name].items())}\n")
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def main(arguments: list[str]) -> int:
    names = [argument for argument in arguments[:1] if argument in RESTRICTIONS]
    statuses = [run(name, arguments[len(names) :]) for name in names or RESTRICTIONS]
    return max(statuses)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
