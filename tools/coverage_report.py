"""Runs tests, and reports which branches of Python and which lines of Cython they have run.

`coverage_report.py [TEST ...]`. The tests run in two copies of the tree, so the modules of the clone stay as they are:

- in `build/traced`, whose compiled modules report each line. That takes a hundred times as long, so only the tests of
  these modules run there, and each for at most a minute;
- in `build/covered`, with modules as they are installed, all tests.

Two figures are compared with 95 %: Python with branches, and Cython. The HTML report is in `build/traced/htmlcov`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from coverage import Coverage
from Cython.Coverage import Plugin
from instrumented import build

ENOUGH: Final = 95.0
_CYTHON: Final = (".pyx", ".pxd")
_OF_COMPILED_MODULES: Final = "tests/core"
# Long enough to run each line of a test once, if not each of its rounds.
_LONGEST_TRACED_S: Final = 60


def main() -> None:
    tests = sys.argv[1:] or ["tests"]
    traced, covered = build("traced", ACGSPERF_TRACE="1"), build("covered")
    for old in traced.glob(".coverage*"):
        old.unlink()
    environment = os.environ | {"COVERAGE_FILE": str(traced / ".coverage")}
    of_compiled = [_OF_COMPILED_MODULES] if tests == ["tests"] else [test for test in tests if "core" in test]
    if of_compiled:
        # With threads, the tracing of Cython crashes.
        limit = ["--timeout", str(_LONGEST_TRACED_S), "-k", "not thread"]
        _run(traced, [*limit, *of_compiled], environment | {"ACGSPERF_INSTRUMENTED": "1"})
    _run(covered, tests, environment)
    _coverage(traced, ["combine", "-q"], environment, check=True)
    _report(traced)
    shares = measured(json.loads((traced / "coverage.json").read_text()))
    for kind, share in shares.items():
        print(f"{kind}: {share:.1f} %, expected at least {ENOUGH:g} %")
    if tests == ["tests"] and min(shares.values()) < ENOUGH:
        raise SystemExit(1)


def _run(tree: Path, tests: list[str], environment: dict[str, str]) -> None:
    # Tests that measure time fail under tracing and beside others, and are no reason not to report.
    pytest = ["pytest", "-q", "-n", "3", "--dist", "loadscope", "--no-loadscope-reorder"]
    # Scripts that a test starts must import this package too, and not the clone's.
    path = {"PYTHONPATH": str(tree)}
    status = _coverage(tree, ["run", "-m", *pytest, *tests], environment | path)
    if status not in (0, 1):
        raise SystemExit(f"pytest ended with status {status}")


def _coverage(tree: Path, command: list[str], environment: dict[str, str], *, check: bool = False) -> int:
    return subprocess.run(
        [sys.executable, "-m", "coverage", *command], cwd=tree, env=environment, check=check
    ).returncode


def _report(tree: Path) -> None:
    """Write `coverage.json` and the HTML report, and print a table."""
    os.chdir(tree)
    found = Plugin.file_reporter

    def file_reporter(plugin: Any, name: str) -> object:
        # Cython knows the lines of a .pxd only after it has read the C file of the module that includes it.
        if name.endswith(".pxd"):
            for module in sorted(Path("acgsperf").rglob("*.pyx")):
                found(plugin, str(module.resolve()))
        return found(plugin, name)

    Plugin.file_reporter = file_reporter
    data = Coverage(data_file=tree / ".coverage")
    data.load()
    data.json_report(outfile="coverage.json")
    data.html_report()
    data.report()


def measured(report: dict[str, dict[str, dict[str, dict[str, int]]]]) -> dict[str, float]:
    """Return the covered share of the lines and branches of Python, and of the lines of Cython, in %."""
    counts = {"Python": [0, 0], "Cython": [0, 0]}
    for name, file in report["files"].items():
        summary, found = file["summary"], counts["Cython" if Path(name).suffix in _CYTHON else "Python"]
        found[0] += summary["covered_lines"] + summary.get("covered_branches", 0)
        found[1] += summary["num_statements"] + summary.get("num_branches", 0)
    return {kind: 100 * covered / total if total else 100.0 for kind, (covered, total) in counts.items()}


if __name__ == "__main__":
    main()
