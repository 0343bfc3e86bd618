"""Calls of scripts: by name, several in one round trip, and what to do if the server refuses them."""

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from redis._parsers.base import BaseParser
from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

from acgsperf.tiers.redis_connections import Command
from acgsperf.tiers.redis_replies import ReplicaError, UnexpectedReplyError, is_of_replica
from acgsperf.tiers.redis_scripts import Script

__all__ = ["KEYS_A_SCRIPT", "Asking", "Job", "RedisCalls", "Reply", "ScriptCall"]

_log: Final = logging.getLogger("acgsperf.tiers")

# While a script runs, the server serves no other client.
KEYS_A_SCRIPT: Final = 50
_RIGHTS: Final = "+@all -@admin -@dangerous +info, or at least +@read +@write +@scripting +@connection +info +time"

_WRAPPED: Final = re.compile(r"@user_script: ?\d+: -([A-Z]+ .*)")
# What Redis 7, Valkey and Redis 6 say if the user may not use a command in a script.
_MISSING_RIGHT: Final = re.compile("ACL failure in script|The user executing the script can't")
_PLAIN: Final = frozenset({int, bytes})

# The reply of a script for several keys: one item for the whole call, and one for each key. Or the refusal of the call.
Reply = list[Any] | ResponseError


class ScriptCall(NamedTuple):
    """One call of a script.

    Attributes:
        script: the script.
        keys: its keys.
        arguments: its arguments.
        items: how many items its reply has, unless it has a single one because the deadline has passed.
    """

    script: Script
    keys: Sequence[bytes]
    arguments: Sequence[Any]
    items: int

    def command(self, *, by_name: bool = True) -> Command:
        """Return the command that calls it."""
        what = ("EVALSHA", self.script.sha) if by_name else ("EVAL", self.script.text)
        return (*what, len(self.keys), *self.keys, *self.arguments)


_T = TypeVar("_T")


class Asking(Protocol):
    """What sends commands: connections to a server, or to the nodes of a cluster."""

    async def ask(
        self,
        commands: Sequence[Command],
        read: Callable[[list[Any]], _T],
        before_sending: Callable[[], None] | None = None,
    ) -> _T:
        """See `RedisConnections.ask`."""


# Builds the call of a script for some items.
Job = tuple[Callable[[Sequence[Any]], ScriptCall], Sequence[Any]]


class RedisCalls:
    """Calls scripts over connections.

    Args:
        connections: to the server, or to the nodes of a cluster.
        label: names the tier in log lines.
        prefix: the prefix of the keys that the tier uses, for the message about missing rights.
    """

    def __init__(self, connections: Asking, label: str, prefix: str) -> None:
        self._connections = connections
        self._label = label
        self._prefix = prefix
        self._has_warned = False

    async def run(self, calls: Sequence[ScriptCall], before_sending: Callable[[], None] | None = None) -> list[Any]:
        """Call scripts together and return their replies; the refusal of a call is an exception among them."""

        def read(replies: list[Any]) -> list[Any]:
            return list(map(_checked, asked, replies))

        asked = calls
        commands = [call.command() for call in calls]
        replies = await self._connections.ask(commands, read, before_sending=before_sending)
        unknown = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            # The last call publishes the record of all. Another client may have sent the script just before that call.
            scripts = {calls[at].script.name for at in unknown}
            unknown = [at for at in range(unknown[0], len(calls)) if calls[at].script.name in scripts]
            asked = [calls[at] for at in unknown]
            commands = [call.command(by_name=False) for call in asked]
            again = await self._connections.ask(commands, read, before_sending=before_sending)
            for at, reply in zip(unknown, again, strict=True):
                replies[at] = reply
        if not self._has_warned:
            for reply in replies:
                for item in reply if type(reply) is list else (reply,):
                    if isinstance(item, NoPermissionError):
                        self._warn(item)
        return replies

    async def run_one(self, call: ScriptCall, before_sending: Callable[[], None] | None = None) -> Any:
        """Call one script and return its reply. Raise ResponseError if the server refuses it."""
        (reply,) = await self.run([call], before_sending)
        if isinstance(reply, ResponseError):
            raise reply
        return reply

    async def run_each(
        self, jobs: Sequence[Job], before_sending: Callable[[], None] | None = None
    ) -> list[tuple[Job, Reply]]:
        """Call scripts for items, at most 50 in one call, and return each job with its reply.

        If the user may not use one of the keys, the server refuses the whole call. Then each item gets its own call.
        """
        parts = [
            (build, items[at : at + KEYS_A_SCRIPT])
            for build, items in jobs
            for at in range(0, len(items), KEYS_A_SCRIPT)
        ]
        answered = await self._run_parts(parts, before_sending)
        alone = [
            (build, [item])
            for (build, items), reply in answered
            if len(items) > 1 and isinstance(reply, NoPermissionError)
            for item in items
        ]
        if alone:
            answered = [
                (part, reply)
                for part, reply in answered
                if len(part[1]) == 1 or not isinstance(reply, NoPermissionError)
            ]
            answered += await self._run_parts(alone, before_sending)
        return answered

    async def _run_parts(
        self, parts: Sequence[Job], before_sending: Callable[[], None] | None
    ) -> list[tuple[Job, Reply]]:
        replies = await self.run([build(items) for build, items in parts], before_sending)
        return list(zip(parts, replies, strict=True))

    def _warn(self, error: NoPermissionError) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "%s: the server refuses a call (%s); refused reads are misses, refused writes are not stored. "
                "The user needs %s, and the keys ~%s:* ~%s%%*",
                *(self._label, error, _RIGHTS, self._prefix, self._prefix),
            )


def _checked(call: ScriptCall, reply: Any) -> Any:
    """Return the reply of a script. Raise UnexpectedReplyError if it is none."""
    if isinstance(reply, ResponseError):
        return _unwrapped(reply)
    if call.items:
        fits = type(reply) is list and len(reply) in (1, call.items)
        if fits and not _PLAIN.issuperset(map(type, reply)):
            reply = [_unwrapped(item) if isinstance(item, ResponseError) else item for item in reply]
            fits = all(type(item) in _PLAIN or isinstance(item, ResponseError) for item in reply)
    else:
        fits = type(reply) in _PLAIN
    if not fits:
        expected = f"{call.items} items" if call.items else "a number or a string"
        raise UnexpectedReplyError(f"reply of the script {call.script.name} must be {expected}, got {reply!r:.80}")
    return reply


def _unwrapped(error: ResponseError) -> ResponseError:
    """Return the error of the command that failed in a script, which is only text in the script's own error.

    Raises:
        ReplicaError: if the server is a replica.
    """
    if is_of_replica(error):
        raise ReplicaError(error)
    if type(error) is not ResponseError:
        return error
    if _MISSING_RIGHT.search(str(error)):
        return NoPermissionError(str(error))
    found = _WRAPPED.search(str(error))
    if found is None:
        return error
    inner = BaseParser.parse_error(found[1])  # type: ignore[no-untyped-call]
    return inner if isinstance(inner, ResponseError) else error
