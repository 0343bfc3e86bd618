"""`python -m tests.topology`: lose primaries under load, and print what callers notice."""

import argparse
import asyncio
import logging
import secrets
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from .measured import BOUND_S, Figures, cache_promotion, pool_promotion, sentinel_failover
from .postgres_servers import start_replicated
from .sentinel_servers import Watched

SCENARIOS = {
    "sentinel-kill": "50 callers of a cache on Redis; the primary is killed",
    "sentinel-freeze": "the same; the primary is frozen",
    "pool-promotion": "25 callers of a pool that write and 25 that read; the primary is killed, the standby promoted",
    "cache-promotion": "50 callers of a cache on PostgreSQL; the primary is killed, the standby promoted",
}


async def _measure(scenario: str, folder: Path, stack: ExitStack, before_s: float) -> Figures:
    namespace = f"failover-{secrets.token_hex(4)}"
    if scenario.startswith("sentinel"):
        watched = Watched(folder, stack)
        await watched.ready()
        failure = scenario.removeprefix("sentinel-")
        return await sentinel_failover(watched, namespace, failure=failure, before_s=before_s)
    servers, _ = await start_replicated(folder, stack)
    if scenario == "pool-promotion":
        return await pool_promotion(servers, before_s=before_s)
    return await cache_promotion(servers, namespace, before_s=before_s)


def main() -> int:
    """Measure; return 1 if a bound is missed."""
    parser = argparse.ArgumentParser("python -m tests.topology", description="Measure failovers under load.")
    words = "; ".join(f"{name}: {text}" for name, text in SCENARIOS.items())
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS), help=f"by default all; {words}")
    parser.add_argument("--repeat", type=int, default=3, help="how often, with new servers each time")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long the callers work before a failover")
    arguments = parser.parse_args()
    # The lines of the package about servers that are gone would be in between.
    logging.getLogger("acgsperf").addHandler(logging.NullHandler())
    print(f"bounds: a write within {BOUND_S:g} s of the new primary, no error, no wrong value")
    ok = True
    for scenario in arguments.scenario or SCENARIOS:
        print(f"\n{scenario} ({SCENARIOS[scenario]})")
        for _ in range(arguments.repeat):
            with ExitStack() as stack:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="t-", ignore_cleanup_errors=True)))
                folder.chmod(0o755)
                figures = asyncio.run(_measure(scenario, folder, stack, arguments.seconds))
            print(f"  {'ok    ' if figures.ok else 'MISSED'}  {figures}", flush=True)
            for problem in (*figures.errors[:3], *figures.wrong[:3]):
                print(f"          {problem}")
            ok &= figures.ok
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
