"""Learns which key is requested after which, in pure Python: the twin of `predictor`, which documents it."""

from collections import OrderedDict
from collections.abc import Container, Sequence
from sys import getsizeof
from typing import Any, Final

from acgsperf._native.predicting import (
    DEEPER,
    IN_TIME,
    LEAST_RESOLVED,
    LIVES,
    LONGEST_STEP,
    MOST_DEPTH,
    MOST_RESOLVED,
    OFF,
    ON,
    RETRY,
    STEPS,
    WASTE,
    WINDOW,
    checked_buffer,
    checked_depth,
    checked_table_size,
)
from acgsperf._native.prediction_stats import BANDS, PredictionStats, predictor_stats

__all__ = ["IMPLEMENTATION", "Predictor"]

IMPLEMENTATION: Final = "python"

_MASK: Final = 2**64 - 1
_MULTIPLIER: Final = 0x9E3779B97F4A7C15
_SECOND_MULTIPLIER: Final = 0xD6E8FEB86659FD93
_WAYS: Final = 4
_MOST_COUNT: Final = 3
_CLASSES: Final = 32
_CONFIDENT: Final = 4
_ORDER_1: Final = 0
_BESIDE_2: Final = 8
_ORDER_2: Final = 16
_CONFIRMED_2: Final = 24
_FETCHING: Final[Any] = object()


def _mix(key_hash: int) -> int:
    key_hash = key_hash * _MULTIPLIER & _MASK
    return (key_hash ^ key_hash >> 32) * _SECOND_MULTIPLIER & _MASK


def _mix_two(before: int, key_hash: int) -> int:
    return _mix(_mix(before) ^ key_hash)


def _hash(key: str) -> int:
    if type(key) is not str:
        raise TypeError(f"Argument 'key' has incorrect type (expected str, got {type(key).__name__})")
    return hash(key) & _MASK


def _band_of(depth: int) -> int:
    return 0 if depth == 1 else 1 if depth == 2 else 2 if depth <= 4 else 3


class _Successor:
    """What follows a context."""

    __slots__ = ("count", "key", "tag")

    def __init__(self, tag: int, key: str) -> None:
        self.tag = tag
        self.key = key
        self.count = 1


class _Table:
    """The successor of each context, in buckets of four."""

    __slots__ = ("_buckets", "_slots")

    def __init__(self, size: int) -> None:
        self._buckets = size // _WAYS
        self._slots: list[_Successor | None] = [None] * (self._buckets * _WAYS)

    def _first(self, context: int) -> int:
        return _WAYS * ((context >> 32) * self._buckets >> 32)

    def find(self, context: int) -> _Successor | None:
        first, tag = self._first(context), context & 0xFFFFFFFF
        for slot in self._slots[first : first + _WAYS]:
            if slot is not None and slot.tag == tag:
                return slot
        return None

    def learn(self, context: int, key: str) -> None:
        slot = self.find(context)
        if slot is None:
            self._slots[self._weakest(context)] = _Successor(context & 0xFFFFFFFF, key)
        elif slot.key == key:
            slot.count = min(slot.count + 1, _MOST_COUNT)
        elif slot.count > 1:
            slot.count -= 1
        else:
            slot.key, slot.count = key, 1

    def _weakest(self, context: int) -> int:
        """Return a place for a new context: an empty one, else the one with the lowest count; the others age."""
        first = self._first(context)
        chosen, lowest = first, _MOST_COUNT + 1
        slots = self._slots[first : first + _WAYS]
        for place, slot in enumerate(slots, first):
            if slot is None:
                return place
            if slot.count < lowest:
                chosen, lowest = place, slot.count
        for slot in slots:
            if slot is not None and slot.count:
                slot.count -= 1
        return chosen

    def slots(self) -> list[_Successor | None]:
        return self._slots.copy()

    def __sizeof__(self) -> int:
        return object.__sizeof__(self) + getsizeof(self._slots)


class _Item:
    """A predicted key."""

    __slots__ = ("born", "classes", "key", "timing", "value")

    def __init__(self, key: str, classes: int, born: int, timing: int) -> None:
        self.key = key
        # A bit for each class that has predicted it.
        self.classes = classes
        # The event at which it was predicted.
        self.born = born
        self.timing = timing
        self.value: Any = _FETCHING


class Predictor:
    """Learns which keys are requested after which, and holds the values of predicted keys until they are requested."""

    def __init__(self, size: int, /, *, depth: int = 2, table_size: int = 65_536) -> None:
        self.size: Final = checked_buffer(size)
        self.depth = depth
        self.table_size: Final = checked_table_size(table_size)
        self.reserved = 0
        self._pairs = _Table(self.table_size)
        self._singles = _Table(self.table_size)
        # By hash, in order of age.
        self._real: OrderedDict[int, _Item] = OrderedDict()
        self._virtual: OrderedDict[int, _Item] = OrderedDict()
        self._before = self._last = self._events = 0
        self._issued = self._used = self._wasted = self._late = 0
        self._resolved = [0] * _CLASSES
        self._true = [0] * _CLASSES
        self._active = [False] * _CLASSES
        self._arrived = [0] * 2 * len(BANDS)
        self._in_time = [0] * 2 * len(BANDS)
        self._too_slow = [False] * 2 * len(BANDS)
        self._since_retry = 0
        self._requests = self._window_start = self._window_wasted = 0

    @property
    def depth(self) -> int:
        return self._depth

    @depth.setter
    def depth(self, depth: int) -> None:
        self._depth = checked_depth(depth)
        # The values of a longer chain would not fit.
        self._longer_reach = min(2 * self._depth, MOST_DEPTH, max(1, self.size // 2))
        self._reach = min(self._depth, self._longer_reach)

    def __len__(self) -> int:
        return len(self._real)

    def __contains__(self, key: str) -> bool:
        item = self._item(key)
        return item is not None and item.value is not _FETCHING

    def __sizeof__(self) -> int:
        parts = (self._pairs, self._singles, self._real, self._virtual)
        return object.__sizeof__(self) + sum(map(getsizeof, parts))

    def take(self, key: str, default: Any = None, /) -> Any:
        """Return the value of a predicted key, and stop holding it; `default` if there is none."""
        item = self._item(key)
        if item is None:
            return default
        in_time = item.value is not _FETCHING
        self._resolve(item.classes, True)
        self._time(item.timing, in_time)
        del self._real[_hash(key)]
        if in_time:
            self._used += 1
            return item.value
        self._late += 1
        self._window_wasted += 1
        return default

    def next(self, key: str, held: Container[str], requests: int, first_use: bool, /) -> list[str]:
        """Learn that a key was requested, and return the keys to fetch."""
        key_hash = _hash(key)
        wanted: list[str] = []
        self._count_requests(requests)
        self._events += 1
        self._expire()
        item = self._virtual.pop(key_hash, None)
        if item is not None:
            self._resolve(item.classes, True)
        if self._events > 1:
            self._singles.learn(_mix(self._last), key)
            if self._events > 2:
                self._pairs.learn(_mix_two(self._before, self._last), key)
        self._before, self._last = self._last, key_hash
        self._predict(key, held, first_use, wanted)
        self._reserve()
        return wanted

    def store(self, key: str, value: Any, /) -> bool:
        """Hold the value of a key that `next` has returned; return whether it is still wanted."""
        item = self._item(key)
        if item is None or item.value is not _FETCHING:
            return False
        item.value = value
        return True

    def fail(self, key: str, /) -> None:
        """Count a key that `next` has returned as useless, because it cannot be fetched."""
        item = self._item(key)
        if item is not None and item.value is _FETCHING:
            self._waste(_hash(key))

    def refuse(self, key: str, /) -> None:
        """Count the value of a key that is requested now as useless, because the request cannot use it."""
        item = self._item(key)
        if item is not None and item.value is not _FETCHING:
            # The prediction was right.
            self._resolve(item.classes, True)
            self._time(item.timing, True)
            self._wasted += 1
            self._window_wasted += 1
            del self._real[_hash(key)]

    def peek(self, key: str, default: Any = None, /) -> Any:
        """Return the value that is held for a key, or `default`; count nothing."""
        item = self._item(key)
        return default if item is None or item.value is _FETCHING else item.value

    def discard(self, key: str, /) -> None:
        """Stop holding or awaiting the value of a key, because the value has changed."""
        if self._item(key) is not None:
            del self._real[_hash(key)]

    def clear(self) -> None:
        """Stop holding and awaiting values; keep what was learned."""
        # The values end after the exchange: that may run code that uses this object.
        self._real = OrderedDict()

    def keys(self) -> list[str]:
        """Return the keys whose values are held or being fetched, in order of age."""
        return [item.key for item in self._real.values()]

    def stats(self) -> PredictionStats:
        """Return the counts so far."""
        return predictor_stats(self._issued, self._used, self._wasted, self._late, len(self._real), self._classes())

    def _successors(self) -> list[str]:
        """Return the keys that follow others."""
        return [slot.key for table in (self._singles, self._pairs) for slot in table.slots() if slot is not None]

    def _successor(self, before: str | None, last: str, /) -> tuple[str, int] | None:
        """Return what follows a key, or two, and how often that has come true; None if that is not known."""
        if before is None:
            slot = self._singles.find(_mix(_hash(last)))
        else:
            slot = self._pairs.find(_mix_two(_hash(before), _hash(last)))
        return None if slot is None else (slot.key, slot.count)

    def _learn(self, before: str | None, last: str, key: str, count: int, /) -> None:
        """Learn what follows a key, or two, as often as it has come true."""
        for _ in range(max(1, min(count, _MOST_COUNT))):
            if before is None:
                self._singles.learn(_mix(_hash(last)), key)
            else:
                self._pairs.learn(_mix_two(_hash(before), _hash(last)), key)

    def _classes(self) -> list[tuple[int, int, bool]]:
        """Return the counts of each class, and whether it is active."""
        return list(zip(self._resolved, self._true, self._active, strict=True))

    def _set_classes(self, classes: Sequence[tuple[int, int, bool]], /) -> None:
        """Continue with the counts of another predictor."""
        for number, (resolved, true, active) in enumerate(classes[:_CLASSES]):
            self._resolved[number] = max(0, min(resolved, MOST_RESOLVED - 1))
            self._true[number] = max(0, min(true, self._resolved[number]))
            self._active[number] = active

    def _item(self, key: str) -> _Item | None:
        item = self._real.get(_hash(key))
        return item if item is not None and item.key == key else None

    def _resolve(self, classes: int, true: bool) -> None:
        for number in range(_CLASSES):
            if classes >> number & 1:
                self._resolve_one(number, true)

    def _resolve_one(self, number: int, true: bool) -> None:
        deeper = DEEPER if number % len(BANDS) >= 2 else 0
        self._resolved[number] += 1
        self._true[number] += true
        if self._resolved[number] >= LEAST_RESOLVED:
            precision = self._true[number] / self._resolved[number]
            if precision >= ON + deeper:
                self._active[number] = True
            elif precision < OFF + deeper:
                self._active[number] = False
        if self._resolved[number] == MOST_RESOLVED:
            self._resolved[number] //= 2
            self._true[number] //= 2

    def _time(self, timing: int, in_time: bool) -> None:
        """Count whether a value has arrived in time."""
        self._arrived[timing] += 1
        self._in_time[timing] += in_time
        if self._arrived[timing] >= LEAST_RESOLVED:
            self._too_slow[timing] = self._in_time[timing] < IN_TIME * self._arrived[timing]
        if self._arrived[timing] == MOST_RESOLVED:
            self._arrived[timing] //= 2
            self._in_time[timing] //= 2

    def _count_requests(self, requests: int) -> None:
        if requests < self._requests:
            self._window_start = requests
            self._window_wasted = 0
        self._requests = requests
        if requests - self._window_start > WINDOW:
            self._window_start += (requests - self._window_start) // 2
            self._window_wasted //= 2

    def _may_fetch(self) -> bool:
        """Whether the useless fetches stay below the limit if everything that is held turns out to be useless."""
        return self._window_wasted + len(self._real) + 1 <= WASTE * (self._requests - self._window_start)

    def _may_be_in_time(self, timing: int) -> bool:
        if not self._too_slow[timing]:
            return True
        self._since_retry += 1
        return self._since_retry % RETRY == 0

    def _waste(self, key_hash: int) -> None:
        self._wasted += 1
        self._window_wasted += 1
        item = self._real.pop(key_hash)
        self._resolve(item.classes, False)

    def _expire(self) -> None:
        life = LIVES * self.size
        while self._real and self._events - self._oldest(self._real).born > life:
            self._waste(next(iter(self._real)))
        while self._virtual and self._events - self._oldest(self._virtual).born > life:
            self._miss_virtual()

    @staticmethod
    def _oldest(items: "OrderedDict[int, _Item]") -> _Item:
        return next(iter(items.values()))

    def _miss_virtual(self) -> None:
        _, item = self._virtual.popitem(last=False)
        self._resolve(item.classes, False)

    def _predict(self, key: str, held: Container[str], first_use: bool, wanted: list[str]) -> None:
        before, last = self._before, self._last
        # A hit cannot fetch the next value in time, so the miss before it fetches more.
        reach = self._longer_reach if self._too_slow[len(BANDS)] and not first_use else self._reach
        for depth in range(1, reach + 1):
            band = _band_of(depth)
            timing = len(BANDS) * first_use + band
            pair = self._pairs.find(_mix_two(before, last)) if self._events > 1 else None
            single = self._singles.find(_mix(last))
            other = None
            if pair is not None:
                following = pair.key
                kind = _ORDER_2 + band + (_CONFIDENT if pair.count > 1 else 0)
                if single is not None:
                    if single.key == following:
                        kind += _CONFIRMED_2 - _ORDER_2
                    else:
                        other = single
            elif single is not None:
                following = single.key
                kind = _ORDER_1 + band + (_CONFIDENT if single.count > 1 else 0)
            else:
                break
            if following == key:
                break
            if other is not None and other.key != key:
                beside = _BESIDE_2 + band + (_CONFIDENT if other.count > 1 else 0)
                self._propose(other.key, held, beside, timing, wanted)
            self._propose(following, held, kind, timing, wanted)
            before, last = last, _hash(following)

    def _propose(self, key: str, held: Container[str], kind: int, timing: int, wanted: list[str]) -> None:
        """Fetch a key if its class is active, else remember that it would have been fetched."""
        key_hash, classes = _hash(key), 1 << kind
        item = self._real.get(key_hash)
        if item is not None:
            item.classes |= classes
            return
        if key in held:
            return
        if self._active[kind] and self._may_fetch() and self._may_be_in_time(timing):
            item = self._virtual.pop(key_hash, None)
            if item is not None:
                classes |= item.classes
            while len(self._real) >= self.size:
                self._waste(next(iter(self._real)))
            self._real[key_hash] = _Item(key, classes, self._events, timing)
            wanted.append(key)
            self._issued += 1
            return
        item = self._virtual.get(key_hash)
        if item is not None:
            item.classes |= classes
            return
        if len(self._virtual) >= self.size:
            self._miss_virtual()
        self._virtual[key_hash] = _Item(key, classes, self._events, timing)

    def _reserve(self) -> None:
        step = max(1, min(self.size // STEPS, LONGEST_STEP))
        length = len(self._real)
        if length > self.reserved or length + 2 * step < self.reserved or length == 0:
            self.reserved = min(self.size, -(-length // step) * step)
