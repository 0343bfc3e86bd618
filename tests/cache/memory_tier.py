"""A tier in memory that keeps the contract of `Tier`. The test decides when it answers."""

import asyncio
import time

from acgsperf import LatencyHistogram
from acgsperf.tiers import BreakerState, Tier, TierHealth, TierStats


class MemoryTier(Tier):
    """Entries in a dictionary, by namespace.

    Answers wait while `gate` is closed. While `up` is false, every call fails at once. `calls` lists the calls.
    """

    def __init__(self, name, clock=time.monotonic, data=None):
        self.name = name
        self.clock = clock
        self.data = {} if data is None else data
        self.namespace = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.up = True
        self.calls = []
        self.locks = {}
        self.tokens = 0

    async def open(self, namespace):
        self.namespace = namespace

    async def close(self):
        self.namespace = None

    def __getitem__(self, key):
        return self.data[self.namespace, key]

    def __contains__(self, key):
        return (self.namespace, key) in self.data

    def lose(self, *keys):
        for key in keys:
            del self.data[self.namespace, key]

    async def _answer(self, kind, keys):
        self.calls.append((kind, tuple(keys)))
        if not self.up:
            # As with an open circuit breaker, the answer does not wait.
            return
        await asyncio.sleep(0)
        await self.gate.wait()

    async def get(self, key):
        return (await self._got("get", [key])).get(key)

    async def get_many(self, keys):
        return await self._got("get_many", keys)

    async def _got(self, kind, keys):
        assert self.namespace is not None
        # Read before the answer is sent, as a server does: a later write does not change the answer.
        found = {key: self.data.get((self.namespace, key)) for key in keys if self.up}
        await self._answer(kind, keys)
        now = self.clock()
        return {
            key: entry
            for key, entry in found.items()
            if entry is not None and (entry.kept_until is None or now < entry.kept_until)
        }

    async def set(self, key, entry):
        return key in await self._stored("set", {key: entry})

    async def set_many(self, entries):
        return await self._stored("set_many", entries)

    async def _stored(self, kind, entries):
        assert self.namespace is not None
        if self.up:
            self.data.update({(self.namespace, key): entry for key, entry in entries.items()})
        await self._answer(kind, entries)
        return frozenset(entries) if self.up else frozenset()

    async def delete_many(self, keys):
        return await self._deleted("delete_many", keys)

    async def _deleted(self, kind, keys):
        gone = [self.data.pop((self.namespace, key), None) for key in keys if self.up]
        await self._answer(kind, keys)
        return sum(entry is not None for entry in gone) if self.up else None

    async def invalidate_tag(self, tag):
        tagged = [k for (space, k), entry in self.data.items() if space == self.namespace and tag in entry.tags]
        return await self._deleted("invalidate_tag", tagged)

    async def clear(self):
        return await self._deleted("clear", [key for space, key in self.data if space == self.namespace])

    async def lock(self, key, ttl):
        await self._answer("lock", [key])
        if not self.up:
            return None
        holder = self.locks.get((self.namespace, key))
        if holder is not None and self.clock() < holder[1]:
            return 0
        self.tokens += 1
        self.locks[self.namespace, key] = (self.tokens, self.clock() + ttl)
        return self.tokens

    async def unlock(self, key, token):
        await self._answer("unlock", [key])
        holder = self.locks.get((self.namespace, key))
        if not self.up or holder is None or holder[0] != token:
            return False
        del self.locks[self.namespace, key]
        return True

    async def health(self):
        return TierHealth(self.up, 1, BreakerState.CLOSED, self.name)

    def stats(self):
        return TierStats(0, 0, 0, 0, 0, 0, 0, {}, 0, BreakerState.CLOSED, LatencyHistogram().snapshot())

    def asked(self, kind):
        return [keys for called, keys in self.calls if called == kind]
