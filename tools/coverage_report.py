"""Runs tests, and reports which branches of Python and which lines of Cython they have run.

`coverage_report.py [TEST ...]`. The compiled modules are built with line tracing in `build/trace`; the tests run there,
so the modules of the clone stay as they are. Two figures are compared with 95 %: Python with branches, and Cython. The
HTML report is in `build/trace/htmlcov`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from instrumented import build

ENOUGH: Final = 95.0
_CYTHON: Final = (".pyx", ".pxd")


def main() -> None:
    tests = sys.argv[1:] or ["tests"]
    tree = build("trace", ACGSPERF_TRACE="1")
    for old in tree.glob(".coverage*"):
        old.unlink()
    environment = os.environ | {"ACGSPERF_INSTRUMENTED": "1", "COVERAGE_FILE": str(tree / ".coverage")}
    # Scripts that a test starts must import the instrumented package too, and not the clone's.
    environment["PYTHONPATH"] = str(tree)
    run = [sys.executable, "-m", "coverage"]
    # Tests that measure time fail under tracing and beside others, and are no reason not to report.
    pytest = ["pytest", "-q", "-n", "3", "--dist", "loadscope", "--no-loadscope-reorder"]
    status = subprocess.run([*run, "run", "-m", *pytest, *tests], cwd=tree, env=environment).returncode
    if status not in (0, 1):
        raise SystemExit(f"pytest ended with status {status}")
    for command in (["combine", "-q"], ["json", "-q", "-o", "coverage.json"], ["html", "-q"], ["report"]):
        subprocess.run([*run, *command], cwd=tree, env=environment, check=command[0] != "report")
    shares = measured(json.loads((tree / "coverage.json").read_text()))
    for kind, share in shares.items():
        print(f"{kind}: {share:.1f} %, expected at least {ENOUGH:g} %")
    if tests == ["tests"] and min(shares.values()) < ENOUGH:
        raise SystemExit(1)


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
