"""Replies that no server gives, or that belong to another command: no wrong value, and the next call works."""

import asyncio
import time

import pytest
from fake_redis import FakeRedis, array, bulk
from redis.exceptions import InvalidResponse

from acgsperf.tiers import BreakerState
from acgsperf.tiers.redis import RedisTier
from acgsperf.tiers.redis_parser import _Lengths


@pytest.fixture
async def fake(servers):
    async with FakeRedis(servers.redis_url) as server:
        yield server


@pytest.fixture
async def tier(fake):
    tier = RedisTier(fake.url, deadline=1)
    await tier.open("n")
    yield tier
    await tier.close()


# What comes in place of the reply of a command.
ANY_COMMAND = {
    "one more byte": lambda reply: reply + b"x",
    "one more byte, later": lambda reply: [reply, b"x"],
    "half a reply more": lambda reply: reply + b"$10\r\nabc",
    "the reply twice": lambda reply: reply + reply,
    "the reply twice, in parts": lambda reply: [reply, reply],
    "another reply before": lambda reply: b"$1\r\nx\r\n" + reply,
    "OK before": lambda reply: b"+OK\r\n" + reply,
    "a number before": lambda reply: b":1\r\n" + reply,
    "nil before": lambda reply: b"$-1\r\n" + reply,
    "a push before": lambda reply: b">2\r\n$10\r\ninvalidate\r\n*0\r\n" + reply,
    "nothing, and the end": lambda reply: [None],
    "half of it, and the end": lambda reply: [reply[: len(reply) // 2], None],
    "in single bytes": lambda reply: [reply[at : at + 1] for at in range(len(reply))],
    "a simple string": lambda reply: b"+QUEUED\r\n",
    "a map": lambda reply: b"%1\r\n+a\r\n:1\r\n",
    "a set": lambda reply: b"~1\r\n:1\r\n",
    "a boolean": lambda reply: b"#t\r\n",
    "a double": lambda reply: b",1.5\r\n",
    "the null of RESP3": lambda reply: b"_\r\n",
    "an empty line": lambda reply: b"\r\n",
    "HTTP": lambda reply: b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
    "zeros": lambda reply: bytes(64),
    "a length that is no number": lambda reply: b"$abc\r\n",
    "a negative length": lambda reply: b"$-7\r\n",
    "a negative array": lambda reply: b"*-7\r\n",
    "a wrong length": lambda reply: b"$2\r\nabcd\r\n",
    "500 million items": lambda reply: b"*500000000\r\n",
    "500 million items, in parts": lambda reply: [b"*5000", b"00000\r\n"],
    "500 million items, nested": lambda reply: b"*1\r\n*500000000\r\n",
    "more items than numbers have": lambda reply: b"*99999999999999999999\r\n",
    "a string of a terabyte": lambda reply: b"$1099511627776\r\n",
    "a deep nesting": lambda reply: b"*1\r\n" * 5_000 + b":1\r\n",
    "a redirection": lambda reply: b"-MOVED 1 127.0.0.1:1\r\n",
    "an error without a word": lambda reply: b"-\r\n",
    "loading": lambda reply: b"-LOADING Redis is loading the dataset in memory\r\n",
    "no login": lambda reply: b"-NOAUTH Authentication required.\r\n",
}
READS = {
    "a number": lambda reply: b":5\r\n",
    "nil": lambda reply: b"$-1\r\n",
    "no array": lambda reply: b"*-1\r\n",
    "an empty array": lambda reply: b"*0\r\n",
    "an item too few": lambda reply: array([bulk(None)]),
    "an item too many": lambda reply: array([bulk(None)] * 3),
    "an item that is a number": lambda reply: array([b":5\r\n", bulk(None)]),
    "an item that is an array": lambda reply: array([b"*0\r\n", bulk(None)]),
    "an item that is an error": lambda reply: array([b"-ERR no\r\n", bulk(None)]),
    "no token": lambda reply: array([bulk(b"x" * 100), bulk(None)]),
}


def _named(replies):
    return pytest.mark.parametrize("change", list(replies.values()), ids=list(replies))


async def _holds(fake, tier, entry):
    """The tier works, and has what a tier without a fault has."""
    for number in range(3):
        assert await tier.set("other", entry(number))
        assert (await tier.get("other")).value == number
        assert await tier.get("absent") is None
        assert await tier.delete_many(["other"]) == 1
    assert tier.stats().breaker is BreakerState.CLOSED
    assert tier.connections._size <= 5
    assert len(tier.connections._idle) == tier.connections._size
    for _ in range(20):
        await asyncio.sleep(0)
    assert fake.open == tier.connections._size
    assert asyncio.all_tasks() - {asyncio.current_task()} <= fake._tasks


@_named({**ANY_COMMAND, **READS})
async def test_a_read_finds_the_value_or_misses(fake, tier, entry, change):
    await tier.set_many({"k": entry("right"), "other": entry("wrong")})
    fake.change, fake.times = {"MGET": change}, 1
    started = time.monotonic()
    found = await tier.get("k")
    assert found is None or found.value == "right"
    assert time.monotonic() - started < 1.5
    fake.change.clear()
    assert (await tier.get("k")).value == "right"
    await _holds(fake, tier, entry)


@_named({**ANY_COMMAND, "a number": lambda reply: b":5\r\n", "nil": lambda reply: b"$-1\r\n"})
async def test_a_write_is_acknowledged_only_if_it_is_stored(fake, tier, entry, change):
    assert await tier.set("k", entry("former"))
    fake.change, fake.times = {"EVALSHA": change}, 1
    stored = await tier.set("k", entry("right"))
    fake.change.clear()
    found = await tier.get("k")
    assert not stored or found.value == "right"
    await _holds(fake, tier, entry)


@_named(ANY_COMMAND)
async def test_a_refused_write_is_never_a_success(fake, tier, entry, change):
    assert await tier.set("k", entry("former"))
    # The reply of an earlier command is changed, so that what is left of it meets the refused write.
    fake.change, fake.times = {"PING": change}, 1
    await tier.health()
    fake.change, fake.times = {"ECHO": change}, 1
    await tier.set("other", entry())
    fake.refused |= {"EVALSHA", "EVAL"}
    assert not await tier.set("k", entry("new"))
    fake.refused.clear()
    await _holds(fake, tier, entry)


@_named(ANY_COMMAND)
async def test_locks_tags_and_clear_survive(fake, tier, entry, change):
    fake.change = dict.fromkeys(["EVALSHA", "SCAN", "GET", "INFO"], change)
    for call in (
        lambda: tier.lock("k", 1),
        lambda: tier.unlock("k", 7),
        lambda: tier.invalidate_tag("t"),
        lambda: tier.set("k", entry(tags=("t",))),
        lambda: tier.observe(["k"], ["t"]),
        lambda: tier.expire_tag("t"),
        lambda: tier.clear(),
        lambda: tier.health(),
    ):
        fake.times = 1
        await call()
    fake.change.clear()
    # No lock is left to be released later.
    tier._locks.unknown.clear()
    for task in list(tier._calls.tasks):
        task.cancel()
    await _holds(fake, tier, entry)


@_named(
    {
        **ANY_COMMAND,
        "a number": lambda reply: b":5\r\n",
        "words": lambda reply: array([bulk(b"x"), bulk(b"y")]),
        "busy": lambda reply: b"-BUSY a script runs\r\n",
    }
)
@pytest.mark.parametrize("name", ["TIME", "EVAL"])
async def test_a_new_connection_survives_any_greeting(fake, tier, entry, name, change):
    fake.change, fake.times = {name: change}, 1
    tier.connections.close_idle()
    await tier.get("k")
    fake.change.clear()
    tier.server_clock.measured(0, 0, 1)
    tier.connections.close_idle()
    await _holds(fake, tier, entry)


async def test_the_envelope_of_another_key_is_not_given_and_the_connection_is_closed(fake, tier, entry):
    await tier.set_many({"a": entry("a"), "b": entry("b")})
    others = {b"n:a": await fake.stored(b"n:b"), b"n:b": await fake.stored(b"n:a")}
    values = [*others.values(), await fake.stored(b"n:\xfftoken")]
    fake.change, fake.times = {"MGET": lambda reply: array(list(map(bulk, values)))}, 1
    found = await tier.get_many(["a", "b"])
    assert {key: found[key].value for key in found} == {"a": "a", "b": "b"}
    assert fake.accepted == 2
    # What is really stored under the wrong key is a miss, and harms no other key.
    for key, value in others.items():
        await fake.put(key, value)
    await tier.set("c", entry("c"))
    assert list(await tier.get_many(["a", "b", "c"])) == ["c"]
    assert tier.stats().corrupt == 2
    assert tier.stats().breaker is BreakerState.CLOSED


async def test_500_million_items_do_not_stop_the_loop(fake, tier, stopwatch):
    fake.change, fake.times = {"MGET": lambda reply: b"*500000000\r\n"}, 2
    computed = time.process_time()
    assert await tier.get("k") is None
    assert time.process_time() - computed < 0.3


async def test_a_value_may_look_like_a_hostile_length(tier, entry):
    values = ["*500000000\r\n" * 50_000, "\r\n*1234567\r\n", "*500000000", b"$99999999\r\n" * 3]
    assert len(await tier.set_many({str(i): entry(value) for i, value in enumerate(values)})) == 4
    for _ in range(3):
        found = await tier.get_many(["0", "1", "2", "3"])
        assert [found[str(i)].value for i in range(4)] == values


def _feed(lengths, data, size):
    for at in range(0, len(data), size):
        lengths.check(data[at : at + size])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 50, 10_000])
def test_lengths_are_found_however_the_data_is_cut(size):
    harmless = b"*2\r\n" + bulk(b"*500000000\r\n") + bulk(b"\r\n") + b":5\r\n+*9999999\r\n"
    lengths = _Lengths()
    for _ in range(50):
        _feed(lengths, harmless, size)
    hostile = harmless + b"*500000000\r\n"
    with pytest.raises(InvalidResponse, match="array of 5000000"):
        _feed(lengths, hostile, size)


SIZES = [7, 1_000, 32_768]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("before", [b"", b"*2\r\n" + bulk(b"$999999999\r\n") + b":5\r\n"])
def test_a_string_that_is_too_long_is_refused_when_64_kib_of_it_have_come(before, size):
    for length in (b"536870913", b"2000000000", b"9" * 5_000):
        with pytest.raises(InvalidResponse, match=r"string of [0-9]{9,30} bytes, expected fewer than 536870913"):
            _feed(_Lengths(), before + b"$" + length + b"\r\n" + b"x" * 70_000, size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "before", [b"", b"*2\r\n" + bulk(b"x\r\n" * 100) + b":5\r\n", b"*2\r\n" + bulk(b"x" * 100_000)]
)
@pytest.mark.parametrize("kind", [b"+", b"-", b":", b"$", b"*1234567"])
def test_a_line_without_end_is_refused(before, kind, size):
    with pytest.raises(InvalidResponse, match=r"line of [0-9]+ bytes or more, expected at most 65536|array of 1234567"):
        _feed(_Lengths(), before + kind + b"\xff" * 140_000, size)


@pytest.mark.parametrize("size", SIZES)
def test_long_strings_with_any_content_are_accepted(size):
    value = b"$999999999\r\n*999999999\r\n+" + b"x" * 300_000
    _feed(_Lengths(), array([bulk(b"x" * size), bulk(value), bulk(value[::-1])] * 3), size)
