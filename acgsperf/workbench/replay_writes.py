"""The writes of a replay: which process changes which keys, and whether an answer was older than a write."""

import asyncio
import time
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import count
from typing import Any, Final

from msgspec import Struct

from acgsperf.backplane.base import TIMEOUT_S
from acgsperf.cache import TieredCache
from acgsperf.fingerprint import fingerprint, request_key
from acgsperf.workbench.replay_origin import Origin, WrongValueError, value_of, version_of
from acgsperf.workbench.traces import Request

__all__ = ["ALLOWED_LAG_S", "Acknowledged", "Check", "checked_answers", "spread", "total", "writer_of"]

# If a process gets no records for this time, its L1 stops answering. Until then, an answer may be older than a write of
# another process.
ALLOWED_LAG_S: Final = TIMEOUT_S
_PAUSE_S: Final = 0.01

# For one key, its acknowledged writes: the version, and the time of `time.monotonic_ns` after its acknowledgment.
Acknowledged = list[tuple[int, int]]


class Check(Struct, frozen=True):
    """The result of comparing answers with writes.

    Attributes:
        checked: answers that began after a write of their key was acknowledged everywhere; of another process's write,
            more than the allowed lag after it.
        outdated: how many of them had an older version.
        longest_ns: how long after the acknowledgment of a write a request began whose answer was older.
    """

    checked: int
    outdated: int
    longest_ns: int


def total(checks: Sequence[Check]) -> Check:
    """Return one result for all keys."""
    return Check(
        sum(check.checked for check in checks),
        sum(check.outdated for check in checks),
        max((check.longest_ns for check in checks), default=0),
    )


def checked_answers(answers: Sequence[int], acknowledged: Acknowledged, lag_ns: int) -> Check:
    """Compare the answers to the requests for one key with its writes.

    Args:
        answers: by turns the time before a request, of `time.monotonic_ns`, and the version in its answer.
        acknowledged: the writes, in order.
        lag_ns: how long after its acknowledgment a write may be unknown.
    """
    versions, times = [version for version, _ in acknowledged], [at for _, at in acknowledged]
    checked = outdated = longest_ns = 0
    for began, version in zip(answers[::2], answers[1::2], strict=True):
        known = bisect_right(times, began - lag_ns)
        if known:
            checked += 1
            outdated += versions[known - 1] > version
        newer = bisect_right(versions, version)
        if newer < len(times):
            longest_ns = max(longest_ns, began - times[newer])
    return Check(checked, outdated, longest_ns)


def spread(indices: Sequence[int], share: float) -> list[int]:
    """Return which keys are changed: a share of them, at least one, from the most frequent to the rarest.

    Args:
        indices: the key of each request.
        share: greater than 0, at most 1.
    """
    by_frequency = [index for index, _ in Counter(indices).most_common()]
    changed = max(round(share * len(by_frequency)), 1)
    return [by_frequency[at * len(by_frequency) // changed] for at in range(changed)]


def writer_of(position: int, processes: int) -> int:
    """Return the process that changes a key, from 1."""
    return position % processes + 1


class ChangedKeys:
    """The keys that are changed during a replay, as one process sees them.

    Each process writes a part of the keys, and reads all of them. So every key has one writer, and its versions grow.

    Args:
        requests: the requests for the keys.
        process: this process, from 1.
        processes: how many there are.

    Attributes:
        positions: the position of each address in the list of keys.
        acknowledged: the writes of this process, by key.
        writes: how often this process has changed a value.
        unacknowledged: how many of these writes some tier did not accept, or were not published.
    """

    def __init__(self, requests: Sequence[Request], process: int, processes: int) -> None:
        self._requests = requests
        self.positions: Final = {fingerprint(request): at for at, request in enumerate(requests)}
        self._own = [at for at in range(len(requests)) if writer_of(at, processes) == process]
        self._answers = [array("q") for _ in requests]
        self.acknowledged: list[Acknowledged] = [[] for _ in requests]
        self.writes: int = 0
        self.unacknowledged: int = 0

    def answered(self, position: int, began_ns: int, address: str, value: object) -> None:
        """Note the answer to a request for a changed key.

        Raises:
            WrongValueError: if it is not a value of this key.
        """
        version = version_of(address, value)
        if version is None:
            raise WrongValueError(f"request {self._requests[position]!r} was answered with {value!r}")
        self._answers[position].extend((began_ns, version))

    async def write(self, cache: TieredCache[Any], origin: Origin) -> None:
        """Change the keys of this process, one after the other, until cancelled.

        The origin changes first, then the cache: by turns, the new value is set and the old one is deleted.
        """
        addresses = list(self.positions)
        for version in count(1) if self._own else ():
            for position in self._own:
                address, key = addresses[position], request_key(self._requests[position])
                await origin.write(address, version)
                if version % 2:
                    written = await cache.set(key, value_of(address, version))
                else:
                    written = await cache.delete(key)
                self.writes += 1
                if written.everywhere:
                    self.acknowledged[position].append((version, time.monotonic_ns()))
                else:
                    self.unacknowledged += 1
                await asyncio.sleep(_PAUSE_S)

    def check(self, acknowledged: Sequence[Acknowledged]) -> Check:
        """Compare the answers with the writes of all processes. This process knows its own writes at once."""
        lags_ns = [int(ALLOWED_LAG_S * 1e9)] * len(acknowledged)
        for position in self._own:
            lags_ns[position] = 0
        return total(list(map(checked_answers, self._answers, acknowledged, lags_ns)))
