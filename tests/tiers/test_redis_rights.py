"""The rights that the documentation names suffice for a tier, its locks and its backplane; a missing one is named."""

import asyncio
import re
import secrets
from pathlib import Path

import pytest
import redis.asyncio
from msgspec.structs import replace

from acgsperf.backplane import beside
from acgsperf.tiers import BreakerState, Outcome, Store, StoreKind, Write
from acgsperf.tiers.records import Record, RecordKind
from acgsperf.tiers.redis import RedisTier

DOCS = Path(__file__).parents[2] / "docs"
WRITER = b"writer-1"


@pytest.fixture
def kind():
    return "redis"


@pytest.fixture
async def admin(private_server):
    async with redis.asyncio.Redis.from_url(private_server.url, protocol=2) as client:
        yield client


@pytest.fixture
async def open_tier(private_server, private_tier, admin):
    opened = []

    async def open_one(*rights):
        await admin.execute_command("ACL", "SETUSER", "app", "on", ">pw", "resetkeys", "~n:*", "~n%*", "-@all", *rights)
        tier = RedisTier(private_server.url.replace("//", "//app:pw@"), deadline=5)
        tier.writer = WRITER
        opened.append(tier)
        await tier.open("n")
        return tier

    yield open_one
    for tier in opened:
        await tier.close()


def documented(page, after="Rights"):
    """The commands in the first block after a word of a page."""
    text = (DOCS / page).read_text()
    return re.findall(r"\+\S+", re.search(rf"{after}\b.*?```text\n(.*?)```", text, re.DOTALL)[1])


async def denied(admin):
    """What the server has denied, except the name of the client library, which is not needed."""
    return [it["object"] for it in await admin.acl_log() if "setinfo" not in it["object"]]


def new_id():
    return secrets.token_bytes(8)


async def use_tier(tier, entry):
    """Every method, and every way through the scripts."""
    tagged = entry(tags=("t",))
    assert await tier.set("k", tagged)
    assert await tier.set("forever", entry(kept=None, tags=("t",)))
    assert await tier.get("k")
    assert await tier.get_many(["k", "other"])
    assert (await tier.observe(["absent"], ["t"]))["absent"].tokens
    found, seen = await tier.look_up(["loaded"], ["t", "new"])
    assert not found
    loaded = replace(tagged, tags=("t", "new"), id=new_id(), stamp=tier.now_us())
    assert await tier.store({"loaded": Store(loaded, seen["loaded"])})
    assert await tier.remove_written({"loaded": loaded.id})
    demoted = replace(tagged, id=new_id(), stamp=tier.now_us())
    await tier.store({"demoted": Store(demoted, None, StoreKind.DEMOTION, b"0-1")})
    for key in ("k", "absent"):
        (result,) = (await tier.expire_now({key: Write(None, new_id(), tier.now_us())})).values()
        assert result.outcome is Outcome.STORED
    assert (await tier.expire_tag("t")).outcome is Outcome.STORED
    assert (await tier.invalidate("t", refused_below=True)).outcome is Outcome.STORED
    assert await tier.delete_many(["k"]) is not None
    assert await tier.invalidate_tag("t") == 0
    token = await tier.lock("k", 5)
    assert token
    assert await tier.lock("k", 5) == 0
    assert await tier.unlock("k", token, b"outcome")
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


@pytest.mark.parametrize(
    "rights",
    [
        documented("tiers.md") + documented("backplane.md"),
        documented("security.md", "an ACL for one namespace"),
        ["+@all", "-@admin", "-@dangerous", "+info", "+client|unblock"],
        ["+@read", "+@write", "+@scripting", "+@connection", "+info", "+time"],
    ],
    ids=["commands", "the whole command", "all but the dangerous", "categories"],
)
async def test_the_named_rights_suffice_for_everything(open_tier, admin, caplog, entry, rights):
    tier = await open_tier(*rights)
    await use_tier(tier, entry)
    assert caplog.records == []
    assert tier.stats().errors == {}
    # Another backplane joins while the first one waits, which needs CLIENT UNBLOCK.
    first, second = beside(tier), beside(tier)
    await first.open("n", Deaf(), WRITER)
    await asyncio.sleep(0.05)
    await admin.xadd(b"n:\xfflog", {"r": b"foreign"}, id=f"{(1 << 64) - 1}-{(1 << 64) - 1}")
    assert await first.publish(Record(RecordKind.CLEAR))
    await first.close()
    await second.open("n", Deaf(), WRITER)
    await second.close()
    assert await denied(admin) == []


async def test_rights_of_the_tier_alone_suffice_for_the_tier(open_tier, admin, caplog, entry):
    tier = await open_tier(*documented("tiers.md"))
    await use_tier(tier, entry)
    assert tier.stats().errors == {}
    assert caplog.records == []
    assert await denied(admin) == []


@pytest.mark.parametrize("right", ["time", "getrange", "set", "get"])
async def test_a_right_that_is_missing_in_scripts_is_named(open_tier, admin, caplog, entry, right):
    tier = await open_tier(*(it for it in documented("tiers.md") if it != f"+{right}"))
    for _ in range(2):
        assert not await tier.set("k", entry())
        assert await tier.get("k") is None
    (message,) = (record.message for record in caplog.records if "refuses a call" in record.message)
    assert f"'{right}" in message.lower()
    assert "~n:* ~n%*" in message
    assert tier.stats().errors["NoPermissionError"]
    assert right in await denied(admin)
    assert tier.stats().breaker is BreakerState.CLOSED


async def test_a_newer_entry_is_not_overwritten_if_it_cannot_be_read(open_tier, private_server, private_tier, entry):
    stamp = private_tier.now_us() + 10_000_000
    tier = await open_tier(*documented("tiers.md"), "-getrange")
    other = RedisTier(private_server.url, deadline=5)
    await other.open("n")
    await other.write({"k": Write(entry("newer"), new_id(), stamp)})
    (result,) = (await tier.write({"k": Write(entry("older"), new_id(), tier.now_us())})).values()
    assert result.outcome is Outcome.REFUSED
    assert (await other.get("k")).value == "newer"
    await other.close()
