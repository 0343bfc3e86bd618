"""What is fuzzed: each target takes bytes and raises if the code that it tries misbehaves.

A target allows only the exceptions that the code documents for bad input, and compares the compiled modules with their
twins: both must return the same, or raise the same exception with the same message. The twin is the one whose covered
branches guide the fuzzer, because it is Python.
"""

import dataclasses
import io
import math
import struct
import tempfile
import zlib
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from msgspec import msgpack

from acgsperf import _core
from acgsperf._native import (
    canonical,
    canonical_py,
    core_py,
    envelope,
    envelope_format,
    envelope_py,
    pg_dialogue,
    pg_dialogue_py,
    predictor,
    predictor_py,
    resp,
    resp_py,
    snapshot,
    weigh,
    weigh_py,
)
from acgsperf._native.entry import Entry
from acgsperf.errors import SnapshotError
from acgsperf.tiers import records
from acgsperf.workbench import trace_formats
from acgsperf.workbench.traces import Trace, TraceError
from fuzz.values import Source, value

NOW: Final = 1_000.0
TOKEN: Final = b"namespce"
KEY: Final = b"key"


class DisagreementError(AssertionError):
    """Two implementations, or an encoder and its decoder, do not agree."""


def outcome(call: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
    """Return what a call returns, or the type and the message of what it raises."""
    try:
        return None, call(*arguments)
    except Exception as error:
        return type(error), str(error)


def agree(calls: list[Callable[..., Any]], *arguments: Any, allowed: tuple[type[Exception], ...] = ()) -> Any:
    """Return what calls return, which must be the same; None if they raise an exception that is allowed.

    Raises:
        DisagreementError: if they do not agree, or raise another exception.
    """
    outcomes = [outcome(call, *arguments) for call in calls]
    for one, other in pairwise(outcomes):
        # The types count too: 1 is not True. NaN is the same as NaN.
        if one != other and repr(one) != repr(other):
            raise DisagreementError(f"{arguments!r:.2000}: {one!r:.500} and {other!r:.500}")
    raised, returned = outcomes[0]
    if raised is not None and not issubclass(raised, allowed):
        raise DisagreementError(f"{arguments!r:.2000}: {raised.__name__}: {returned}")
    return returned if raised is None else None


def histogram(data: bytes) -> None:
    """Decode a blob of a histogram."""
    _decode_histogram(data)
    # The fuzzer does not find the compression and the lengths by itself.
    packed = zlib.compress(data)
    _decode_histogram(struct.pack(">ii", 0x1C849314, len(packed)) + packed)
    header = struct.pack(">iiiiqqd", 0x1C849313, len(data), 0, 1 + len(data) % 5, 1, 10_000 << len(data) % 20, 1.0)
    packed = zlib.compress(header + data)
    _decode_histogram(struct.pack(">ii", 0x1C849314, len(packed)) + packed)


def _decode_histogram(blob: bytes) -> None:
    kinds = [_core.LatencyHistogram, core_py.LatencyHistogram]
    decoded = [outcome(kind.decode, blob) for kind in kinds]
    if decoded[0][0] is not None:
        agree([kind.decode for kind in kinds], blob, allowed=(ValueError,))
        return
    if decoded[1][0] is not None:
        raise DisagreementError(f"only the twin refuses {blob!r:.500}: {decoded[1][1]}")
    ours, twin = (found for _, found in decoded)
    for name in ("lowest_ns", "highest_ns", "significant_figures", "count", "min", "max", "mean", "stddev"):
        agree([partial(getattr, ours), partial(getattr, twin)], name)
    for percent in (0, 50, 99.9, 100):
        agree([ours.percentile, twin.percentile], percent)
    # The extremes of a blob of another program are the ends of buckets, so its own blob says more than it was given.
    again = ours.encode()
    if again != twin.encode() or _core.LatencyHistogram.decode(again) != ours:
        raise DisagreementError(f"{blob!r:.500} does not come back")


def envelopes(data: bytes) -> None:
    """Open envelopes: bytes as they are, and bytes behind the head of a valid envelope."""
    source = Source(data)
    limit = 10_000 if source.number(8) else 70
    token = TOKEN if source.number(2) else None
    fields = source.take(44)
    rest = source.rest()
    key_size = len(KEY)
    whole = b"12345678" + b"\0" * 8 + b"E\x02\0\0" + struct.pack(
        "<IdddIIHH", 0, 1.0, 2.0, math.inf, key_size, rest[0] if rest else 0, 1, 0
    )  # fmt: skip
    blobs = [
        data,
        fields + rest,
        b"12345678" + b"\0" * 8 + fields + rest,
        whole + TOKEN + KEY + rest,
        whole[:18] + (fields[0:1] or b"\0") + whole[19:] + TOKEN + KEY + rest[1:],
        # With tags, whose length is the first byte of the rest.
        whole + TOKEN + KEY + rest[1:],
        None,
    ]
    keys = [KEY] * len(blobs)
    arguments = (blobs, keys, limit, NOW, source.double() if rest[:1] == b"\xff" else 0.0, token)
    found, tagged, _ = agree([envelope.unseal_many, envelope_py.unseal_many], *arguments)
    if len(found) != len(blobs) or not all(isinstance(at, int) for at, _ in tagged):
        raise DisagreementError(f"{data!r:.500}: {len(found)} entries")
    for blob, entry in zip(blobs, found, strict=True):
        if blob is not None:
            envelope_format.unseal_header(blob)
            if entry is not None and envelope_format.is_of_another_key(blob, KEY):
                raise DisagreementError(f"{blob!r:.500} is of this key and of another one")


def sealed(data: bytes) -> None:
    """Seal an entry with any value, and open it again."""
    source = Source(data)
    tags = tuple(source.text() for _ in range(source.number(4)))
    key = source.take(source.number(40))
    times = [None if source.number(4) == 0 else source.double() for _ in range(2)]
    given = value(source)
    changed = agree([envelope.changed_type, envelope_py.changed_type], given)
    try:
        payload = envelope_format.pack_value(given)
        size = envelope_format.size(key, payload, tags)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return
    entry = Entry(given, NOW, *times, tags, False, b"12345678", 2**63)
    head, tail = envelope_format.seal(entry, key, payload, 0.0)
    blob = b"".join((head, TOKEN, *(b"%08d" % number for number in range(len(tags))), tail))
    if len(blob) > size:
        raise DisagreementError(f"{len(blob)} bytes, expected at most {size}")
    readers = [envelope.unseal_many, envelope_py.unseal_many]
    found, tagged, corrupt = agree(readers, [blob], [key], len(blob), NOW, 0.0, TOKEN)
    if any(time is not None and time != time for time in times):
        return
    kept = times[1] is None or times[1] > NOW
    if corrupt or (found[0] is not None) is not kept or (tagged != []) is not (kept and bool(tags)):
        raise DisagreementError(f"{entry!r:.1000} came back as {found!r:.1000}, corrupt: {corrupt}")
    if kept and changed is None and repr(found[0].value) != repr(given):
        raise DisagreementError(f"{given!r:.1000} came back as {found[0].value!r:.1000}")


def canonicals(data: bytes) -> None:
    """Encode a request, and compare its fingerprint and its key."""
    given = value(Source(data))
    allowed = (TypeError, ValueError)
    found = agree([canonical.canonical, canonical_py.canonical], given, allowed=allowed)
    agree([canonical.fingerprint, canonical_py.fingerprint], given, allowed=allowed)
    agree([canonical.request_key, canonical_py.request_key], given, allowed=allowed)
    if found is not None and type(given) is dict:
        # The order of the keys does not matter.
        agree([canonical.canonical, canonical_py.canonical], dict(reversed(given.items())))
        if canonical.canonical(dict(reversed(given.items()))) != found:
            raise DisagreementError(f"{given!r:.1000}: the order of keys matters")


def weights(data: bytes) -> None:
    """Weigh a value."""
    given = value(Source(data))
    if agree([weigh.weigh_bytes, weigh_py.weigh_bytes], "key", given) < 0:
        raise DisagreementError(f"{given!r:.1000} has a negative weight")


def record(data: bytes) -> None:
    """Parse a record of a backplane."""
    source = Source(data)
    wire = [1, source.take(8), source.integer(), source.take(1).decode("latin-1")]
    wire.append([[source.take(source.number(9)), source.take(source.number(9))] for _ in range(source.number(4))])
    for blob in (data, b"\x95\x01" + data, _packed(wire)):
        try:
            found = records.unpacked(blob)
        except records.MalformedRecordError:
            continue
        again = records.unpacked(records.packed(found, found.writer, found.sent_us))
        if again != found:
            raise DisagreementError(f"{found!r:.500} came back as {again!r:.500}")
        # A key is the bytes of any str; other bytes in a record are refused by its receiver.
        outcome(records.texts, found.items)


def _packed(wire: list[Any]) -> bytes:
    try:
        return msgpack.encode(wire)
    except (OverflowError, ValueError):
        return b""


def trace(data: bytes) -> None:
    """Read a trace in each format."""
    source = Source(data)
    forced = [None, *trace_formats.TraceFormat][source.number(1 + len(trace_formats.TraceFormat))]
    with _InMemory(source.rest(), forced) as opened:
        if opened is None:
            return
        try:
            for request in opened.head(1_000):
                if not isinstance(request, dict):
                    raise DisagreementError(f"a request is {request!r:.100}")
                agree([canonical.canonical, canonical_py.canonical], request)
        except TraceError:
            pass
        if not 0 <= opened.skipped <= opened.lines:
            raise DisagreementError(f"{opened.skipped} of {opened.lines} lines were skipped")


class _InMemory(Trace):
    """A trace whose file is in memory; entered, it is None if it is not a trace."""

    def __init__(self, data: bytes, trace_format: trace_formats.TraceFormat | None) -> None:
        self._data = data
        self._refused = False
        try:
            super().__init__("trace", trace_format)
        except TraceError:
            self._refused = True

    def _opened(self, path: Any) -> io.BytesIO:
        return io.BytesIO(self._data)

    def __enter__(self) -> Any:
        return None if self._refused else self


def replies(data: bytes) -> None:
    """Look for long arrays in replies of a Redis server, and pack commands."""
    source = Source(data)
    agree([resp.has_long_array, resp_py.has_long_array], data)
    digits = b"".join(b"\r\n*~>|$0123456789"[byte % 17 : byte % 17 + 1] for byte in data)
    agree([resp.has_long_array, resp_py.has_long_array], digits)
    prefix, last, longest = source.take(source.number(9)), source.take(source.number(9)), source.number(300)
    keys = [source.take(source.number(40)) for _ in range(source.number(9))]
    agree([resp.mget, resp_py.mget], keys, prefix, last, longest)


_REQUESTS: Final = b"PBDDECSQFHpdcfX?"
_REPLIES: Final = b"RKZ123tTnDCIsGHWdcVENASv?"
_LENGTHS: Final = (0, 1, 3, 2**31 - 1, 2**31, 2**32 - 1)


def dialogues(data: bytes) -> None:
    """Follow both directions of a connection to a PostgreSQL server, also in pieces of other sizes."""
    source = Source(data)
    seed = source.number(256)
    turns: list[tuple[str, bytes]] = []
    if seed % 16:
        # Most inputs sign in first.
        turns.append(("sent", struct.pack(">ii", 8, 80877103 if seed % 5 == 0 else 196608)))
    while not source.ended and len(turns) < 1_000:
        size, direction = source.number(32), ("sent", "received")[source.number(2)]
        kinds = _REQUESTS if direction == "sent" else _REPLIES
        # Some turns are no messages at all.
        turn = source.take(size) if size > 28 else b"".join(_message(source, kinds) for _ in range(size % 4))
        turns.append((direction, turn))
    whole = _refused(turns, lambda turn: [turn])
    for split in (_in_halves, _in_bytes):
        if (other := _refused(turns, split)) != whole:
            raise DisagreementError(f"{turns!r:.2000}: {whole}, but {other} in other pieces")


def _message(source: Source, kinds: bytes) -> bytes:
    choice, payload = source.number(256), source.take(source.number(8))
    # Some have a wrong length.
    length = 4 + len(payload) if choice < 248 else _LENGTHS[choice % len(_LENGTHS)]
    return kinds[choice % len(kinds) :][:1] + struct.pack(">I", length) + payload


def _refused(turns: list[tuple[str, bytes]], split: Callable[[bytes], list[bytes]]) -> tuple[int, str] | None:
    """Return the number of the first turn that was refused, and why; None if there was none."""
    both = [module.Dialogue() for module in (pg_dialogue, pg_dialogue_py)]
    first = None
    for number, (direction, turn) in enumerate(turns):
        for piece in split(turn):
            found = agree([getattr(one, direction) for one in both], piece)
            if found is not None and first is None:
                first = number, found
    return first


def _in_halves(turn: bytes) -> list[bytes]:
    middle = len(turn) // 2
    return [turn[:middle], turn[middle:]]


def _in_bytes(turn: bytes) -> list[bytes]:
    return [turn[at : at + 1] for at in range(len(turn))]


def warm(data: bytes) -> None:
    """Load a file of a saved cache, also one whose checksum is right."""
    start = b"ACGSWARM" + struct.pack("<H", 1)
    header = msgpack.encode(snapshot.Header("LRUCache", "", 0.0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "saved")
        for content in (data, start + data, start + struct.pack("<Q", len(header)) + header + data):
            path.write_bytes(content + snapshot.xxh3_128(content).digest())
            caches = [core.LRUCache(100) for core in (_core, core_py)]
            agree([cache.load for cache in caches], path, allowed=(SnapshotError,))
            agree([cache.items for cache in caches])


class _Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def caches(data: bytes) -> None:
    """Run operations on caches of both implementations."""
    source = Source(data)
    clock = _Clock()
    kind = source.number(5)
    size = 1 + source.number(40)
    ttl = source.number(50) or None
    options: dict[str, Any] = {"clock": clock}
    if kind:
        options |= {"policy": ("adaptive", "lru", "s3fifo", "adaptive")[kind - 1], "seed": 1}
    if source.number(4) == 0:
        options |= {"maxweight": 3 * size, "weigher": lambda key, item: item % 4}
    name = "AdaptiveCache" if kind else "LRUCache"
    heard: list[list[Any]] = [[], []]
    both = [
        getattr(core, name)(size, ttl, on_evict=lambda *evicted, log=log: log.append(evicted), **options)
        for core, log in zip((_core, core_py), heard, strict=True)
    ]
    for _ in range(2_000):
        if source.ended:
            break
        operation, key = source.number(16), source.number(64)

        def call(name: str, *arguments: Any) -> Any:
            allowed = (KeyError, ValueError)
            return agree([getattr(cache, name) for cache in both], *arguments, allowed=allowed)

        if operation < 5:
            call("get", key)
        elif operation < 9:
            call("set", key, key, *((source.number(60) or None,) if operation == 8 else ()))
        elif operation == 9:
            call("setdefault", key, key)
        elif operation == 10:
            call("pop", key)
        elif operation == 11:
            call("peek", key)
        elif operation == 12:
            clock.now += key / 4
            call("expire" if key % 2 else "__len__")
        elif operation == 13:
            call("expires_in", key)
        elif operation == 14:
            call("resize", 1 + key)
        else:
            call(("popitem", "clear", "reset_stats", "_dump")[key % 4])
    for question in ("items", "__len__"):
        agree([getattr(cache, question) for cache in both])
    # What a policy says of its memory differs.
    agree([lambda cache=cache: (dataclasses.astuple(cache.stats())[:11], _learned(cache)) for cache in both])
    if heard[0] != heard[1]:
        raise DisagreementError(f"evicted: {heard!r:.1000}")


def _learned(cache: Any) -> list[Any] | None:
    policy = cache.stats().policy
    return policy and [getattr(policy, name) for name in ("setting", "switches", "samples", "hit_rates")]


def predictors(data: bytes) -> None:
    """Run operations on predictors of both implementations."""
    source = Source(data)
    size, depth = 1 + source.number(20), 1 + source.number(4)
    both = [module.Predictor(size, depth=depth, table_size=64) for module in (predictor, predictor_py)]
    requests = 0

    def call(name: str, *arguments: Any) -> Any:
        return agree([getattr(one, name) for one in both], *arguments)

    def request(key: str, answer: int) -> None:
        first_use = call("take", key) is not None
        for wanted in call("next", key, (), requests, first_use):
            call(*(("store", wanted, key), ("fail", wanted), ("refuse", wanted))[answer])

    while not source.ended and requests < 5_000:
        operation, number = source.number(16), source.number(64)
        key = f"key {number}"
        if operation < 10:
            requests += 1
            request(key, source.number(3))
        elif operation < 13:
            # A loop, or keys that come once: what a predictor learns from needs many requests.
            for step in range(100):
                requests += 1
                request(f"key {step % (number + 1)}" if operation < 12 else f"{operation} {requests}", 0)
        else:
            call(*((("discard", key), ("peek", key), ("keys",) if number else ("clear",))[operation - 13]))
    for question in ("keys", "stats", "_successors", "_classes", "__len__"):
        agree([getattr(one, question) for one in both])


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "histogram": histogram,
    "envelopes": envelopes,
    "sealed": sealed,
    "canonicals": canonicals,
    "weights": weights,
    "record": record,
    "trace": trace,
    "replies": replies,
    "dialogues": dialogues,
    "warm": warm,
    "caches": caches,
    "predictors": predictors,
}
