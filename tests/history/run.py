"""Runs a mode: starts servers and processes, lets the fault happen, reads every place at rest, and judges."""

import asyncio
import os
import random
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from acgsperf.tiers import Tier
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier

from .history import RUNNER, Log, Read, now, read_history
from .modes import MODES, Mode, Situation
from .report import Report, check
from .servers import Pair, Postgres, Proxy, RedisServer, Starters, proxied_dsn
from .truth import Truth
from .worker import Plan

__all__ = ["run"]

_ANSWER_TIMEOUT_S: Final = 60.0
_ROOT: Final = Path(__file__).parents[len(__package__.split("."))]


async def run(
    mode: str,
    *,
    redis_executable: str,
    postgres: Postgres,
    starters: Starters,
    seconds: float = 10.0,
    processes: int = 4,
    lag_s: float = 1.0,
    seed: int | None = None,
    l2: bool | None = None,
    l3: bool | None = None,
    eviction_policy: str = "allkeys-random",
    folder: Path | None = None,
    options: Mapping[str, Any] | None = None,
    **plan: Any,
) -> Report:
    """Run a mode, and return the verdict.

    Args:
        mode: a key of `MODES`.
        redis_executable: the server to start for L2.
        postgres: the server of L3.
        starters: of the modes with a primary and a replica.
        seconds: how long the processes work.
        processes: how many there are.
        lag_s: how long after its acknowledgment a write may be unknown to other processes.
        seed: of all that is random, except time; None for a new one.
        l2, l3: whether the caches have that tier; None for what the mode says.
        eviction_policy: the `maxmemory-policy` of the mode "eviction".
        folder: where the logs remain; None for nowhere.
        options: arguments of the caches, besides those of the mode.
        plan: further attributes of `Plan`.
    """
    chosen = MODES[mode]
    chosen = replace(
        chosen,
        l2=chosen.l2 if l2 is None else l2,
        l3=chosen.l3 if l3 is None else l3,
        options={**chosen.options, **(options or {})},
    )
    seed = random.randrange(1_000_000) if seed is None else seed
    logs = Path(tempfile.mkdtemp(prefix="acgs-logs-")) if folder is None else folder
    try:
        (logs / "truth").mkdir(parents=True)
        plans = [
            Plan(
                process=number,
                folder=str(logs),
                namespace=f"history-{secrets.token_hex(4)}",
                redis_url=None,
                database_url=None,
                options=dict(chosen.options),
                clock_offset_s=chosen.clock_offsets_s[number % len(chosen.clock_offsets_s)],
                seed=seed,
                **{**chosen.plan, **plan},
            )
            for number in range(processes)
        ]
        namespace = plans[0].namespace
        plans = [msgspec.structs.replace(one, namespace=namespace) for one in plans]
        keys = plans[0].key_names
        truth = Truth(logs / "truth", keys)
        try:
            await _run(chosen, plans, redis_executable, postgres, starters, seconds, eviction_policy)
            versions = {key: truth.current(key) for key in keys}
        finally:
            truth.close()
        history = read_history(logs, processes=range(processes), versions=versions)
    finally:
        if folder is None:
            shutil.rmtree(logs)
    tiers = " and ".join(name for name, used in (("L2", chosen.l2), ("L3", chosen.l3)) if used)
    title = f"{mode} ({chosen.description}; {tiers}; {seconds:g} s; seed {seed})"
    report = check(history, lag_s=lag_s, stale_ttl_s=chosen.options.get("stale_ttl", 0.0), title=title)
    if chosen.fault is not None and not history.faults:
        report.problems.append(f"{seconds:g} s are too short for a fault")
    return report


async def _run(
    mode: Mode,
    plans: list[Plan],
    executable: str,
    postgres: Postgres,
    starters: Starters,
    seconds: float,
    eviction_policy: str,
) -> None:
    folder = Path(plans[0].folder)
    async with AsyncExitStack() as stack:
        redis_server: RedisServer | None = None
        redis_url: str | None = None
        pair: Pair | None = None
        dsn = postgres.dsn if mode.l3 else None
        if mode.l2 and mode.pair == "l2":
            pair, redis_url = await starters.redis(_folder(stack), stack.enter_context(ExitStack()))
        elif mode.l2 and mode.pair == "cluster":
            pair, redis_url = await starters.cluster(_folder(stack), stack.enter_context(ExitStack()))
        elif mode.l2:
            redis_server = stack.enter_context(RedisServer(executable))
            redis_url = redis_server.url
        if mode.l3 and mode.pair == "l3":
            pair, dsn = await starters.postgres(_folder(stack), stack.enter_context(ExitStack()))
        tiers: dict[str, Tier] = {}
        if redis_url is not None:
            tiers["l2"] = RedisTier(redis_url, deadline=5)
        if dsn is not None:
            tiers["l3"] = PostgresTier(dsn, deadline=5)
        proxies = await stack.enter_async_context(_proxies(redis_server, dsn)) if mode.proxied else _Proxies()
        redis_url, dsn = proxies.redis_url or redis_url, proxies.dsn or dsn
        workers = []
        for plan in plans:
            ready = msgspec.structs.replace(plan, redis_url=redis_url, database_url=dsn)
            workers.append(await stack.enter_async_context(_Worker(ready)))
        await asyncio.gather(*(worker.answer("ready") for worker in workers))
        log = Log(folder, RUNNER)
        until = now() + int(seconds * 1e9)
        situation = Situation(
            log,
            until,
            [worker.pid for worker in workers],
            redis_server,
            postgres if mode.l3 else None,
            pair,
            # What L3 has acknowledged is not lost with L2.
            not (mode.pair in ("l2", "cluster") and mode.l3),
            proxies.running,
            random.Random(plans[0].seed),
            eviction_policy,
            plans[0],
        )
        for worker in workers:
            worker.say(f"start {until}")
        if mode.fault is not None:
            await mode.fault(situation)
        await asyncio.gather(*(worker.answer(extra_s=seconds) for worker in workers))
        # Each process waits for its own work only. In the second pass, they apply the records of the last repair.
        for _ in range(2):
            await _ask(workers, "settle")
        await _ask(workers, "rest l1")
        await _read_tiers(log, tiers, plans[0])
        await _ask(workers, "rest get")
        await _ask(workers, "quit")
        log.finish()


def _folder(stack: AsyncExitStack) -> Path:
    """Return a new folder for servers, which may run as another user."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="acgs-", ignore_cleanup_errors=True)))
    folder.chmod(0o755)
    return folder


async def _ask(workers: "list[_Worker]", line: str) -> None:
    for worker in workers:
        worker.say(line)
    await asyncio.gather(*(worker.answer() for worker in workers))


async def _read_tiers(log: Log, tiers: Mapping[str, Tier], plan: Plan) -> None:
    """Read every key directly from the servers."""
    for name, tier in tiers.items():
        await tier.open(plan.namespace)
        try:
            health = await tier.health()
            if not health.ok:
                raise RuntimeError(f"{name} does not answer at rest: {health.detail}")
            start = now()
            for key, entry in (await tier.get_many(plan.key_names)).items():
                log.add(Read(RUNNER, f"rest {name}", key, entry.value, start, now()))
        finally:
            await tier.close()


class _Proxies:
    """The proxies of a run, and their addresses."""

    def __init__(self) -> None:
        self.running: list[Proxy] = []
        self.redis_url: str | None = None
        self.dsn: str | None = None


@asynccontextmanager
async def _proxies(redis_server: RedisServer | None, dsn: str | None) -> AsyncIterator[_Proxies]:
    proxies = _Proxies()
    folder = Path(tempfile.mkdtemp(prefix="acgs-proxy-"))
    try:
        async with AsyncExitStack() as stack:
            if redis_server is not None:
                path = folder / "redis.sock"
                proxies.running.append(await stack.enter_async_context(Proxy(redis_server.socket, path)))
                proxies.redis_url = f"unix://{path}"
            if dsn is not None:
                proxies.dsn, target, path = proxied_dsn(dsn, folder)
                proxies.running.append(await stack.enter_async_context(Proxy(target, path)))
            yield proxies
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Worker:
    """A process that runs `worker.py`.

    Args:
        plan: what it is to do.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._errors = Path(plan.folder) / f"process{plan.process}.stderr"

    async def __aenter__(self) -> Self:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])}
        with self._errors.open("wb") as errors:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                f"{__package__}.worker",
                msgspec.json.encode(self._plan).decode(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env=environment,
            )
        self.pid = self._process.pid
        return self

    async def __aexit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                    await self._process.wait()
        finally:
            with suppress(ProcessLookupError):
                self._process.kill()
            code = await self._process.wait()
        if error[0] is None and code:
            raise RuntimeError(f"process {self._plan.process} ended with {code}: {self._errors.read_text()}")

    def say(self, line: str) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    async def answer(self, expected: str = "done", *, extra_s: float = 0.0) -> None:
        """Wait for a line."""
        assert self._process.stdout is not None
        async with asyncio.timeout(_ANSWER_TIMEOUT_S + extra_s):
            line = await self._process.stdout.readline()
        if line.decode().strip() != expected:
            raise RuntimeError(
                f"process {self._plan.process} answered {line!r} instead of {expected!r}: {self._errors.read_text()}"
            )
