"""Every input of the corpus, which fuzzers found or which once failed, is handled by every target as it must be."""

import random

import pytest

from fuzz.run import inputs, mutated
from fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_holds(name):
    found = inputs(name)
    assert found
    for data in found:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_changed_inputs_hold(name):
    known, source = inputs(name), random.Random(1)
    for _ in range(50):
        TARGETS[name](mutated(source.choice(known), known, source))
