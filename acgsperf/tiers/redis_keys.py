"""The keys of a namespace in Redis."""

import hashlib
from typing import Final

from acgsperf._native import envelope_format as envelope

__all__ = ["TOKEN_TTL_MS", "RedisKeys", "short_run"]

# The lifetime of a key that each use renews.
TOKEN_TTL_MS: Final = 30 * 24 * 3600 * 1000


def short_run(run_id: bytes) -> bytes:
    """Return 8 bytes for the `run_id` of a server: what the script GENERATION puts into the token of a namespace."""
    return hashlib.sha1(run_id, usedforsecurity=False).hexdigest()[:8].encode()


class RedisKeys:
    """Names the keys of a namespace.

    Colons in a namespace are escaped, so that the namespaces `a` and `a:b` have different keys. Tags and locks have a %
    instead of the colon. No escape sequence looks like that.

    The keys that every call needs begin like entries, so that a user with the ACL `~ns:*` can read and write entries
    without tags. They have the byte 0xff after the colon. No entry looks like that: see `envelope_format.address`.

    Args:
        namespace: the namespace.

    Attributes:
        prefix: the prefix of entries.
        tags: prefix of the tokens of tags.
        token: the token of the namespace: 8 bytes, and 8 that say which run of the server it belongs to.
        invalidations: changes when a tag is invalidated or the namespace is cleared.
        log: a stream of records.
        fence: the last token of a lock.
        own: these four keys: all keys with the prefix of entries that are not entries.
    """

    def __init__(self, namespace: str) -> None:
        escaped = namespace.replace("%", "%25").replace(":", "%3A").encode()
        self.prefix: Final = escaped + b":"
        self.tags: Final = escaped + b"%tag:"
        self.token: Final = self.prefix + b"\xfftoken"
        self.invalidations: Final = self.prefix + b"\xffinvalidations"
        self.log: Final = self.prefix + b"\xfflog"
        self.fence: Final = self.prefix + b"\xfffence"
        self.own: Final = frozenset((self.token, self.invalidations, self.log, self.fence))
        self._locks = escaped + b"%lock:"

    def entry(self, key: str) -> bytes:
        """Return the Redis key of the entry of a key."""
        return self.prefix + envelope.address(envelope.identity(key))

    def tag(self, tag: str) -> bytes:
        """Return the Redis key of the token of a tag."""
        return self.tags + envelope.address(envelope.identity(tag))

    def lock(self, key: str) -> bytes:
        """Return the Redis key of the lock of a key."""
        return self._locks + envelope.address(envelope.identity(key))
