"""The tests of the native kernels on a module that checks its every access to memory: `make asan`.

    python tests/kernels/sanitized.py FOLDER [arguments of pytest]

FOLDER holds the module, which takes the place of the installed one; its sanitizers must be preloaded.
"""

import importlib.util
import sys
from pathlib import Path

import pytest

import ossia.kernels

NAME = "ossia.kernels._native"
TESTS = (
    "test_cpu.py",
    "test_cpu_packed.py",
    "test_cpu_grouped.py",
    "test_cpu_unembedding.py",
    "test_cpu_attention.py",
    "test_cpu_training.py",
    "test_doors.py",
)


def main() -> int:
    (path,) = Path(sys.argv[1]).glob("_native.*.so")
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec and spec.loader
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    sys.modules[NAME] = ossia.kernels._native = native
    here = Path(__file__).parent
    # A sanitizer reports on the descriptor of standard error, and ends the process: it must not be captured.
    return pytest.main(
        ["-q", "--capture=sys", "-p", "no:cacheprovider", *(str(here / name) for name in TESTS), *sys.argv[2:]]
    )


if __name__ == "__main__":
    sys.exit(main())
