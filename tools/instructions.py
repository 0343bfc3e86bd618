"""Compares the hot calls of this tree with those of another commit, by the instructions that they execute.

`instructions.py COMMIT` fails if a call executes over 3 % (and over 20) instructions more than at the commit. Unlike
times, instructions hardly depend on what else the machine does. Needs git, valgrind and a C compiler.

The instructions of a call are those of a program with many calls, less those of one with few calls.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

CLONE: Final = Path(__file__).parents[1]
FEW: Final = 200
MANY: Final = 2_200
ALLOWED_SHARE: Final = 0.03
ALLOWED_INSTRUCTIONS: Final = 20

# Each prepares a call, and has only names that are public at both commits. A call takes the number of the turn.
WORKLOADS: Final = {
    "LRUCache.get, hit": "cache = LRUCache(1_000); cache.set('k', 1); call = lambda i: cache.get('k')",
    "LRUCache.set, full": "cache = LRUCache(100, 60); call = lambda i: cache.set(i, i)",
    "AdaptiveCache.get, hit": "cache = AdaptiveCache(1_000); cache.set('k', 1); call = lambda i: cache.get('k')",
    "AdaptiveCache.set, full": "cache = AdaptiveCache(100, seed=1); call = lambda i: cache.set(i % 300, i)",
    "HashValidator.validate": "gate = HashValidator(); call = lambda i: gate.validate('cdd01ef066bc6cf2')",
    "LatencyHistogram.record": "latency = LatencyHistogram(); call = lambda i: latency.record(1_000 + i)",
    "fingerprint": "request = {'b': 1, 'a': ['x', None], 'é': 2.5}; call = lambda i: fingerprint(request)",
    "await TieredCache.get, hit in L1": """
cache = TieredCache(LRUCache(100), namespace='n')
loop = asyncio.new_event_loop()
loop.run_until_complete(cache.open())
loop.run_until_complete(cache.set('k', 1))
async def gets():
    for _ in range(10):
        await cache.get('k')
call = lambda i: loop.run_until_complete(gets())
""",
}


def work(name: str, calls: int) -> None:
    """Prepare a workload, and make its calls."""
    import asyncio

    import acgsperf

    scope: dict[str, Any] = {"asyncio": asyncio, **{item: getattr(acgsperf, item) for item in acgsperf.__all__}}
    exec(WORKLOADS[name], scope)
    call: Callable[[int], object] = scope["call"]
    for turn in range(calls):
        call(turn)
    # Without what happens at the end of a program.
    sys.stdout.flush()
    os._exit(0)


def executed(tree: Path, name: str, calls: int) -> int:
    """Return how many instructions a program with a number of calls executes."""
    command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    command += [sys.executable, __file__, "--work", name, "--calls", str(calls)]
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    match = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if done.returncode or match is None:
        raise SystemExit(f"{name} in {tree} failed with status {done.returncode}:\n{done.stderr[-2_000:]}")
    return int(match[1].replace(",", ""))


def per_call(tree: Path, name: str) -> float:
    """Return the instructions of one call."""
    return (executed(tree, name, MANY) - executed(tree, name, FEW)) / (MANY - FEW)


def checked_out(commit: str) -> Path:
    """Check out a commit in `build/base`, and compile it."""
    tree = CLONE / "build" / "base"
    subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=CLONE, capture_output=True)
    shutil.rmtree(tree, ignore_errors=True)
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(tree), commit], cwd=CLONE, check=True)
    compile_in(tree)
    return tree


def compile_in(tree: Path) -> None:
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tree, check=True)


def compare(base: Path, head: Path) -> bool:
    """Print a table; return whether no call has become slower."""
    fine = True
    print(f"{'call':<36}{'base':>10}{'now':>10}{'change':>9}")
    for name in WORKLOADS:
        before, now = per_call(base, name), per_call(head, name)
        slower = now - before > max(ALLOWED_INSTRUCTIONS, ALLOWED_SHARE * before)
        fine = fine and not slower
        print(f"{name:<36}{before:>10,.0f}{now:>10,.0f}{now / before - 1:>+9.1%}{'  SLOWER' * slower}", flush=True)
    return fine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", nargs="?", help="compare with this commit")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--calls", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work, given.calls)
    if not given.commit:
        parser.error("a commit is needed, for example main")
    if not shutil.which("valgrind"):
        raise SystemExit("valgrind was not found: install it")
    base = checked_out(given.commit)
    try:
        compile_in(CLONE)
        if not compare(base, CLONE):
            raise SystemExit("some calls execute more instructions than at the base; say why in the pull request")
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(base)], cwd=CLONE, check=True)


if __name__ == "__main__":
    main()
