"""Fixtures: the servers of a run."""

import pytest

from .servers import redis_executable


@pytest.fixture(scope="session")
def executable():
    """The path of a Redis server."""
    return redis_executable()


@pytest.fixture(scope="module")
def servers_of_a_run(executable, victim):
    """The arguments of `run` that name servers."""
    return {"redis_executable": executable, "postgres": victim}
