"""The compiled check of what a PostgreSQL server sends, and its twin."""

import struct
import sys

import pytest
from conftest import IMPLEMENTATIONS, imported

STARTUP = struct.pack(">ii", 15, 196608) + b"user\0a\0"
UPGRADE_REQUESTS = [struct.pack(">ii", 8, code) for code in (80877103, 80877104)]
SIGNED_IN = "R R S S K Z"
ANYTIME = b"NAS"


def header(kind, length):
    return kind.encode("latin-1") + struct.pack(">i", length)


def messages(text):
    """Return messages: the type of each, and its payload behind a colon."""
    found = b""
    for word in text.split():
        kind, _, payload = word.partition(":")
        found += header(kind, 4 + len(payload)) + payload.encode("latin-1")
    return found


def single(text):
    return [messages(word) for word in text.split()]


@pytest.fixture(params=IMPLEMENTATIONS)
def kind(request):
    return imported("pg_dialogue", request.param).Dialogue


@pytest.fixture
def start(kind):
    """Make dialogues that have signed in, with something sent."""

    def start(text=""):
        made = kind()
        made.sent(STARTUP)
        assert made.received(messages(SIGNED_IN)) is None
        made.sent(messages(text))
        return made

    return start


CONFORMING = [
    ("P", "1"),
    ("B:portal", "2"),
    ("C:Sname", "3"),
    ("C:Pname", "3"),
    ("D:Sname", "t:12 T:12"),
    ("D:Sname", "t n"),
    ("D:Pname", "T"),
    ("D:Pname", "n"),
    # What the server answers with an error.
    ("D", "n"),
    ("D S", "n Z"),
    ("D:?", "n"),
    ("E", "C"),
    ("E", "I"),
    ("E", "s"),
    ("E", "D D:12 D s"),
    ("E", "G C"),
    ("E", "H d d:123 c C"),
    ("E", "W d c C"),
    ("S", "Z"),
    ("Q", "I Z"),
    ("Q", "T D D C T D C C Z"),
    ("Q", "G C Z"),
    ("Q", "H d d c C Z"),
    ("Q", "W d c C Z"),
    ("F", "V Z"),
    ("P D:S H", "1 t T"),
    ("B E S", "2 D C Z"),
    ("P D:S S B D:P E C S", "1 t T Z 2 T D C 3 Z"),
    ("B E B E B E S", "2 C 2 C 2 C Z"),
    ("Q Q F Q", "C Z C Z V Z C Z"),
]


@pytest.mark.parametrize(("sent", "received"), CONFORMING)
def test_what_was_asked_for_conforms_and_nothing_is_due_afterwards(start, sent, received):
    dialogue = start(sent)
    for message in single(received):
        assert dialogue.received(message) is None
    assert dialogue.received(messages("Z")) == "'Z' where nothing was due"


@pytest.mark.parametrize(
    ("sent", "accepted", "name"),
    [
        ("", b"", "nothing"),
        ("P", b"1", "'1'"),
        ("B", b"2", "'2'"),
        ("C", b"3", "'3'"),
        ("D:S", b"t", "'t'"),
        ("D:P", b"Tn", "'T' or 'n'"),
        ("E", b"DGHWCIs", "'C', 'I' or 's'"),
        ("S", b"Z", "'Z'"),
        ("Q", b"TDCIGHWZ", "the reply to a query"),
        ("F", b"V", "'V'"),
    ],
)
def test_only_what_is_due_conforms(start, sent, accepted, name):
    for number in range(256):
        expected = None if number in accepted + ANYTIME + b"E" else f"{chr(number)!a} where {name} was due"
        assert start(sent).received(header(chr(number), 4)) == expected


def test_only_the_steps_of_a_sign_in_conform_before_its_end(kind):
    for number in range(256):
        dialogue = kind()
        dialogue.sent(STARTUP)
        expected = None if number in b"RKvZE" + ANYTIME else f"{chr(number)!a} where 'R' or 'Z' was due"
        assert dialogue.received(header(chr(number), 4)) == expected


@pytest.mark.parametrize(
    ("sent", "received", "refusal"),
    [
        ("D:S", "t t", "'t' where 'T' or 'n' was due"),
        ("F", "V V", "'V' where 'Z' was due"),
        ("F", "V Z Z", "'Z' where nothing was due"),
        ("Q", "C Z C", "'C' where nothing was due"),
        ("Q S", "C Z C", "'C' where 'Z' was due"),
        ("B E S", "2 Z", "'Z' where 'C', 'I' or 's' was due"),
        ("B E S", "2 C D", "'D' where 'Z' was due"),
    ],
)
def test_the_first_message_that_is_not_due_is_named(start, sent, received, refusal):
    assert start(sent).received(messages(received)) == refusal
    assert start(sent).received(messages(received + " X Z 1")) == refusal


def test_messages_without_an_answer_owe_nothing(start):
    for number in set(range(256)) - set(b"PBDECSQF"):
        dialogue = start()
        dialogue.sent(header(chr(number), 4))
        assert dialogue.received(messages("1")) == "'1' where nothing was due"


EXTENDED = ("P B D:P E S", "1 2 T D C Z")


@pytest.mark.parametrize(("sent", "received"), [EXTENDED, ("B E S", "2 D D C Z"), ("Q", "T D C Z"), ("Q", "E Z")])
@pytest.mark.parametrize("chunks", [1, 2])
def test_a_whole_reply_that_comes_twice_is_refused(start, sent, received, chunks):
    dialogue = start(sent)
    if chunks == 2:
        assert dialogue.received(messages(received)) is None
    # An error is never refused.
    first = received.split()[0].replace("E", "Z")
    assert dialogue.received(messages(received) * (3 - chunks)) == f"{first!r} where nothing was due"


@pytest.mark.parametrize("position", range(6))
def test_a_message_that_comes_twice_is_refused(start, position):
    sent, received = EXTENDED
    words = received.split()
    dialogue = start(sent)
    words.insert(position, words[position])
    due = ["'2'", "'T' or 'n'", "'C', 'I' or 's'", None, "'Z'", "nothing"][position]
    # Any number of rows may come.
    expected = due and f"{words[position]!r} where {due} was due"
    assert dialogue.received(messages(" ".join(words))) == expected


@pytest.mark.parametrize("position", range(5))
def test_messages_that_change_places_are_refused(start, position):
    sent, received = EXTENDED
    words = received.split()
    words[position : position + 2] = reversed(words[position : position + 2])
    assert " where " in start(sent).received(messages(" ".join(words)))


@pytest.mark.parametrize("position", range(5))
def test_a_lost_message_is_noticed_at_the_next_one(start, position):
    sent, received = EXTENDED
    words = received.split()
    del words[position]
    # A result may have no rows.
    due = ["'1'", "'2'", "'T' or 'n'", None, "'C', 'I' or 's'"][position]
    expected = due and f"{words[position]!r} where {due} was due"
    assert start(sent).received(messages(" ".join(words))) == expected


@pytest.mark.parametrize(
    "steps",
    [
        # Without a Sync, what the client sends before the next one is skipped.
        ["P D:S H", "E", "B E", "", "S", "Z"],
        ["P D:S H", "1 E", "P D:S D:P C Q F H", "", "S", "Z"],
        ["P D:S H P", "1 t E", "S P S", "Z 1 Z"],
        ["P", "E E", "P", "E", "S", "E Z"],
        # The Sync was sent before the error came.
        ["P D:S H S", "E Z"],
        ["P D:S H", "1", "S", "E Z"],
        # A pipeline: only what is before the next Sync is skipped.
        ["B E S B E S B E S", "2 D E Z 2 C Z E Z"],
        ["P B E B E S P", "1 2 C E Z 1"],
        ["B E S S", "E Z Z"],
        # At the end of a transaction.
        ["B E S", "2 C E Z"],
        # A query: its own 'Z' remains due, and so do other queries.
        ["Q", "E Z"],
        ["Q", "T D E Z"],
        ["Q Q", "E Z E Z"],
        ["Q Q", "C E Z T D C Z"],
        ["Q P B E S", "E Z 1 2 C Z"],
        # The server skips queries and calls too, up to the next Sync.
        ["P Q F S", "E Z"],
        ["P Q", "E", "F Q", "", "S", "Z"],
        # A call.
        ["F F", "E Z V Z"],
        ["F", "V E Z"],
        ["F S", "E Z Z"],
        # The end of a session.
        ["", "E E", "B E S", "2 C Z"],
    ],
)
def test_an_error_answers_everything_up_to_the_next_sync(start, steps):
    dialogue = start()
    for sent, received in zip(steps[::2], steps[1::2], strict=True):
        dialogue.sent(messages(sent))
        for message in single(received):
            assert dialogue.received(message) is None
    assert dialogue.received(messages("1")) == "'1' where nothing was due"


@pytest.mark.parametrize(
    ("steps", "refusal"),
    [
        (["P D:S H", "E", "B", "2"], "'2' where nothing was due"),
        (["P D:S H", "E", "", "Z"], "'Z' where nothing was due"),
        (["B E S", "E C"], "'C' where 'Z' was due"),
        (["B E S B E S", "2 E 2"], "'2' where 'Z' was due"),
        (["Q", "E Z Z"], "'Z' where nothing was due"),
        (["F", "E V"], "'V' where 'Z' was due"),
    ],
)
def test_what_an_error_has_answered_is_no_longer_due(start, steps, refusal):
    dialogue = start()
    found = None
    for sent, received in zip(steps[::2], steps[1::2], strict=True):
        assert found is None
        dialogue.sent(messages(sent))
        found = dialogue.received(messages(received))
    assert found == refusal


@pytest.mark.parametrize("upgrade", [b"", *UPGRADE_REQUESTS, b"".join(UPGRADE_REQUESTS)])
@pytest.mark.parametrize("version", [196608, 196610])
def test_a_sign_in_may_follow_requests_to_encrypt(kind, upgrade, version):
    dialogue = kind()
    dialogue.sent(upgrade)
    assert dialogue.received(messages("N A S E")) is None
    dialogue.sent(struct.pack(">ii", 8, version))
    for word in ("R", "v", "R"):
        dialogue.sent(messages("p:secret"))
        assert dialogue.received(messages(word)) is None
    assert dialogue.received(messages("N S K A E Z")) is None
    assert dialogue.received(messages("R")) == "'R' where nothing was due"


@pytest.mark.parametrize("upgrade", [b"", *UPGRADE_REQUESTS])
def test_before_the_start_up_message_nothing_is_due(kind, upgrade):
    dialogue = kind()
    dialogue.sent(upgrade)
    assert dialogue.received(messages("R")) == "'R' where nothing was due"


def test_queries_may_be_sent_before_the_end_of_the_sign_in(kind):
    dialogue = kind()
    dialogue.sent(STARTUP + messages("p Q P B E S"))
    assert dialogue.received(messages(SIGNED_IN + " C Z 1 2 C Z")) is None
    assert dialogue.received(messages("Z")) == "'Z' where nothing was due"


def test_after_a_cancel_request_the_server_may_refuse_it(kind):
    dialogue = kind()
    dialogue.sent(struct.pack(">iiii", 16, 80877102, 1, 2))
    assert dialogue.received(messages("E")) is None


@pytest.mark.parametrize("anytime", "NAS")
@pytest.mark.parametrize(("sent", "received"), [EXTENDED, ("D:S", "t n"), ("Q", "H d c C Z"), ("F", "V Z"), ("", "")])
def test_notices_come_at_any_time(start, anytime, sent, received):
    dialogue = start(sent)
    words = [anytime, *(f"{word} {anytime}:text" for word in received.split())]
    assert dialogue.received(messages(" ".join(words))) is None
    assert dialogue.received(messages("1")) == "'1' where nothing was due"


def test_data_is_copied_to_the_server(start):
    for end, answer in (("d:7 c", "C Z"), ("f:no", "E Z"), ("H d c", "C Z")):
        dialogue = start("Q:COPY")
        assert dialogue.received(messages("G:3")) is None
        dialogue.sent(messages("d:123 d"))
        dialogue.sent(messages(end))
        assert dialogue.received(messages(answer)) is None
        assert dialogue.received(messages("C")) == "'C' where nothing was due"


@pytest.mark.parametrize("begin", "GHW")
@pytest.mark.parametrize(("sent", "end"), [("Q:COPY", "C Z"), ("Q:COPY", "E Z"), ("E S", "C Z"), ("E S", "E Z")])
def test_only_data_and_the_end_are_due_while_data_is_copied(start, begin, sent, end):
    for number in range(256):
        dialogue = start(sent)
        assert dialogue.received(messages(f"{begin} d d")) is None
        expected = None if number in b"dcC" + ANYTIME + b"E" else f"{chr(number)!a} where 'C' was due"
        assert dialogue.received(header(chr(number), 4)) == expected
    dialogue = start(sent)
    assert dialogue.received(messages(f"{begin} d c {end}")) is None
    assert dialogue.received(messages("d")) == "'d' where nothing was due"


def test_a_query_may_copy_between_other_commands(start):
    dialogue = start("Q:SELECT;COPY;COPY;SELECT")
    assert dialogue.received(messages("T D C H d d c C H c C T D C Z")) is None


def test_data_that_is_copied_after_an_error_owes_nothing(start):
    dialogue = start("Q:COPY")
    assert dialogue.received(messages("G E Z")) is None
    dialogue.sent(messages("d d c"))
    assert dialogue.received(messages("C")) == "'C' where nothing was due"


def test_a_portal_may_be_suspended(start):
    dialogue = start("B E S")
    assert dialogue.received(messages("2 D D s Z")) is None
    for end in "ssC":
        dialogue.sent(messages("E S"))
        assert dialogue.received(messages(f"D {end} Z")) is None
    assert dialogue.received(messages("s")) == "'s' where nothing was due"


# What was sent and received in turn, on a new connection.
SCRIPT = [
    UPGRADE_REQUESTS[0] + STARTUP,
    messages(SIGNED_IN),
    messages("P:text D:Sname H"),
    messages("1 t:123 T:" + "x" * 20),
    messages("B:parameters E S"),
    messages("2 D:1234 D D C:text N:notice Z:I"),
    messages("P D:Sname D:P D:S D:P H"),
    messages("1 t T T E:text"),
    messages("B E D:S S:? D:Sname D:Pname Q X"),
    messages("Z t n T C Z"),
    messages("Q:COPY"),
    messages("G E Z"),
    messages("d:S d:Q c F:call"),
    messages("V Z S"),
]


def play(kind, script, pieces_of):
    """Return the number of the step at which something was refused, and the refusal; None if there was none."""
    dialogue = kind()
    for number, data in enumerate(script):
        for piece in pieces_of(data):
            if number % 2 == 0:
                dialogue.sent(piece)
            elif refusal := dialogue.received(piece):
                return number, refusal
    return None


def every_split():
    longest = max(map(len, SCRIPT))
    yield from (lambda data, at=at: (data[:at], data[at:]) for at in range(longest))
    yield from (
        lambda data, size=size: [data[at : at + size] for at in range(0, len(data), size)] for size in range(1, 9)
    )
    yield lambda data: [memoryview(data)[:7], bytearray(data[7:30]), b"", memoryview(bytearray(data[30:]))]


def test_data_may_be_split_anywhere(kind):
    for pieces_of in every_split():
        assert play(kind, SCRIPT, pieces_of) is None


@pytest.mark.parametrize("step", range(1, len(SCRIPT), 2))
@pytest.mark.parametrize(
    "damage", [messages("1 1"), messages("Z Z Z"), header("N", 3), header("?", -1), b"HTTP/1.1 400"]
)
def test_a_refusal_does_not_depend_on_how_data_is_split(kind, step, damage):
    script = SCRIPT.copy()
    script[step] += damage
    expected = play(kind, script, lambda data: [data])
    assert expected is not None
    for pieces_of in every_split():
        assert play(kind, script, pieces_of) == expected


def test_a_message_counts_when_its_header_is_complete(start):
    dialogue = start("S")
    for byte in messages("Z")[:-1]:
        assert dialogue.received(bytes([byte])) is None
    dialogue.sent(messages("S"))
    assert dialogue.received(messages("Z")[-1:] + messages("Z")) is None
    dialogue.sent(header("S", 100))
    assert dialogue.received(messages("Z") * 2) == "'Z' where nothing was due"


@pytest.mark.parametrize("length", [3, 2, 1, 0, -1, -4, -(2**31)])
def test_a_length_that_is_too_small_is_refused(start, length):
    expected = f"a length of {length} instead of at least 4"
    assert start().received(header("N", length)) == expected
    assert start("Q").received(messages("C") + header("Z", length)) == expected
    assert start("Q").received(messages("C") + header("?", length)) == expected


def test_the_largest_length_is_skipped(start):
    dialogue = start("Q S")
    assert dialogue.received(messages("C") + header("D", 2**31 - 1)) is None
    piece = memoryview(messages("1") * 2**20)
    rest = 2**31 - 5
    for _ in range(rest // len(piece)):
        assert dialogue.received(piece) is None
    assert dialogue.received(piece[: rest % len(piece)]) is None
    assert dialogue.received(messages("Z Z")) is None
    assert dialogue.received(messages("Z")) == "'Z' where nothing was due"


@pytest.mark.parametrize("length", [3, 0, -1, -(2**31)])
def test_a_length_of_the_client_that_is_too_small_counts_as_the_smallest(kind, length):
    dialogue = kind()
    dialogue.sent(struct.pack(">ii", length, 80877103) + struct.pack(">ii", length, 196608) + messages("p"))
    assert dialogue.received(messages("R Z")) is None
    dialogue.sent(header("P", length) + header("D", length) + header("H", length) + header("S", length))
    assert dialogue.received(messages("1 n Z")) is None
    assert dialogue.received(messages("Z")) == "'Z' where nothing was due"


def test_the_largest_length_of_the_client_is_skipped(start):
    dialogue = start()
    dialogue.sent(header("d", 2**31 - 1))
    dialogue.sent(messages("S") * 1000)
    assert dialogue.received(messages("Z")) == "'Z' where nothing was due"


@pytest.mark.parametrize("empty", [b"", bytearray(), memoryview(b"")])
def test_no_data_changes_nothing(kind, start, empty):
    for dialogue in (kind(), start(), start("P B")):
        dialogue.sent(empty)
        assert dialogue.received(empty) is None
    dialogue.sent(b"S")
    assert dialogue.received(b"1") is None
    dialogue.sent(empty)
    assert dialogue.received(empty) is None
    dialogue.sent(messages("S")[1:])
    assert dialogue.received(messages("1")[1:] + messages("2 Z")) is None


def test_after_a_refusal_the_same_is_refused(start):
    dialogue = start("P")
    unused = bytes_in_use(start("P"))
    assert dialogue.received(messages("2")) == "'2' where '1' was due"
    for data in (messages("1"), b"", b"\0"):
        dialogue.sent(messages("S") * 100)
        assert dialogue.received(data) == "'2' where '1' was due"
    assert bytes_in_use(dialogue) == unused


@pytest.mark.parametrize("data", ["text", None, 7, [b"x"]])
def test_data_must_have_a_buffer(start, data):
    dialogue = start("P")
    for call in (dialogue.sent, dialogue.received):
        with pytest.raises(TypeError, match=f"^a bytes-like object is required, not '{type(data).__name__}'$"):
            call(data)
    assert dialogue.received(messages("1")) is None


def test_the_buffer_of_data_must_be_contiguous(start):
    dialogue = start("P")
    for call in (dialogue.sent, dialogue.received):
        with pytest.raises(BufferError, match=r"^memoryview: underlying buffer is not C-contiguous$"):
            call(memoryview(messages("1 2"))[::2])
    assert dialogue.received(messages("1")) is None


def test_data_may_be_of_any_format(start):
    dialogue = start()
    dialogue.sent(memoryview(messages("P S")).cast("h"))
    assert dialogue.received(memoryview(messages("1 Z")).cast("b").cast("B", (2, 5))) is None


def test_a_buffer_is_given_back(start):
    data = bytearray(messages("1"))
    dialogue = start("P")
    for expected in (None, "'1' where nothing was due", "'1' where nothing was due"):
        dialogue.sent(data)
        assert dialogue.received(data) == expected
        # A bytearray whose buffer is in use cannot be resized.
        data += b"."
        del data[-1:]


def bytes_in_use(dialogue):
    return sys.getsizeof(getattr(dialogue, "_due", dialogue))


def test_a_million_statements_without_a_sync_need_a_byte_for_each_answer(start):
    dialogue = start()
    unused = bytes_in_use(dialogue)
    pairs, answers = messages("B:1 E") * 10_000, messages("2 C:1") * 10_000
    for _ in range(100):
        dialogue.sent(pairs)
    assert bytes_in_use(dialogue) < 4_300_000
    dialogue.sent(messages("S"))
    for _ in range(99):
        assert dialogue.received(answers) is None
    assert dialogue.received(answers + messages("Z")) is None
    assert bytes_in_use(dialogue) <= unused
    assert dialogue.received(messages("Z")) == "'Z' where nothing was due"


@pytest.mark.parametrize("ahead", [1, 31, 32, 33, 1_000])
def test_memory_is_bounded_by_what_is_due_at_once(start, ahead):
    dialogue = start()
    for number in range(ahead):
        dialogue.sent(messages("PBC"[number % 3]))
    unused = bytes_in_use(dialogue)
    for number in range(5_000):
        dialogue.sent(messages("PBC"[(number + ahead) % 3]))
        assert dialogue.received(messages("123"[number % 3])) is None
    assert bytes_in_use(dialogue) <= max(2 * unused, 500)
    for number in range(ahead):
        assert dialogue.received(messages("123"[(5_000 + number) % 3])) is None
    assert dialogue.received(messages("1")) == "'1' where nothing was due"


def test_an_error_releases_the_memory_of_what_it_answers(start):
    dialogue = start()
    unused = bytes_in_use(dialogue)
    dialogue.sent(messages("B E") * 10_000)
    assert dialogue.received(messages("E")) is None
    assert bytes_in_use(dialogue) <= unused
