"""The bytecode of the twin's atomic functions contains no instruction at which the interpreter runs other code."""

import dis
import inspect
import sys
from types import FunctionType

import pytest

from acgsperf._native import (
    adaptive_py,
    bounded_py,
    histogram_py,
    lru_py,
    lru_table_py,
    placing_py,
    requests_py,
    saving_py,
    validator_py,
)

# What touches an object that others may use.
ACCESSES = {
    "LOAD_ATTR",
    "STORE_ATTR",
    "DELETE_ATTR",
    "LOAD_METHOD",
    "BINARY_SUBSCR",
    "STORE_SUBSCR",
    "DELETE_SUBSCR",
    "CONTAINS_OP",
    "COMPARE_OP",
    "LIST_EXTEND",
    "BINARY_OP",
}
# What runs no other code either. Everything else is forbidden, including what a later interpreter adds.
HARMLESS = {
    "CACHE",
    "COPY",
    "COPY_FREE_VARS",
    "EXTENDED_ARG",
    "IS_OP",
    "JUMP_FORWARD",
    "LOAD_COMMON_CONSTANT",
    "LOAD_CONST",
    "LOAD_CONST_IMMORTAL",
    "LOAD_CONST_MORTAL",
    "LOAD_GLOBAL",
    "LOAD_SMALL_INT",
    "NOP",
    "NOT_TAKEN",
    "POP_TOP",
    "PUSH_NULL",
    "RESUME",
    "RETURN_CONST",
    "RETURN_VALUE",
    "SWAP",
    "TO_BOOL",
    "UNPACK_SEQUENCE",
}
PREFIXES = ("LOAD_FAST", "STORE_FAST", "POP_JUMP_IF", "POP_JUMP_FORWARD")


MODULES = (
    adaptive_py,
    bounded_py,
    histogram_py,
    lru_py,
    lru_table_py,
    placing_py,
    requests_py,
    saving_py,
    validator_py,
)


def atomic_functions():
    for module in MODULES:
        owners = [module, *(item for item in vars(module).values() if inspect.isclass(item))]
        for owner in owners:
            for item in vars(owner).values():
                function = inspect.unwrap(item) if inspect.isfunction(item) else None
                if function is not None and function.__module__ == module.__name__ and hasattr(function, "atomic"):
                    yield function


FUNCTIONS = {function.__qualname__: function for function in atomic_functions()}


def interruptible(function: FunctionType) -> list[str]:
    """The instructions between the first and the last access at which other code may run."""
    found = list(dis.get_instructions(function))
    touching = [i for i, instruction in enumerate(found) if instruction.opname in ACCESSES]
    between = [
        instruction
        for instruction in found[touching[0] : touching[-1]]
        if instruction.opname not in ACCESSES | HARMLESS and not instruction.opname.startswith(PREFIXES)
    ]
    # Whatever jumps backwards repeats an access.
    backwards = [instruction for instruction in found if "BACKWARD" in instruction.opname]
    return [f"{instruction.opname} at {instruction.offset}" for instruction in between + backwards]


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="the bytecode is CPython's")
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_an_atomic_function_cannot_be_interrupted(function):
    assert interruptible(function) == []


def test_there_are_atomic_functions():
    assert len(FUNCTIONS) >= 12


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="the bytecode is CPython's")
def test_a_function_that_can_be_interrupted_is_noticed():
    def calls(self):
        self.total += len(self.counts)
        self.count = 0

    def loops(self):
        while self.count:
            self.count -= 1

    def allocates(self):
        self.pair = (self.first, [])
        self.count = 0

    assert all(map(interruptible, (calls, loops, allocates)))
