"""The cache against a model of itself that is too simple to be wrong."""

from collections import OrderedDict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from acgsperf import CacheStats, EvictionReason

# Keys of which some are equal and some only share a hash.
KEYS = st.sampled_from([0, 1, True, 1.0, -1, -2, 2**61, "", "a", "b", "ab", "ä", (1, 2), None])
TTLS = st.sampled_from([None, 1, 2.5, 10])
NEVER = float("inf")


class CacheMachine(RuleBasedStateMachine):
    """Does the same to both, and compares everything after every step."""

    caches = None

    @initialize(maxsize=st.integers(1, 6), ttl=TTLS)
    def create(self, maxsize, ttl):
        self.now = 0.0
        self.reported, self.expected = [], []
        self.model = OrderedDict()
        self.maxsize, self.ttl = maxsize, ttl
        self.answers_until = NEVER
        self.counts = dict.fromkeys(("hits", "misses", "insertions", "updates", "evictions", "expirations"), 0)
        self.cache = self.create_cache(
            maxsize, ttl, clock=lambda: self.now, on_evict=lambda *evicted: self.reported.append(evicted)
        )

    def fresh(self, key):
        return key in self.model and self.now < self.model[key][2]

    def evict(self, key):
        stored, value, expires = self.model.pop(key)
        expired = self.now >= expires
        self.counts["expirations" if expired else "evictions"] += 1
        self.expected.append((stored, value, EvictionReason.EXPIRED if expired else EvictionReason.SIZE))

    def drop_expired(self, key):
        if key in self.model and not self.fresh(key):
            self.evict(key)

    def answers(self, key):
        return self.fresh(key) and self.now < self.answers_until

    def read(self, key):
        if self.answers(key):
            self.counts["hits"] += 1
            self.model.move_to_end(key)
            return True
        self.counts["misses"] += 1
        self.drop_expired(key)
        return False

    def write(self, key, value, ttl):
        expires = NEVER if ttl is None else self.now + ttl
        if self.fresh(key):
            self.counts["updates"] += 1
            self.model[key] = (self.model[key][0], value, expires)
            self.model.move_to_end(key)
            return
        if key in self.model:
            self.evict(key)
        elif len(self.model) == self.maxsize:
            self.evict(next(iter(self.model)))
        self.counts["insertions"] += 1
        self.model[key] = (key, value, expires)

    def fresh_items(self):
        return [(stored, value) for stored, value, expires in self.model.values() if self.now < expires]

    @rule(seconds=st.none() | st.sampled_from([-1, 0, 0.5, 3]))
    def answer_for(self, seconds):
        self.answers_until = NEVER if seconds is None else self.now + seconds
        self.cache.answers_until = None if seconds is None else self.answers_until

    @rule(seconds=st.sampled_from([0.5, 1, 3, 10]))
    def wait(self, seconds):
        self.now += seconds

    @rule(key=KEYS)
    def get(self, key):
        expected = self.model[key][1] if self.read(key) else "default"
        assert self.cache.get(key, "default") == expected

    @rule(key=KEYS)
    def getitem(self, key):
        if self.read(key):
            assert self.cache[key] == self.model[key][1]
        else:
            with pytest.raises(KeyError):
                self.cache[key]

    @rule(key=KEYS)
    def look(self, key):
        assert (key in self.cache) == self.answers(key)
        assert self.cache.peek(key, "default") == (self.model[key][1] if self.fresh(key) else "default")
        if not self.fresh(key):
            with pytest.raises(KeyError):
                self.cache.expires_in(key)
        elif self.model[key][2] == NEVER:
            assert self.cache.expires_in(key) is None
        else:
            assert self.cache.expires_in(key) == pytest.approx(self.model[key][2] - self.now)

    @rule(key=KEYS, value=st.integers())
    def setitem(self, key, value):
        self.cache[key] = value
        self.write(key, value, self.ttl)

    @rule(key=KEYS, value=st.integers(), ttl=TTLS)
    def set_with_ttl(self, key, value, ttl):
        self.cache.set(key, value, ttl)
        self.write(key, value, ttl)

    @rule(items=st.lists(st.tuples(KEYS, st.integers()), max_size=4))
    def update(self, items):
        self.cache.update(items)
        for key, value in items:
            self.write(key, value, self.ttl)

    @rule(key=KEYS, value=st.integers())
    def setdefault(self, key, value):
        found = self.read(key)
        expected = self.model[key][1] if found else value
        if not found:
            self.write(key, value, self.ttl)
        assert self.cache.setdefault(key, value) == expected

    @rule(key=KEYS)
    def pop(self, key):
        self.drop_expired(key)
        expected = self.model.pop(key, (None, "default"))[1]
        assert self.cache.pop(key, "default") == expected

    @rule()
    def popitem(self):
        while self.model and not self.fresh(next(iter(self.model))):
            self.evict(next(iter(self.model)))
        if self.model:
            stored, value, _ = self.model.popitem(last=False)[1]
            assert self.cache.popitem() == (stored, value)
        else:
            with pytest.raises(KeyError):
                self.cache.popitem()

    @rule(key=KEYS)
    def delete(self, key):
        if self.model.pop(key, None) is None:
            with pytest.raises(KeyError):
                del self.cache[key]
        else:
            del self.cache[key]

    @rule()
    def expire(self):
        over = [key for key in self.model if not self.fresh(key)]
        for key in over:
            self.evict(key)
        assert self.cache.expire() == len(over)

    @rule(maxsize=st.integers(1, 6))
    def resize(self, maxsize):
        self.maxsize = maxsize
        while len(self.model) > maxsize:
            self.evict(next(iter(self.model)))
        self.cache.resize(maxsize)

    @precondition(lambda self: len(self.model) > 3)
    @rule()
    def clear(self):
        self.model.clear()
        self.cache.clear()

    @rule()
    def reset_stats(self):
        self.counts = dict.fromkeys(self.counts, 0)
        self.cache.reset_stats()

    @invariant()
    def agrees(self):
        if not hasattr(self, "cache"):
            return
        assert len(self.cache) == len(self.model)
        assert self.cache.stats() == CacheStats(**self.counts, size=len(self.model), maxsize=self.maxsize)
        items = self.cache.items()
        assert items == self.fresh_items()
        assert [type(key) for key, _ in items] == [type(key) for key, _ in self.fresh_items()]
        assert self.cache.keys() == list(self.cache) == [key for key, _ in items]
        assert self.cache.values() == [value for _, value in items]
        assert self.reported == self.expected


@pytest.mark.order_of_use
def test_it_does_what_an_ordered_dict_with_times_does(caches):
    machine = type("Machine", (CacheMachine,), {"create_cache": staticmethod(caches.create)})
    run_state_machine_as_test(machine, settings=settings(max_examples=250, stateful_step_count=60, deadline=None))
