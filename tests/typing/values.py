"""What type checkers see of caches with a `value_type`: `make types` reads this file, nothing runs it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_type

from acgsperf import UNCHANGED, Loaded, LRUCache, Previous, RedisTier, TieredCache, Written


@dataclass
class User:
    name: str


users = TieredCache(LRUCache(10), RedisTier("redis://localhost"), namespace="users", value_type=User)
lists = TieredCache(LRUCache(10), namespace="lists", value_type=list[User])
# A union is not a class to type checkers, so the type of the cache has to be written out.
maybe: TieredCache[User | None] = TieredCache(LRUCache(10), namespace="maybe", value_type=User | None)


async def load(key: str) -> User:
    return User(key)


async def load_many(keys: list[str]) -> dict[str, User]:
    return {}


async def load_text(key: str) -> str:
    return key


async def decides(key: str) -> Loaded[User]:
    return Loaded(User(key), ttl=5, tags=["a"], keep=False)


async def revalidates(key: str, previous: Previous[User] | None) -> User | Loaded[User]:
    if previous is not None and previous.value.name == key:
        return UNCHANGED
    return User(key)


async def revalidates_many(keys: list[str], previous: Mapping[str, Previous[User]]) -> dict[str, User | Loaded[User]]:
    return {key: Loaded(previous[key].value) for key in keys}


@users.cached()
async def decorated(number: int) -> Loaded[User]:
    return Loaded(User("a"))


@users.cached()
async def decorated_sometimes(number: int) -> User | Loaded[User]:
    return Loaded(User("a"))


@users.cached()
async def decorated_plainly(number: int) -> User | None:
    return None


async def main() -> None:
    assert_type(users, TieredCache[User])
    assert_type(await users.get("a"), User | None)
    assert_type(await users.get("a", 1), User | int)
    assert_type(users.get_local("a"), User | None)
    assert_type(await users.get_many(["a"]), dict[str, User])
    assert_type(await users.get_or_load("a", load), User)
    assert_type(await users.get_or_load_many(["a"], load_many), dict[str, User | None])
    assert_type(await users.set("a", User("a")), Written)
    assert_type(lists, TieredCache[list[User]])
    assert_type(await lists.get("a"), list[User] | None)
    assert_type(await users.get_or_load("a", decides), User)
    assert_type(await users.get_or_load("a", revalidates, refresh=True), User)
    assert_type(await users.get_or_load_many(["a"], revalidates_many), dict[str, User | None])
    assert_type(await decorated(1), User)
    assert_type(await decorated_sometimes(1), User)
    assert_type(await decorated_plainly(1), User | None)
    await maybe.set("a", None)
    await users.set("a", "Ada")  # type: ignore[arg-type]
    await users.get_or_load("a", load_text)  # type: ignore[arg-type]
