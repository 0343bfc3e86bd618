"""`python -m tests.history`: run modes, and print the verdicts."""

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..conftest import Victim
from ..topology.cluster_servers import start_shards
from ..topology.postgres_servers import start_replicated
from ..topology.sentinel_servers import start_watched
from .modes import MODES
from .run import run
from .servers import Starters, redis_executable


def _option(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, json.loads(value)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.history", description="Look for lost writes between processes.")
    modes = "; ".join(f"{name}: {mode.description}" for name, mode in MODES.items())
    parser.add_argument("--mode", action="append", choices=[*MODES, "all"], help=f"by default plain; {modes}")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the processes work")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--lag", type=float, default=1.0, help="seconds after which a write must be known everywhere")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--tiers", help="l2, l3 or l2,l3 instead of what the mode says")
    parser.add_argument("--l1-ttl", type=float, help="of L1, in seconds")
    parser.add_argument("--tier-deadline", type=float, default=0.25, help="in seconds")
    parser.add_argument("--keys", type=int, help="how many keys there are, instead of what the mode says")
    parser.add_argument("--policy", default="allkeys-random", help="maxmemory-policy of the mode eviction")
    parser.add_argument("--lost", type=float, default=0.0, help="share of set calls to lose on purpose")
    parser.add_argument("--option", action="append", type=_option, default=[], help="of TieredCache: NAME=JSON")
    parser.add_argument("--redis-server", help="the executable, by default the embedded one")
    parser.add_argument("--folder", type=Path, help="where the logs remain, a folder for each mode")
    return parser.parse_args()


def main() -> int:
    """Run the modes; return 1 if one of them is not ok."""
    arguments = _arguments()
    modes = arguments.mode or ["plain"]
    tiers = arguments.tiers and arguments.tiers.split(",")
    executable = arguments.redis_server or redis_executable()
    ok = True
    with tempfile.TemporaryDirectory(prefix="acgs-", ignore_cleanup_errors=True) as folder:
        # PostgreSQL runs as a user of its own, if this process is root's.
        Path(folder).chmod(0o755)
        postgres = Victim(Path(folder))
        try:
            for mode in MODES if "all" in modes else modes:
                report = asyncio.run(
                    run(
                        mode,
                        redis_executable=executable,
                        postgres=postgres,
                        starters=Starters(start_watched, start_replicated, start_shards),
                        seconds=arguments.seconds,
                        processes=arguments.processes,
                        lag_s=arguments.lag,
                        seed=arguments.seed,
                        l2=tiers and "l2" in tiers,
                        l3=tiers and "l3" in tiers,
                        eviction_policy=arguments.policy,
                        folder=arguments.folder and arguments.folder / mode,
                        options=dict(arguments.option),
                        l1_ttl=arguments.l1_ttl,
                        lost=arguments.lost,
                        **({"keys": arguments.keys} if arguments.keys else {}),
                        tier_deadline_s=arguments.tier_deadline,
                    )
                )
                print(report, end="\n\n", flush=True)
                ok &= report.ok
        finally:
            postgres.stop()
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
