"""Canonical bytes and addresses of requests."""

import enum
import gc
import math
import os
import random
import subprocess
import sys
from collections import OrderedDict, defaultdict
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

GOLDEN = [
    (None, b"n", "c311d21b3583875acbaa0f6724ae8b0a"),
    ({"b": (True, None), "a": 1}, b"o2:s1:ai1;s1:ba2:tn", "c04d047f4008fb2a3132efeafc5a1d66"),
    ([], b"a0:", "3a4bbae030107901fe3ce4088b380800"),
    ({}, b"o0:", "5d05358b86832bd5dbc7f7e1334d502b"),
    ("é\0", b"s3:\xc3\xa9\0", "db62348f7f489b032f52f3f1332fd5d3"),
    (-255, b"i-ff;", "6d3b8de371f8964e523973050a7711e9"),
    (1.5, b"f?\xf8\0\0\0\0\0\0", "6cd09865e9084c8f2b013e20a7446163"),
    ([False, {1: {"": -0.0}}], b"a2:Fo1:i1;o1:s0:f\x80\0\0\0\0\0\0\0", "47d9548c764f99623cf21a9b44a9d416"),
]

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from([0, 1, 0.0, -0.0, 1.0, "", "1", "i1;", "s1:a"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(scalars, inner, max_size=4)
    ),
    max_leaves=12,
)


def typed(value):
    """A form in which Python's own equality is that of typed JSON-like values."""
    if isinstance(value, dict):
        return "object", frozenset((typed(key), typed(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return "array", tuple(map(typed, value))
    return type(value), value, math.copysign(1, value) if isinstance(value, float) else None


def reordered(value):
    if isinstance(value, dict):
        return {key: reordered(item) for key, item in reversed(value.items())}
    if isinstance(value, list | tuple):
        return tuple(map(reordered, value))
    return value


@given(values, values)
def test_bytes_are_equal_exactly_when_the_typed_values_are(encoder, one, other):
    assert (encoder.canonical(one) == encoder.canonical(other)) == (typed(one) == typed(other))


@given(values)
def test_the_order_of_keys_and_the_kind_of_array_do_not_matter(encoder, value):
    assert encoder.canonical(value) == encoder.canonical(reordered(value))


@given(st.lists(values, max_size=6))
def test_values_side_by_side_never_run_together(encoder, items):
    assert encoder.canonical(items) == b"a%d:" % len(items) + b"".join(map(encoder.canonical, items))
    assert encoder.canonical(items) != encoder.canonical([items])


@pytest.mark.parametrize(("value", "expected", "address"), GOLDEN)
def test_bytes_and_addresses_never_change(encoder, value, expected, address):
    assert encoder.canonical(value) == expected
    assert encoder.fingerprint(value) == address


@pytest.mark.parametrize("seed", ["0", "1", "4242"])
def test_another_process_gives_the_same_address(encoder, seed):
    value = {"user": {"tags": ["a", "b"], "id": 7}, "é": 1.5, 3: None}
    code = f"from {encoder.__name__} import fingerprint; print(fingerprint({value!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": seed},
    )
    assert done.stdout.strip() == encoder.fingerprint(value)


def test_types_make_a_difference_in_values_and_in_keys(encoder):
    scalars = (1, 1.0, True, "1")
    assert len({encoder.fingerprint(value) for value in scalars}) == 4
    assert len({encoder.fingerprint({key: None}) for key in scalars}) == 4
    assert len({encoder.fingerprint([value]) for value in (0, 0.0, -0.0, False, None, "", [], {})}) == 8


class Colour(enum.IntEnum):
    RED = 1


class Size(enum.StrEnum):
    LARGE = "large"


class Loud(str):
    __slots__ = ()

    def __str__(self):
        return self.upper()

    def encode(self, *arguments):
        return b"other"


@pytest.mark.parametrize(
    ("subclass", "plain"),
    [
        (Colour.RED, 1),
        (Size.LARGE, "large"),
        (Loud("quiet"), "quiet"),
        (OrderedDict(b=1, a=2), {"a": 2, "b": 1}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (type("Pair", (tuple,), {})((1, 2)), [1, 2]),
        ({Colour.RED: Size.LARGE, Size.LARGE: 0}, {1: "large", "large": 0}),
    ],
)
def test_a_subclass_counts_as_what_it_derives_from(encoder, subclass, plain):
    assert encoder.canonical(subclass) == encoder.canonical(plain)


def test_keys_that_only_canonical_form_makes_alike_are_all_kept(encoder):
    class Same(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other):
            return self is other

    one, other = {Same("a"): 1, Same("a"): 2}, {Same("a"): 2, Same("a"): 1}
    assert encoder.canonical(one) == encoder.canonical(other)
    assert encoder.canonical(one) not in {encoder.canonical({"a": 1}), encoder.canonical({"a": 2})}


def nested(depth, value=None):
    for _ in range(depth):
        value = [value]
    return value


itself = {}
itself["me"] = [itself]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"a": [1, math.nan]}, ValueError, "$.a[1] must be a finite number, got nan"),
        (-math.inf, ValueError, "$ must be a finite number, got -inf"),
        ({"a": "\ud800"}, ValueError, r"$.a must be text without lone surrogates, got '\ud800'"),
        ({"user": {"tags": {1}}}, TypeError, "$.user.tags must be a JSON-like value, got set: {1}"),
        ([b"x"], TypeError, "$[0] must be a JSON-like value, got bytes: b'x'"),
        ({"a": {(1,): 2}}, TypeError, "$.a must have keys of str, int, float, bool or None, got (1,)"),
        ({math.nan: 1}, ValueError, "$[nan] must be a finite number, got nan"),
        (nested(101), ValueError, "$[0][0][0]… must be nested at most 100 deep"),
        (itself, ValueError, "$.me[0].me… must be nested at most 100 deep"),
    ],
)
def test_what_json_cannot_say_is_refused_with_its_place(encoder, value, error, message):
    for function in (encoder.canonical, encoder.fingerprint, encoder.request_key):
        with pytest.raises(error) as raised:
            function(value)
        assert str(raised.value) == message


def test_a_key_is_the_request_itself_or_a_digest_that_nobody_can_make_collide(encoder):
    assert encoder.request_key({"é": -0.0}) == "o1:s2:Ã©f\x80\0\0\0\0\0\0\0"
    longest = "x" * 195
    assert encoder.request_key(longest) == "s195:" + longest
    assert encoder.request_key(longest + "x") == "sha256:" + sha256(b"s196:" + longest.encode() + b"x").hexdigest()


def test_a_hundred_levels_are_allowed(encoder):
    assert encoder.canonical(nested(100)) == b"a1:" * 100 + b"n"


def test_an_integer_of_any_size_has_an_address(encoder):
    assert len({encoder.fingerprint(10**power) for power in (4_000, 5_000, 50_000)}) == 3


def test_a_message_repeats_little_of_a_huge_key_and_can_be_written_anywhere(encoder):
    for key in ("k" * 100_000, "\ud800"):
        with pytest.raises(ValueError, match="must be") as raised:
            encoder.canonical({key: math.nan})
        assert len(str(raised.value)) < 300
        str(raised.value).encode()


class Real(float):
    __slots__ = ()


class Items(list):
    __slots__ = ()


class Pair(tuple):
    __slots__ = ()


odd_scalars = (
    scalars
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.sampled_from([2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, -(10**400), "\ud800", "a\udfff", "é", "€", "𝄞"])
    | st.sampled_from([Colour.RED, Size.LARGE, Loud("quiet"), Real(1.5), Real("inf"), Pair((1,)), b"x", 1j, ...])
)
odd_values = st.recursive(
    odd_scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.lists(inner, max_size=4).map(Items)
        | st.dictionaries(odd_scalars, inner, max_size=20)
        | st.dictionaries(odd_scalars, inner, max_size=4).map(OrderedDict)
        | st.sampled_from([{1: "a"}, {1.0: "a"}, {True: "a"}, {1}, bytearray(b"x"), nested(97), nested(98)])
    ),
    max_leaves=30,
)


def outcome(function, value):
    try:
        return function(value)
    except (TypeError, ValueError) as error:
        return type(error), str(error)


@given(odd_values)
def test_both_twins_say_the_same_of_whatever_comes(encoders, value):
    for name in ("canonical", "fingerprint", "request_key"):
        one, *others = [outcome(getattr(encoder, name), value) for encoder in encoders]
        assert others == [one] * len(others)


def test_an_integer_is_hexadecimal(encoder):
    for number in (sign * 2**bits + more for sign in (1, -1) for bits in range(66) for more in (-1, 0, 1)):
        assert encoder.canonical(number) == f"i{number:x};".encode()


KEYS = [f"key {i}" for i in range(0, 100_000, 10)]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 8, 9, 16, 17, 31, 33, 100, 1_000, 10_000])
@pytest.mark.parametrize(
    "arrange",
    [
        sorted,
        lambda keys: sorted(keys, reverse=True),
        lambda keys: random.Random(1).sample(keys, len(keys)),
        lambda keys: sorted(keys)[::2] + sorted(keys)[::-2],
        lambda keys: [key for pair in zip(sorted(keys), sorted(keys)[::-1], strict=True) for key in pair],
        lambda keys: ["x" * 200 + key for key in keys[::-1]],
        lambda keys: [kind(i) for i in range(len(keys) // 3, 0, -1) for kind in (str, lambda i: i, lambda i: i + 0.5)],
    ],
    ids=["in order", "reversed", "shuffled", "organ pipe", "from both ends", "alike at first", "of three types"],
)
def test_keys_come_in_the_order_of_their_bytes(encoder, arrange, size):
    value = {key: [i, "é" * (i % 5)] for i, key in enumerate(arrange(KEYS[:size]))}
    pairs = [encoder.canonical(key) + encoder.canonical(item) for key, item in value.items()]
    assert encoder.canonical(value) == b"o%d:" % len(pairs) + b"".join(sorted(pairs))


def test_a_wide_value_within_a_wide_value_keeps_the_order_of_both(encoders):
    def wide(depth):
        return {str(key): wide(depth - 1) if depth else key for key in range(40, 0, -1)}

    value = wide(2)
    in_order, *others = [encoder.canonical(value) for encoder in encoders]
    assert others == [in_order] * len(others)
    assert in_order == encoders[0].canonical(reordered(value))


def test_text_of_any_length_leaves_what_stands_beside_it_whole(encoder):
    others = {"z": 1, "y": {"b": [*[-(2**63)] * 3, 1.5, "x", [], {}], "a": None}, "a": True}
    expected = b"s1:ats1:yo2:s1:ans1:ba7:%bf?\xf8\0\0\0\0\0\0s1:xa0:o0:s1:zi1;" % (b"i-8000000000000000;" * 3)
    for text in (character * size for character in "xé" for size in (*range(540), 10**6)):
        kept = text.encode()
        assert encoder.canonical([text, others]) == b"a2:s%d:%bo3:%b" % (len(kept), kept, expected)
        assert encoder.canonical({0.0: text, **others})[12:] == b"s%d:%b%b" % (len(kept), kept, expected)


def test_what_is_encoded_is_as_it_was(encoder):
    class Thing:
        pass

    texts = ["plain " * 3, "é€ " * 3, "\ud800 " * 3]
    for refused in (None, Thing(), math.nan, texts[2]):
        value = {texts[0]: [texts[1], 1.5], texts[1]: refused}
        parts = [*texts, value, value[texts[0]], *([] if refused is None else [refused])]
        before = [(sys.getrefcount(part), sys.getsizeof(part)) for part in parts]
        outcome(encoder.canonical, value)
        gc.collect()
        assert [(sys.getrefcount(part), sys.getsizeof(part)) for part in parts] == before


def test_a_finalizer_may_empty_the_request_that_is_being_refused(encoder):
    class Emptying:
        def __init__(self, value):
            self.value, self.itself = value, self

        def __del__(self):
            self.value.clear()

    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for i in range(50):
            value = {f"{i} {j}": [f"{i} \ud800 {j}"] for j in range(10)}
            Emptying(value)
            try:
                assert encoder.canonical(value) == b"o0:"
            except ValueError as error:
                assert str(error).startswith(f"$['{i} 0'][0] must be text without lone surrogates")  # noqa: PT017
    finally:
        gc.set_threshold(*thresholds)
