import base64
import math
import pickle
import random
import re
import struct
import sys
import tracemalloc
import weakref
import zlib
from bisect import bisect_right
from decimal import Decimal
from fractions import Fraction

import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import example, given, settings
from hypothesis import strategies as st

from acgsperf import HistogramSnapshot

PERCENTILES = (0, 0.001, 1, 10, 25, 50, 75, 90, 95, 99, 99.9, 99.99, 99.9999, 100)
HOUR_NS = 3_600_000_000_000
# Spread over the magnitudes rather than over the numbers.
LATENCIES = st.integers(0, 41).flatmap(lambda bits: st.integers(0, 2**bits)) | st.sampled_from([HOUR_NS, HOUR_NS - 1])
# Layouts of few buckets, because hdrh reads every bucket; a separate test covers all figures.
LAYOUTS = st.sampled_from([(1, HOUR_NS, 1), (1, HOUR_NS, 2), (1_000, HOUR_NS, 3), (7, HOUR_NS, 2), (2**20, 2**62, 1)])
few_examples = settings(max_examples=25, deadline=None)
ENVELOPE, HEADER = struct.Struct(">ii"), struct.Struct(">iiiiqqd")


def recorded(core, values, *layout):
    histogram = core.LatencyHistogram(*layout)
    histogram.record_many(values)
    return histogram


def recorded_by_hdrh(values, lowest=1, highest=HOUR_NS, figures=3):
    histogram = HdrHistogram(lowest, highest, figures)
    for value in values:
        assert histogram.record_value(value)
    return histogram


def figures_of(histogram):
    """All that a histogram says of itself, exactly."""
    return (
        histogram.count,
        histogram.min,
        histogram.max,
        histogram.mean,
        histogram.stddev,
        [histogram.percentile(q) for q in PERCENTILES],
        histogram.encode(),
    )


def exact(values, q):
    """The nearest rank, rounded as HdrHistogram does."""
    return sorted(values)[max(1, int(q / 100 * len(values) + 0.5)) - 1]


def packed(body):
    """A body in its envelope, as though it had been encoded."""
    data = zlib.compress(body)
    return ENVELOPE.pack(0x1C849314, len(data)) + data


def body_of(counts=b"\x02", cookie=0x1C849313, length=None, offset=0, figures=3, lowest=1, highest=HOUR_NS, ratio=1.0):
    length = len(counts) if length is None else length
    return HEADER.pack(cookie, length, offset, figures, lowest, highest, ratio) + counts


@few_examples
@given(layout=LAYOUTS, values=st.lists(LATENCIES, min_size=1))
def test_percentiles_are_those_of_the_sorted_data_to_the_figures_asked_for(core, layout, values):
    histogram = recorded(core, values, *layout)
    lowest, _, figures = layout
    for q in PERCENTILES:
        wanted = exact(values, q)
        assert wanted - lowest < histogram.percentile(q) <= max(wanted * (1 + 10**-figures), wanted + lowest)
    assert histogram.percentile(0) == histogram.min == min(values)
    assert histogram.percentile(100) == histogram.max == max(values)
    assert histogram.count == len(values)
    mean = math.fsum(values) / len(values)
    assert abs(histogram.mean - mean) <= mean * 10**-figures + lowest
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    assert abs(histogram.stddev - deviation) <= max(values) * 10**-figures + lowest


@few_examples
@given(layout=LAYOUTS, values=st.lists(LATENCIES))
def test_it_agrees_with_hdrh(core, layout, values):
    ours, theirs = recorded(core, values, *layout), recorded_by_hdrh(values, *layout)
    assert ours.count == theirs.get_total_count()
    assert ours.mean == pytest.approx(theirs.get_mean_value(), rel=1e-12)
    assert ours.stddev == pytest.approx(theirs.get_stddev(), rel=1e-9)
    for q in (0.001, 50, 99, 99.9, 100):
        # hdrh gives the end of a bucket; ours goes no further than what was recorded.
        assert ours.percentile(q) == min(max(theirs.get_value_at_percentile(q), ours.min), ours.max)


@few_examples
@given(layout=LAYOUTS, values=st.lists(LATENCIES, min_size=1))
def test_what_it_encodes_is_decoded_by_hdrh_and_the_other_way_round(core, layout, values):
    ours, theirs = recorded(core, values, *layout), recorded_by_hdrh(values, *layout)
    received = HdrHistogram.decode(base64.b64encode(ours.encode()))
    assert (received.get_total_count(), received.significant_figures) == (len(values), layout[2])
    assert [item.value_iterated_to for item in received.get_recorded_iterator()] == [
        item.value_iterated_to for item in theirs.get_recorded_iterator()
    ]
    assert [received.get_count_at_value(value) for value in values] == [
        theirs.get_count_at_value(value) for value in values
    ]
    assert core.LatencyHistogram.decode(base64.b64decode(theirs.encode())) == ours


@few_examples
@given(layout=LAYOUTS, values=st.lists(LATENCIES))
def test_decoding_gives_back_what_was_encoded(core, layout, values):
    original = recorded(core, values, *layout)
    blob = original.encode()
    for kind in (bytes, bytearray, memoryview):
        copy = core.LatencyHistogram.decode(kind(blob))
        assert copy == original
        assert copy.encode() == blob
    assert (copy.lowest_ns, copy.highest_ns, copy.significant_figures) == layout
    assert (copy.count, copy.mean, copy.stddev) == (original.count, original.mean, original.stddev)
    assert copy.min <= original.min
    assert copy.max >= original.max
    for q in PERCENTILES[1:]:
        assert original.percentile(q) <= copy.percentile(q) <= copy.highest_ns


@few_examples
@given(times=st.integers(0, 50), interval=st.integers(1, 10_000_000))
def test_corrected_recording_is_that_of_hdrh_for_a_multiple_of_the_interval(core, times, interval):
    ours, theirs = core.LatencyHistogram(), HdrHistogram(1, HOUR_NS, 3)
    ours.record_corrected(times * interval, interval)
    theirs.record_corrected_value(times * interval, interval)
    assert ours == core.LatencyHistogram.decode(base64.b64decode(theirs.encode()))


@few_examples
@given(latency=st.integers(0, 10**9), interval=st.integers(10**7, 10**10))
def test_corrected_recording_adds_what_was_omitted(core, latency, interval):
    # As the reference implementation in Java does; hdrh adds a last one that is shorter than the interval.
    corrected = core.LatencyHistogram()
    corrected.record_corrected(latency, interval)
    assert corrected == recorded(core, [latency, *range(latency - interval, interval - 1, -interval)])


def test_a_bad_correction_is_an_error_that_names_the_value_and_counts_nothing(core):
    histogram = core.LatencyHistogram()
    for interval in (0, -1):
        with pytest.raises(ValueError, match=f"expected_interval_ns must be greater than 0, got {interval}"):
            histogram.record_corrected(100, interval)
    for interval in (1.0, "1", None, True):
        with pytest.raises(TypeError, match="expected_interval_ns must be an integer, got "):
            histogram.record_corrected(100, interval)
    with pytest.raises(ValueError, match="at most 10000000 corrections, got 1"):
        histogram.record_corrected(HOUR_NS, 1)
    with pytest.raises(ValueError, match="got -5"):
        histogram.record_corrected(-5, 10)
    assert histogram == core.LatencyHistogram()
    histogram.record_corrected(100, expected_interval_ns=2**70)
    assert histogram.count == 1


@few_examples
@given(layout=LAYOUTS, ours=st.lists(LATENCIES), theirs=st.lists(LATENCIES))
def test_merging_is_recording_both(core, layout, ours, theirs):
    merged, other = recorded(core, ours, *layout), recorded(core, theirs, *layout)
    before = figures_of(other)
    merged.merge(other)
    assert figures_of(merged) == figures_of(recorded(core, ours + theirs, *layout))
    assert figures_of(other) == before


@few_examples
@given(layout=LAYOUTS, other_layout=LAYOUTS, ours=st.lists(LATENCIES), theirs=st.lists(LATENCIES, min_size=1))
def test_merging_another_layout_keeps_the_figures_of_the_coarser(core, layout, other_layout, ours, theirs):
    merged, other = recorded(core, ours, *layout), recorded(core, theirs, *other_layout)
    merged.merge(other)
    values = ours + theirs
    assert (merged.count, merged.min, merged.max) == (len(values), min(values), max(values))
    error = 10 ** -min(layout[2], other_layout[2]) * 2
    slack = layout[0] + other_layout[0]
    for q in (50, 90, 99):
        assert merged.percentile(q) == pytest.approx(exact(values, q), rel=error, abs=slack)


def test_merging_itself_doubles_every_count(core):
    histogram = recorded(core, [1, 2, 3_000_000])
    histogram.merge(histogram)
    assert histogram == recorded(core, [1, 2, 3_000_000] * 2)


def test_merging_what_does_not_fit_is_an_error_and_changes_nothing(core):
    small = recorded(core, [7], 1, 1_000)
    before = figures_of(small)
    with pytest.raises(ValueError, match="merged latencies must be at most 1000 ns, got 1001"):
        small.merge(recorded(core, [1, 1_001]))
    for other in (None, 7, [1], object()):
        with pytest.raises(TypeError, match="other"):
            small.merge(other)
    assert figures_of(small) == before
    small.merge(recorded(core, [1, 1_000]))
    assert small.max == 1_000


def test_an_empty_histogram_says_zero(core):
    empty = core.LatencyHistogram()
    assert figures_of(empty)[:6] == (0, 0, 0, 0.0, 0.0, [0] * len(PERCENTILES))
    assert empty.snapshot() == HistogramSnapshot(0, 0, 0, 0.0, 0.0, 0, 0, 0, 0, 0)
    assert core.LatencyHistogram.decode(empty.encode()) == empty
    zero = recorded(core, [0])
    assert (zero.count, zero.min, zero.max, zero.percentile(50)) == (1, 0, 0, 0)
    assert zero != empty


def test_a_snapshot_holds_the_usual_figures(core):
    histogram = recorded(core, range(1, 1_000_001, 7))
    snapshot = histogram.snapshot()
    assert snapshot == HistogramSnapshot(
        histogram.count,
        histogram.min,
        histogram.max,
        histogram.mean,
        histogram.stddev,
        *(histogram.percentile(q) for q in (50, 90, 95, 99, 99.9)),
    )
    histogram.record(5)
    assert snapshot.count == histogram.count - 1


def test_a_reset_forgets_everything(core):
    histogram = recorded(core, [1, 1_000_000, HOUR_NS])
    histogram.reset()
    assert figures_of(histogram) == figures_of(core.LatencyHistogram())
    histogram.record(9)
    assert (histogram.count, histogram.min, histogram.max) == (1, 9, 9)


def test_a_block_is_timed_whether_it_raises_or_not(core):
    histogram = core.LatencyHistogram()
    with histogram.time() as timer:
        assert timer.__class__.__name__ == "Timer"
        assert histogram.count == 0
    assert histogram.count == 1
    with pytest.raises(LookupError, match="from the block"), histogram.time():
        raise LookupError("from the block")
    assert histogram.count == 2
    assert 0 <= histogram.min <= histogram.max < HOUR_NS


def test_timers_of_one_histogram_may_be_nested_and_used_again(core):
    histogram = core.LatencyHistogram()
    timer = histogram.time()
    with histogram.time():
        for _ in range(3):
            with timer:
                pass
    assert histogram.count == 4


def test_a_block_longer_than_the_largest_latency_counts_as_the_largest(core):
    histogram = core.LatencyHistogram(1, 2)
    with histogram.time():
        sum(range(1_000))
    assert histogram.max == 2


def test_equality_is_of_layouts_and_counts(core):
    values = [1, 1_000, 1_000_000]
    histogram = recorded(core, values)
    assert histogram == recorded(core, reversed(values))
    assert histogram == recorded(core, [1, 1_000, 1_000_001])
    assert histogram != recorded(core, values[:2])
    assert histogram != recorded(core, values, 1, HOUR_NS, 2)
    assert histogram != recorded(core, values, 1, 2 * HOUR_NS)
    assert histogram != values
    assert histogram.__eq__(7) is NotImplemented
    with pytest.raises(TypeError, match="unhashable"):
        hash(histogram)


@given(values=st.lists(LATENCIES, max_size=50), bounds=st.sets(st.integers(-1, 2**70), max_size=8), layout=LAYOUTS)
@few_examples
def test_counts_within_bounds_are_those_of_the_values_to_the_figures_asked_for(core, values, bounds, layout):
    lowest, highest, figures = layout
    values = sorted(min(value, highest) for value in values)
    ordered = sorted(bounds)
    within, total, total_ns = recorded(core, values, *layout).cumulative(ordered)
    assert total == len(values)
    for bound, count in zip(ordered, within, strict=True):
        width = bound * 10**-figures + lowest if bound >= 0 else 0
        assert bisect_right(values, bound) <= count <= bisect_right(values, bound + width)
    assert total_ns == pytest.approx(sum(values), rel=10**-figures, abs=lowest * len(values))


@pytest.mark.parametrize("bounds", [[2, 1], [1, 1]])
def test_bounds_that_are_not_ascending_are_a_value_error(core, bounds):
    with pytest.raises(ValueError, match=r"bounds_ns must be ascending, got \["):
        recorded(core, [1]).cumulative(bounds)


def test_bounds_that_are_no_integers_are_a_type_error(core):
    with pytest.raises(TypeError, match=r"bounds_ns must be integers, got \[0\.5\]"):
        recorded(core, [1]).cumulative([0.5])


@pytest.mark.parametrize("q", [-0.1, -1, 100.1, 101, 10**400, math.nan, math.inf, -math.inf])
def test_a_percentile_beyond_0_to_100_is_a_value_error(core, q):
    with pytest.raises(ValueError, match=f"percentile must be between 0 and 100, got {q!r}"):
        recorded(core, [1]).percentile(q)


@pytest.mark.parametrize("q", [None, "50", b"50", bytearray(b"50"), True, 1j, [50]])
def test_a_percentile_that_is_no_number_is_a_type_error(core, q):
    with pytest.raises(TypeError, match="percentile must be a number between 0 and 100, got "):
        recorded(core, [1]).percentile(q)


def test_a_percentile_is_any_real_number(core):
    histogram = recorded(core, range(101))
    assert histogram.percentile(Fraction(1, 2)) == histogram.percentile(Decimal("0.5")) == histogram.percentile(0.5)


@given(seconds=st.floats(0, HOUR_NS / 1e9) | st.integers(0, 3_600))
@few_examples
def test_recording_seconds_is_recording_whole_nanoseconds(core, seconds):
    histogram = core.LatencyHistogram()
    histogram.record_seconds(seconds)
    assert histogram == recorded(core, [int(seconds * 1e9)])
    assert histogram.max == int(seconds * 1e9)


@pytest.mark.parametrize("seconds", [-1e-9, -1, 3_600.1, 1e30, 10**400, math.nan, math.inf, -math.inf])
def test_seconds_out_of_range_are_a_value_error_and_are_not_counted(core, seconds):
    histogram = core.LatencyHistogram()
    with pytest.raises(ValueError, match=re.escape(f"latency must be between 0 and 3600.0 s, got {seconds!r}")):
        histogram.record_seconds(seconds)
    assert histogram.count == 0


@pytest.mark.parametrize("seconds", [None, "1", b"1", True, 1j, [1]])
def test_seconds_that_are_no_real_number_are_a_type_error(core, seconds):
    with pytest.raises(TypeError, match="latency must be a real number of seconds, got "):
        core.LatencyHistogram().record_seconds(seconds)


def test_seconds_are_any_real_number(core):
    histogram = core.LatencyHistogram()
    for seconds in (Fraction(1, 2), Decimal("0.5"), 0.5):
        histogram.record_seconds(seconds)
    assert histogram == recorded(core, [500_000_000] * 3)


BAD_LATENCIES = [(value, ValueError) for value in (-1, HOUR_NS + 1, 2**63, 2**64, 10**400, -(2**63), -(10**400))]
BAD_LATENCIES += [(value, TypeError) for value in (1.0, math.nan, "1", b"1", None, [1], Decimal(1), Fraction(1))]


@pytest.mark.parametrize(("value", "error"), BAD_LATENCIES, ids=lambda value: repr(value)[:20])
def test_a_bad_latency_is_an_error_that_names_it_and_counts_nothing(core, value, error):
    histogram = recorded(core, [7])
    before = figures_of(histogram)
    for action in (
        lambda: histogram.record(value),
        lambda: histogram.record_many([1, value, 2]),
        lambda: histogram.record_many(iter((1, value))),
        lambda: histogram.record_corrected(value, 10),
    ):
        with pytest.raises(error) as raised:
            action()
        assert repr(value) in str(raised.value)
    assert figures_of(histogram) == before


def test_an_error_of_an_iterator_passes_through_and_counts_nothing(core):
    def broken():
        yield 1
        raise LookupError("no more")

    histogram = core.LatencyHistogram()
    with pytest.raises(LookupError, match="no more"):
        histogram.record_many(broken())
    with pytest.raises(TypeError, match="not iterable"):
        histogram.record_many(7)
    assert histogram.count == 0


def test_a_latency_is_whatever_is_an_integer(core):
    class Index:
        def __index__(self):
            return 5

    class Raising:
        def __index__(self):
            raise LookupError("no integer today")

    histogram = core.LatencyHistogram()
    histogram.record(Index())
    histogram.record(True)
    assert (histogram.count, histogram.max) == (2, 5)
    with pytest.raises(LookupError, match="no integer today"):
        histogram.record(Raising())
    assert histogram.count == 2


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ((0,), "lowest_ns must be between 1 and 2305843009213693952, got 0"),
        ((-1,), "lowest_ns must be .* got -1"),
        ((2**61 + 1, 2**62), f"lowest_ns must be .* got {2**61 + 1}"),
        ((1, 1), f"highest_ns must be between 2 and {2**62}, got 1"),
        ((100, 199), "highest_ns must be between 200 and .* got 199"),
        ((1, 2**62 + 1), f"highest_ns must be .* got {2**62 + 1}"),
        ((1, 10**400), "highest_ns must be .* got 10000"),
        ((1, 10, 0), "significant_figures must be between 1 and 5, got 0"),
        ((1, 10, 6), "significant_figures must be between 1 and 5, got 6"),
        ((2**60, 2**62, 5), f"lowest_ns must be smaller for 5 significant figures, got {2**60}"),
    ],
)
def test_a_bad_layout_is_a_value_error_that_names_the_argument(core, layout, message):
    with pytest.raises(ValueError, match=message):
        core.LatencyHistogram(*layout)


@pytest.mark.parametrize("value", [1.0, "1", None, True, [1]])
def test_a_layout_of_anything_but_integers_is_a_type_error_that_names_the_argument(core, value):
    for name in ("lowest_ns", "highest_ns", "significant_figures"):
        with pytest.raises(TypeError, match=f"{name} must be an integer, got "):
            core.LatencyHistogram(**{name: value})


@pytest.mark.parametrize("layout", [(1, 2, 1), (1, 2**62, 3), (2**57, 2**62, 1), (1, 2**62, 1)])
def test_the_extreme_latencies_of_every_layout_can_be_recorded(core, layout):
    histogram = recorded(core, [0, layout[1]], *layout)
    assert (histogram.min, histogram.max, histogram.percentile(100)) == (0, layout[1], layout[1])
    assert core.LatencyHistogram.decode(histogram.encode()) == histogram


GOOD = {
    "empty": [],
    "one": [7],
    "many": [*range(0, 1_000_000, 777), HOUR_NS],
}


@pytest.mark.parametrize("values", GOOD.values(), ids=GOOD)
def test_a_blob_that_is_cut_off_or_too_long_is_a_value_error(core, values):
    blob = recorded(core, values).encode()
    for end in range(len(blob)):
        with pytest.raises(ValueError, match="not a HdrHistogram V2 blob"):
            core.LatencyHistogram.decode(blob[:end])
    for tail in (b"\0", blob):
        with pytest.raises(ValueError, match="not a HdrHistogram V2 blob"):
            core.LatencyHistogram.decode(blob + tail)


def decoded_or_refused(core, blob):
    """Either way is fine; anything but a ValueError, or a histogram that is not whole, is not."""
    try:
        histogram = core.LatencyHistogram.decode(blob)
    except ValueError as error:
        assert "HdrHistogram V2 blob" in str(error)  # noqa: PT017
        return
    assert core.LatencyHistogram.decode(histogram.encode()) == histogram
    assert 0 <= histogram.min <= histogram.percentile(50) <= histogram.max <= histogram.highest_ns


@few_examples
@given(data=st.data(), values=st.lists(LATENCIES, max_size=20))
def test_a_blob_with_changed_bytes_is_a_histogram_or_a_value_error(core, data, values):
    blob = bytearray(recorded(core, values).encode())
    for position in data.draw(st.lists(st.integers(0, len(blob) - 1), min_size=1, max_size=4)):
        blob[position] ^= data.draw(st.integers(1, 255))
    decoded_or_refused(core, bytes(blob))


@few_examples
@given(data=st.data(), values=st.lists(LATENCIES, max_size=20))
def test_a_blob_with_changed_bytes_under_a_right_checksum_is_a_histogram_or_a_value_error(core, data, values):
    body = bytearray(zlib.decompress(recorded(core, values, 1, HOUR_NS, 1).encode()[8:]))
    for position in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=4)):
        body[position] ^= data.draw(st.integers(1, 255))
    decoded_or_refused(core, packed(bytes(body)))


@few_examples
@given(counts=st.binary(max_size=200))
@example(counts=b"\xff" * 9)
@example(counts=b"\xff" * 8 + b"\x7f")
@example(counts=b"\xfe" * 8 + b"\xff" + b"\xfe" * 8 + b"\xff")
@example(counts=b"\x00\x02")
def test_any_counts_under_a_good_header_are_a_histogram_or_a_value_error(core, counts):
    decoded_or_refused(core, packed(body_of(counts)))


@few_examples
@given(blob=st.binary(max_size=300))
def test_random_bytes_are_a_value_error(core, blob):
    with pytest.raises(ValueError, match="not a HdrHistogram V2 blob"):
        core.LatencyHistogram.decode(blob)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (body_of(cookie=7), "the blob's inner cookie must be 0x1c849313, got 0x7"),
        (body_of(offset=1), "normalized or scaled"),
        (body_of(ratio=2.0), "normalized or scaled"),
        (body_of(ratio=math.nan), "normalized or scaled"),
        (body_of(figures=9), "significant_figures must be between 1 and 5, got 9"),
        (body_of(lowest=0), "lowest_ns must be"),
        (body_of(lowest=-1), "lowest_ns must be"),
        (body_of(highest=1), "highest_ns must be"),
        (body_of(highest=2**63 - 1), "highest_ns must be"),
        (body_of(length=2), "the header announces 2 bytes of counts, got 1"),
        (body_of(length=0), "the header announces 0 bytes of counts, got 1"),
        (body_of(length=-1), "the header announces -1 bytes of counts, which cannot hold"),
        (body_of(length=2**31 - 1), "the header announces 2147483647 bytes of counts, which cannot hold"),
        (body_of(b"\x80"), "the last count is cut off"),
        (body_of(b"\x02" * 100, highest=2, figures=1), "latencies above 2 ns"),
        (body_of(b"\x7f" * 64, highest=2, figures=1), "more than 32 counts"),
        (body_of((b"\xfe" + b"\xff" * 8) * 2), "more than 2\\*\\*62 latencies"),
        (body_of(b"\x05\x02", highest=2, figures=1), "latencies above 2 ns"),
    ],
)
def test_a_blob_that_says_what_cannot_be_is_a_value_error_that_says_so(core, body, message):
    with pytest.raises(ValueError, match=message):
        core.LatencyHistogram.decode(packed(body))


@pytest.mark.parametrize("blob", [None, "text", 7, [1], object()])
def test_a_blob_that_is_not_bytes_is_a_type_error(core, blob):
    with pytest.raises(TypeError, match="bytes-like"):
        core.LatencyHistogram.decode(blob)


@few_examples
@given(layout=LAYOUTS, other_layout=LAYOUTS, ours=st.lists(LATENCIES), theirs=st.lists(LATENCIES, min_size=1))
def test_a_blob_keeps_every_figure_exactly_also_after_a_merge(core, layout, other_layout, ours, theirs):
    merged = recorded(core, ours, *layout)
    merged.merge(recorded(core, theirs, *other_layout))
    copy = core.LatencyHistogram.decode(merged.encode())
    assert copy == merged
    assert figures_of(copy) == figures_of(merged)
    assert copy.snapshot() == merged.snapshot()
    received = HdrHistogram.decode(base64.b64encode(merged.encode()))
    assert received.get_total_count() == merged.count
    # Another reader knows the largest value to the figures of the layout.
    assert received.get_count_at_value(merged.max) >= 1
    assert received.get_count_at_value(merged.min) >= 1


def test_histograms_that_have_counted_the_same_are_equal_however_they_came_about(core):
    coarse = recorded(core, [1_000, 1_023], 1, HOUR_NS, 1)
    merged = core.LatencyHistogram()
    merged.merge(coarse)
    assert merged == recorded(core, [1_000, 1_023])
    assert (merged.min, merged.max, merged.percentile(100)) == (1_000, 1_023, 1_023)
    many = recorded(core, [1_000, 1_001, 1_002, 1_023], 1, HOUR_NS, 1)
    merged.reset()
    merged.merge(many)
    again = core.LatencyHistogram()
    again.merge(many)
    assert merged == again == core.LatencyHistogram.decode(merged.encode())


def test_a_blob_without_exact_extremes_has_those_of_its_buckets(core):
    theirs = recorded_by_hdrh([1_000_000, 2_000_001])
    received = core.LatencyHistogram.decode(base64.b64decode(theirs.encode()))
    assert received.min <= 1_000_000 <= received.min * 1.001
    assert received.max * 0.999 <= 2_000_001 <= received.max
    assert core.LatencyHistogram.decode(received.encode()) == received


@pytest.mark.parametrize("extremes", [(0, 7), (7, 9), (8, 7), (-1, 7), (7, 2**62), (7, 8)])
def test_extremes_that_contradict_the_counts_are_a_value_error(core, extremes):
    packed_body = zlib.compress(body_of(b"\x0d\x02"))
    checksum = zlib.crc32(f"{extremes[0]} {extremes[1]}".encode(), zlib.crc32(packed_body))
    for wrong in (0, 1):
        data = packed_body + struct.pack(">qqI", *extremes, checksum ^ wrong)
        with pytest.raises(ValueError, match=r"not a HdrHistogram V2 blob: .*min and max"):
            core.LatencyHistogram.decode(ENVELOPE.pack(0x1C849314, len(data)) + data)


def test_a_small_blob_cannot_ask_for_much_work(core):
    figures, highest = 5, 2**62
    for counts in (b"\x02" * 6_000_000, b"\x02\x00" * 3_000_000, b"\x80\x02" * 3_000_000, b"\x00" * 6_000_000):
        bomb = packed(body_of(counts, figures=figures, highest=highest))
        assert len(bomb) < 7_000
        with pytest.raises(ValueError, match=r"announces \d+ bytes of counts, too many for \d+ compressed bytes"):
            core.LatencyHistogram.decode(bomb)


def test_a_blob_of_many_equal_counts_can_be_decoded(core):
    histogram = recorded(core, range(700_000), 1, 1_000_000, 5)
    blob = histogram.encode()
    assert core.LatencyHistogram.decode(blob) == histogram
    assert HdrHistogram.decode(base64.b64encode(blob)).get_total_count() == 700_000


def test_a_small_blob_cannot_ask_for_much_memory(core):
    bomb = packed(body_of(b"\x02" * 200_000, highest=10**6, figures=5))
    assert len(bomb) < 4_000
    tracemalloc.start()
    try:
        histogram = core.LatencyHistogram.decode(bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert histogram.count == 200_000
    # Room for the slots of the twin, but not for an object for each count.
    assert peak < 12_000_000


def test_it_can_be_neither_pickled_nor_derived_from(core):
    histogram = core.LatencyHistogram()
    with pytest.raises(TypeError, match="cannot pickle 'LatencyHistogram' object"):
        pickle.dumps(histogram)
    for kind in (core.LatencyHistogram, core.Timer):
        with pytest.raises(TypeError, match="not an acceptable base type"):
            type("Derived", (kind,), {})
    assert weakref.ref(histogram)() is histogram
    for name in ("lowest_ns", "highest_ns", "significant_figures", "count", "min", "max", "mean", "anything"):
        with pytest.raises(AttributeError):
            setattr(histogram, name, 1)


def test_it_says_what_it_is(core):
    histogram = recorded(core, [3, 5])
    assert repr(histogram) == "<LatencyHistogram count=2 min=3 max=5>"
    assert sys.getsizeof(histogram) < 300_000


@few_examples
@given(layout=LAYOUTS, ours=st.lists(LATENCIES), theirs=st.lists(LATENCIES), other_layout=LAYOUTS)
def test_both_twins_say_the_same_of_the_same_data(twins, layout, ours, theirs, other_layout):
    said = []
    for core in twins:
        histogram = recorded(core, ours, *layout)
        said.append([figures_of(histogram)])
        for value in ours[:5]:
            histogram.record_corrected(value, value // 50 + 1)
        histogram.merge(recorded(core, theirs, *other_layout))
        said[-1] += [figures_of(histogram), histogram.snapshot(), repr(histogram)]
        said[-1].append(figures_of(core.LatencyHistogram.decode(histogram.encode())))
    assert said[0] == said[-1]


@pytest.mark.parametrize("figures", range(1, 6))
def test_a_large_sample_is_right_at_every_figure(core, figures):
    source = random.Random(7)
    values = [min(int(source.lognormvariate(11, 2)), 1_000_000) for _ in range(20_000)]
    histogram = recorded(core, values, 1, 1_000_000, figures)
    for q in (0, 1, 50, 99, 99.9, 100):
        assert histogram.percentile(q) == pytest.approx(exact(values, q), rel=10**-figures)


def test_more_latencies_than_can_be_counted_are_refused_and_change_nothing(core):
    histogram = core.LatencyHistogram(1, 1_000, 1)
    histogram.record(5)
    for _ in range(62):
        histogram.merge(histogram)
    before = histogram.snapshot()
    with pytest.raises(ValueError, match=f"merged latencies must be fewer than 2\\*\\*63, got {2**63}"):
        histogram.merge(histogram)
    assert histogram.snapshot() == before
    assert histogram.count == 2**62
    assert core.LatencyHistogram.decode(histogram.encode()) == histogram


def test_a_timer_that_was_not_entered_records_nothing(core):
    histogram = core.LatencyHistogram()
    timer = histogram.time()
    with pytest.raises(RuntimeError, match="not entered"):
        timer.__exit__(None, None, None)
    with timer:
        pass
    with pytest.raises(RuntimeError, match="not entered"):
        timer.__exit__(None, None, None)
    assert histogram.count == 1
    with pytest.raises(TypeError, match="LatencyHistogram"):
        type(timer)(None)
