"""The keys of a namespace in Redis."""

import hashlib
from binascii import crc_hqx
from typing import Final

from redis.crc import key_slot

from acgsperf._native import envelope_format as envelope

__all__ = [
    "BUCKETS",
    "TOKEN_TTL_MS",
    "RedisKeys",
    "bucket_keys",
    "bucket_of",
    "bucket_of_key",
    "run_in_token",
    "short_run",
]

# The number of parts of a namespace in a cluster. Each is in its own slot, and they are spread evenly over the slots.
BUCKETS: Final = 64
_SLOTS_A_BUCKET: Final = 16_384 // BUCKETS

# The token of a namespace has 8 bytes, and 8 for the run of the server.
_RUN_AT: Final = envelope.TOKEN_BYTES
_RUN_BYTES: Final = 8

# The lifetime of a key that each use renews.
TOKEN_TTL_MS: Final = 30 * 24 * 3600 * 1000


def short_run(run_id: bytes) -> bytes:
    """Return 8 bytes for the `run_id` of a server: what the script GENERATION puts into the token of a namespace."""
    return hashlib.sha1(run_id, usedforsecurity=False).hexdigest()[:8].encode()


def run_in_token(token: bytes) -> bytes:
    """Return the 8 bytes for a run in the token of a namespace; empty if it has none."""
    run = token[_RUN_AT : _RUN_AT + _RUN_BYTES]
    return run if len(run) == _RUN_BYTES else b""


class RedisKeys:
    """Names the keys of a namespace.

    Colons in a namespace are escaped, so that the namespaces `a` and `a:b` have different keys. Tags and locks have a %
    instead of the colon. No escape sequence looks like that. In a cluster, a hash tag follows: digits in braces, which
    decide the slot. Braces in a namespace are escaped then.

    The keys that every call needs begin like entries, so that a user with the ACL `~ns:*` can read and write entries
    without tags. They have the byte 0xff after the colon. No entry looks like that: see `envelope_format.address`.

    Args:
        namespace: the namespace.
        hash_tag: the text in braces; empty without a cluster.

    Attributes:
        prefix: the prefix of entries.
        tags: prefix of the tokens of tags.
        token: the token of the namespace: 8 bytes, and 8 that say which run of the server it belongs to.
        invalidations: changes when a tag is invalidated or the namespace is cleared.
        log: a stream of records.
        fence: the last token of a lock.
        own: these four keys.
        fleet: the index of the reports of instances, and the prefix of these reports.
    """

    def __init__(self, namespace: str, hash_tag: bytes = b"") -> None:
        escaped = namespace.replace("%", "%25").replace(":", "%3A").encode()
        braces = b""
        if hash_tag:
            escaped = escaped.replace(b"{", b"%7B").replace(b"}", b"%7D")
            braces = b"{%b}" % hash_tag
        self.prefix: Final = escaped + b":" + braces
        self.tags: Final = escaped + b"%tag:" + braces
        self.token: Final = self.prefix + b"\xfftoken"
        self.invalidations: Final = self.prefix + b"\xffinvalidations"
        self.log: Final = self.prefix + b"\xfflog"
        self.fence: Final = self.prefix + b"\xfffence"
        self.own: Final = frozenset((self.token, self.invalidations, self.log, self.fence))
        self.fleet: Final = self.prefix + b"\xfffleet"
        self._locks = escaped + b"%lock:" + braces

    def is_entry(self, redis_key: bytes) -> bool:
        """Return whether a key in Redis is that of an entry. The keys above have the same prefix."""
        own = redis_key in self.own or redis_key.startswith(self.fleet)
        return redis_key.startswith(self.prefix) and not own

    def entry(self, key: str) -> bytes:
        """Return the Redis key of the entry of a key."""
        return self.prefix + envelope.address(envelope.identity(key))

    def tag(self, tag: str) -> bytes:
        """Return the Redis key of the token of a tag."""
        return self.tags + envelope.address(envelope.identity(tag))

    def lock(self, key: str) -> bytes:
        """Return the Redis key of the lock of a key."""
        return self._locks + envelope.address(envelope.identity(key))


def bucket_keys(namespace: str) -> list[RedisKeys]:
    """Return the keys of each bucket of a namespace in a cluster.

    The hash tag of a bucket is the first number, counted from one that depends on the namespace, whose slot is among
    those of the bucket. So all processes find the same ones, and namespaces have different slots.
    """
    found: dict[int, bytes] = {}
    number = crc_hqx(namespace.encode(errors="surrogatepass"), 0)
    while len(found) < BUCKETS:
        tag = b"%d" % number
        found.setdefault(key_slot(tag) // _SLOTS_A_BUCKET, tag)
        number += 1
    return [RedisKeys(namespace, found[bucket]) for bucket in range(BUCKETS)]


def bucket_of(identity: bytes) -> int:
    """Return the bucket of a key, given as bytes."""
    return crc_hqx(identity, 0) % BUCKETS


def bucket_of_key(redis_key: bytes) -> int:
    """Return the bucket to which a key in Redis belongs."""
    return key_slot(redis_key) // _SLOTS_A_BUCKET
