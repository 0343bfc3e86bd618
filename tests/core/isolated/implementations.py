"""Imports the module that a script tests: `MODULE`, or `MODULE CLASS[:POLICY]` for a cache other than `LRUCache`."""

import importlib
import types


class _Adaptive:
    """Replaces a class: creates its caches with a policy."""

    def __init__(self, kind, policy):
        self._kind, self._policy = kind, policy

    def __call__(self, *args, **kwargs):
        return self._kind(*args, policy=self._policy, **kwargs)

    def __getitem__(self, item):
        return self._kind[item]


def implementation(name):
    """Return a module. If another class of caches is given, that class has the name `LRUCache` in it."""
    module, _, variant = name.partition(" ")
    core = importlib.import_module(module)
    kind, _, policy = variant.partition(":")
    if kind in ("", "LRUCache"):
        return core
    if kind == "RecordingCache":
        return types.SimpleNamespace(**{**vars(core), "LRUCache": core.RecordingCache})
    return types.SimpleNamespace(**{**vars(core), "LRUCache": _Adaptive(core.AdaptiveCache, policy or "adaptive")})
