"""The instruments, through the SDK."""

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.semconv._incubating.attributes import db_attributes
from opentelemetry.semconv._incubating.metrics import db_metrics

from acgsperf.metrics import opentelemetry
from acgsperf.metrics.opentelemetry import instrument


@pytest.fixture
def reader():
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader):
    provider = MeterProvider([reader])
    yield provider
    provider.shutdown()


def collected(reader):
    data = reader.get_metrics_data()
    if data is None:
        return {}
    return {
        (metric.name, *sorted(point.attributes.values())): point.value
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }


async def test_what_the_service_counts_is_reported(source, reader, provider):
    instrument(source, provider)
    found = collected(reader)
    expected = {
        ("db.client.connection.count", "idle", "main"): 1,
        ("db.client.connection.count", "main", "used"): 1,
        ("db.client.connection.max", "main"): 3,
        ("db.client.connection.idle.min", "main/replica-1"): 2,
        ("db.client.connection.pending_requests", "main"): 0,
        ("db.client.connection.timeouts", "main"): 0,
        ("acgsperf.cache.requests", "hit", "l1"): 1,
        ("acgsperf.cache.requests", "l3", "miss"): 1,
        ("acgsperf.cache.breaker.open", "l2"): 0,
        ("acgsperf.backplane.following",): 1,
        ("acgsperf.backplane.sent",): 1,
        ("acgsperf.backplane.applied",): 1,
        ("acgsperf.backplane.queued",): 0,
        ("acgsperf.requests", "answered"): 4,
        ("acgsperf.requests", "failed"): 2,
        ("acgsperf.requests", "refused"): 3,
        ("acgsperf.compliance.validations", "valid"): 1,
    }
    assert {key: found[key] for key in expected} == expected
    assert {name for name, *_ in found} == {name for name, *_ in opentelemetry._INSTRUMENTS}


async def test_without_a_backplane_none_is_reported(source_without_backplane, reader, provider):
    instrument(source_without_backplane, provider)
    assert not [name for name, *_ in collected(reader) if "backplane" in name]


async def test_after_close_nothing_is_reported_until_it_is_begun_again(source, reader, provider):
    created = instrument(source, provider)
    with pytest.raises(ValueError, match="already reports a service"):
        instrument(source, provider)
    created.close()
    assert collected(reader) == {}
    again = instrument(source, provider)
    created.close()
    assert collected(reader)["acgsperf.requests", "answered"] == 4
    again.close()


def test_the_names_are_those_of_the_conventions():
    named = {name: (kind, unit) for name, kind, unit, *_ in opentelemetry._INSTRUMENTS if name.startswith("db.")}
    known = {value for key, value in vars(db_metrics).items() if key.startswith("DB_CLIENT_CONNECTION_")}
    assert named.keys() <= known
    assert db_attributes.DB_CLIENT_CONNECTION_POOL_NAME == opentelemetry._POOL
    assert db_attributes.DB_CLIENT_CONNECTION_STATE == opentelemetry._STATE
    assert {state.value for state in db_attributes.DbClientConnectionStateValues} == {"idle", "used"}
