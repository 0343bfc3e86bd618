"""Build the compiled modules.  Everything else about the package is in pyproject.toml.

Environment switches:
    ACGSPERF_NO_EXTENSIONS=1  build a pure-Python wheel: the twins run.
    ACGSPERF_DEBUG=1          C assertions, no optimisation, an annotated HTML page beside each module.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup


def extensions() -> list[Extension]:
    if os.environ.get("ACGSPERF_NO_EXTENSIONS") == "1":
        return []
    from Cython.Build import cythonize
    from Cython.Compiler import Options

    debug = os.environ.get("ACGSPERF_DEBUG") == "1"
    # Ours to mend, and no reason for a user's build to fail with a newer Cython.
    Options.warning_errors = debug or os.environ.get("CI") == "true"
    if sys.platform == "win32":
        compile_args = ["/Od"] if debug else ["/O2"]
    else:
        compile_args = ["-O0", "-g", "-UNDEBUG"] if debug else ["-O3", "-fno-semantic-interposition"]
    modules: list[Extension] = cythonize(
        [
            Extension(
                f"acgsperf.{name}",
                [f"acgsperf/{name.replace('.', '/')}.pyx"],
                depends=[*map(str, Path("acgsperf/_native").glob("*.pxd")), "acgsperf/_native/platform.h"],
                include_dirs=["acgsperf/_native"],
                extra_compile_args=compile_args,
            )
            for name in ("_core", "_native.canonical", "_native.envelope")
        ],
        annotate=debug,
        build_dir="build/cython",
    )
    return modules


setup(ext_modules=extensions())
