"""Callers of a cache whose answers are compared with all that may be true."""

import itertools
import time
from contextlib import asynccontextmanager

from acgsperf import LRUCache, TieredCache
from acgsperf.tiers import BreakerState, Entry

DEADLINE_S = 0.25
LOCK_TTL_S = 0.5
# A load reads, locks, reads, writes and unlocks.
_CALLS_OF_A_LOAD = 5
# The breaker's clock is this many times as fast, so that tests need not wait for it.
_BREAKER_SPEED = 10


class Application:
    """Uses a cache whose only lower tier is under test.

    It knows for each key which values may be stored: the last one that was acknowledged, and those since that may or
    may not have reached the server. A value carries its key and a number of its own.

    Args:
        oracle: times the calls.
        tier: the tier under test.
        truth: a tier of the same kind and namespace that reaches the real server directly.
        namespace: of both.
        lower: name of the tier under test in the cache, `l2` or `l3`.
    """

    def __init__(self, oracle, tier, truth, namespace, lower):
        self.tier = tier
        self._oracle = oracle
        self._truth = truth
        self._namespace = namespace
        self._lower = lower
        self.cache = TieredCache(
            LRUCache(1_000),
            **{lower: tier},
            namespace=namespace,
            promotion_threshold=1_000_000,
            demotion=False,
            deadline=DEADLINE_S,
            lock_ttl=LOCK_TTL_S if lower == "l2" else None,
        )
        self._numbers = itertools.count()
        self._may_be_stored = {}

    @asynccontextmanager
    async def running(self):
        self.tier._breaker._clock = lambda: _BREAKER_SPEED * time.monotonic()
        await self._truth.open(self._namespace)
        try:
            async with self.cache:
                yield self
            await self._truth.clear()
        finally:
            await self._truth.close()

    def _value(self, key):
        return {"key": key, "number": next(self._numbers), "padding": "x" * 50}

    async def _call(self, what, call, within=DEADLINE_S):
        # Every read goes to the tier under test. L1 and what it keeps besides are emptied, and only they.
        self.cache._l1.clear()
        try:
            return await self._oracle.call(what, call, within)
        finally:
            self.cache._l1.clear()

    def _check(self, key, value):
        if value is None:
            return
        assert value["key"] == key, f"{key} got the value of {value['key']}"
        assert value["number"] in self._may_be_stored[key], f"{key} got {value}, not in {self._may_be_stored[key]}"

    def _done(self, written):
        return getattr(written, self._lower)

    async def set(self, key, tags=()):
        value = self._value(key)
        may = self._may_be_stored.setdefault(key, {None})
        may |= {value["number"], None}
        if done := self._done(await self._call("set", self.cache.set(key, value, tags=tags))):
            self._may_be_stored[key] = {value["number"]}
            stored = await self._truth.get(key)
            assert stored is not None, f"{key} was acknowledged and is not stored"
            assert stored.value == value
        return done

    async def set_elsewhere(self, *keys):
        """Write keys as another process does."""
        values = {key: self._value(key) for key in keys}
        now = time.monotonic()
        stored = await self._truth.set_many({key: Entry(values[key], now, now + 60, now + 60) for key in keys})
        assert stored == set(keys)
        for key in keys:
            self._may_be_stored[key] = {values[key]["number"]}

    async def get(self, key):
        value = await self._call("get", self.cache.get(key))
        self._check(key, value)
        return value

    async def get_many(self, *keys):
        found = await self._call("get_many", self.cache.get_many(keys))
        for key, value in found.items():
            self._check(key, value)
        return found

    async def delete(self, key):
        self._may_be_stored.setdefault(key, {None}).add(None)
        if done := self._done(await self._call("delete", self.cache.delete(key))):
            self._may_be_stored[key] = {None}
            assert await self._truth.get(key) is None, f"{key} was deleted and is stored"
        return done

    async def invalidate_tag(self, tag, *keys):
        for key in keys:
            self._may_be_stored.setdefault(key, {None}).add(None)
        if done := self._done(await self._call("invalidate_tag", self.cache.invalidate_tag(tag))):
            for key in keys:
                self._may_be_stored[key] = {None}
                assert await self._truth.get(key) is None, f"{key} has tag {tag} and is stored"
        return done

    async def lock(self, key):
        """Lock a key, check that nobody else gets the lock, and unlock it. Return whether all of that worked."""
        token = await self._call("lock", self.tier.lock(key, 2))
        if not token:
            return False
        assert await self._truth.lock(key, 2) == 0, f"{key} was locked and is not"
        assert not await self._call("lock", self.tier.lock(key, 2)), f"{key} was locked twice"
        if not await self._call("unlock", self.tier.unlock(key, token)):
            return False
        again = await self._truth.lock(key, 2)
        assert again > token, f"{key} was unlocked and is locked"
        await self._truth.unlock(key, again)
        return True

    async def load(self, key):
        async def loader(key):
            value = self._value(key)
            self._may_be_stored.setdefault(key, {None}).add(value["number"])
            return value

        within = _CALLS_OF_A_LOAD * DEADLINE_S + LOCK_TTL_S
        value = await self._call("get_or_load", self.cache.get_or_load(key, loader), within)
        assert value is not None
        self._check(key, value)
        return value

    async def works(self, name):
        """Check that the tier behaves as if there had never been a fault."""
        key, other = f"{name}-a", f"{name}-b"
        assert await self.set(key)
        assert await self.set(other, tags=("t",))
        assert await self.get(key)
        assert len(await self.get_many(key, other)) == 2
        assert await self.delete(key)
        assert await self.get(key) is None
        assert await self.invalidate_tag("t", other)
        assert await self.get(other) is None
        if self._lower == "l2":
            assert await self.lock(f"{name}-lock")
            assert await self.load(key)
        assert self.tier.stats().breaker is BreakerState.CLOSED
