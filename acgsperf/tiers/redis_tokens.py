"""Tokens of tags, as a read compares and renews them."""

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from acgsperf._native.envelope_format import TOKEN_BYTES
from acgsperf.dispatch import LRUCache
from acgsperf.tiers.base import Entry
from acgsperf.tiers.redis_calls import RedisCalls, ScriptCall
from acgsperf.tiers.redis_keys import TOKEN_TTL_MS, RedisKeys
from acgsperf.tiers.redis_scripts import RENEW
from acgsperf.tiers.server_calls import ServerCalls

__all__ = ["Renewals", "drop_invalidated"]

_STALE_END: Final = 2 * TOKEN_BYTES
_RENEW_EVERY_S: Final = 24 * 3600.0
_MAX_REMEMBERED: Final = 10_000


def drop_invalidated(
    found: list[Entry | None],
    tagged: Sequence[tuple[int, Sequence[bytes]]],
    current: Mapping[str, bytes | None],
    offset: float,
) -> None:
    """Replace entries with None if a tag has another token now, and make those stale whose tag was expired.

    Args:
        found: entries.
        tagged: for each entry that has tags: its position, and the tokens of its tags when it was stored.
        current: what is stored for each tag: 8 bytes, then possibly the time in microseconds before which entries are
            stale, then possibly one byte that says that the slower tier has refused an invalidation.
        offset: the server's clock minus the monotonic clock.
    """
    for position, tokens in tagged:
        entry = found[position]
        if entry is None:
            continue
        for tag, token in zip(entry.tags, tokens, strict=True):
            value = current[tag]
            if value is None or value[:TOKEN_BYTES] != token:
                found[position] = None
                break
            if len(value) >= _STALE_END:
                stale_at = int.from_bytes(value[TOKEN_BYTES:_STALE_END], "big") / 1e6 - offset
                if entry.created_at < stale_at and (entry.fresh_until is None or entry.fresh_until > stale_at):
                    entry = found[position] = replace(entry, fresh_until=stale_at)


class Renewals:
    """Renews the tokens of tags that entries without an expiration have, each once a day if it is read.

    Args:
        calls: owns the task.
        scripts: calls the script.
        keys: names the tokens.
    """

    def __init__(self, calls: ServerCalls, scripts: RedisCalls, keys: RedisKeys) -> None:
        self._calls = calls
        self._scripts = scripts
        self._keys = keys
        # The tags whose token needs no renewal yet.
        self._renewed: LRUCache[str, bool] = LRUCache(_MAX_REMEMBERED, ttl=_RENEW_EVERY_S)

    def renew(self, found: Sequence[Entry | None], tagged: Sequence[tuple[int, Sequence[bytes]]]) -> None:
        """Renew the tokens of the entries with tags, later. A read does not wait for it."""
        due = []
        for position, _ in tagged:
            entry = found[position]
            if entry is not None and entry.kept_until is None:
                for tag in entry.tags:
                    if tag not in self._renewed:
                        self._renewed.set(tag, True)
                        due.append(tag)
        if due:
            self._calls.start(self._renew(due))

    async def _renew(self, tags: Sequence[str]) -> None:
        await self._calls.run(lambda: self._scripts.run_each([(self._renew_call, tags)]))

    def _renew_call(self, tags: Sequence[str]) -> ScriptCall:
        return ScriptCall(RENEW, list(map(self._keys.tag, tags)), [TOKEN_TTL_MS], 0)
