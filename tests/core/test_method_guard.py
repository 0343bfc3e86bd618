"""`MethodGuard`, by which the drop-in's service notices that somebody replaced a method of a class."""

import inspect
import pickle
import threading

import pytest


@pytest.fixture
def family():
    class Parent:
        def get(self):
            return "original"

    class Child(Parent):
        pass

    return Parent, Child


def test_a_class_that_nobody_changed_holds(core, family):
    parent, _ = family
    guard = core.MethodGuard(parent, "get")
    for _ in range(3):
        assert guard.holds(parent()) is True


@pytest.mark.parametrize("times", [1, 2_000])
def test_a_patch_and_its_end_are_noticed(core, family, times):
    parent, _ = family
    guard, original = core.MethodGuard(parent, "get"), parent.get
    for _ in range(times):
        assert guard.holds(parent())
        parent.get = lambda self: "patched"
        assert guard.holds(parent()) is False
        parent.get = original
    assert guard.holds(parent())


def test_another_attribute_changes_nothing(core, family):
    parent, _ = family
    guard = core.MethodGuard(parent, "get")
    for number in range(2_000):
        parent.other = number
        assert guard.holds(parent())


def test_a_patch_of_a_base_is_noticed(core, family):
    parent, child = family
    guard = core.MethodGuard(child, "get")
    assert guard.holds(child())
    parent.get = lambda self: "patched"
    assert guard.holds(child()) is False


def test_a_method_that_was_removed_or_hidden_is_noticed(core, family):
    parent, child = family
    of_child, of_parent = core.MethodGuard(child, "get"), core.MethodGuard(parent, "get")
    child.get = lambda self: "patched"
    assert (of_child.holds(child()), of_parent.holds(parent())) == (False, True)
    del child.get
    assert of_child.holds(child())
    del parent.get
    assert (of_child.holds(child()), of_parent.holds(parent())) == (False, False)


def test_only_objects_of_exactly_the_class_hold(core, family):
    parent, child = family
    guard = core.MethodGuard(parent, "get")
    for other in (child(), parent, None, 7):
        assert guard.holds(other) is False
    with pytest.raises(TypeError):
        guard.holds()


def test_bad_input_is_refused(core, family):
    parent, _ = family
    with pytest.raises(AttributeError, match="missing"):
        core.MethodGuard(parent, "missing")
    for arguments in ((), (parent,), (parent(), "get"), (None, "get"), (parent, None), (parent, 7)):
        with pytest.raises(TypeError):
            core.MethodGuard(*arguments)


def test_guards_are_final_and_never_pickled(core, family):
    guard = core.MethodGuard(family[0], "get")
    with pytest.raises(TypeError, match="cannot pickle 'MethodGuard' object"):
        pickle.dumps(guard)
    with pytest.raises(TypeError, match="is not an acceptable base type"):
        type("Subclass", (core.MethodGuard,), {})
    assert list(inspect.signature(core.MethodGuard).parameters) == ["owner", "name"]


def test_patches_of_another_thread_are_noticed(core, family):
    parent, _ = family
    guard, original = core.MethodGuard(parent, "get"), parent.get
    done = threading.Event()

    def patch():
        for _ in range(5_000):
            parent.get = lambda self: "patched"
            parent.get = original
        parent.get = lambda self: "patched"
        done.set()

    thread = threading.Thread(target=patch)
    thread.start()
    instance = parent()
    while not done.is_set():
        guard.holds(instance)
    assert guard.holds(instance) is False
    thread.join()
