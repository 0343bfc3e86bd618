"""Fixtures: the servers of a run."""

import pytest
from topology.cluster_servers import start_shards
from topology.postgres_servers import start_replicated
from topology.sentinel_servers import start_watched

from .servers import Starters, redis_executable


@pytest.fixture(scope="session")
def executable():
    """The path of a Redis server."""
    return redis_executable()


@pytest.fixture(scope="module")
def servers_of_a_run(executable, victim):
    """The arguments of `run` that name servers."""
    starters = Starters(start_watched, start_replicated, start_shards)
    return {"redis_executable": executable, "postgres": victim, "starters": starters}
