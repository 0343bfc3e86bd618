"""Chooses the kind of store for a server."""

from typing import Any

from acgsperf.addresses import hidden
from acgsperf.fleet.store import ReportStore

__all__ = ["store_of"]


def store_of(url: str, namespace: str, **options: Any) -> ReportStore:
    """Return the store on a server: Redis or PostgreSQL, as the URL says.

    Args:
        url: as for `RedisTier` or `PostgresTier`.
        namespace: that of the instances.
        options: those of `RedisStore` or `PostgresStore`.

    Raises:
        ValueError: if the URL is not valid. The message does not repeat it, because it may contain a password.
    """
    # Imported here, so that only the driver that is used is imported.
    if url.startswith(("postgresql:", "postgres:")):
        from acgsperf.fleet.postgres_store import PostgresStore

        return PostgresStore(url, namespace, **options)
    if url.startswith(("redis", "unix:")):
        from acgsperf.fleet.redis_store import RedisStore

        return RedisStore(url, namespace, **options)
    raise ValueError(
        f"the URL must be one of Redis or PostgreSQL, such as redis:// or postgresql://, got {hidden(url)}"
    )
