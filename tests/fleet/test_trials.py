"""The documents of trials: what others wrote to the server is used only if this package can have written it."""

import math

import msgspec
import pytest

from acgsperf.fleet.trials import (
    FORMAT,
    MOST_FINISHED,
    Agreement,
    Figures,
    Finished,
    NewerFormatError,
    Pause,
    Standing,
    Trial,
    TrialOutcome,
    decode_agreement,
    decode_standing,
    encoded,
)

TRIAL = Trial(id="5eed", setting="size", before=1, value=2, instances=("a", "b", "c", "d"), blocks=4)
FINISHED = Finished(
    id="5eed", setting="size", before=1, value=2, outcome=TrialOutcome.ADOPTED, change=-0.1, p=0.01, instances=4
)


def changed(document, **changes):
    return msgspec.structs.replace(document, **changes)


def test_an_agreement_survives_the_server():
    agreement = Agreement(
        coordinator="a",
        round=7,
        revision=2,
        settings={"size": 2.0},
        trial=TRIAL,
        rest=3,
        pauses={"size": Pause(direction=-1, length=40, remaining=12)},
        finished=(FINISHED,),
    )
    assert decode_agreement(encoded(agreement)) == agreement
    assert decode_agreement(b"") == Agreement()


def test_an_agreement_of_another_version_is_told_from_a_damaged_one():
    newer = msgspec.msgpack.encode({"format": FORMAT + 1, "trial": "something else"})
    with pytest.raises(NewerFormatError, match=f"format of an agreement must be {FORMAT}, got {FORMAT + 1}"):
        decode_agreement(newer)


@pytest.mark.parametrize(
    "blob",
    [
        b"\xff",
        b"not msgpack",
        msgspec.msgpack.encode([1, 2]),
        msgspec.msgpack.encode({"format": FORMAT, "round": "x"}),
        b"\x91" * 60_000,
        bytes(70_000),
        encoded(Agreement(settings={"size": math.nan})),
        encoded(Agreement(settings={str(i): 1.0 for i in range(101)})),
        encoded(Agreement(settings={"x" * 201: 1.0})),
        encoded(Agreement(settings={"new\nline": 1.0})),
        encoded(Agreement(round=-1)),
        encoded(Agreement(revision=2**60)),
        encoded(Agreement(rest=2**60)),
        encoded(Agreement(pauses={"size": Pause(direction=2)})),
        encoded(Agreement(pauses={"size": Pause(remaining=-1)})),
        encoded(Agreement(finished=(FINISHED,) * (MOST_FINISHED + 1))),
        encoded(Agreement(finished=(changed(FINISHED, p=math.inf),))),
        encoded(Agreement(trial=changed(TRIAL, value=math.inf))),
        encoded(Agreement(trial=changed(TRIAL, instances=("a",)))),
        encoded(Agreement(trial=changed(TRIAL, instances=("a", "a")))),
        encoded(Agreement(trial=changed(TRIAL, instances=tuple(map(str, range(65)))))),
        encoded(Agreement(trial=changed(TRIAL, blocks=10**9))),
        encoded(Agreement(trial=changed(TRIAL, period=-1))),
        encoded(Agreement(trial=changed(TRIAL, period=10))),
        encoded(Agreement(trial=changed(TRIAL, since=3))),
    ],
)
def test_a_damaged_agreement_is_refused(blob):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        decode_agreement(blob)
    assert not isinstance(raised.value, NewerFormatError)


FIGURES = Figures(requests=100, failed=1, mean_ns=5e5, p99_ns=1e6, rounds=3)


def test_a_standing_survives_the_server():
    standing = Standing(settings={"size": 2.0}, trial="5eed", periods={0: FIGURES, 9: FIGURES})
    assert decode_standing(encoded(standing)) == standing


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\xff",
        b"\x91" * 8_000,
        bytes(9_000),
        encoded(Standing(settings={"size": math.inf})),
        encoded(Standing(trial="x" * 201)),
        encoded(Standing(periods={-1: FIGURES})),
        encoded(Standing(periods={34: FIGURES})),
        encoded(Standing(periods={1: changed(FIGURES, requests=-1)})),
        encoded(Standing(periods={1: changed(FIGURES, mean_ns=math.nan)})),
        encoded(Standing(periods={1: changed(FIGURES, p99_ns=math.inf)})),
    ],
)
def test_a_damaged_standing_is_none(blob):
    assert decode_standing(blob) is None


def test_one_instance_tries_a_value_first_then_each_is_treated_once_in_each_block():
    assert TRIAL.treated(0) == frozenset()
    assert len(TRIAL.treated(1)) == 1
    assert (TRIAL.first_of_blocks, TRIAL.last_period) == (2, 9)
    for period in range(2, 10, 2):
        assert len(TRIAL.treated(period)) == 2
        assert TRIAL.treated(period) | TRIAL.treated(period + 1) == set(TRIAL.instances)
    assert [changed(TRIAL, period=period).blocks_over for period in range(10)] == [0, 0, 0, 1, 1, 2, 2, 3, 3, 4]


def test_with_few_instances_the_blocks_begin_at_once():
    trial = changed(TRIAL, instances=("a", "b"), blocks=7)
    assert (trial.first_of_blocks, trial.last_period) == (1, 14)
    assert len(trial.treated(1)) == len(trial.treated(2)) == 1
    assert trial.treated(1) != trial.treated(2)
