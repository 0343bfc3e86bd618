"""A backplane knows whether a tier writes to its log."""

import pytest

from acgsperf.backplane import beside
from acgsperf.backplane.postgres import PostgresBackplane
from acgsperf.backplane.redis import RedisBackplane
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier

REDIS, POSTGRES = "redis://h/0", "postgresql://h/d"


def credentials():
    return "secret"


@pytest.mark.parametrize(
    ("backplane", "tier", "shared"),
    [
        (RedisBackplane(REDIS), RedisTier(REDIS), True),
        (RedisBackplane(REDIS, timeout=3), RedisTier(REDIS, deadline=3, max_connections=3), True),
        (RedisBackplane(REDIS), RedisTier("redis://h/1"), False),
        (RedisBackplane(REDIS, credentials=credentials), RedisTier(REDIS, credentials=credentials), True),
        (RedisBackplane(REDIS, credentials=credentials), RedisTier(REDIS), False),
        (RedisBackplane(REDIS), PostgresTier(POSTGRES), False),
        (PostgresBackplane(POSTGRES), PostgresTier(POSTGRES, deadline=3), True),
        (PostgresBackplane(POSTGRES), PostgresTier("postgresql://h/e"), False),
        (PostgresBackplane(POSTGRES, table="t"), PostgresTier(POSTGRES), False),
        (PostgresBackplane(POSTGRES, table="t"), PostgresTier(POSTGRES, table="t"), True),
        (PostgresBackplane(POSTGRES), RedisTier(REDIS), False),
    ],
)
def test_a_backplane_with_the_address_of_a_tier_shares_its_server(backplane, tier, shared):
    assert backplane.shares_server_with(tier) is shared


@pytest.mark.parametrize("tier", [RedisTier(REDIS), PostgresTier(POSTGRES, table="t")])
def test_the_backplane_of_a_tier_shares_its_server(tier):
    backplane = beside(tier)
    assert backplane is not None
    assert backplane.shares_server_with(tier)
