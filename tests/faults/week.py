"""`make week`: a service for days, with the load of days, deployments and failovers, a hundred times faster.

Three instances in processes of their own share a Redis that sentinels watch, and a PostgreSQL with a standby. Each day,
the load rises until noon and falls until midnight. At 8 o'clock, a new version replaces the second and the third
instance, one after the other. At 20 o'clock, a primary is killed: one day that of Redis, the next that of PostgreSQL.
All periods and lifetimes of the settings are divided by 100, so a day takes 14.4 minutes.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
from topology.postgres_servers import start_replicated
from topology.sentinel_servers import Watched

from faults.laboratory import pressure_s

SPEED = 100
DAY_S = 86_400 / SPEED
INSTANCES = 3
# Some intervals of monitoring, and the time in which an alert that was raised twice needs more of them.
GRACE_S = 10.0
# A machine is busy if something waits for a processor or a disk for this share of a second.
_BUSY = 0.3
# If it is busy for this share of the seconds, alerts are not judged.
_BUSY_SHARE = 0.1
FLAT_BYTES = 8 << 20
_COUNTED = ("descriptors", "threads", "tasks")
_OWN = Path(__file__).parent
SETTINGS = {
    "monitoring_interval_s": 30 / SPEED,
    "optimization_interval_s": 60 / SPEED,
    "db_pool_health_check_interval": 30 / SPEED,
    "l2_ttl_default": 3600 / SPEED,
    "db_pool_min_size": 1,
    "db_pool_max_size": 3,
    "l1_cache_size": 1_000,
    "cache_namespace": "week",
}


@dataclass
class Cause:
    """Something that may raise an alert: from `began`, until some seconds after `ended`."""

    name: str
    began: float
    ended: float = float("inf")

    def explains(self, at, grace_s):
        return self.began <= at <= self.ended + grace_s


@dataclass
class Report:
    """What was seen.

    Attributes:
        answers: how many requests were answered.
        problems: errors, wrong answers and what nobody caught, with the name of the instance.
        alerts: each raised alert with its cause; None without one.
        hours: what the first instance, which is never replaced, used each hour.
        stored: the bytes of Redis and the rows of PostgreSQL each midnight.
        busy_s: the seconds in which the machine was busy with something else.
        seconds: how long it took.
    """

    answers: int = 0
    problems: list[str] = field(default_factory=list)
    alerts: list[tuple[str, str | None]] = field(default_factory=list)
    hours: list[dict[str, float]] = field(default_factory=list)
    stored: list[dict[str, int]] = field(default_factory=list)
    busy_s: int = 0
    seconds: float = 0.0

    @property
    def is_judged(self):
        """Whether the machine was so idle that every alert must have a cause."""
        return self.busy_s <= _BUSY_SHARE * self.seconds

    @property
    def without_cause(self):
        """The alerts that nothing explains."""
        return [alert for alert, cause in self.alerts if cause is None]

    def grown(self, resource):
        """How much more the first instance uses in the last third of the time than in the second."""
        third = len(self.hours) // 3
        used = [hour[resource] for hour in self.hours]
        return statistics.median(used[-third:]) - statistics.median(used[third : 2 * third])

    def stored_more(self, what):
        """How much more a server stores at the last midnight than at the first."""
        return self.stored[-1][what] - self.stored[0][what]

    def __str__(self):
        causes = ", ".join(sorted({cause for _, cause in self.alerts if cause})) or "none"
        more = {name: self.grown(name) for name in ("resident", *_COUNTED)}
        stored = {name: self.stored_more(name) for name in ("redis_bytes", "rows")}
        lines = [
            f"{self.answers:,} answers in {len(self.hours)} hours; {len(self.problems)} problems",
            f"{len(self.alerts)} alerts, {len(self.without_cause)} of them without a cause; causes: {causes}",
            f"the machine was busy with something else for {self.busy_s} of {self.seconds:.0f} s"
            + ("" if self.is_judged else ": alerts are not judged"),
            f"memory {more.pop('resident') / 1024:+,.0f} KiB, {', '.join(f'{n} {v:+.0f}' for n, v in more.items())}",
            f"Redis {stored['redis_bytes'] / 1024:+,.0f} KiB, PostgreSQL {stored['rows']:+,} rows",
        ]
        return "\n".join([*lines, *self.without_cause, *self.problems])


class Week:
    """The servers, the instances, and what happens to them.

    Args:
        days: how many.
        day_s: the length of a day, in seconds.
        grace_s: how long after its cause an alert may be raised, in seconds.
    """

    def __init__(self, days, day_s=DAY_S, grace_s=GRACE_S):
        self.report = Report()
        self._days, self._day_s, self._grace_s = days, day_s, grace_s
        self._causes, self._raised = [], []
        self._instances, self._versions = {}, 0

    async def run(self, folder):
        """Let the days pass; return the report."""
        with ExitStack() as stack:
            for name in ("redis", "postgres"):
                (folder / name).mkdir()
            self._redis = Watched(folder / "redis", stack)
            await self._redis.ready()
            self._postgres, dsn = await start_replicated(folder / "postgres", stack)
            self._settings = SETTINGS | {"redis_url": self._redis.url, "database_url": dsn}
            async with AsyncExitStack() as running:
                running.push_async_callback(self._stop_all)
                self._began = time.monotonic()
                watching = asyncio.create_task(self._watch_machine())
                running.callback(watching.cancel)
                for number in range(INSTANCES):
                    await self._deploy(number)
                for day in range(self._days):
                    await self._pass_day(day)
        self.report.seconds = time.monotonic() - self._began
        self._judge()
        return self.report

    async def _pass_day(self, day):
        await self._until(day + 8 / 24)
        for number in range(1, INSTANCES):
            await self._deploy(number)
        await self._until(day + 20 / 24)
        servers, name = ((self._redis, "Redis"), (self._postgres, "PostgreSQL"))[day % 2]
        cause = self._caused(f"failover of {name}")
        servers.kill_primary()
        await (servers.elected() if servers is self._redis else servers.promote())
        await servers.restore()
        cause.ended = time.monotonic()
        await self._until(day + 1)
        self.report.stored.append(await self._stored())
        print(f"day {day + 1}: {self.report.stored[-1]}, {len(self._raised)} alerts", flush=True)

    async def _until(self, day):
        await asyncio.sleep(max(0.0, self._began + day * self._day_s - time.monotonic()))

    def _caused(self, name):
        self._causes.append(Cause(name, time.monotonic()))
        return self._causes[-1]

    async def _deploy(self, number):
        """Start an instance with a new version; it takes the place of the one with its number."""
        cause = self._caused("deployment")
        self._versions += 1
        settings = self._settings | {"service_version": f"version {self._versions}"}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            _OWN / "week_instance.py",
            json.dumps(settings),
            str(self._day_s),
            str(self._began),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        ready = asyncio.Event()
        reading = asyncio.create_task(self._read(number, process, ready))
        async with asyncio.timeout(180):
            await ready.wait()
        await self._stop(number)
        self._instances[number] = process, reading
        cause.ended = time.monotonic()

    async def _stop(self, number):
        if number in self._instances:
            process, reading = self._instances.pop(number)
            process.stdin.close()
            async with asyncio.timeout(180):
                await reading
                if await process.wait():
                    self.report.problems.append(f"instance {number} ended with {process.returncode}")

    async def _stop_all(self):
        for number in list(self._instances):
            await self._stop(number)

    async def _read(self, number, process, ready):
        said = {}
        async for line in process.stdout:
            said = json.loads(line)
            if said["kind"] == "ready":
                ready.set()
            elif said["kind"] == "alert" and said["state"] == "raised":
                self._raised.append((said["at"], f"instance {number}: {said['alert']} of {said['subject']}"))
            elif said["kind"] == "hour" and number == 0:
                self.report.hours.append(said)
        if said.get("kind") != "end":
            self.report.problems.append(f"instance {number} ended too early")
            return
        self.report.answers += said["answers"]
        problems = [*said["errors"], *said["uncaught"], *([f"{said['wrong']} wrong answers"] if said["wrong"] else [])]
        self.report.problems += [f"instance {number}: {problem}" for problem in problems]

    async def _stored(self):
        async with self._redis.client(self._redis.primary) as client:
            used = (await client.info("memory"))["used_memory"]
        connection = await asyncpg.connect(self._postgres.primary_dsn)
        tables = "SELECT relname FROM pg_class WHERE relname LIKE 'acgsperf%' AND relkind = 'r'"
        rows = {
            name: await connection.fetchval(f'SELECT count(*) FROM "{name}"')
            for (name,) in await connection.fetch(tables)
        }
        await connection.close()
        return {"redis_bytes": used, "rows": sum(rows.values())}

    async def _watch_machine(self):
        """Note the seconds in which the machine was busy."""
        while True:
            began, before = time.monotonic(), pressure_s()
            await asyncio.sleep(1)
            now = time.monotonic()
            if pressure_s() - before > _BUSY * (now - began):
                self.report.busy_s += round(now - began)
                self._causes.append(Cause("busy machine", began, now))

    def _judge(self):
        for at, alert in self._raised:
            causes = (cause.name for cause in self._causes if cause.explains(at, self._grace_s))
            hours = (at - self._began) / self._day_s * 24
            self.report.alerts.append((f"day {hours // 24 + 1:.0f}, {hours % 24:.1f} h, {alert}", next(causes, None)))


def is_good(report, flat_bytes=FLAT_BYTES):
    """Whether nothing failed, nothing grew and, unless the machine was busy, no alert was without a cause."""
    return (
        not report.problems
        and not (report.is_judged and report.without_cause)
        and report.grown("resident") <= flat_bytes
        and max(map(report.grown, _COUNTED)) <= 2
    )


def main():
    """Let the days pass, and print what was seen; return 1 if something was not good."""
    parser = argparse.ArgumentParser("make week", description=__doc__)
    parser.add_argument("--days", type=int, default=8, help="how many; eight take almost two hours")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="w-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        report = asyncio.run(Week(arguments.days).run(Path(folder)))
    print(report)
    return 0 if is_good(report) else 1


if __name__ == "__main__":
    sys.exit(main())
