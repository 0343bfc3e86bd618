"""Values of a declared type come back with it from every tier. Without one, what would change is refused."""

import asyncio
import dataclasses
import datetime
import enum
import logging
import secrets
from collections.abc import Awaitable
from decimal import Decimal
from functools import partial
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from grouped import grouped
from ids import name_of
from memory_tier import MemoryTier

from acgsperf import LRUCache, cached
from acgsperf.cache import TieredCache, Written
from acgsperf.cache.values import ValueType
from acgsperf.tiers import Tier
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier

T = TypeVar("T")
Number = NewType("Number", int)


class Colour(enum.Enum):
    RED = "red"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Point(msgspec.Struct):
    x: int
    y: "Point | None" = None


class Page(msgspec.Struct, Generic[T]):
    items: list[T]


class Cat(msgspec.Struct, tag=True):
    name: str


class Dog(msgspec.Struct, tag=True):
    name: str


class Loose(msgspec.Struct):
    data: dict[str, Any]


@dataclasses.dataclass
class Order:
    price: Decimal
    lines: tuple[int, ...] = ()
    at: datetime.datetime | None = None


@attrs.define
class Crate:
    size: int


class Row(NamedTuple):
    a: int
    b: UUID


class Money(TypedDict):
    amount: Decimal


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    number: int = pydantic.Field(alias="No")
    tags: set[str] = set()
    page: pydantic.HttpUrl | None = None
    at: datetime.datetime | None = None

    @pydantic.computed_field
    @property
    def double(self) -> int:
        return 2 * self.number


class Text(str):
    pass


BERLIN = datetime.timezone(datetime.timedelta(hours=1))
TYPED = [
    (Point, Point(1, Point(2))),
    (Order, Order(Decimal("1.10"), (1, 2), datetime.datetime(2024, 1, 1))),
    (Crate, Crate(3)),
    (Row, Row(1, UUID(int=7))),
    (Money, {"amount": Decimal("1.10")}),
    (datetime.datetime, datetime.datetime(2024, 1, 1, 1, 1, 1, 1)),
    (datetime.datetime, datetime.datetime(2024, 1, 1, tzinfo=BERLIN)),
    (datetime.date, datetime.date(2024, 1, 1)),
    (datetime.time, datetime.time(1, 2, 3, 4)),
    (datetime.timedelta, datetime.timedelta(1, 2, 3)),
    (Decimal, Decimal("1.10")),
    (UUID, UUID(int=1)),
    (Colour, Colour.RED),
    (Right, Right.READ | Right.WRITE),
    (tuple, (1, "a")),
    (tuple[int, str], (1, "a")),
    (set[int], {1, 2}),
    (frozenset[str], frozenset("ab")),
    (bytearray, bytearray(b"x")),
    (Number, Number(3)),
    (Annotated[int, msgspec.Meta(gt=0)], 3),
    (Literal["a", "b"], "a"),
    (Page[Point], Page([Point(1)])),
    (list[Page[Point]], [Page([Point(1)])]),
    (dict[UUID, Point], {UUID(int=1): Point(1)}),
    (Cat | Dog, Dog("Rex")),
    (Point | None, None),
    (Point | None, Point(1)),
    (Model, Model(No=1, tags={"a"}, page="https://a.b/c", at=datetime.datetime(2024, 1, 1))),
    (list[Model], [Model(No=1), Model(No=2)]),
    (Model | None, Model(No=1)),
    (Loose, Loose({"a": [1, None]})),
    (dict[str, object], {"a": [1, b"x"]}),
    (int, 3),
    (str, "a"),
    (float, 1.5),
]


@pytest.fixture
def namespace():
    return f"values-{secrets.token_hex(4)}"


@pytest.fixture
def on_servers(servers, namespace):
    """Return a cache on Redis and PostgreSQL, or on one of them."""

    def cache(value_type=None, *, l2=True, l3=True, **options):
        tiers = RedisTier(servers.redis_url, deadline=5), PostgresTier(servers.database_url, deadline=5)
        return TieredCache(
            LRUCache(100),
            tiers[0] if l2 else None,
            tiers[1] if l3 else None,
            **grouped({"namespace": namespace, "deadline": 5, "value_type": value_type} | options),
        )

    return cache


def is_same(one, other):
    return type(one) is type(other) and one == other


@pytest.mark.parametrize(("declared", "value"), TYPED, ids=name_of)
async def test_a_value_of_a_declared_type_comes_back_with_it_from_every_tier(on_servers, declared, value):
    async with on_servers(declared) as writer:
        assert (await writer.set("key", value)).everywhere
        assert is_same(await writer.get("key"), value)
        for tiers in ({"l3": False}, {"l2": False}):
            async with on_servers(declared, promotion_threshold=1, **tiers) as reader:
                # From the tier, then from L1, where it was promoted to.
                for _ in range(2):
                    assert is_same(await reader.get("key"), value)
                assert is_same(reader.get_local("key"), value)
            async with on_servers(declared, **tiers) as reader:
                assert is_same((await reader.get_many(["key", "absent"]))["key"], value)
                assert is_same(await reader.get_or_load("key", fails), value)
                assert is_same((await reader.get_or_load_many(["key"], fails))["key"], value)


async def fails(key):
    raise AssertionError("the value is in the tiers")


@pytest.mark.parametrize(("declared", "value"), TYPED, ids=name_of)
async def test_a_decorated_function_returns_its_declared_type_in_every_process(on_servers, declared, value):
    calls = []

    def function(cache, annotated):
        async def load(number):
            calls.append(number)
            return value

        if annotated:
            load.__annotations__["return"] = declared
            return cache.cached(key=lambda number: f"annotated {number}")(load)
        return cache.cached(key=lambda number: f"explicit {number}", value_type=declared)(load)

    for annotated in (True, False):
        calls.clear()
        async with on_servers() as here:
            assert is_same(await function(here, annotated)(1), value)
        async with on_servers() as there:
            assert is_same(await function(there, annotated).peek(1), value)
            assert is_same(await function(there, annotated)(1), value)
        assert calls == [1]


async def test_a_stale_value_has_its_declared_type(on_servers, caplog):
    options = {"ttl": 0.001, "stale_ttl": 60, "soft_timeout": None, "retry_after": 60}
    async with on_servers(Point, **options) as here, on_servers(Point, **options) as there:
        await here.set("key", Point(1))
        await asyncio.sleep(0.002)
        assert await there.get("key") is None
        for cache in (here, there):
            assert await cache.get_or_load("key", fails) == Point(1)


async def test_a_value_that_l1_evicts_is_stored_with_its_type(open_cache, clock, settle):
    server = {}
    cache = await open_cache(MemoryTier("l2", clock, server), size=1, value_type=Point)
    await cache.set("a", Point(1))
    await cache.set("b", Point(2))
    await settle()
    assert await cache.get("a") == Point(1)


@pytest.mark.parametrize("tiers", [{"l3": False}, {"l2": False}, {}], ids=["L2", "L3", "both"])
async def test_a_value_of_another_type_is_a_miss_and_counted_as_corrupt(on_servers, tiers):
    async with on_servers(Order) as writer:
        assert (await writer.set("key", Order(Decimal(1)), tags=["orders"])).everywhere
        assert (await writer.set("other", Order(Decimal(2)))).everywhere
    async with on_servers(Point, **tiers) as reader:
        assert await reader.get("key") is None
        assert await reader.get_many(["key", "other"]) == {}
        # Both are loaded and replaced.
        assert await reader.get_or_load("key", partial(loads, Point(1)), tags=["points"]) == Point(1)
        assert await reader.get_or_load_many(["other"], loads_many) == {"other": Point(2)}
        stats = reader.stats()
        assert (stats.l2 or stats.l3).corrupt == 5
    async with on_servers(Point, **tiers) as reader:
        assert await reader.get_many(["key", "other"]) == {"key": Point(1), "other": Point(2)}


async def loads(value, key):
    return value


async def loads_many(keys):
    return dict.fromkeys(keys, Point(2))


async def test_what_was_stored_before_the_type_was_declared_is_opened(on_servers):
    async with on_servers() as before:
        await before.set_many({"good": {"x": 1}, "bad": {"y": 1}, "day": "2024-01-01"})
    async with on_servers(Point) as after:
        assert await after.get_many(["good", "bad"]) == {"good": Point(1)}
        assert await after.get("good") == Point(1)
    async with on_servers(datetime.date) as after:
        assert await after.get("day") == datetime.date(2024, 1, 1)


async def test_a_reader_without_the_type_does_not_get_a_typed_value(on_servers):
    async with on_servers(Point) as writer:
        await writer.set_many({"a": Point(1), "b": Point(2)})
    async with on_servers() as reader:
        assert await reader.get("a") is None
        assert await reader.get_many(["a", "b"]) == {}
        assert await reader.get_or_load("a", partial(loads, {"x": 3})) == {"x": 3}
        assert reader.stats().l2.corrupt == 0


async def test_a_value_that_comes_back_anyway_can_be_read_without_its_type(on_servers):
    async with on_servers(dict[str, int]) as writer:
        await writer.set("a", {"x": 1})
    async with on_servers() as reader:
        assert await reader.get("a") == {"x": 1}


UNTYPED = [
    *(Decimal("1.10"), UUID(int=1), datetime.datetime(2024, 1, 1), datetime.timedelta(1), Colour.RED, bytearray(b"x")),
    *(Text("x"), (1, 2), {1}, Point(1), Order(Decimal(1)), [{"a": (1,)}], Model(No=1), 1j, object()),
]


@pytest.mark.parametrize("value", UNTYPED, ids=lambda value: type(value).__name__)
async def test_without_a_type_a_value_that_would_change_is_refused_once_in_words(on_servers, caplog, value):
    caplog.set_level(logging.WARNING)
    async with on_servers() as cache, on_servers() as other:
        written = await cache.set("a", value)
        assert written == Written(True, False, False, True)
        assert await other.get("a") is None
        await cache.set("b", value)
        assert await cache.get_or_load("c", partial(loads, value)) is value
        assert await cache.get("c") is value, "L1 keeps what was loaded"
        assert (await cache.set("json", {"a": [1]})).everywhere
    (record,) = caplog.records
    kind = tuple if type(value) is list else type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    assert f"the lower tiers do not store a value with a {name}, because it " in record.getMessage()
    assert "declare a value_type" in record.getMessage()


class Bigger(Point):
    z: int = 0


class Labels(TypedDict):
    name: str


MISFITS = [
    (Point, Bigger(1)),
    (Point, {"x": 1}),
    (list[int], (1,)),
    (int, True),
    (str, Text("x")),
    (Loose, Loose({"a": Decimal(1)})),
    (Loose, Loose({"a": (1,)})),
    (dict[str, Any], {"a": {1}}),
    (tuple[Any, ...], ([], Decimal(1))),
    (Money, {"amount": Decimal(1), "note": "a key that is not declared"}),
    (Labels, {"name": "a", "note": "b"}),
    (list[Labels], [{"name": "a", "note": "b"}]),
    (Annotated[int, msgspec.Meta(gt=0)], -1),
    (Literal["a", "b"], "c"),
    (dict[str, int], {"a": "1"}),
    (set[int], {"a"}),
    (Point, Point("1")),
]


@pytest.mark.parametrize(("declared", "value"), MISFITS, ids=name_of)
async def test_a_value_that_is_not_of_the_declared_type_is_refused(on_servers, caplog, declared, value):
    caplog.set_level(logging.WARNING)
    async with on_servers(declared) as cache:
        assert await cache.set("a", value) == Written(True, False, False, True)
    assert len(caplog.records) == 1
    assert "declare a value_type" not in caplog.text


@pytest.mark.parametrize("declared", [complex, list[complex], "Point", 3, type, Point | Crate], ids=repr)
def test_a_type_that_cannot_be_stored_is_refused(declared):
    with pytest.raises(TypeError, match="value_type must be a type that msgspec can decode or a Pydantic model, got "):
        TieredCache(LRUCache(1), namespace="n", value_type=declared)
    with pytest.raises(TypeError, match="value_type must be "):
        cached(value_type=declared)(loads)


async def test_an_explicit_type_wins_over_the_caches_and_that_over_the_annotation(on_servers):
    async def order(number: int) -> Order:
        return Order(Decimal(number))

    async def crate(number: int) -> Order:
        return Crate(number)

    for value_type in (Point, None):
        async with on_servers(value_type) as cache:
            explicit = cache.cached(key=str, value_type=Crate)(crate)
            assert await explicit(1) == Crate(1)
        async with on_servers(value_type) as cache:
            assert await cache.cached(key=str, value_type=Crate)(crate).peek(1) == Crate(1)
            await cache.delete("1")
    async with on_servers(Point) as cache:
        # An Order is not a Point, so it is not stored.
        assert await cache.cached(key=str)(order)(1) == Order(Decimal(1))
    async with on_servers(Point) as cache:
        assert await cache.cached(key=str)(order).peek(1) is None


class Late:
    async def later(self) -> "list[Defined]":
        return [Defined(1)]

    def returns(self) -> Awaitable["Defined"]:
        raise NotImplementedError


class Defined(msgspec.Struct):
    x: int


class Callable:
    async def __call__(self) -> Point:
        return Point(1)


async def of_unknown(parameter: "Nowhere", /) -> Point:  # noqa: F821
    return Point(1)


async def of_unknown_result() -> "Nowhere":  # noqa: F821
    return None


async def without_annotation():
    return None


async def of_anything() -> Any:
    return None


async def of_unsupported() -> complex:
    return 1j


@pytest.mark.parametrize(
    ("function", "declared"),
    [
        (Late().later, list[Defined]),
        (Late.later, list[Defined]),
        (Late.returns, Defined),
        (Callable(), Point),
        (partial(of_unknown, 1), Point),
        (of_unknown, Point),
        (of_unknown_result, None),
        (without_annotation, None),
        (of_anything, None),
        (of_unsupported, None),
    ],
)
def test_the_annotation_of_the_function_that_is_called_counts(function, declared):
    from acgsperf.cache.annotations import codec_of_results

    codec = codec_of_results(function)
    assert declared == (None if codec is None else codec.declared)


async def test_a_tier_of_your_own_gets_the_object_and_its_codec(open_cache, clock):
    tier = MemoryTier("l2", clock)
    cache = await open_cache(tier, value_type=Point)
    await cache.set("key", Point(1))
    entry = tier["key"]
    assert entry.value == Point(1)
    assert entry.codec.opened(msgspec.msgpack.decode(entry.codec.pack(entry.value)[0])) == Point(1)
    assert Tier.count_corrupt(tier) is None


def test_a_type_is_named_in_messages():
    assert repr(ValueType(list[Point])) == f"ValueType({list[Point]!r})"
    assert repr(ValueType(Point)) == "ValueType(Point)"


async def test_an_annotation_that_cannot_be_evaluated_is_logged_once(caplog):
    async with TieredCache(LRUCache(10), namespace="test") as cache:

        @cache.cached(key=str)
        async def invoice(number: int) -> "Invoice | None":  # noqa: F821
            return number

        assert (await invoice(7), await invoice(8)) == (7, 8)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"cached function {__name__}.{invoice.__qualname__}: the annotation of its results cannot be evaluated "
        "(NameError: name 'Invoice' is not defined); they have no declared type. Import the name outside "
        "`if TYPE_CHECKING`, or pass value_type to cached()"
    )
