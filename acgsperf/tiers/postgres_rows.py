"""Makes the arguments of the PostgreSQL tier's statements from operations: a list for each column."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Any, Final

from msgspec.structs import replace

from acgsperf._native import envelope_format as envelope
from acgsperf.tiers import records
from acgsperf.tiers.base import Store, StoreKind
from acgsperf.tiers.postgres_schema import tag_hash, token_number
from acgsperf.tiers.records import RecordKind
from acgsperf.tiers.server_clock import ServerClock
from acgsperf.tiers.write_batches import Operation

__all__ = ["array", "can_compare", "columns_of_stores", "columns_of_writes", "packed_records", "token_parts"]

# Tokens are extended by this share of the retention more than an entry needs.
RESERVE: Final = 0.25
_MAX_STAMP: Final = (1 << 63) - 1
_TOKEN_BYTES: Final = 8

Pairs = Iterable[tuple[str, Operation]]


def array(addresses: Sequence[bytes]) -> str:
    """Return a bytea[] of at least one item as text."""
    return '{"\\\\x' + '","\\\\x'.join(map(bytes.hex, addresses)) + '"}'


def columns_of_writes(rows: Pairs, clock: ServerClock, retention: float) -> tuple[dict[str, Any], bool]:
    """Return the arguments of explicit writes, and whether one has tags."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("keys", "ids", "stamps", "values", "created", "kept", "tags")
    }
    wanted: dict[int, float] = {}
    for key, operation in rows:
        identity = envelope.identity(key)
        written = envelope.address(identity), operation.id, min(operation.stamp, _MAX_STAMP)
        row = (*written, *_entry_columns(identity, operation, clock.offset, retention, wanted))
        for column, item in zip(columns.values(), row, strict=True):
            column.append(item)
    return columns | _wanted(wanted, retention), bool(wanted)


def columns_of_stores(rows: Pairs, clock: ServerClock, retention: float) -> dict[str, Any]:
    """Return the arguments of stores."""
    names = ("keys", "observed", "ids", "stamps", "values", "created", "kept", "tags", "not_after", "generations")
    columns: dict[str, list[Any]] = {name: [] for name in (*names, "invalidations", "positions", "copied")}
    pairs: list[tuple[bytes, int, int | None, int | None]] = []
    wanted: dict[int, float] = {}
    for key, operation in rows:
        store = operation.store
        assert store is not None
        identity = envelope.identity(key)
        address = envelope.address(identity)
        value, created, kept, tags = _entry_columns(identity, operation, clock.offset, retention, wanted)
        seen = store.seen
        demotion = store.kind is StoreKind.DEMOTION
        row = (
            *(address, seen.id if seen else b"", operation.id, min(operation.stamp, _MAX_STAMP), value, created, kept),
            tags,
            clock.deadline(seen.expires_at) if seen else inf,
            token_number(seen.tokens[0]) if seen and seen.tokens else None,
            token_number(seen.invalidations) if seen and store.entry.tags and not _knows_tags(store) else None,
            str(int.from_bytes(store.log_position, "big")) if demotion else None,
            store.kind is not StoreKind.LOAD,
        )
        for column, item in zip(columns.values(), row, strict=True):
            column.append(item)
        pairs += [(address, *pair) for pair in _tokens_of(store)]
    of_pairs = list(map(list, zip(*pairs, strict=True))) if pairs else [[], [], [], []]
    named = zip(("pair_keys", "pair_tags", "pair_tokens", "pair_stale"), of_pairs, strict=True)
    return columns | dict(named) | _wanted(wanted, retention)


def can_compare(store: Store) -> bool:
    """Return whether a store says enough to be compared with what the tier has."""
    seen = store.seen
    if store.kind is StoreKind.DEMOTION:
        return bool(store.log_position)
    if seen is None or not seen.tokens:
        return False
    return bool(seen.invalidations) or not store.entry.tags or _knows_tags(store)


def packed_records(kind: RecordKind, ids: Iterable[tuple[str, bytes]], writer: bytes, sent_us: int) -> list[bytes]:
    """Return the records for keys as bytes."""
    return [records.packed(record, writer, sent_us) for record in records.of_keys(kind, ids)]


def token_parts(token: bytes) -> tuple[int, int]:
    """Return a token as numbers: the token, and the time before which entries are stale."""
    return token_number(token), int.from_bytes(token[_TOKEN_BYTES:], "big")


def _entry_columns(
    identity: bytes, operation: Operation, offset: float, retention: float, wanted: dict[int, float]
) -> tuple[bytes | None, float, float | None, str | None]:
    """Return value, creation, end, and tags of a row; add to `wanted` until when the tokens of its tags must live."""
    entry = operation.entry
    if entry is None:
        return None, 0.0, None, None
    if (entry.id, entry.stamp) != (operation.id, operation.stamp):
        entry = replace(entry, id=operation.id, stamp=operation.stamp)
    kept = inf if entry.kept_until is None else entry.kept_until + offset
    hashes = dict.fromkeys(map(tag_hash, entry.tags))
    for tag in hashes:
        wanted[tag] = max(wanted.get(tag, 0.0), kept + retention)
    sealed = envelope.seal(entry, identity, operation.payload, offset, with_tokens=False, flags=operation.flags)
    value = b"".join(sealed)
    tags = "{" + ",".join(map(str, hashes)) + "}" if hashes else None
    return value, entry.created_at + offset, kept, tags


def _knows_tags(store: Store) -> bool:
    """Return whether the tokens of the entry's tags were observed. If not, no tag may have been invalidated since."""
    seen = store.seen
    return store.kind is StoreKind.LOAD and seen is not None and len(seen.tokens) == 1 + len(store.entry.tags)


def _tokens_of(store: Store) -> Iterable[tuple[int, int | None, int | None]]:
    """Return each tag of the entry with the token that must be the current one; None for any."""
    tags = map(tag_hash, store.entry.tags)
    if store.seen is None or not _knows_tags(store):
        return ((tag, None, None) for tag in dict.fromkeys(tags))
    seen = zip(tags, map(token_parts, store.seen.tokens[1:]), strict=True)
    return ((tag, *parts) for tag, parts in dict(seen).items())


def _wanted(wanted: Mapping[int, float], retention: float) -> dict[str, Any]:
    random = secrets.token_bytes(_TOKEN_BYTES * len(wanted))
    tokens = [token_number(random[at : at + _TOKEN_BYTES]) for at in range(0, len(random), _TOKEN_BYTES)]
    reserve = retention * RESERVE
    return {"wanted": list(wanted), "until": list(wanted.values()), "tokens": tokens, "reserve": reserve}
