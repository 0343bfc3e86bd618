"""Builds the compiled modules. Everything else about the package is in pyproject.toml.

Environment switches:
    ACGSPERF_NO_EXTENSIONS=1  builds a pure-Python wheel, in which the pure twins run. PyPy always gets one.
    ACGSPERF_DEBUG=1          C assertions, no optimization, an annotated HTML page beside each module.
    ACGSPERF_SANITIZE=address,undefined   or thread: builds under these sanitizers of gcc, with C assertions.
    ACGSPERF_TRACE=1          reports the executed lines to coverage.py; the C files are beside their sources.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CCompilerError, ExecError, PlatformError

PURE = os.environ.get("ACGSPERF_NO_EXTENSIONS") == "1" or sys.implementation.name != "cpython"
# `acgsperf.dispatch` looks for it. With it, the twins run, also beside an extension of an earlier build. Without it,
# a missing extension is a fault of the installation.
RECORD = "_native/built_pure.py"
RECORD_TEXT = '"""Made by a build that was asked for no extensions: the pure twins run, and no warning is due."""\n'

FAILED = """{error}

acgsperf could not build its C extension, because the C compiler failed (see above) or is missing.
Install a C compiler and the headers of Python, or install the pure-Python version, which is slower:

    ACGSPERF_NO_EXTENSIONS=1 pip install acgsperf
"""


class BuildPython(build_py):
    """Copies the modules, and records whether the build was asked for no extensions."""

    def run(self) -> None:
        super().run()
        folder = Path("acgsperf") if self.editable_mode else Path(self.build_lib, "acgsperf")
        record = folder / RECORD
        record.unlink(missing_ok=True)
        if PURE:
            record.write_text(RECORD_TEXT)


class BuildExtension(build_ext):
    """Compiles the extension, and says what to do if the compiler fails."""

    def run(self) -> None:
        try:
            super().run()
        except (CCompilerError, ExecError, PlatformError) as error:
            raise SystemExit(FAILED.format(error=error)) from error


def extensions() -> list[Extension]:
    if PURE:
        return []
    from Cython.Build import cythonize
    from Cython.Compiler import Options

    debug = os.environ.get("ACGSPERF_DEBUG") == "1"
    sanitizers = os.environ.get("ACGSPERF_SANITIZE")
    trace = os.environ.get("ACGSPERF_TRACE") == "1"
    # A warning of a newer Cython is no reason for a user's build to fail.
    Options.warning_errors = debug or os.environ.get("CI") == "true"
    if sys.platform == "win32":
        compile_args = ["/Od"] if debug else ["/O2"]
    else:
        # -g0: Python's own flags ask for debug information, which makes a wheel six times as large.
        compile_args = ["-O0", "-g", "-UNDEBUG"] if debug or trace else ["-O3", "-g0", "-fno-semantic-interposition"]
    link_args = []
    if sanitizers:
        # A finding of UndefinedBehaviorSanitizer ends the process. Otherwise it would only be printed.
        options = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
        compile_args = ["-O1", "-g", "-UNDEBUG", "-fno-omit-frame-pointer", *options]
        link_args = options
    modules: list[Extension] = cythonize(
        [
            Extension(
                f"acgsperf.{name}",
                [f"acgsperf/{name.replace('.', '/')}.pyx"],
                depends=[*map(str, Path("acgsperf/_native").glob("*.pxd")), "acgsperf/_native/platform.h"],
                include_dirs=["acgsperf/_native"],
                extra_compile_args=compile_args,
                extra_link_args=link_args,
                # Lines of functions without the GIL are traced too.
                define_macros=[("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1")] if trace else [],
            )
            for name in (
                "_core",
                "_native.caches",
                "_native.canonical",
                "_native.envelope",
                "_native.hits",
                "_native.pg_dialogue",
                "_native.predictor",
                "_native.read_path",
                "_native.resp",
                "_native.weigh",
            )
        ],
        annotate=debug,
        # The plugin for coverage.py finds C files beside the modules only.
        build_dir=None if trace else "build/cython",
        compiler_directives={"linetrace": True} if trace else {},
    )
    return modules


setup(ext_modules=extensions(), cmdclass={"build_py": BuildPython, "build_ext": BuildExtension})
