"""What type checkers see of decorated functions: `make types` reads this file, nothing runs it."""

from typing import Any, assert_type

from acgsperf import LRUCache, TieredCache, Written, cached

cache: TieredCache[Any] = TieredCache(LRUCache(10), namespace="x")


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
    async def of_class(cls, number: int) -> str:
        return ""

    @staticmethod
    @cache.cached()
    async def plain(number: int) -> str:
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
    assert_type(await Repo.plain(1), str)
    assert_type(await Repo().of_class(1), str)
    assert_type(Repo().of_class.key(1), str)
    await Repo().of_class("1")  # type: ignore[arg-type]
    await user("1")  # type: ignore[arg-type]
    await Repo().get("1")  # type: ignore[arg-type]
    user.key()  # type: ignore[call-arg]
    cache.cached(load)  # type: ignore[arg-type]
    cached(load)  # type: ignore[arg-type]


async def load(key: str) -> str:
    return key
