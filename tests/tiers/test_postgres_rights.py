"""The rights that the documentation names suffice for a tier and its backplane on PostgreSQL; a lack is named."""

import asyncio
import re
import secrets
from pathlib import Path

import asyncpg
import pytest
from msgspec.structs import replace

from acgsperf.backplane import beside
from acgsperf.tiers import Outcome, Store, Write
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.records import Record, RecordKind

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
WRITER = b"writer-1"


def documented():
    """The statements of the page, without those that create the role and its schema."""
    block = re.search(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    return [line for line in block.splitlines() if line.startswith("GRANT")]


def _in_schema(dsn, name):
    return f"{dsn}{'&' if '?' in dsn else '?'}search_path={name}"


@pytest.fixture
async def admin(servers):
    connection = await asyncpg.connect(servers.database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def role(admin, servers):
    """A role without any right, a schema of its own, and the tables that another user has created there."""
    name = f"r_{secrets.token_hex(4)}"
    await admin.execute(f"CREATE ROLE {name} LOGIN; CREATE SCHEMA {name}")
    owner = PostgresTier(_in_schema(servers.database_url, name), deadline=5)
    await owner.open("n")
    assert await owner.clear() is not None
    await owner.close()
    yield name
    await admin.execute(f"DROP SCHEMA {name} CASCADE; DROP OWNED BY {name}; DROP ROLE {name}")


@pytest.fixture
async def open_as(admin, servers, role):
    opened = []

    async def open_with(statements):
        for statement in statements:
            await admin.execute(statement.replace("cache_schema", role).replace("app_user", role))
        dsn = servers.database_url.replace("postgres:@", f"{role}:@")
        tier = PostgresTier(_in_schema(dsn, role), deadline=5)
        tier.writer = WRITER
        opened.append(tier)
        await tier.open("n")
        return tier

    yield open_with
    for tier in opened:
        await tier.close()


def new_id():
    return secrets.token_bytes(8)


async def use_tier(tier, entry):
    tagged = entry(tags=("t",))
    assert await tier.set("k", tagged)
    assert await tier.get("k")
    found, seen = await tier.look_up(["loaded"], ["t", "new"])
    assert not found
    loaded = replace(tagged, tags=("t", "new"), id=new_id(), stamp=tier.now_us())
    assert await tier.store({"loaded": Store(loaded, seen["loaded"])})
    assert await tier.remove_written({"loaded": loaded.id})
    (result,) = (await tier.expire_now({"k": Write(None, new_id(), tier.now_us())})).values()
    assert result.outcome is Outcome.STORED
    assert (await tier.expire_tag("t")).outcome is Outcome.STORED
    assert (await tier.invalidate("t", refused_below=True)).outcome is Outcome.STORED
    assert await tier.delete_many(["k"]) is not None
    assert await tier.invalidate_tag("t") is not None
    assert await tier.clear() is not None
    assert (await tier.health()).ok


class Deaf:
    """A listener that does nothing."""

    def apply(self, record):
        pass

    def extend(self, until):
        pass

    def missed(self):
        pass


async def test_the_named_rights_suffice_for_the_tier_and_its_backplane(open_as, caplog, entry):
    tier = await open_as(documented())
    await use_tier(tier, entry)
    backplane = beside(tier)
    await backplane.open("n", Deaf(), WRITER)
    assert await backplane.publish(Record(RecordKind.CLEAR))
    await backplane.close()
    assert tier.stats().errors == {}
    assert caplog.records == []


@pytest.mark.parametrize("right", ["SELECT", "INSERT", "UPDATE", "DELETE"])
async def test_a_missing_right_is_counted(open_as, entry, right):
    statements = [re.sub(rf"{right}, |, {right}\b", "", statement) for statement in documented()]
    assert statements != documented()
    tier = await open_as(statements)
    with pytest.raises(AssertionError):
        await use_tier(tier, entry)
    # Without INSERT, the tier cannot store its first token, and does not open.
    assert tier.stats().errors["TableError" if right == "INSERT" else "InsufficientPrivilegeError"]


async def test_without_tables_the_right_to_create_them_suffices(admin, open_as, role, entry):
    await admin.execute(f"DROP SCHEMA {role} CASCADE; CREATE SCHEMA {role}")
    tier = await open_as([f"GRANT USAGE, CREATE ON SCHEMA {role} TO {role}"])
    async with asyncio.timeout(10):
        await use_tier(tier, entry)
