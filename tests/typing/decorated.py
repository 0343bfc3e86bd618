"""What type checkers see of decorated functions: `make types` reads this file, nothing runs it."""

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Generic, ParamSpec, TypeVar, assert_type

from acgsperf import LRUCache, TieredCache, Written, cached

_P = ParamSpec("_P")
_R = TypeVar("_R")
_T = TypeVar("_T")

cache: TieredCache[Any] = TieredCache(LRUCache(10), namespace="x")


def with_session(function: Callable[_P, Awaitable[_R]]) -> Callable[_P, Awaitable[_R]]:
    return function


@cache.cached(ttl=60)
async def user(number: int, *, verbose: bool = False) -> str:
    return str(number)


@cache.cached(key=lambda number: f"u{number}", tags=lambda number: [f"t{number}"])
async def other(number: int) -> dict[str, int]:
    return {}


class Repo:
    @cache.cached()
    async def get(self, number: int) -> str:
        return ""

    @cache.cached()
    @classmethod
    async def of_class(cls, number: int, *, verbose: bool = False) -> str:
        return ""

    @classmethod
    @cache.cached()
    async def of_class_below(cls, number: int) -> str:
        return ""

    @cache.cached()
    @classmethod
    async def make(cls, number: int) -> "Repo":
        return cls()

    @cache.cached()
    @staticmethod
    async def plain(number: int) -> str:
        return ""

    @staticmethod
    @cache.cached()
    async def plain_below(number: int) -> str:
        return ""

    @cache.cached()
    @staticmethod
    async def of_object(value: object) -> str:
        return ""

    @cache.cached()
    @staticmethod
    async def nothing() -> str:
        return ""

    @cache.cached()
    @with_session
    async def wrapped(self, number: int) -> str:
        return ""


class Special(Repo):
    pass


class Table(Generic[_T]):
    @cache.cached()
    @classmethod
    async def of_class(cls, row: _T) -> _T:
        return row

    @cache.cached()
    async def get(self, row: _T) -> _T:
        return row


class Callee:
    async def __call__(self, number: int) -> str:
        return ""


@cached()
async def early(name: str) -> int:
    return 1


# An LRUCache without an annotation does not need one.
plain = TieredCache(LRUCache(10), namespace="y")
assert_type(plain, TieredCache[Any])


async def main() -> None:
    early.bind(cache)
    assert_type(await early("a"), int)
    assert_type(await early.invalidate("a"), Written)
    assert_type(await user(1, verbose=True), str)
    assert_type(user.key(1), str)
    assert_type(await user.peek(1), str | None)
    assert_type(await other(1), dict[str, int])
    assert_type(await Repo().get(1), str)
    assert_type(Repo().get.key(1), str)
    assert_type(await Repo().get.refresh(1), str)
    assert_type(await user(number=1), str)
    assert_type(await Repo.get(Repo(), 1), str)
    assert_type(await Repo().wrapped(1), str)
    for owner in (Repo, Special):
        assert_type(await owner.of_class(1, verbose=True), str)
        assert_type(owner.of_class.key(1), str)
        assert_type(await owner.of_class.invalidate(1), Written)
        assert_type(await owner.of_class_below(1), str)
        assert_type(await owner.make(1), Repo)
        assert_type(await owner.plain(1), str)
        assert_type(owner.plain.key(number=1), str)
        assert_type(await owner.plain_below.peek(1), str | None)
        assert_type(await owner.of_object(1), str)
        assert_type(await owner.nothing(), str)
    for instance in (Repo(), Special()):
        assert_type(await instance.of_class(1, verbose=True), str)
        assert_type(instance.of_class.key(1), str)
        assert_type(await instance.of_class_below(1), str)
        assert_type(await instance.make(1), Repo)
        assert_type(await instance.plain(1), str)
        assert_type(await instance.plain.refresh(number=1), str)
        assert_type(await instance.plain_below.peek(1), str | None)
        assert_type(await instance.nothing(), str)
    assert_type(await Table[int].of_class(1), int)
    assert_type(await Table[int]().get(1), int)
    assert_type(await cache.cached()(functools.partial(load, "a"))(), str)
    assert_type(await cache.cached()(Repo().get)(1), str)
    assert_type(await cache.cached()(Callee())(1), str)
    await Repo.of_class("1")  # type: ignore[arg-type]
    await Repo().of_class("1")  # type: ignore[arg-type]
    await Repo.plain("1")  # type: ignore[arg-type]
    await Repo().plain("1")  # type: ignore[arg-type]
    Repo.of_class.key()  # type: ignore[call-arg]
    await Repo().get(Repo(), 1)  # type: ignore[call-arg, arg-type]
    await user("1")  # type: ignore[arg-type]
    await Repo().get("1")  # type: ignore[arg-type]
    user.key()  # type: ignore[call-arg]
    cache.cached(load)  # type: ignore[arg-type]
    cached(load)  # type: ignore[arg-type]


async def load(key: str) -> str:
    return key
