"""Reports in Redis: a key for each instance, which expires, and an index of the instances.

The keys have the prefix of the namespace, so that a user with the ACL `~ns:*` may use them. In a cluster, they have one
hash tag. The index is a sorted set of the instances by the time when their reports expire. No key is found by SCAN.
"""

import secrets
from collections.abc import Sequence
from typing import Any, Final

from redis.exceptions import RedisError, ResponseError

from acgsperf.fleet.report import LARGEST_REPORT_BYTES
from acgsperf.fleet.store import LARGEST_DOCUMENT_BYTES, MOST_REPORTS, REPORTS_A_PAGE, Found, ReportStore, Stored
from acgsperf.tiers.redis_calls import RedisCalls, ScriptCall
from acgsperf.tiers.redis_connections import Command, Credentials, RedisConnections
from acgsperf.tiers.redis_keys import TOKEN_TTL_MS, RedisKeys, bucket_keys
from acgsperf.tiers.redis_lua import script
from acgsperf.tiers.redis_replies import UnexpectedReplyError, each, text
from acgsperf.tiers.redis_tls import hint_of

__all__ = ["RedisStore"]

_CONNECTIONS: Final = 2
# What precedes a report, and the shared document.
_STAMP_BYTES: Final = 8
_HEAD_BYTES: Final = 16
_INSTANCE_BYTES: Final = 16
_TIME_BYTES: Final = 16
_MOST_REVISION: Final = 2**53

# KEYS: report, index, document. ARGV: lifetime, instance, report, lifetime of the document.
_PUBLISH: Final = script(
    "PUBLISH",
    """
local px, instance, report, lasting_px, now = take_number(), take(), take(), take(), clock()
redis.call('SET', KEYS[1], struct.pack('>I8', now) .. report, 'PX', px)
local expires = string.format('%.0f', now / 1000 + px)
if failed(read('ZADD', KEYS[2], expires, instance)) then
    -- It has another type, so that it is not an index.
    redis.call('UNLINK', KEYS[2])
    redis.call('ZADD', KEYS[2], expires, instance)
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('(%.0f', now / 1000))
if redis.call('PTTL', KEYS[2]) < px then redis.call('PEXPIRE', KEYS[2], px) end
redis.call('PEXPIRE', KEYS[3], lasting_px)
return 1
""",
)

# KEYS: index. ARGV: how many. Returns the time, in 16 digits, and the instances, those that published last first.
_INSTANCES: Final = script(
    "INSTANCES",
    """
local most, now = take(), clock()
check_role(KEYS[1])
local from = string.format('(%.0f', now / 1000)
local found = {string.format('%016.0f', now)}
for _, instance in ipairs(redis.call('ZREVRANGEBYSCORE', KEYS[1], '+inf', from, 'LIMIT', 0, most)) do
    if #instance == 16 then found[#found + 1] = instance end
end
return table.concat(found)
""",
)

# KEYS: document. ARGV: expected revision, 8 bytes for this call, document, lifetime. Returns 1 if it was replaced.
# The call may be repeated: a reply may have been lost.
_REPLACE: Final = script(
    "REPLACE",
    """
local expected, call, document, px, now = take_number(), take(), take(), take(), clock()
local value, found = read('GETRANGE', KEYS[1], 0, 15), 0
if type(value) == 'string' and #value == 16 then
    found = struct.unpack('>I8', value)
    if found >= 9007199254740992 then found = 0 end
    if found > 0 and string.sub(value, 9) == call then return 1 end
end
if found ~= expected then check_role(KEYS[1]) return 0 end
redis.call('SET', KEYS[1], struct.pack('>I8', math.max(found + 1, now)) .. call .. document, 'PX', px)
return 1
""",
)


class RedisStore(ReportStore):
    """Keeps reports in Redis.

    Args:
        url: as for `RedisTier`: also sentinels, or nodes of a cluster.
        namespace: instances with the same one on the same server see each other.
        lifetime: seconds after which a report that was not replaced is removed.
        timeout: seconds after which a call fails.
        credentials: as for `RedisTier`.

    Raises:
        ValueError: if the URL is not valid. The message does not repeat it, because it may contain a password.
    """

    def __init__(
        self,
        url: str,
        namespace: str,
        *,
        lifetime: float = 90.0,
        timeout: float = 5.0,
        credentials: Credentials | None = None,
    ) -> None:
        connections = RedisConnections(url, credentials=credentials)
        super().__init__(connections.where, namespace, lifetime=lifetime, timeout=timeout)
        self._keys = bucket_keys(namespace)[0] if connections.in_cluster else RedisKeys(namespace)
        # They lead to the node that has the keys.
        self._connections = connections.clone(_CONNECTIONS, self._keys.fleet)
        self._connections.label = label = f"fleet {namespace!r}"
        self._scripts = RedisCalls(self._connections, label, RedisKeys(namespace).prefix.decode()[:-1])
        self._document = self._keys.fleet + b":document"
        self._hint = hint_of(url)

    @property
    def _errors(self) -> tuple[type[Exception], ...]:
        return RedisError, OSError

    def _described(self, error: Exception) -> str:
        return super()._described(error) + self._hint

    def _timed_out(self) -> None:
        self._connections.close_idle()

    async def _open(self) -> None:
        self._connections.open()

    async def _close(self) -> None:
        self._connections.close()

    async def _publish(self, instance: str, blob: bytes) -> None:
        keys = self._key(instance), self._keys.fleet, self._document
        await self._run(ScriptCall(_PUBLISH, keys, (self._lifetime_ms, instance, blob, TOKEN_TTL_MS), 0))

    async def _withdraw(self, instance: str) -> None:
        commands: list[Command] = [("UNLINK", self._key(instance)), ("ZREM", self._keys.fleet, instance)]
        await self._connections.ask(commands, lambda replies: replies)

    async def _read(self, found: Found) -> None:
        listed = await self._run(ScriptCall(_INSTANCES, [self._keys.fleet], [MOST_REPORTS + 1], 0))
        if type(listed) is not bytes or len(listed) % _INSTANCE_BYTES or not listed[:_TIME_BYTES].isdigit():
            raise UnexpectedReplyError(
                f"reply of the script INSTANCES must be a time and instances, got {listed!r:.80}"
            )
        now = int(listed[:_TIME_BYTES])
        instances = [listed[at : at + _INSTANCE_BYTES] for at in range(_TIME_BYTES, len(listed), _INSTANCE_BYTES)]
        found.more = len(instances) > MOST_REPORTS
        for at in range(0, min(len(instances), MOST_REPORTS), REPORTS_A_PAGE):
            page = [name.decode(errors="replace") for name in instances[at : at + REPORTS_A_PAGE]]
            # A report that is too large is cut off here, and has one byte too many.
            last = _STAMP_BYTES + LARGEST_REPORT_BYTES
            commands: list[Command] = [("GETRANGE", self._key(instance), 0, last) for instance in page]
            replies = await self._connections.ask(commands, lambda replies: each(replies, bytes))
            if not await found.add(_stored(page, replies, now)):
                return

    async def _state(self) -> tuple[int, bytes]:
        commands: list[Command] = [
            ("INFO", "replication"),
            ("INFO", "server"),
            ("GETRANGE", self._document, 0, _HEAD_BYTES + LARGEST_DOCUMENT_BYTES),
        ]

        def read(replies: list[Any]) -> bytes:
            _, value = self._connections.check_role(replies)
            # What is of another type is replaced like one that is absent.
            return b"" if isinstance(value, ResponseError) and "WRONGTYPE" in str(value) else text(value)

        value = await self._connections.ask(commands, read)
        revision = int.from_bytes(value[:_STAMP_BYTES], "big")
        if len(value) < _HEAD_BYTES or revision >= _MOST_REVISION:
            return 0, b""
        document = value[_HEAD_BYTES:]
        return revision, document if len(document) <= LARGEST_DOCUMENT_BYTES else b""

    async def _replace_state(self, expected_revision: int, document: bytes) -> bool:
        arguments = expected_revision, secrets.token_bytes(8), document, TOKEN_TTL_MS
        return bool(await self._run(ScriptCall(_REPLACE, [self._document], arguments, 0)) == 1)

    async def _run(self, call: ScriptCall) -> Any:
        return await self._scripts.run_one(call)

    def _key(self, instance: str) -> bytes:
        return self._keys.fleet + b":report:" + instance.encode()


def _stored(page: Sequence[str], replies: Sequence[Any], now_us: int) -> "list[Stored]":
    found = []
    for instance, reply in zip(page, replies, strict=True):
        if isinstance(reply, ResponseError) or 0 < len(reply) < _STAMP_BYTES:
            found.append(Stored(instance, 0.0, None))
        elif reply:
            age_s = (now_us - int.from_bytes(reply[:_STAMP_BYTES], "big")) / 1e6
            blob = reply[_STAMP_BYTES:]
            found.append(Stored(instance, age_s, blob if len(blob) <= LARGEST_REPORT_BYTES else None))
    return found
