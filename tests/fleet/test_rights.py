"""The rights that the documentation names suffice for the reports and the document of a fleet."""

import re
import secrets
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
import redis.asyncio

from acgsperf.errors import FleetError
from acgsperf.fleet import store_of

DOCS = Path(__file__).parents[2] / "docs"


def block(page, language, after):
    text = (DOCS / page).read_text()
    return re.search(rf"{after}\b.*?```{language}\n(.*?)```", text, re.DOTALL)[1]


async def use(store, report):
    for _ in range(2):
        await store.publish(report)
    assert await store.reports() == [report]
    for document in (b"one", b"two"):
        revision, _ = await store.state()
        assert await store.replace_state(revision, document)
    assert (await store.state())[1] == b"two"
    await store.withdraw(report.instance)
    assert await store.reports() == []


@pytest.mark.parametrize(("page", "after"), [("fleet.md", "an ACL"), ("security.md", "an ACL for one namespace")])
async def test_the_documented_commands_suffice_on_redis(servers, namespace, report_of, page, after):
    commands = re.findall(r"\+\S+", block(page, "text", after))
    async with redis.asyncio.Redis.from_url(servers.redis_url, protocol=2) as client:
        await client.acl_setuser(namespace, reset=True)
        await client.execute_command(
            "ACL", "SETUSER", namespace, "on", ">secret", f"~{namespace}:*", "-@all", *commands
        )
        try:
            parts = urlsplit(servers.redis_url)
            url = parts._replace(netloc=f"{namespace}:secret@{parts.netloc}").geturl()
            async with store_of(url, namespace, timeout=30) as store:
                # A key of another type is removed, which needs a right, too.
                await client.set(store._keys.fleet, "a text")
                await use(store, report_of())
        finally:
            await client.acl_deluser(namespace)


@pytest.fixture
async def role(servers):
    """A role without any right, with a schema of its name in which there are the tables of another user."""
    name = f"r_{secrets.token_hex(4)}"
    admin = await asyncpg.connect(servers.database_url)
    await admin.execute(f"CREATE ROLE {name} LOGIN; CREATE SCHEMA {name}")
    async with store_of(in_schema(servers.database_url, name), "n", timeout=30) as owner:
        assert await owner.replace_state(0, b"")
    yield name, admin
    await admin.execute(f"DROP SCHEMA {name} CASCADE; DROP OWNED BY {name}; DROP ROLE {name}")
    await admin.close()


def in_schema(dsn, name):
    return f"{dsn}{'&' if '?' in dsn else '?'}search_path={name}"


async def test_the_documented_grants_suffice_on_postgresql(servers, namespace, report_of, role):
    name, admin = role
    dsn = in_schema(servers.database_url.replace("postgres:@", f"{name}:@"), name)
    async with store_of(dsn, namespace, timeout=30) as store:
        with pytest.raises(FleetError, match=r"no schema|permission denied"):
            await store.publish(report_of())
        grants = block("fleet.md", "sql", "PostgreSQL")
        await admin.execute(grants.replace("cache_schema", name).replace("app_user", name))
        await use(store, report_of())
