"""What tests outside the core share."""

from collections.abc import Iterator

import pytest

from acgsperf.workbench.embedded import Servers, embedded_servers


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with embedded_servers() as running:
        yield running
