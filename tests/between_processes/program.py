"""One process of a test: it owns a cache, and does what its standard input says.

A line is a JSON object: {"id": 1, "do": "set", "args": ["k", "v"], "kwargs": {"ttl": 60}}. `do` names a method of
`Program` or else of the cache. Several calls may be in flight. The answer is {"id": 1, "value": ...} or
{"id": 1, "error": "TypeError: ..."}. A call that has reached the point that a test waits for says so before that:
{"id": 1, "begun": true}. The process ends when its standard input ends.
"""

import asyncio
import ctypes
import inspect
import json
import signal
import sys
import threading
import time
from dataclasses import fields
from typing import Any, Final

import msgspec

_PR_SET_PDEATHSIG: Final = 1


class WallClock:
    """Replaces the wall clock of this process, so that a test can move it."""

    def __init__(self, offset_s: float) -> None:
        self.offset_s = self.first_offset_s = offset_s
        wall, wall_ns = time.time, time.time_ns
        time.time = lambda: wall() + self.offset_s
        time.time_ns = lambda: wall_ns() + int(self.offset_s * 1e9)


class Program:
    """Carries out calls.

    Args:
        clock: the wall clock.
    """

    def __init__(self, clock: WallClock) -> None:
        self._clock = clock
        self._cache: Any = None
        self._gates: dict[int, asyncio.Event] = {}
        self.resumed = threading.Event()

    async def carry_out(self, call: dict[str, Any]) -> None:
        """Carry out a call, and answer."""
        number = call["id"]
        try:
            method = getattr(self, call["do"], None)
            # Methods of the program that need to say when they have begun take the number of the call.
            if method is None:
                value = getattr(self._cache, call["do"])(*call["args"], **call["kwargs"])
            else:
                value = method(number, *call["args"], **call["kwargs"])
            if inspect.isawaitable(value):
                value = await value
            answer = {"id": number, "value": msgspec.to_builtins(value, enc_hook=repr)}
        except Exception as error:
            answer = {"id": number, "error": f"{type(error).__name__}: {error}"}
        say(answer)

    async def open(
        self,
        number: int,
        *,
        l1: tuple[int, float | None],
        l2: dict[str, Any] | None,
        l3: dict[str, Any] | None,
        backplane: dict[str, str] | None,
        options: dict[str, Any],
    ) -> None:
        """Open a new cache.

        Args:
            number: of the call.
            l1: the size and the ttl of L1.
            l2, l3: the arguments of the tiers, or None.
            backplane: the kind and the address of a backplane, or None for what `options` say.
            options: the arguments of the cache.
        """
        from acgsperf import EntryOptions, LRUCache, TieredCache
        from acgsperf.tiers.postgres import PostgresTier
        from acgsperf.tiers.redis import RedisTier

        if backplane is not None:
            from acgsperf.backplane.postgres import PostgresBackplane
            from acgsperf.backplane.redis import RedisBackplane

            kinds = {"redis": RedisBackplane, "postgres": PostgresBackplane}
            options["backplane"] = kinds[backplane["kind"]](backplane["url"])
        size, ttl = l1
        tiers = (l2 and RedisTier(**l2), l3 and PostgresTier(**l3))
        names = {one.name for one in fields(EntryOptions)}
        own = {name: value for name, value in options.items() if name in names}
        rest = {name: value for name, value in options.items() if name not in names}
        self._cache = await TieredCache(LRUCache(size, ttl), *tiers, **rest, options=EntryOptions(**own)).open()

    async def close(self, number: int) -> None:
        """Close the cache, which writes what is queued."""
        for gate in self._gates.values():
            gate.set()
        if self._cache is not None:
            await self._cache.close()
        self._cache = None
        # The next test may use this process.
        self._clock.offset_s = self._clock.first_offset_s

    async def load(
        self, number: int, keys: str | list[str], *, value: Any, gated: bool, seconds: float, error: str, **options: Any
    ) -> Any:
        """`get_or_load`, or `get_or_load_many` for a list of keys.

        Args:
            number: of the call.
            keys: a key, or several.
            value: what the loader returns for each of them; "object()" stands for an object that no lower tier stores.
            gated: whether the loader waits for `finish`.
            seconds: how long the loader takes besides.
            error: if it is not empty, the loader raises an `OSError` with this text.
            options: of the method.
        """
        gate = self._gates[number] = asyncio.Event()
        if not gated:
            gate.set()

        async def load_one(_: str) -> Any:
            say({"id": number, "begun": True})
            await gate.wait()
            await asyncio.sleep(seconds)
            if error:
                raise OSError(error)
            return object() if value == "object()" else value

        async def load_many(missing: list[str]) -> dict[str, Any]:
            loaded = await load_one("")
            return dict.fromkeys(missing, loaded)

        if isinstance(keys, str):
            return await self._cache.get_or_load(keys, load_one, **options)
        return await self._cache.get_or_load_many(keys, load_many, **options)

    def finish(self, number: int, load: int) -> None:
        """Let the loader of a call return."""
        self._gates[load].set()

    async def watch(self, number: int, key: str, seconds: float) -> list[Any]:
        """Read a key again and again, and return the different answers in order; None is a miss."""
        say({"id": number, "begun": True})
        answers: list[Any] = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            answer = await self._cache.get(key)
            if not answers or answers[-1] != answer:
                answers.append(answer)
            await asyncio.sleep(0)
        return answers

    async def read_until_finished(self, number: int, key: str) -> None:
        """Read a key again and again until `finish`."""
        gate = self._gates[number] = asyncio.Event()
        await self._cache.get(key)
        say({"id": number, "begun": True})
        while not gate.is_set():
            await self._cache.get(key)
            await asyncio.sleep(0)

    def first_reads_after_pause(self, number: int, keys: list[str]) -> list[Any]:
        """Block this thread until `resume`, and look for keys in L1 before the event loop does anything else."""
        self.resumed.clear()
        say({"id": number, "begun": True})
        self.resumed.wait()
        return [self._cache.get_local(key) for key in keys]

    async def first_load_after_pause(self, number: int, keys: str | list[str], value: Any) -> Any:
        """Block this thread until `resume`, and load keys before the event loop does anything else."""
        self.resumed.clear()
        say({"id": number, "begun": True})
        self.resumed.wait()
        return await self.load(number, keys, value=value, gated=False, seconds=0, error="")

    def get_local_many(self, number: int, keys: list[str]) -> list[Any]:
        """Look for keys in L1, all at the same time."""
        return [self._cache.get_local(key) for key in keys]

    def move_wall_clock(self, number: int, seconds: float) -> None:
        """Make the wall clock jump."""
        self._clock.offset_s += seconds


def say(answer: dict[str, Any]) -> None:
    """Write a line."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def main(clock: WallClock) -> None:
    """Carry out calls until the standard input ends."""
    program = Program(clock)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()

    def start(call: dict[str, Any]) -> None:
        task = loop.create_task(program.carry_out(call))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def listen() -> None:
        for line in sys.stdin:
            call = json.loads(line)
            if call["do"] == "resume":
                program.resumed.set()
            else:
                loop.call_soon_threadsafe(start, call)
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=listen, daemon=True).start()
    say({"id": 0, "value": None})
    await ended.wait()


if __name__ == "__main__":
    if sys.platform == "linux":
        # A frozen process would survive the tests.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Before the package is imported: it takes the clock that it finds.
    asyncio.run(main(WallClock(float(sys.argv[1]))))
