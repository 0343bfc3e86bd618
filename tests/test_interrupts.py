"""Signals that are noted until it is safe to act on them."""

import asyncio
import os
import signal
import subprocess
import sys
import threading

import pytest

from acgsperf.interrupts import Held


@pytest.fixture(autouse=True)
def handlers():
    """The handlers of a program that raises an exception of its own for SIGTERM."""

    def ended(number, frame):
        raise SystemExit(143)

    former = signal.signal(signal.SIGTERM, ended)
    yield
    signal.signal(signal.SIGTERM, former)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def press(number=signal.SIGINT):
    os.kill(os.getpid(), number)


def test_a_signal_is_raised_where_the_code_asks():
    steps = []

    def block():
        with Held() as held:
            press()
            steps.append("after the signal")
            held.check()
            steps.append("never")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert steps == ["after the signal"]


def test_a_signal_that_nobody_asked_for_is_raised_at_the_end():
    steps = []

    def block():
        with Held():
            press(signal.SIGTERM)
            steps.append("done")

    with pytest.raises(SystemExit):
        block()
    assert steps == ["done"]


def test_the_first_signal_counts_and_others_do_not_interrupt_the_clean_up():
    steps = []

    def block():
        with Held() as held:
            try:
                press()
                held.check()
            finally:
                press(signal.SIGTERM)
                press()
                held.check()
                steps.append("clean")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert steps == ["clean"]


def test_the_outermost_block_decides():
    steps = []

    def block():
        with Held():
            with Held() as inner:
                press()
                steps.append("inner")
            steps.append("outer")
            inner.check()

    with pytest.raises(KeyboardInterrupt):
        block()
    assert steps == ["inner", "outer"]


def test_a_handler_that_returns_wants_the_program_to_continue():
    seen = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    with Held() as held:
        press(signal.SIGTERM)
        held.check()
        press(signal.SIGTERM)
        assert seen == [signal.SIGTERM]
    assert seen == [signal.SIGTERM] * 2


def test_an_error_in_the_block_is_not_replaced():
    def block():
        with Held():
            press()
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        block()


def test_a_coroutine_is_cancelled_once_and_may_clean_up():
    steps = []

    async def work():
        try:
            press()
            await asyncio.sleep(60)
        finally:
            press()
            await asyncio.sleep(0.01)
            steps.append("clean")

    with pytest.raises(KeyboardInterrupt), Held() as held:
        held.run(work())
    assert steps == ["clean"]


def test_a_coroutine_that_a_signal_precedes_is_cancelled_at_its_first_wait():
    async def work():
        await asyncio.sleep(60)

    def block():
        with Held() as held:
            press()
            held.run(work())

    with pytest.raises(KeyboardInterrupt):
        block()


def test_a_coroutine_without_a_signal_returns_its_result():
    async def work():
        return 7

    with Held() as held:
        assert held.run(work()) == 7


def test_another_thread_is_left_alone():
    found = []

    def work():
        with Held() as held:
            held.check()
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


@pytest.mark.parametrize("program", ["import acgsperf", "import acgsperf.cli"])
def test_a_program_that_imports_the_package_keeps_its_handlers(program):
    check = "import signal; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    subprocess.run([sys.executable, "-c", f"{program}; {check}"], check=True, timeout=60)


def test_the_handler_is_installed_before_any_other_import_of_the_command():
    code = """
import sys, _signal
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "threading":
            _signal.raise_signal(_signal.SIGINT)
sys.modules.pop("threading", None)
sys.meta_path.insert(0, Finder())
sys.argv = ["acgsperf", "--version"]
import acgsperf.cli
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "acgsperf: interrupted\n")
