"""The replay, on a real PostgreSQL."""

import asyncio
import contextlib
import re
from urllib.parse import urlsplit

import asyncpg
import pytest

from acgsperf.errors import AcgsperfError
from acgsperf.workbench import replay_run
from acgsperf.workbench.replay import Load, WrongValueError, replay
from acgsperf.workbench.traces import zipf_trace

METRICS = [
    "P50 latency",
    "P95 latency",
    "P99 latency",
    "Throughput",
    "Cache hit rate",
    "Compliance",
    "Validation P99",
    "L1 access P99",
]


@pytest.fixture
def url(servers):
    return servers.database_url


@pytest.fixture
async def database(url):
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


async def tables(database):
    found = await database.fetch("SELECT tablename FROM pg_tables WHERE tablename LIKE 'acgsperf_replay%'")
    return {row["tablename"] for row in found}


def distinct(trace):
    return len({str(request) for request in trace})


def row(report, metric):
    return next(row for row in report.rows if row.metric == metric)


async def test_one_at_a_time_each_distinct_request_is_loaded_once(url):
    trace = zipf_trace(2_000, distinct=300)
    report = await replay(trace, url, concurrency=1)
    assert report.requests == 2_000
    assert report.loads == distinct(trace)
    assert row(report, "Cache hit rate").value == (2_000 - distinct(trace)) / 2_000
    assert report.seconds > 0


async def test_concurrent_requests_for_one_value_share_a_load(url):
    trace = [{"key": key} for key in range(20) for _ in range(100)]
    report = await replay(trace, url, concurrency=100)
    assert report.loads == 20


async def test_a_small_cache_loads_again_and_every_value_is_still_right(url):
    trace = [{"key": i % 10} for i in range(200)]
    report = await replay(trace, url, concurrency=1, l1_size=5, policy="lru")
    assert report.loads == 200
    assert row(report, "Cache hit rate").value == 0
    report = await replay(trace, url, concurrency=1, l1_size=5)
    assert 100 <= report.loads < 200


async def test_predicted_values_count_as_answers_of_l1(url, servers):
    trace = [{"key": i % 300} for i in range(3_000)]
    options = {"concurrency": 1, "l1_size": 100, "policy": "lru", "redis_url": servers.redis_url, "warm": True}
    without = await replay(trace, url, **options)
    assert [found for found in without.rows if found.metric == "Prediction"] == []
    report = await replay(trace, url, prediction=True, **options)
    assert row(report, "Prediction").value > 0.3
    assert row(report, "L1 tier").value >= row(report, "Prediction").value
    assert "useless fetches" in row(report, "Prediction").achieved


async def test_an_expired_value_is_loaded_again(url):
    report = await replay([{"key": 1}] * 5, url, concurrency=1, ttl=1e-9)
    assert report.loads == 5


async def test_refused_requests_lower_the_compliance_and_load_nothing(url):
    good, bad = {"constitutional_hash": "cdd01ef066bc6cf2"}, {"constitutional_hash": "0" * 16}
    report = await replay([{"key": 1}, good, bad, {"constitutional_hash": None}] * 50, url, concurrency=1)
    assert report.loads == 2
    compliance = row(report, "Compliance")
    assert (compliance.value, compliance.achieved, compliance.met) == (0.5, "50.00 %", False)
    assert row(report, "Cache hit rate").value == 0.98
    # The gate refuses a request in no time.
    assert row(report, "Throughput").value == pytest.approx(100 / report.seconds)
    assert (report.requests, report.refused) == (200, 100)
    assert not report.met


async def test_the_report_holds_every_metric_against_its_target(url):
    report = await replay([{"key": 1}] * 100, url, concurrency=1)
    assert [row.metric for row in report.rows] == METRICS
    assert row(report, "Compliance").met
    assert row(report, "Cache hit rate").met
    assert report.met == all(row.met for row in report.rows)
    assert report.as_dict()["met"] == report.met
    assert [entry["metric"] for entry in report.as_dict()["rows"]] == METRICS


async def test_what_nothing_was_measured_of_is_no_target_met(url):
    report = await replay([{"constitutional_hash": "0" * 16}] * 3, url)
    assert (report.requests, report.refused) == (3, 3)
    for metric in ("P50 latency", "P95 latency", "P99 latency", "Throughput", "Cache hit rate"):
        unmeasured = row(report, metric)
        assert (unmeasured.achieved, unmeasured.met, unmeasured.value) == ("not measured", False, None)
    # However short a trace is, the steps are timed.
    assert row(report, "Validation P99").value > 0
    assert row(report, "L1 access P99").value > 0


async def test_a_hit_rate_of_95_per_cent_misses_a_target_of_more(url):
    report = await replay([{"key": i // 20} for i in range(100)], url, concurrency=1)
    hit_rate = row(report, "Cache hit rate")
    assert (hit_rate.value, hit_rate.met) == (0.95, False)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 1_000])
async def test_progress_adds_up_to_the_length_of_the_trace(url, length):
    advances = []
    trace = [{"key": i % 7} if i % 3 else {"constitutional_hash": ""} for i in range(length)]
    await replay(trace, url, concurrency=3, advanced=advances.append)
    assert sum(advances) == length


@pytest.mark.parametrize("concurrency", [1, 7])
async def test_requests_are_sent_at_a_rate(url, concurrency):
    trace = [{"key": i % 10} for i in range(500)]
    report = await replay(trace, url, concurrency=concurrency, warm=True, rate=1_000)
    # The workers share the rate. Without one, all requests take a few milliseconds.
    assert 0.49 < report.seconds < 3


async def test_more_workers_than_requests_and_connections_are_welcome(url):
    report = await replay([{"key": i} for i in range(5)], url, concurrency=200)
    assert report.loads == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"requests": []}, "requests must not be empty"),
        ({"concurrency": 0}, "concurrency must be at least 1, got 0"),
        ({"rate": 0}, "rate must be greater than 0, got 0"),
        ({"rate": float("nan")}, "rate must be greater than 0, got nan"),
        ({"l1_size": 0}, "maxsize must be between 1 and 1073741824, got 0"),
        ({"ttl": -1.0}, "ttl must be greater than 0, got -1.0"),
    ],
)
async def test_bad_arguments_are_named(url, database, arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        await replay(**{"requests": [{"key": 1}], "database_url": url} | arguments)
    assert await tables(database) == set()


async def test_a_request_that_is_not_json_like_is_named_by_its_number(url):
    with pytest.raises(ValueError, match=r"^request 2: \$\.key must be a finite number, got nan$"):
        await replay([{"key": 1.0}, {"key": float("nan")}], url)


@pytest.mark.parametrize(
    "unreachable",
    ["postgresql://localhost:1/nothing", "postgresql:///db?host=/nowhere", "mysql://localhost/db", "nonsense"],
)
async def test_an_unreachable_database_is_one_clear_error(unreachable):
    with pytest.raises(AcgsperfError, match=r"^PostgreSQL cannot be reached: .+") as raised:
        await replay([{"key": 1}], unreachable)
    assert "\n" not in str(raised.value)


async def test_a_database_that_refuses_the_table_is_one_clear_error(url, database):
    await database.execute("DROP ROLE IF EXISTS acgsperf_reader")
    await database.execute("CREATE ROLE acgsperf_reader")
    try:
        setting = "options=-c%20role%3Dacgsperf_reader"
        with pytest.raises(AcgsperfError, match=r"^PostgreSQL failed: permission denied"):
            await replay([{"key": 1}], f"{url}{'&' if urlsplit(url).query else '?'}{setting}")
    finally:
        await database.execute("DROP ROLE acgsperf_reader")


async def test_two_replays_on_one_database_leave_each_other_alone(url, database):
    traces = [[{"run": run, "key": i % 50} for i in range(500)] for run in range(2)]
    reports = await asyncio.gather(*(replay(trace, url, concurrency=4) for trace in traces))
    assert [report.loads for report in reports] == [50, 50]
    assert await tables(database) == set()


async def test_an_answer_that_is_wrong_ends_the_run(url, database, monkeypatch):
    monkeypatch.setattr(replay_run, "value_of", lambda address: f"another value of {address}")
    with pytest.raises(WrongValueError, match=r"^request \{.*'key': 1\} was answered with "):
        await replay([{"key": 1}] * 10, url)
    assert await tables(database) == set()


async def test_an_origin_that_loses_its_table_is_one_error_and_no_stray_load(url, database):
    async def drop():
        for name in await tables(database):
            await database.execute(f"DROP TABLE {name}")

    tasks = []
    with pytest.raises(
        AcgsperfError, match=r'^PostgreSQL failed: relation "acgsperf_replay_[0-9a-f]+" does not exist$'
    ):
        await replay(
            [{"key": i} for i in range(50_000)],
            url,
            concurrency=50,
            advanced=lambda done: None if tasks else tasks.append(asyncio.ensure_future(drop())),
        )
    await tasks[0]
    assert len(asyncio.all_tasks()) == 1


DOOMED = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'acgsperf_doomed'"


def doomed(url):
    return f"{url}{'&' if urlsplit(url).query else '?'}application_name=acgsperf_doomed"


async def test_an_origin_that_drops_every_connection_is_asked_again(url, database):
    tasks = []
    report = await replay(
        [{"key": i} for i in range(5_000)],
        doomed(url),
        concurrency=4,
        advanced=lambda done: None if tasks else tasks.append(asyncio.ensure_future(database.execute(DOOMED))),
    )
    await tasks[0]
    assert report.loads == 5_000
    assert await tables(database) == set()


async def test_an_origin_that_stays_away_is_one_error(url, database):
    async def refuse():
        while True:
            await database.execute(DOOMED)

    tasks = []
    with pytest.raises(AcgsperfError, match=r"^PostgreSQL (failed|cannot be reached): "):
        await replay(
            [{"key": i} for i in range(50_000)],
            doomed(url),
            concurrency=4,
            patience=0,
            advanced=lambda done: None if tasks else tasks.append(asyncio.ensure_future(refuse())),
        )
    tasks[0].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for name in await tables(database):
        await database.execute(f"DROP TABLE {name}")


async def test_tiers_that_had_nothing_to_do_do_not_look_broken(servers):
    options = {"concurrency": 1, "redis_url": servers.redis_url, "l3": True}
    report = await replay([{"key": i % 200} for i in range(1_000)], servers.database_url, **options)
    for tier in ("L2 tier", "L3 tier"):
        assert re.fullmatch(r"not needed, because L1 kept every value; P99 \d+\.\d{4} ms", row(report, tier).achieved)
        assert row(report, tier).value > 0
    refused = [{"constitutional_hash": "0" * 16}]
    report = await replay(refused, servers.database_url, **options)
    for tier in ("L2 tier", "L3 tier"):
        assert (row(report, tier).achieved, row(report, tier).value) == ("not read: every request was refused", None)
    assert (row(report, "L1 tier").achieved, row(report, "L1 tier").value) == (
        "not read: every request was refused",
        None,
    )
    kept = [{"key": 1}] * 10
    report = await replay(kept, servers.database_url, **options, warm=True)
    assert row(report, "L1 tier").achieved == "hits in 100.00 % of requests, 0 promotions, 0 demotions"


async def test_tiers_that_were_needed_show_their_hit_rate(servers):
    trace = [{"key": i % 200} for i in range(1_000)]
    options = {"concurrency": 1, "l1_size": 10, "redis_url": servers.redis_url, "l3": True}
    report = await replay(trace, servers.database_url, **options)
    assert re.fullmatch(r"P99 \d+\.\d{4} ms, hits in [1-9]\d\.\d\d % of reads", row(report, "L2 tier").achieved)
    assert row(report, "Cache hit rate").achieved == "80.00 %"


def test_equal_requests_of_a_load_are_one_object():
    load = Load.of({"key": i % 3} for i in range(9))
    assert len(load.requests) == 9
    assert len({id(request) for request in load.requests}) == len(load.addresses) == 3


async def test_with_lower_tiers_and_a_small_l1_each_value_is_loaded_once(servers, database):
    trace = [{"key": i % 200} for i in range(2_000)]
    report = await replay(trace, servers.database_url, concurrency=1, l1_size=10, redis_url=servers.redis_url, l3=True)
    assert report.loads == 200
    assert row(report, "Cache hit rate").value == 0.9
    assert [row.metric for row in report.rows] == [*METRICS, "L1 tier", "L2 tier", "L3 tier"]
    assert row(report, "L2 tier").target == "-"
    assert await tables(database) == set()


async def test_a_warm_replay_loads_nothing_while_the_clock_runs(servers):
    trace = zipf_trace(2_000, distinct=300)
    report = await replay(trace, servers.database_url, redis_url=servers.redis_url, l3=True, warm=True)
    assert report.loads == distinct(trace)
    assert row(report, "Cache hit rate").value == 1
    assert row(report, "L1 tier").value == 1


async def test_a_redis_that_cannot_be_reached_costs_no_request(url):
    trace = [{"key": i % 200} for i in range(2_000)]
    report = await replay(trace, url, concurrency=4, redis_url="unix:///nowhere/redis.sock")
    assert report.loads == 200
    assert "failed calls" in row(report, "L2 tier").achieved


@pytest.mark.parametrize("turns", [0, 1, 5, 50, 100, 200, 300])
async def test_a_cancelled_replay_drops_its_table(url, database, turns):
    task = asyncio.create_task(replay([{"key": i} for i in range(100_000)], url))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert await tables(database) == set()
    assert len(asyncio.all_tasks()) == 1
