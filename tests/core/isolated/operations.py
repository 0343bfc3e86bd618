"""Calls every public operation of the compiled classes and functions, also with bad arguments.

`operations.py failures` lets each allocation fail in turn: the call must raise MemoryError or do its work, the object
must be consistent after each failure, and the call must succeed as soon as there is memory. `operations.py references`
repeats each call: neither the references to its arguments nor the allocated blocks may grow. `operations.py complete`
checks that no operation is missing here.
"""

import ast
import gc
import sys
import types
from pathlib import Path

from acgsperf import _core
from acgsperf._native import canonical, envelope, hits, pg_dialogue, predictor, read_path, resp, weigh
from acgsperf._native.entry import Entry
from acgsperf._native.envelope_format import pack_value, seal

HASH = "cdd01ef066bc6cf2"
BLOB = b"".join(seal(Entry({"a": [1]}, 1.0, 2.0, None), b"k", pack_value({"a": [1]}), 0.0, with_tokens=False))
BLOBS = [BLOB, None, b"bad"]
ROUNDS = 200


class Thing:
    """Hashable, weakly referable, and no constant that the interpreter keeps."""


KEY, OTHER, VALUE = Thing(), Thing(), Thing()


def cache(kind, **options):
    made = kind(8, 60, **options)
    for number in range(8):
        made.set(number, number)
    made.set(KEY, VALUE)
    return made


def cache_state(made):
    items = made.items()
    assert len(items) == len(made) == len(made.keys()) == len(made.values()) == made.stats().size <= made.maxsize
    assert all(made.peek(key) is value for key, value in items)


def histogram():
    made = _core.LatencyHistogram(1, 1_000_000, 2)
    made.record_many([10, 500, 70_000])
    return made


def histogram_state(made):
    snapshot = made.snapshot()
    assert snapshot.count == made.count == _core.LatencyHistogram.decode(made.encode()).count


def learner():
    made = predictor.Predictor(6, table_size=64)
    for number in range(300):
        key = f"key {number % 12}"
        first_use = made.take(key) is not None
        for wanted in made.next(key, (), number, first_use):
            made.store(wanted, VALUE)
    return made


def learner_state(made):
    keys = made.keys()
    assert len(keys) == len(set(keys)) == len(made)
    assert all(made.peek(key) is VALUE for key in keys if key in made)
    made.stats()


class Promotion:
    threshold = 10**9

    def __init__(self):
        self.hits = _core.LRUCache(10)


class Breaker:
    state = "closed"


def path():
    made = read_path.ReadPath((), dict, Promotion(), float)
    made.enabled = True
    return made


def queue():
    made = read_path.ReadQueue(dict, dict)
    made.guard(dict, Breaker, Breaker.state, ())
    made.open(None)
    # The lists are full: the next call makes both larger.
    for number in range(4):
        made.begin(number)
    return made


def queue_state(made):
    # A key whose future could not be added is dropped by the next call.
    assert 0 <= len(made.keys) - len(made.futures) <= 1
    made.begin("after")
    assert len(made.keys) == len(made.futures)


class Target:
    uri = "uri"


class Response:
    ready = None


def finder():
    response = Response()
    made = hits.HitFinder(
        frozenset({b"host"}), {(b"/", b"", None, "http"): Target}, {"uri": [response]}.get, float, lambda stored: None
    )
    response.ready = (made, 10.0, "answer")
    return made


SCOPE = {"raw_path": b"/", "query_string": b"", "scheme": "http", "headers": [(b"a", b"b")]}


def dialogue():
    made = pg_dialogue.Dialogue()
    made.sent(b"\0\0\0\x08\0\3\0\0")
    made.received(READY)
    # More than fits into the object itself.
    made.sent(SYNC * 40)
    return made


def dialogue_state(made):
    # After a refusal it only repeats that.
    if made.received(b"") is None:
        made.sent(SYNC)
        assert made.received(READY) is None


READY = b"Z\0\0\0\5I"
SYNC = b"S\0\0\0\4"


def future():
    return types.SimpleNamespace(done=lambda: True, set_result=lambda value: None)


CACHE = {
    "get": [(KEY,), (OTHER, VALUE), ([],), ()],
    "peek": [(KEY,), (OTHER, VALUE), ([],)],
    "set": [(KEY, VALUE), (OTHER, VALUE), (OTHER, VALUE, 5), (OTHER, VALUE, -1), ([], VALUE), (KEY,)],
    "setdefault": [(KEY, VALUE), (OTHER, VALUE), ([], VALUE)],
    "pop": [(KEY, None), (OTHER, VALUE), (OTHER,), ([],)],
    "popitem": [()],
    "update": [({KEY: VALUE, OTHER: VALUE},), ([(OTHER, VALUE)],), ([(OTHER,)],), (7,)],
    "clear": [()],
    "expire": [()],
    "expires_in": [(KEY,), (OTHER,)],
    "resize": [(4,), (100,), (0,), ("x",)],
    "keys": [()],
    "values": [()],
    "items": [()],
    "stats": [()],
    "reset_stats": [()],
    "_kind": [()],
    "_dump": [()],
    "_restore": [(OTHER, VALUE, None, 0), (OTHER, VALUE, 10**9, 3), ([], VALUE, None, 0)],
    "_resume": [(1,)],
    "__getitem__": [(KEY,), (OTHER,)],
    "__setitem__": [(OTHER, VALUE), ([], VALUE)],
    "__delitem__": [(KEY,), (OTHER,)],
    "__contains__": [(KEY,), (OTHER,), ([],)],
    "__iter__": [()],
    "__reversed__": [()],
    "__len__": [()],
    "__sizeof__": [()],
    "__repr__": [()],
}
CLASSES = {
    "LRUCache": (lambda: cache(_core.LRUCache), cache_state, CACHE),
    "LRUCache with weights": (
        lambda: cache(_core.LRUCache, maxweight=30, weigher=lambda key, value: 3),
        cache_state,
        CACHE,
    ),
    "AdaptiveCache": (lambda: cache(_core.AdaptiveCache), cache_state, CACHE),
    "AdaptiveCache, s3fifo": (lambda: cache(_core.AdaptiveCache, policy="s3fifo"), cache_state, CACHE),
    "HashValidator": (
        lambda: _core.HashValidator([HASH, "0" * 16]),
        lambda made: made.stats(),
        {
            "validate": [(HASH,), ("f" * 16,), (None,), (VALUE,)],
            "validate_many": [([HASH, VALUE, "x"],), ((HASH,),), (7,)],
            "classify": [(HASH,), ("f" * 16,), (VALUE,)],
            "stats": [()],
            "reset_stats": [()],
            "__repr__": [()],
        },
    ),
    "LatencyHistogram": (
        histogram,
        histogram_state,
        {
            "record": [(70,), (-1,), (2**70,), ("x",)],
            "record_many": [([1, 2, 3],), ([1, -1],), (7,)],
            "record_seconds": [(7e-8,), (-1.0,), (float("nan"),), (1e300,), ("x",)],
            "record_corrected": [(5_000, 100), (5_000, 0)],
            "percentile": [(50,), (99.9,), (-1,), ("x",)],
            "cumulative": [([100, 1_000],), ([2, 1],), (7,)],
            "merge": [(histogram(),), (7,)],
            "snapshot": [()],
            "reset": [()],
            "time": [()],
            "encode": [()],
            "decode": [(histogram().encode(),), (histogram().encode()[:-1],), (b"",), (None,)],
            "__eq__": [(histogram(),), (7,)],
            "__sizeof__": [()],
            "__repr__": [()],
        },
    ),
    "Timer": (
        lambda: histogram().time(),
        lambda made: None,
        {"__enter__": [()], "__exit__": [(None, None, None)]},
    ),
    "RequestCounters": (
        _core.RequestCounters,
        lambda made: (made.total_requests, made.latency_ns.count),
        {
            "add_request": [(0.5,), (2, False), (-1.0,), (1e300,), ("x",)],
            "__setattr__": [("total_requests", 7), ("min_response_time", 0.5), ("max_response_time", "x")],
            "__getattribute__": [("total_requests",), ("max_response_time",), ("latency_ns",)],
        },
    ),
    "MethodGuard": (
        lambda: _core.MethodGuard(Thing, "__hash__"),
        lambda made: made.holds(Thing()),
        {"holds": [(Thing(),), (None,)]},
    ),
    "Predictor": (
        learner,
        learner_state,
        {
            "take": [("key 1",), ("other", VALUE), (7,)],
            "next": [("key 3", (), 400, True), ("new", (), 401, False), (7, (), 1, True)],
            "store": [("key 4", VALUE), ("other", VALUE), (7, VALUE)],
            "fail": [("key 5",), ("other",)],
            "refuse": [("key 6",), ("other",)],
            "peek": [("key 1",), ("other", VALUE)],
            "discard": [("key 1",), ("other",)],
            "clear": [()],
            "keys": [()],
            "stats": [()],
            "_successors": [()],
            "_successor": [(None, "key 1"), ("key 1", "key 2")],
            "_learn": [(None, "key 1", "key 9", 2), ("a", "b", "c", 1)],
            "_classes": [()],
            "_set_classes": [(learner()._classes(),), ([],)],
            "__len__": [()],
            "__contains__": [("key 1",), ("other",)],
        },
    ),
    "ReadPath": (
        path,
        lambda made: None,
        {
            "begin": [(), (7,)],
            "end": [("k", Entry(1, 0.0, None, None)), ("k", None), ("k", 7)],
            "end_opened": [("k", Entry(1, 0.0, None, None)), ("k", None)],
        },
    ),
    "ReadQueue": (
        queue,
        queue_state,
        {
            "guard": [(dict, Breaker, Breaker.state, ())],
            "open": [(None,)],
            "begin": [(KEY,)],
            "take": [(2,), (100,), ("x",)],
        },
    ),
    "Dialogue": (
        dialogue,
        dialogue_state,
        {
            "sent": [(SYNC,), (SYNC * 100,), (memoryview(SYNC),), (memoryview(SYNC)[::2],), (7,)],
            "received": [(READY,), (READY * 40,), (bytearray(READY),), (READY * 41,), (memoryview(READY * 41),), (7,)],
            "__sizeof__": [()],
        },
    ),
    "HitFinder": (finder, lambda made: None, {"find": [(SCOPE,), ({**SCOPE, "raw_path": []},), ({},)]}),
}
FUNCTIONS = {
    canonical: {
        "canonical": [({"b": [1, None, 2.5], "a": "é", "c": 2**70},), (VALUE,), (float("nan"),)],
        "fingerprint": [({"b": [1], "a": "x"},), (VALUE,)],
        "request_key": [({"b": [1], "a": "x"},), ({"b": "x" * 300},), (VALUE,)],
    },
    envelope: {
        "unseal_many": [
            (BLOBS, [b"k"] * 3, 1_000, 0.0, 0.0, None),
            ([BLOB, None], [b"k"] * 2, 1_000, 0.0, 0.0, None),
            ([BLOB], [], 9, 0.0, 0.0, None),
            (7,),
        ],
        "changed_type": [({"a": [1, (2,)]},), ({"a": {1: {2}}},), ({"a": [1, {"b": b""}]},)],
    },
    resp: {
        "mget": [([b"a", b"b" * 50], b"n:", b"last", 200), ([b"a" * 300], b"n:", b"last", 200), ([7], b"", b"", 9)],
        "has_long_array": [(b"*1000000\r\n",), (b"x" * 100,), (7,)],
    },
    weigh: {"weigh_bytes": [("key", {"a": [1, {"b": "x" * 100}]}), (KEY, VALUE)]},
    read_path: {"answer": [([future()], [1]), ([future()], []), (7, [])]},
}


def refused(call, *arguments):
    """Call an operation, whose arguments may be bad."""
    try:
        call(*arguments)
    except Exception as error:
        return error
    return None


def each():
    """Yield the name of each call, what makes its object, how to check that, and the call's name and arguments."""
    for name, (make, check, operations) in CLASSES.items():
        for operation, variants in operations.items():
            for arguments in variants:
                yield f"{name}.{operation}{arguments}", make, check, operation, arguments
    for module, operations in FUNCTIONS.items():
        for operation, variants in operations.items():
            for arguments in variants:
                yield f"{operation}{arguments}", lambda module=module: module, lambda made: None, operation, arguments


def failures():
    """Let all allocations from the first, the second, ... on fail, until the call does what it does with memory."""
    import _testcapi

    sys.unraisablehook = lambda args: None
    for name, make, check, operation, arguments in each():
        if arguments and arguments[0] is BLOBS:
            # A bad blob is refused by a long function in Python, where CPython 3.11 may search for ever; see
            # out_of_memory.py.
            continue
        if make() is canonical and type(arguments[0]) is not dict:
            # The twin refuses it. CPython 3.12 crashes if it has no memory for one of the twin's inner functions.
            continue
        expected = type(refused(getattr(make(), operation), *arguments))
        for number in range(2_000):
            made = make()
            call = getattr(made, operation)
            _testcapi.set_nomemory(number, 0)
            try:
                call(*arguments)
            except MemoryError:
                raised = MemoryError
            except Exception as error:
                raised = type(error)
            else:
                raised = type(None)
            finally:
                _testcapi.remove_mem_hooks()
            check(made)
            if raised is not MemoryError:
                assert raised is expected, f"{name}: {raised} with {number} allocations, otherwise {expected}"
                break
        else:
            raise AssertionError(f"{name} never succeeded")


def references():
    """Repeat each call: neither references nor blocks grow."""
    sys.unraisablehook = lambda args: None
    total = getattr(sys, "gettotalrefcount", lambda: 0)
    for name, make, _, operation, arguments in each():

        def once(make=make, operation=operation, arguments=arguments):
            refused(getattr(make(), operation), *arguments)

        for _ in range(5):
            once()
        gc.collect()
        before = [sys.getrefcount(it) for it in (KEY, OTHER, VALUE, *arguments)], total(), sys.getallocatedblocks()
        for _ in range(ROUNDS):
            once()
        gc.collect()
        after = [sys.getrefcount(it) for it in (KEY, OTHER, VALUE, *arguments)], total(), sys.getallocatedblocks()
        for one, other in zip(before[0], after[0], strict=True):
            assert other - one < ROUNDS // 2, f"{name}: references: {before[0]}, {after[0]}"
        assert after[1] - before[1] < ROUNDS // 2, f"{name}: all references: {before[1]}, {after[1]}"
        assert after[2] - before[2] < ROUNDS // 2, f"{name}: blocks: {before[2]}, {after[2]}"


# Written in Python: they encode rows with msgspec and use files.
_IN_PYTHON = {"save", "load"}


def complete():
    """Every public method of a class and every function is called."""
    for name, (make, _, operations) in CLASSES.items():
        kind = type(make())
        public = {it for it in dir(kind) if not it.startswith("_") and callable(getattr(kind, it))}
        assert public - _IN_PYTHON <= set(operations), f"{name}: {public - _IN_PYTHON - set(operations)}"
    classes = {type(make()).__name__ for make, _, _ in CLASSES.values()} | {"BoundedCache"}
    for module in (*FUNCTIONS, _core, hits, pg_dialogue, predictor):
        stub = ast.parse(Path(module.__file__.split(".cpython")[0].removesuffix(".so") + ".pyi").read_text())
        for node in stub.body:
            if hasattr(node, "name") and not node.name.startswith("_"):
                assert node.name in classes | set(FUNCTIONS.get(module, {})), f"{module.__name__}.{node.name}"


{"failures": failures, "references": references, "complete": complete}[sys.argv[1]]()
