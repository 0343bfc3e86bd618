import gc
import pickle
import re
import sys
import weakref

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from acgsperf import CONSTITUTIONAL_HASH, ValidatorStats, Verdict

NEW, OLD, OTHER = "cdd01ef066bc6cf2", "0123456789abcdef", "f" * 16
# The first and the last word of eight characters both tell hashes apart.
ACCEPTED = (NEW, OLD, "cdd01ef0" + "0" * 8, "0" * 8 + "66bc6cf2")


class Liar(str):
    """Says that it is equal to everything, of the accepted hash, and as long as one."""

    __slots__ = ()

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    def __hash__(self):
        return hash(NEW)

    def __len__(self):
        return 16

    def __str__(self):
        return NEW

    def __getitem__(self, i):
        return NEW[i]

    def __iter__(self):
        return iter(NEW)


class Denier(str):
    """Says that it is equal to nothing."""

    __slots__ = ()

    def __eq__(self, other):
        return False

    def __ne__(self, other):
        return True

    def __hash__(self):
        return 0

    def __len__(self):
        return 0


class Hostile:
    """Raises for every operation."""

    def __getattr__(self, name):
        raise LookupError(name)

    def __eq__(self, other):
        raise LookupError("eq")

    def __hash__(self):
        raise LookupError("hash")

    def __len__(self):
        raise LookupError("len")

    def __str__(self):
        raise LookupError("str")

    __repr__ = __str__


def oracle(value, accepted=ACCEPTED):
    """The verdict by a regular expression, on the characters and not on what a subclass says of them."""
    if not isinstance(value, str):
        return Verdict.MALFORMED
    text = "".join(str.__iter__(value))
    if not re.fullmatch("[0-9a-f]{16}", text, re.ASCII):
        return Verdict.MALFORMED
    return Verdict.VALID if text in accepted else Verdict.MISMATCH


@st.composite
def nearly_accepted(draw):
    """An accepted hash with one character replaced, put in or left out."""
    text = draw(st.sampled_from(ACCEPTED))
    i = draw(st.integers(0, 15))
    character = draw(st.characters() | st.sampled_from("0123456789abcdefABCDEFg/:`\0\n"))
    return text[:i] + draw(st.sampled_from([character, character + text[i], ""])) + text[i + 1 :]


TEXTS = st.one_of(
    st.text(),
    st.sampled_from(ACCEPTED),
    st.text("0123456789abcdef", min_size=16, max_size=16),
    st.text("0123456789abcdef", min_size=15, max_size=17),
    st.text("0123456789abcdefABCDEFg/:@`\0", min_size=16, max_size=16),
    st.text(st.characters(max_codepoint=0xFF), min_size=16, max_size=16),
    st.text(st.characters(min_codepoint=0x100, max_codepoint=0xFFFF), min_size=16, max_size=16),
    st.text(st.characters(min_codepoint=0x10000), min_size=4, max_size=16),
    nearly_accepted(),
)
VALUES = st.one_of(
    TEXTS,
    TEXTS.map(Liar),
    TEXTS.map(Denier),
    TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.lists(st.sampled_from(ACCEPTED)),
    st.just(int(NEW, 16)),
)


@given(value=VALUES)
@example(value="")
@example(value=NEW + "\n")
@example(value="٠١٢٣٤٥٦٧٨٩٠١٢٣٤٥")
@example(value="\uff10" * 16)
def test_every_value_is_judged_as_by_a_regular_expression(core, value):
    validator = core.HashValidator(ACCEPTED)
    expected = oracle(value)
    assert validator.classify(value) is expected
    assert validator.validate(value) is (expected is Verdict.VALID)
    assert validator.validate_many([value]) == [expected is Verdict.VALID]
    assert validator.validate_many(iter((value, value))) == [expected is Verdict.VALID] * 2
    counted = {Verdict.VALID: "valid", Verdict.MISMATCH: "mismatched", Verdict.MALFORMED: "malformed"}[expected]
    assert validator.stats() == ValidatorStats(**{"valid": 0, "mismatched": 0, "malformed": 0, counted: 5})


@given(values=st.lists(VALUES))
def test_many_values_are_judged_as_one_by_one(core, values):
    alone, together, lazily = (core.HashValidator(ACCEPTED) for _ in range(3))
    verdicts = [alone.validate(value) for value in values]
    assert verdicts == [oracle(value) is Verdict.VALID for value in values]
    assert together.validate_many(values) == together.validate_many(tuple(values)) == verdicts
    assert lazily.validate_many(value for value in values) == verdicts
    assert lazily.stats() == alone.stats()
    assert together.stats().validations == 2 * len(values)


@pytest.mark.parametrize("position", range(16))
def test_every_character_at_every_position_is_judged_rightly(core, position):
    validator = core.HashValidator(ACCEPTED)
    for code in (*range(256), 0x130, 0x131, 0x660, 0x1D7D8, 0xFF10, 0xFF41, 0x10000 + ord("a"), 0x100 + ord("a")):
        text = NEW[:position] + chr(code) + NEW[position + 1 :]
        assert validator.classify(text) is oracle(text), text


@pytest.mark.parametrize(
    "value",
    [Hostile(), type, object(), ..., b"", NEW.encode(), bytearray(NEW.encode()), [NEW]],
    ids=lambda value: type(value).__name__,
)
def test_an_object_of_any_other_type_is_malformed(core, value):
    validator = core.HashValidator()
    assert validator.classify(value) is Verdict.MALFORMED
    assert validator.validate(value) is False
    assert validator.validate_many([value, NEW]) == [False, True]


def test_a_subclass_of_str_is_judged_by_its_characters(core):
    validator = core.HashValidator()
    assert validator.classify(Liar("nothing like it")) is Verdict.MALFORMED
    assert validator.classify(Liar(OTHER)) is Verdict.MISMATCH
    assert validator.classify(Liar(NEW)) is Verdict.VALID
    assert validator.classify(Denier(NEW)) is Verdict.VALID


def test_the_accepted_hash_is_the_constitutional_one_unless_said_otherwise(core):
    assert core.HashValidator().expected == (CONSTITUTIONAL_HASH,) == (NEW,)
    assert core.HashValidator(OLD).expected == (OLD,)
    assert not core.HashValidator(OLD).validate(NEW)


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset, dict.fromkeys, iter])
def test_a_rotation_accepts_each_of_its_hashes(core, kind):
    validator = core.HashValidator(kind([NEW, OLD]))
    assert set(validator.expected) == {NEW, OLD}
    assert validator.validate_many([NEW, OLD, OTHER]) == [True, True, False]


def test_hashes_named_twice_are_accepted_once_and_keep_their_order(core):
    assert core.HashValidator([OLD, NEW, OLD]).expected == (OLD, NEW)


def test_sixteen_hashes_are_accepted_and_seventeen_are_not(core):
    hashes = [f"{i:016x}" for i in range(17)]
    validator = core.HashValidator(hashes[:16])
    assert validator.validate_many(hashes) == [True] * 16 + [False]
    with pytest.raises(ValueError, match="expected must be 1 to 16 hashes, got 17"):
        core.HashValidator(hashes)


@pytest.mark.parametrize("expected", [None, 7, NEW.encode(), [NEW, None], [NEW.encode()], [[NEW]], object])
def test_accepted_hashes_of_another_type_are_a_type_error(core, expected):
    with pytest.raises(TypeError, match="expected must be a str or an iterable of str, got "):
        core.HashValidator(expected)


@pytest.mark.parametrize(
    "expected", ["", NEW[:15], NEW + "0", NEW.upper(), NEW + "\n", "\uff10" * 16, [NEW, "x"], Liar("x")]
)
def test_accepted_hashes_that_are_none_are_a_value_error(core, expected):
    with pytest.raises(ValueError, match="expected must be 16 lower-case hexadecimal digits, got "):
        core.HashValidator(expected)


def test_no_accepted_hash_is_a_value_error(core):
    with pytest.raises(ValueError, match="expected must be 1 to 16 hashes, got 0"):
        core.HashValidator([])


def test_an_error_of_the_iterable_of_accepted_hashes_passes_through(core):
    def broken():
        yield NEW
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        core.HashValidator(broken())


def test_an_accepted_hash_of_a_subclass_becomes_a_plain_str(core):
    (accepted,) = core.HashValidator(Denier(NEW)).expected
    assert type(accepted) is str
    assert accepted == NEW


def test_an_error_of_an_iterator_passes_through_and_what_came_before_is_counted(core):
    def broken():
        yield NEW
        yield OTHER
        raise LookupError("no more")

    class Broken(list):
        def __iter__(self):
            return broken()

    validator = core.HashValidator()
    for values in (broken(), Broken([NEW])):
        validator.reset_stats()
        with pytest.raises(LookupError, match="no more"):
            validator.validate_many(values)
        assert validator.stats() == ValidatorStats(valid=1, mismatched=1, malformed=0)


def test_what_is_not_iterable_cannot_be_many(core):
    validator = core.HashValidator()
    for values in (None, 7, object()):
        with pytest.raises(TypeError, match="not iterable"):
            validator.validate_many(values)
    assert validator.stats().validations == 0


def test_an_iterator_may_use_the_validator_that_asks_it(core):
    validator = core.HashValidator()

    def nested():
        yield validator.validate(NEW) and NEW
        validator.reset_stats()
        yield OTHER

    assert validator.validate_many(nested()) == [True, False]
    assert validator.stats() == ValidatorStats(valid=0, mismatched=1, malformed=0)


def test_a_reset_sets_every_counter_to_zero(core):
    validator = core.HashValidator()
    validator.validate_many([NEW, OTHER, None, None])
    assert validator.stats() == ValidatorStats(valid=1, mismatched=1, malformed=2)
    assert validator.stats().validations == 4
    validator.reset_stats()
    assert validator.stats() == ValidatorStats(0, 0, 0)


def test_nothing_of_a_value_is_remembered(core):
    validator = core.HashValidator()
    values = [f"value {i}" for i in range(100)] + [Liar("x"), bytearray(b"x"), "".join(OTHER)]
    counts = [sys.getrefcount(value) for value in values]
    size = sys.getsizeof(validator)
    for _ in range(10):
        validator.validate_many(values)
        verdicts = [validator.validate(value) + validator.classify(value) for value in values]
    assert len(verdicts) == len(values)
    assert [sys.getrefcount(value) for value in values] == counts
    assert sys.getsizeof(validator) == size


def test_the_accepted_hashes_cannot_be_changed(core):
    validator = core.HashValidator()
    with pytest.raises(AttributeError):
        validator.expected = (OTHER,)
    with pytest.raises(AttributeError):
        validator.anything = 1


def test_it_says_what_it_accepts_and_can_be_neither_pickled_nor_derived_from(core):
    validator = core.HashValidator([NEW, OLD])
    assert repr(validator) == f"<HashValidator expected=('{NEW}', '{OLD}')>"
    assert weakref.ref(validator)() is validator
    with pytest.raises(TypeError):
        pickle.dumps(validator)
    with pytest.raises(TypeError, match="not an acceptable base type"):
        type("Derived", (core.HashValidator,), {})


def test_on_reject_sees_every_refused_value_once_after_it_was_counted(core):
    seen = []
    validator = core.HashValidator(on_reject=lambda value: seen.append((value, validator.stats().validations)))
    assert validator.validate(NEW)
    assert not validator.validate(OLD)
    assert not validator.classify(7)
    assert validator.validate_many([NEW, None, "x"]) == [True, False, False]
    assert validator.validate_many(iter([NEW, OLD])) == [True, False]
    assert [value for value, _ in seen] == [OLD, 7, None, "x", OLD]
    assert [counted for _, counted in seen if counted <= 3] == [2, 3]
    assert validator.stats().validations == 8


def test_what_on_reject_raises_is_reported_and_changes_no_verdict(core, monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: reported.append(args.exc_type))
    validator = core.HashValidator(on_reject=lambda value: 1 / 0)
    assert validator.validate(OLD) is False
    assert validator.validate_many([OLD, NEW]) == [False, True]
    assert not validator.classify("")
    assert reported == [ZeroDivisionError] * 3


def test_on_reject_may_use_its_validator(core):
    def reject(value):
        if value is not None:
            assert not validator.validate(None)
            validator.reset_stats()

    validator = core.HashValidator(on_reject=reject)
    assert validator.validate_many([OLD, NEW]) == [False, True]
    assert validator.stats().validations == 0


def test_a_cycle_through_on_reject_is_collected(core):
    holder = []
    validator = core.HashValidator(on_reject=holder.append)
    holder.append(validator)
    gone = weakref.ref(validator)
    del validator, holder
    gc.collect()
    assert gone() is None


def test_on_reject_must_be_callable(core):
    with pytest.raises(TypeError, match="on_reject must be callable or None, got 7"):
        core.HashValidator(on_reject=7)
