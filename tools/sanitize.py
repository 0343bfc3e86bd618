"""Runs tests and fuzzers on compiled modules that were built under sanitizers of gcc.

`sanitize.py` uses AddressSanitizer and UndefinedBehaviorSanitizer. They find memory that is used out of bounds or after
it was freed, integers that overflow, and memory that is lost. `sanitize.py threads` uses ThreadSanitizer. It needs an
interpreter that was built under ThreadSanitizer and without the GIL: the GIL would hide races, and ThreadSanitizer does
not see the locks of an interpreter that was not built under it.
"""

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from instrumented import build, library

# What uses threads or processes of its own; the rest of tests/core runs in one thread.
_THREADED = ["tests/core/test_threads.py", "tests/core/test_interruptions.py"]
_BLOCK = re.compile(r"^(?:Direct|Indirect) leak of .*?(?=^\s*$)", re.MULTILINE | re.DOTALL)
_OBJECTS = re.compile(r"in (\d+) object")
# Each operation runs 120 times. What is lost a few times is lost by the interpreter, as it ends.
_FEWEST = 100
_LEAK_OPERATIONS = {
    "acgsperf._core": (
        "cache_use", "cache_expiry", "cache_errors", "cache_callbacks", "cache_reentrancy", "cache_cycles", "validator",
        "histogram", "bad_blobs",
    ),
    "acgsperf._core AdaptiveCache": (
        "cache_use", "cache_expiry", "cache_errors", "cache_callbacks", "cache_reentrancy", "cache_cycles",
    ),
    "acgsperf._native.canonical": ("requests",),
    "acgsperf._native.predictor": ("predictor",),
}  # fmt: skip


def run(command: list[str], tree: Path, **variables: str) -> None:
    """Run a command in a tree; end this program if it fails."""
    # Scripts that a test starts must import the instrumented package too, and not the clone's.
    environment = os.environ | variables | {"PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, *command], cwd=tree, env=environment)
    if done.returncode:
        raise SystemExit(f"failed with status {done.returncode}: {' '.join(command)}")


def addresses(fuzz_seconds: int) -> None:
    """Run tests/core and the fuzzers under AddressSanitizer and UndefinedBehaviorSanitizer."""
    preloaded = library("libasan.so")
    tree = build("sanitize-address", ACGSPERF_SANITIZE="address,undefined")
    # Python's own allocator would hide what lies within its blocks.
    variables = {
        "LD_PRELOAD": preloaded,
        "PYTHONMALLOC": "malloc",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # Allocations that fail are tested: they must return NULL.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:detect_stack_use_after_return=1",
    }
    run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/core"], tree, ACGSPERF_INSTRUMENTED="1", **variables)
    run(["tests/fuzz/run.py", "--seconds", str(fuzz_seconds), "--engine", "mutations"], tree, **variables)
    leaks(tree, variables)


def leaks(tree: Path, variables: dict[str, str]) -> None:
    """Fail if memory that a compiled module has allocated is lost.

    CPython itself loses some memory at its end, so only what a compiled module has asked for counts.
    """
    options = "detect_leaks=1:fast_unwind_on_malloc=0:malloc_context_size=20"
    for module, operations in _LEAK_OPERATIONS.items():
        for operation in operations:
            with tempfile.TemporaryDirectory() as folder:
                # exitcode: otherwise what CPython loses would fail the program.
                where = f"{options}:log_path={folder}/report:exitcode=0"
                run(["tests/core/isolated/leaks.py", module, operation], tree, **variables | {"ASAN_OPTIONS": where})
                text = "".join(path.read_text(errors="replace") for path in Path(folder).iterdir())
            if "LeakSanitizer has encountered a fatal error" in text:
                raise SystemExit("LeakSanitizer cannot run here; it needs the right to use ptrace")
            ours = [block for block in _BLOCK.findall(text + "\n\n") if _is_ours(block)]
            if ours:
                raise SystemExit(f"{module}, {operation}: {len(ours)} leaks\n\n" + "\n".join(ours))
            print(f"no leaks: {module}, {operation}")


def _is_ours(block: str) -> bool:
    """Return whether a compiled module loses this memory: it asks for it, in every round, and not Python code does."""
    if int(_OBJECTS.search(block)[1]) < _FEWEST:  # type: ignore[index]
        return False
    for line in block.splitlines():
        if "/acgsperf/" in line:
            return True
        if "_PyEval_EvalFrame" in line:
            return False
    return False


def check_threads() -> None:
    """Fail unless this interpreter was built under ThreadSanitizer and without the GIL."""
    flags = sysconfig.get_config_var("CONFIG_ARGS") or ""
    if "--with-thread-sanitizer" not in flags or not sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise SystemExit(
            "sanitize-threads needs PYTHON=, an interpreter of CPython 3.14 or later that was configured with "
            f"--with-thread-sanitizer --disable-gil, got {sys.executable}"
        )


def threads() -> None:
    """Run the threaded tests under ThreadSanitizer."""
    check_threads()
    tree = build("sanitize-threads", ACGSPERF_SANITIZE="thread")
    with tempfile.TemporaryDirectory() as folder:
        # The known races of CPython itself; its own test run uses the same list.
        suppressions = Path(sysconfig.get_path("stdlib"), "test", "libregrtest", "suppressions_free_threading.txt")
        options = [f"log_path={folder}/report", "exitcode=0"]
        options += [f"suppressions={suppressions}"] if suppressions.exists() else []
        run(
            ["-m", "pytest", "-q", "-p", "no:cacheprovider", *_THREADED], tree,
            PYTHON_GIL="0", TSAN_OPTIONS=":".join(options), ACGSPERF_INSTRUMENTED="1",
        )  # fmt: skip
        reports = "".join(path.read_text(errors="replace") for path in Path(folder).iterdir())
    # A race between two places of the interpreter is the interpreter's.
    found = [report for report in reports.split("=" * 18) if "/acgsperf/" in report]
    if found:
        raise SystemExit(f"{len(found)} races\n" + "\n".join(found))
    print("no races in the compiled modules")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", nargs="?", choices=["addresses", "threads", "check-threads"], default="addresses")
    parser.add_argument("--fuzz-seconds", type=int, default=20, help="for each fuzzer")
    given = parser.parse_args()
    if given.kind == "check-threads":
        check_threads()
    elif given.kind == "threads":
        threads()
    else:
        addresses(given.fuzz_seconds)


if __name__ == "__main__":
    main()
