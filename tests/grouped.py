"""Lets tests give the options of a cache and of its entries together."""

from dataclasses import fields

from acgsperf import EntryOptions


def grouped(options):
    """Return the arguments of a `TieredCache`, with those that belong into its `EntryOptions` there."""
    names = {one.name for one in fields(EntryOptions)}
    own = {name: value for name, value in options.items() if name in names}
    rest = {name: value for name, value in options.items() if name not in names}
    return {**rest, "options": EntryOptions(**own)} if own else rest
