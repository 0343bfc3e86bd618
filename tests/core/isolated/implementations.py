"""Imports what a script is to test: `MODULE`, or `MODULE CLASS[:POLICY]` for a cache other than `LRUCache`."""

import importlib
import types


class _Adaptive:
    """Creates caches of a policy, in the place of a class."""

    def __init__(self, kind, policy):
        self._kind, self._policy = kind, policy

    def __call__(self, *args, **kwargs):
        return self._kind(*args, policy=self._policy, **kwargs)

    def __getitem__(self, item):
        return self._kind[item]


def implementation(name):
    """Return a module, in which another class of caches has the name `LRUCache` if one is given."""
    module, _, variant = name.partition(" ")
    core = importlib.import_module(module)
    kind, _, policy = variant.partition(":")
    if kind in ("", "LRUCache"):
        return core
    return types.SimpleNamespace(**{**vars(core), "LRUCache": _Adaptive(core.AdaptiveCache, policy or "adaptive")})
