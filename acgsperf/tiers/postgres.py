"""L3: entries in a PostgreSQL table, over the tier's own connection pool.

An entry is one row: its envelope, its id and stamp, the time until which it is kept, and the tokens that were current
when it was written. The token of the namespace is called its *generation*; each tag has a token too. A read compares
them, so that `clear` and `invalidate` take effect at once for any number of rows. The rows are removed afterwards.

A write is acknowledged after its commit. What is removed stays as a tombstone for `retention` seconds: its id and stamp
stop older loads and writes.
"""

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import uniform
from typing import Any, Final, TypeVar

import asyncpg

from acgsperf._native import envelope_format as envelope
from acgsperf._native.arguments import checked_at_least
from acgsperf.pool.server_address import chosen_endpoints, of_primary, parsed_address
from acgsperf.tiers import records
from acgsperf.tiers.base import Entry, Observation, Outcome, WriteResult
from acgsperf.tiers.postgres_connections import Connections, StandbyError
from acgsperf.tiers.postgres_rows import RESERVE, array, token_parts
from acgsperf.tiers.postgres_schema import (
    INVALIDATIONS,
    NAMESPACE,
    Tables,
    channel_of,
    new_token,
    tag_hash,
    token_bytes,
    token_number,
)
from acgsperf.tiers.postgres_statements import ROWS_A_STATEMENT, Statement, Statements
from acgsperf.tiers.postgres_writes import Writer
from acgsperf.tiers.read_batches import MAX_READS_TOGETHER, ReadBatches
from acgsperf.tiers.records import Record, RecordKind
from acgsperf.tiers.server import DEADLINE_S, MAX_VALUE_BYTES, ServerTier, Wanted
from acgsperf.tiers.server_calls import Attempt
from acgsperf.tiers.stats import CountedConnections
from acgsperf.tiers.tier_arguments import check_keys, check_tag, seconds
from acgsperf.tiers.write_batches import REFUSED, WriteBatch

__all__ = ["PostgresTier"]

EXPIRY_INTERVAL_S: Final = 60.0
_CONNECT_TIMEOUT_S: Final = 1.0
_SEVERAL_HOSTS_RECOVERY_S: Final = 0.25
# The largest message is a row with one value. This is enough for the rest of it, and for every message without a value.
_BYTES_WITHOUT_VALUE: Final = 1 << 20
# After a read has found a row with tags, reads look for tags for this time.
_TAGGED_S: Final = 60.0
# A record is read after its transaction has committed. The backplane removes records earlier, by the time of commit.
_LONGEST_TRANSACTION_S: Final = 3600.0

# No connection, no login, no database, too many connections, shutting down: the SQLSTATE concerns all calls.
_REFUSES_ALL: Final = ("08", "28", "3D", "53300", "57P")

# The session has ended while it carried out a write.
_LOST: Final = (asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, ConnectionError)

_VERSION_AND_ROLE: Final = """
SELECT current_setting('server_version'), CASE
    WHEN pg_is_in_recovery() THEN 'standby'
    WHEN current_setting('transaction_read_only') = 'on' THEN 'read-only primary, which refuses writes'
    ELSE 'primary'
END
"""
_T = TypeVar("_T")

# The entry of a key, and what was observed.
_LookedUp = tuple[Entry | None, Observation]


class PostgresTier(ServerTier):
    """Keeps entries in a PostgreSQL table that processes share. The tier creates its tables and their indexes.

    Args:
        dsn: `postgresql://` URL, as asyncpg accepts it.
        table: name of the table: lower-case letters, digits and underscores. `_v2` is appended; two more tables have
            tags and the log of writes.
        deadline: seconds after which a call returns, even if the server does not answer.
        max_value_bytes: larger envelopes are neither stored nor read.
        compress_above: the bytes above which a value is compressed by zstd, if that makes it smaller; None (default)
            for never. All tiers read compressed values. It needs Python 3.14 or `pip install 'acgsperf[zstd]'`.
        statement_cache_size: number of prepared statements for each connection; must be 0 for PgBouncer in transaction
            mode.
        expiry_interval: seconds between two removals of expired rows.

    Raises:
        ValueError: if the table name or the DSN is not valid. The message does not repeat the DSN, because it may
            contain a password.
    """

    name = "postgres"

    def __init__(
        self,
        dsn: str,
        *,
        table: str = "acgsperf_cache",
        deadline: float = DEADLINE_S,
        max_value_bytes: int = MAX_VALUE_BYTES,
        compress_above: int | None = None,
        statement_cache_size: int = 100,
        expiry_interval: float = EXPIRY_INTERVAL_S,
    ) -> None:
        self._expiry_interval = seconds("expiry_interval", expiry_interval)
        checked_at_least("statement_cache_size", statement_cache_size, 0)
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,49}", table):
            raise ValueError(f"table must be 1 to 50 lower-case letters, digits and underscores, got {table!r:.80}")
        address = parsed_address("the DSN", dsn)
        super().__init__(
            address.full_name, deadline=deadline, max_value_bytes=max_value_bytes, compress_above=compress_above
        )
        if len(chosen_endpoints(address, {}, os.environ)) > 1:
            # Any attempt may find that another server has been promoted.
            self._breaker.recovery_s = _SEVERAL_HOSTS_RECOVERY_S
        self._dsn = dsn
        self._tables = Tables(table)
        self._connections = Connections(
            dsn,
            self._tables,
            self.server_clock,
            self._is_refusal,
            lambda connection: self._writer.add_generation(connection),
            **of_primary(address),
            statement_cache_size=statement_cache_size,
            max_message_bytes=self._max_value_bytes + _BYTES_WITHOUT_VALUE,
            # While one attempt waits for a silent server, the pool starts no other attempt.
            connect_timeout=address.connect_timeout or max(self.deadline, _CONNECT_TIMEOUT_S),
        )
        self._connection = self._connections.borrow
        self._statements = Statements(self._tables)
        # Until this time, batches of reads look for tags too.
        self._tagged_until = 0.0
        self._look_ups: ReadBatches[Wanted, _LookedUp] = ReadBatches(
            self._calls, self._look_up_batch, self.deadline, self._reads.latency
        )

    def __repr__(self) -> str:
        return f"PostgresTier({self._where!r}, table={self._tables.table!r})"

    @property
    def channel(self) -> str:
        """The channel on which PostgreSQL notifies of this namespace's records."""
        return channel_of(self._tables.table, self._namespace)

    async def invalidate_tag(self, tag: str) -> int | None:
        check_tag(tag)
        return await self._invalidate_and_remove(tag)

    async def clear(self) -> int | None:
        return await self._invalidate_and_remove(None)

    async def _invalidate_and_remove(self, tag: str | None) -> int | None:
        tokens: list[int | None] = []

        async def send(attempt: Attempt) -> WriteResult:
            result, token = await self._send_invalidation(tag, False, attempt)
            tokens.append(token)
            return result

        result = await self._attempt(send)
        if result.outcome is not Outcome.STORED:
            return None
        (token,) = tokens
        return 0 if token is None else await self._remove_invalidated(tag, token)

    async def look_up(
        self, keys: Sequence[str], tags: Sequence[str] = ()
    ) -> tuple[dict[str, Entry], dict[str, Observation]]:
        self._check_use()
        check_keys(keys)
        for tag in tags:
            check_tag(tag)
        if not keys or not self._may_read(len(keys)):
            return {}, {}
        wanted = [(key, tuple(tags)) for key in keys]
        found: dict[Wanted, _LookedUp] = {}
        with self._deadline.wait():
            if not self._pending_writes.keys().isdisjoint(keys):
                await self._writes.wait_for_keys(keys)
                # The tier may have been closed during the wait.
                self._check_use()
            for at in range(0, len(wanted), MAX_READS_TOGETHER):
                found |= await self._look_ups.get_many(wanted[at : at + MAX_READS_TOGETHER])
        entries = {key: entry for (key, _), (entry, _) in found.items() if entry is not None}
        self._reads.hits += len(entries)
        self._reads.misses += len(keys) - len(entries)
        now = time.monotonic()
        return entries, {
            key: seen
            for (key, _), (entry, seen) in found.items()
            if entry is None or (entry.fresh_until is not None and entry.fresh_until <= now)
        }

    async def _start(self) -> None:
        self._connections.open()
        self._look_ups.open()
        self._writer = Writer(self._statements, self.server_clock, self._namespace, self.channel, self._is_refusal)
        self._writer.retention, self._writer.writer, self._writer.errors = (
            self.retention,
            self.writer,
            self._calls.errors,
        )
        self._calls.start(self._remove_expired())
        async with self._connection():
            pass

    def _is_refusal(self, error: Exception) -> bool:
        state = getattr(error, "sqlstate", None) if isinstance(error, asyncpg.PostgresError) else None
        return state is not None and not state.startswith(_REFUSES_ALL)

    async def _stop(self) -> None:
        self._look_ups.close()
        await self._connections.close()

    async def close(self) -> None:
        for task in self._calls.tasks:
            if task.get_name() == "expiry":
                task.cancel()
        await super().close()

    async def _fetch(self, keys: Sequence[str]) -> list[Entry | None]:
        identities = envelope.identities(keys)
        addresses = envelope.addresses(identities)
        tagged = time.monotonic() < self._tagged_until
        while True:
            sql = (self._statements.get if tagged else self._statements.get_untagged).sql
            async with self._connection() as connection:
                rows = await connection.fetch(sql, self._max_value_bytes, self._namespace, array(addresses))
            # `dict(rows)` takes twice as long for asyncpg's records.
            blobs = {address: blob for address, blob in rows}  # noqa: C416
            found, _, corrupt = self._unseal(map(blobs.get, addresses), identities, None)
            if not corrupt or tagged or b"" not in blobs.values():
                self._corrupt += corrupt
                return found
            # A row has tags, or is too large. Later reads may find more of them.
            self._tagged_until = time.monotonic() + _TAGGED_S
            tagged = True

    async def _observe(self, wanted: Sequence[Wanted]) -> list[Observation | None]:
        return [None if found is None else found[1] for found in await self._look_up_batch(wanted)]

    async def _look_up_batch(self, wanted: Sequence[Wanted]) -> list[_LookedUp | None]:
        identities = envelope.identities([key for key, _ in wanted])
        addresses = envelope.addresses(identities)
        hashes = {tag: tag_hash(tag) for _, tags in wanted for tag in tags}
        needed = dict.fromkeys((NAMESPACE, INVALIDATIONS, *hashes.values()))
        arguments = {"limit": self._max_value_bytes, "namespace": self._namespace, "keys": array(addresses)}
        arguments |= {"retention": self.retention, "tags": list(needed)}
        async with self._connection() as connection:
            for _ in range(2):
                # An observation expires by the time before the statement was sent, which is the safe one.
                sent = time.monotonic()
                rows = await self._fetch_rows(self._statements.look_up, arguments, connection)
                tokens, ending = self._tokens_in(rows, sent)
                if NAMESPACE in tokens and INVALIDATIONS in tokens:
                    break
                await self._writer.add_generation(connection)
            else:
                return [None] * len(wanted)
            if missing := [tag for tag in needed if tag not in tokens or tag in ending]:
                tokens |= await self._ensure_tokens(missing, connection)
        blobs = {row[0]: row[1] for row in rows}
        seen = {row[0]: (row[2], row[3]) for row in rows}
        found, _, corrupt = self._unseal(map(blobs.get, addresses), identities, None)
        self._corrupt += corrupt
        expires_at, invalidations = sent + self.retention, tokens[INVALIDATIONS]
        result: list[_LookedUp | None] = []
        for (_, tags), address, entry in zip(wanted, addresses, found, strict=True):
            of_tags = (tokens[hashes[tag]] for tag in tags)
            everything = (tokens[NAMESPACE], *of_tags)
            result.append((entry, Observation(*seen.get(address, (b"", 0)), expires_at, everything, invalidations)))
        return result

    def _tokens_in(self, rows: Sequence[Any], sent: float) -> tuple[dict[int, bytes], set[int]]:
        """Return the tokens in the rows of a look-up, and the tags whose token may end during a load."""
        tokens, ending = {}, set()
        for key, tag_bytes, both, lives, server_time in rows:
            if key is None:
                tag = token_number(tag_bytes)
                tokens[tag] = token_bytes(*token_parts(both))
                if not lives:
                    ending.add(tag)
                self.server_clock.measured(sent, time.monotonic(), server_time)
        return tokens, ending

    async def _ensure_tokens(self, tags: Sequence[int], connection: Any) -> dict[int, bytes]:
        arguments = {"namespace": self._namespace, "tags": tags, "tokens": [new_token() for _ in tags]}
        arguments["lifetimes"] = [self.retention * (1 + RESERVE)] * len(tags)
        rows = await self._fetch_rows(self._statements.ensure, arguments, connection)
        return {tag: token_bytes(token, stale_before) for tag, token, stale_before in rows}

    async def _write(self, batch: WriteBatch) -> None:
        try:
            await self._carry_out(batch)
        except _LOST as error:
            if not batch.sent or batch.remaining() <= 0:
                raise
            # The write may have been carried out. The repeated one has the same ids, so that it changes nothing then.
            self._calls.errors[type(error).__name__] += 1
            await self._carry_out(batch)

    async def _carry_out(self, batch: WriteBatch) -> None:
        async def use(connection: Any) -> None:
            # A standby has refused them.
            for key in [key for key, result in batch.results.items() if result.outcome is Outcome.REFUSED]:
                del batch.results[key]
            await self._writer.carry_out(batch, connection)

        await self._on_primary(use)

    async def _on_primary(self, use: Callable[[Any], Awaitable[_T]]) -> _T:
        """Write over a connection; if its server turns out to be a standby, write over another one."""
        for _ in range(2):
            try:
                async with self._connection() as connection:
                    before = self._writer.read_only_answers
                    result = await use(connection)
                    if self._writer.read_only_answers > before:
                        await self._connections.check_role(connection)
                    self._connections.leads_to_standby = False
                    return result
            except StandbyError as error:
                failure = error
        raise failure

    async def _invalidate(self, tag: str | None, refused_below: bool, attempt: Attempt) -> WriteResult:
        result, token = await self._send_invalidation(tag, refused_below, attempt)
        if token is not None:
            self._calls.start(self._remove_in_background(tag, token))
        return result

    async def _send_invalidation(
        self, tag: str | None, refused_below: bool, attempt: Attempt
    ) -> tuple[WriteResult, int | None]:
        """Change the token; return the result, and the former token of the tag or the new one of the namespace."""
        logged = bool(self.writer)
        statement = self._statements.invalidate(clear=tag is None, logged=logged)
        record = Record(RecordKind.CLEAR) if tag is None else records.of_tag(RecordKind.TAG, tag)
        # No entry has the new token yet. It has to outlive only the statements that have not seen it.
        lifetime = self.retention if refused_below else self.retention / 2
        arguments = {"refused_below": refused_below, "lifetime": lifetime}
        arguments |= {"new_token": new_token(), "count": new_token()}
        return await self._send_for_tag(statement, tag, record, arguments, attempt)

    async def _expire_tag(self, tag: str, attempt: Attempt) -> WriteResult:
        statement = self._statements.expire_tag(logged=bool(self.writer))
        record = records.of_tag(RecordKind.EXPIRED_TAG, tag)
        return (await self._send_for_tag(statement, tag, record, {}, attempt))[0]

    async def _send_for_tag(
        self, statement: Statement, tag: str | None, record: Record, arguments: dict[str, Any], attempt: Attempt
    ) -> tuple[WriteResult, int | None]:
        arguments |= {"namespace": self._namespace, "tag": None if tag is None else tag_hash(tag)}
        arguments |= {"channel": self.channel, "retention": self.retention}

        async def use(connection: Any) -> tuple[WriteResult, int | None]:
            attempt.mark_sent()
            for _ in range(2):
                clock, sent = self.server_clock, time.monotonic()
                arguments["deadline"] = clock.deadline(attempt.until)
                arguments["records"] = [records.packed(record, self.writer, clock.now_us())]
                rows = await self._writer.unless_refused(self._fetch_rows(statement, arguments, connection))
                if rows is None:
                    break
                token, in_time, server_time = rows[0]
                if in_time:
                    return WriteResult(Outcome.STORED, published=bool(self.writer)), token
                clock.measured(sent, time.monotonic(), server_time)
                if attempt.remaining() <= 0:
                    break
            return REFUSED, None

        return await self._on_primary(use)

    async def _remove_in_background(self, tag: str | None, token: int) -> None:
        await self._remove_invalidated(tag, token)

    async def _remove_invalidated(self, tag: str | None, token: int) -> int | None:
        """Remove the rows of an invalidation, in steps. Return how many entries they had, None if a step failed."""
        statement = self._statements.sweep if tag is None else self._statements.bury
        arguments = {"namespace": self._namespace, "tag": None if tag is None else tag_hash(tag)}
        arguments |= {"token": token, "generation": token}
        removed = 0
        while True:
            rows = await self._calls.run(lambda: self._fetch_over_a_connection(statement, arguments))
            if rows is None:
                return None
            steps, valid = map(int, rows[0])
            removed += valid
            if steps < ROWS_A_STATEMENT:
                return removed

    async def _fetch_over_a_connection(self, statement: Statement, arguments: Mapping[str, Any]) -> list[Any]:
        async with self._connection() as connection:
            return await self._fetch_rows(statement, arguments, connection)

    @staticmethod
    async def _fetch_rows(statement: Statement, arguments: Mapping[str, Any], connection: Any) -> list[Any]:
        rows: list[Any] = await connection.fetch(statement.sql, *statement.arguments(arguments))
        return rows

    async def _describe(self) -> str:
        async with self._connection() as connection:
            version, role = await connection.fetchrow(_VERSION_AND_ROLE)
        return f"PostgreSQL {version} at {self._where}, {role}"

    @property
    def counted_connections(self) -> CountedConnections:
        return self._connections

    async def _remove_expired(self) -> None:
        task = asyncio.current_task()
        if task is not None:
            task.set_name("expiry")
        while True:
            # With jitter, so that not all processes search at the same time.
            await asyncio.sleep(self._expiry_interval * uniform(0.8, 1.2))
            for statement, retention in zip(
                self._statements.remove, (self.retention, 0.0, _LONGEST_TRANSACTION_S), strict=True
            ):
                arguments = {"namespace": self._namespace, "retention": retention}
                removed: int | None = ROWS_A_STATEMENT
                while removed == ROWS_A_STATEMENT and self._calls.allow(0):
                    rows = await self._calls.run(lambda: self._fetch_over_a_connection(statement, arguments))  # noqa: B023
                    removed = None if rows is None else int(rows[0][0])
