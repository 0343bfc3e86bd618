"""The scenarios, each small enough to be searched completely, and what each rule prevents."""

from typing import Final, NamedTuple

from .state import RULES, Scenario

LOAD: Final = ("load",)

_ALL: Final = (
    # Loads and copies against explicit writes
    Scenario("slow load", (("A", LOAD), ("B", ("delete", "load"))), {"evict L2": 2}),
    Scenario("slow load, set", (("A", LOAD), ("B", ("set",)), ("A'", LOAD)), {"evict L2": 1}),
    Scenario("slow load, L2 alone", (("A", LOAD), ("B", ("delete", "set"))), {"evict L2": 2}, tiers=(2,)),
    Scenario("slow load, L3 alone", (("A", LOAD), ("B", ("delete",))), {"tick": 3}, tiers=(3,)),
    Scenario("expiry", (("A", LOAD), ("B", ("set",))), {"tick": 3}, tiers=(3,), set_ttl=0),
    Scenario("copy", (("A", ("get",)), ("B", ("delete",)), ("A'", LOAD)), {"evict L2": 1}, filled=(3,)),
    Scenario("refresh", (("A", ("refresh",)), ("B", ("delete",))), {"evict L2": 1}, filled=(2, 3)),
    Scenario("blind", (("A", LOAD), ("B", ("delete",))), {"blind L2": 1, "blind L3": 1, "evict L2": 1}, filled=(3,)),
    # Demotions
    Scenario("demotion", (("B", ("delete",)),), {"demote": 1, "tick": 3}, filled=(2, 3, "A")),
    Scenario("demotion, evictions", (("B", ("delete",)),), {"demote": 1, "evict L2": 1}, filled=(2, 3, "A")),
    Scenario(
        "gap, demotion",
        (("B", ("delete",)),),
        {"replace": 1, "demote": 1, "evict L2": 1},
        filled=(2, 3, "A"),
    ),
    # Explicit writes against each other. One after the other, B's clock is behind; without a lock, any order.
    Scenario("clocks", (("A", ("set", "set")), ("B", ("set", "delete"))), {}, skew={"B": -15}),
    Scenario("race", (("A", ("set",)), ("B", ("set",)), ("A'", LOAD)), {}, racing=True),
    # Tiers that refuse a write, or do not reply
    Scenario(
        "late",
        (("A", ("set",)), ("B", ("set",))),
        {"lose L2": 1, "lose L3": 1},
        filled=(2, 3),
        skew={"B": -15},
        failing="A",
    ),
    Scenario(
        "refusals",
        (("A", ("set",)), ("B", LOAD)),
        {"refuse L2": 1, "refuse L3": 1, "evict L2": 1},
        filled=(2, 3),
    ),
    Scenario(
        "refusals, deletes",
        (("A", ("delete",)), ("B", LOAD)),
        {"refuse L2": 1, "refuse L3": 1, "evict L2": 1},
        filled=(2, 3),
    ),
    Scenario(
        "refusals, sets",
        (("A", ("set",)), ("B", ("set",))),
        {"refuse L2": 1, "refuse L3": 1, "evict L2": 1},
        filled=(2, 3),
    ),
    Scenario(
        "lost replies",
        (("A", ("set",)), ("B", ("set",))),
        {"refuse L2": 1, "lose L3": 1, "lose L2": 1},
        filled=(2, 3),
    ),
    Scenario(
        "refusals, demotion",
        (("A", ("set",)), ("B", ("load", "load"))),
        {"refuse L3": 1, "evict L2": 2, "demote": 1},
        filled=(2, 3),
    ),
    # The backplane
    Scenario("records", (("A", LOAD), ("A'", ("set",)), ("B", LOAD)), {"evict L1": 1}, filled=(2, 3, "A", "B")),
    Scenario("gap", (("A", LOAD), ("B", ("set",))), {"trim": 2, "replace": 1}, filled=(2, 3, "A")),
    Scenario("lease", (("A", LOAD), ("B", ("set",))), {"tick": 4}, filled=(2, 3, "A")),
    Scenario("cluster", (("A", LOAD), ("B", ("set", "delete"))), {"publish": 1}, filled=(2, 3, "A"), cluster=True),
    # Tags; `clear` is the invalidation of a tag that every entry has
    Scenario("tag", (("A", LOAD), ("B", ("invalidate",))), {"evict L2": 1}, tagged=True),
    Scenario(
        "tag, copy",
        (("A", LOAD), ("B", ("invalidate",))),
        {"evict L2": 1, "evict token": 1, "evict count": 1},
        filled=(3,),
        tagged=True,
    ),
    Scenario(
        "tag, demotion",
        (("B", ("invalidate",)), ("B'", LOAD)),
        {"demote": 1, "evict L2": 1},
        filled=(2, 3, "A"),
        tagged=True,
    ),
    Scenario(
        "tag, refusals",
        (("A", ("invalidate",)), ("B", LOAD)),
        {"refuse L2": 1, "refuse L3": 1},
        filled=(2, 3, "B"),
        tagged=True,
        strict=True,
    ),
    # Two writes of one process
    Scenario("own race", (("A", ("set",)), ("A'", ("set",))), {}, filled=(2, 3), racing=True, ordered=True),
    Scenario(
        "own race, refusals",
        (("A", ("set",)), ("A'", ("set",))),
        {"refuse L2": 1, "refuse L3": 1},
        filled=(2, 3),
        racing=True,
    ),
    Scenario(
        "own race, slow L3",
        (("A", ("set",)), ("A'", ("set",))),
        {"slow L3": 1},
        filled=(2, 3),
        racing=True,
        ordered=True,
    ),
    Scenario(
        "own race, tag",
        (("A", ("set",)), ("A'", ("invalidate",))),
        {"slow L3": 1},
        filled=(2, 3),
        racing=True,
        ordered=True,
        tagged=True,
    ),
    Scenario(
        "own race, clear",
        (("A", ("set",)), ("A'", ("invalidate",)), ("A''", ("get",))),
        {},
        filled=(2, 3),
        racing=True,
        ordered=True,
        tagged=True,
        implicit=True,
    ),
    Scenario(
        "own race, another tag",
        (("A", ("set",)), ("A'", ("invalidate",))),
        {},
        filled=(2, 3),
        racing=True,
        tagged=True,
        untagged=True,
    ),
    # L3 answers late
    Scenario("slow L3", (("A", ("set",)), ("B", ("get",))), {"slow L3": 1, "evict L2": 1}, filled=(2, 3)),
    Scenario(
        "slow L3, cannot keep",
        (("A", ("set",)), ("B", ("get",))),
        {"slow L3": 1, "cannot keep L3": 1, "evict L2": 1},
        filled=(2, 3),
    ),
    Scenario(
        "cannot keep",
        (("A", ("set",)), ("B", ("get", "load"))),
        {"cannot keep L2": 1, "cannot keep L3": 1, "evict L2": 1},
        filled=(2, 3, "B"),
    ),
    Scenario(
        "tag, slow L3",
        (("A", ("invalidate",)), ("B", ("get",))),
        {"slow L3": 1, "evict L2": 1},
        filled=(2, 3, "B"),
        tagged=True,
    ),
    # What a write leaves in its own process
    Scenario("own L1", (("A", ("set",)), ("A'", ("get",))), {"refuse L2": 1}, filled=(2, 3)),
    Scenario("load during delete", (("A", ("delete",)), ("A'", LOAD)), {}, filled=(2, 3)),
    Scenario(
        "demotion in flight",
        (("A", ("set",)),),
        {"refuse L2": 1, "refuse L3": 1, "demote": 1, "evict L2": 1},
        filled=(2, 3),
    ),
    Scenario("two undos", (("A", ("set", "set")),), {"lose L3": 2, "refuse L2": 2}, filled=(2, 3)),
    Scenario(
        "undo, cluster",
        (("A", ("set",)), ("B", ("get",))),
        {"lose L2": 1, "refuse L3": 1},
        filled=(3,),
        cluster=True,
    ),
    Scenario(
        "retries",
        (("A", ("set",)), ("B", ("set",))),
        {"refuse L2": 1, "refuse L3": 2},
        filled=(2, 3),
        skew={"A": -15},
        racing=True,
    ),
    # The backplane's replies take time
    Scenario("slow replies, lease", (("B", ("set",)),), {"tick": 3}, filled=(2, 3, "A"), slow_reads=True),
    Scenario("slow replies, gap", (("B", ("set",)),), {"trim": 2}, filled=(2, 3, "A"), slow_reads=True),
    Scenario(
        "gap, get",
        (("A", ("get",)), ("B", ("delete",))),
        {"replace": 1, "blind L2": 1, "blind L3": 1},
        filled=(2, 3, "A"),
    ),
    # More about tags
    Scenario(
        "tag, unknown",
        (("A", LOAD), ("B", ("invalidate",))),
        {"evict L2": 1},
        tiers=(2,),
        tagged=True,
        unknown=True,
    ),
    Scenario(
        "clear, copy",
        (("A", ("get",)), ("B", ("invalidate",))),
        {"evict L2": 1},
        filled=(3,),
        tagged=True,
        implicit=True,
    ),
    # L2's server is restarted from a snapshot
    Scenario("restart, L1", (("B", ("delete",)),), {"snapshot": 1, "restart": 1}, filled=(2, 3, "A"), tagged=True),
    Scenario(
        "restart, demotion",
        (("B", ("delete",)),),
        {"snapshot": 1, "restart": 1, "demote": 1, "evict L2": 1},
        filled=(2, 3, "A"),
        tagged=True,
    ),
    Scenario(
        "restart",
        (("A", LOAD), ("B", ("delete",))),
        {"snapshot": 1, "restart": 1, "evict L2": 1},
        filled=(2, 3, "A"),
        tagged=True,
    ),
)

SCENARIOS: Final = {scenario.name: scenario for scenario in _ALL}

# Larger ones, for `make soak`.
SOAK: Final = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "race of three",
            (("A", ("set",)), ("B", ("set",)), ("C", ("delete",))),
            {},
            processes="ABC",
            racing=True,
            skew={"B": -13, "C": 14},
        ),
        Scenario("two loads, evictions", (("A", LOAD), ("B", ("set", "delete")), ("A'", LOAD)), {"evict L2": 2}),
        Scenario(
            "tag, three tasks",
            (("A", LOAD), ("B", ("invalidate",)), ("B'", LOAD)),
            {"evict L2": 1},
            tagged=True,
        ),
        Scenario("gap, two sets", (("A", LOAD), ("B", ("set", "set"))), {"trim": 2, "replace": 1}, filled=(2, 3, "A")),
        Scenario(
            "refusals and lost replies",
            (("A", ("set",)), ("B", ("set",))),
            {"refuse L2": 1, "refuse L3": 1, "lose L2": 1, "lose L3": 1, "evict L2": 1},
            filled=(2, 3),
        ),
        Scenario(
            "refusals, three processes",
            (("A", ("set",)), ("B", LOAD), ("C", ("get",))),
            {"refuse L2": 1, "refuse L3": 1, "evict L2": 1},
            processes="ABC",
            filled=(2, 3),
        ),
        Scenario(
            "two writes of one process, slow L3",
            (("A", ("set",)), ("A'", ("delete",)), ("B", LOAD)),
            {"slow L3": 1, "refuse L2": 1},
            filled=(2, 3),
            racing=True,
        ),
        Scenario(
            "two writes of one process, refusals",
            (("A", ("set",)), ("A'", ("delete",)), ("B", LOAD)),
            {"refuse L2": 1, "refuse L3": 1},
            filled=(2, 3),
            racing=True,
        ),
        Scenario(
            "two writes of one process, lost replies",
            (("A", ("set",)), ("A'", ("set",))),
            {"lose L2": 1, "lose L3": 1, "refuse L2": 1},
            filled=(2, 3),
            racing=True,
        ),
        Scenario(
            "a tagged set, an invalidation and a read, slow L3",
            (("A", ("set",)), ("A'", ("invalidate",)), ("B", ("get",))),
            {"slow L3": 1},
            filled=(2, 3),
            racing=True,
            ordered=True,
            tagged=True,
        ),
        Scenario(
            "a failed write and reads",
            (("A", ("set",)), ("A'", ("get",)), ("B", ("get",))),
            {"refuse L2": 1, "refuse L3": 1, "evict L2": 1},
            filled=(2, 3),
        ),
        Scenario(
            "tag, slow L3 and refusals",
            (("A", ("invalidate",)), ("A'", LOAD), ("B", ("get",))),
            {"slow L3": 1, "refuse L3": 1},
            filled=(2, 3, "B"),
            tagged=True,
        ),
        Scenario(
            "tag, slow L3 and a demotion",
            (("A", ("invalidate",)), ("B", ("get",))),
            {"slow L3": 1, "demote": 1, "evict L2": 1},
            filled=(2, 3, "A"),
            tagged=True,
        ),
        Scenario(
            "a tagged set and an invalidation",
            (("A", ("set",)), ("A'", ("invalidate",)), ("B", ("get",))),
            {"refuse L2": 1},
            filled=(2, 3),
            racing=True,
            tagged=True,
        ),
    )
}


class Switch(NamedTuple):
    """Without these rules, this scenario violates this invariant."""

    off: tuple[str, ...]
    scenario: str
    invariant: str


SWITCHES: Final = tuple(
    Switch(tuple(off.split(" + ")), scenario, invariant)
    for off, scenario, invariant in (
        ("conditional", "slow load", "W1"),
        ("copy conditional", "copy", "W1"),
        ("marker", "slow load", "W1"),
        ("observe first", "slow load", "W1"),
        ("observe before L3", "copy", "W1"),
        ("observe L3 for refresh", "refresh", "W1"),
        ("unreadable", "blind", "W1"),
        ("store limit", "slow load, L3 alone", "W1"),
        ("id lives G longer", "slow load, L3 alone", "W1"),
        ("id lives G longer", "expiry", "W1"),
        ("inherit stamp", "race", "W1"),
        ("copy keeps stamp", "refusals", "W1"),
        ("older row", "refusals", "W1"),
        ("older row + tombstone ends the walk", "refusals, deletes", "W1"),
        ("demote level", "demotion, evictions", "W1"),
        ("demote level + demote if absent", "demotion, evictions", "W1"),
        ("demote level + demote within G", "demotion", "W1"),
        ("demote verified", "gap, demotion", "W1"),
        ("demote level", "tag, demotion", "W1"),
        ("L3 first", "copy", "W1"),
        ("stamps", "race", "convergence"),
        ("try again", "clocks", "W1"),
        ("from L3", "race", "convergence"),
        ("deadline", "late", "W3"),
        ("report at deadline", "late", "W3"),
        ("repair", "refusals", "convergence"),
        ("repair stamp", "refusals, sets", "W1"),
        ("repair invalidates", "refusals, sets", "W1"),
        ("repair every tier", "refusals, deletes", "W1"),
        ("repair record", "refusals, demotion", "convergence"),
        ("undo", "late", "W3"),
        ("undo by id", "late", "W1"),
        ("own L1", "refusals", "W3"),
        ("mark end", "records", "R1"),
        ("mark record", "records", "R1"),
        ("mark gap", "gap", "convergence"),
        ("drop", "records", "R1"),
        ("record after write", "records", "R1"),
        ("publish again", "cluster", "convergence"),
        ("gap", "gap", "convergence"),
        ("hello", "gap", "convergence"),
        ("lease", "lease", "R2"),
        ("token first", "tag", "W1"),
        ("count", "tag, copy", "W1"),
        ("count random", "tag, copy", "W1"),
        ("refused tag", "tag, refusals", "R1"),
        ("tokens in L3", "tag, copy", "W1"),
        ("generation", "restart", "W1"),
        ("own newer", "own race", "convergence"),
        ("overlap repair", "own race, tag", "convergence"),
        ("L2 again", "slow L3", "W1"),
        ("again after removed", "slow L3, cannot keep", "W1"),
        ("refused answers + invalidate again", "tag, slow L3", "convergence"),
        ("refused answers", "tag, refusals", "R1"),
        ("repair own L1", "own L1", "convergence"),
        ("mark during", "load during delete", "R1"),
        ("demote in flight", "demotion in flight", "W3"),
        ("undo each", "two undos", "W3"),
        ("undo record", "undo, cluster", "W3"),
        ("lease from sending", "slow replies, lease", "R2"),
        ("check after reading", "slow replies, gap", "convergence"),
        ("another run", "restart, L1", "convergence"),
        ("serve unverified", "gap, get", "W1"),
        ("count of loads", "tag, unknown", "W1"),
        ("copy compares namespace", "clear, copy", "W1"),
        ("demote run", "restart, demotion", "W1"),
    )
)

# Rules that another rule makes redundant: without them no scenario violates an invariant.
REDUNDANT: Final = {
    "mark begin": ("records", "slow load, set", "load during delete"),
    "tombstone ends the walk": ("refusals", "refusals, deletes"),
    "demote if absent": ("demotion", "demotion, evictions", "tag, demotion", "refusals, demotion"),
    "demote within G": ("demotion", "demotion, evictions", "tag, demotion", "refusals, demotion"),
    "drop unverified": ("gap, get",),
    "invalidate again": ("tag, slow L3", "tag, refusals"),
}

# What the protocol does not promise: every rule is on, and the invariant is violated.
LIMITS: Final = {
    "L3 refuses, and L2 evicts the tombstone": (
        SCENARIOS["refusals, deletes"]._replace(strict=True),
        "R1",
    ),
    "a demotion in a cluster: the write is in L2 before its record is in the log": (
        SCENARIOS["cluster"]._replace(budget={"demote": 1, "evict L2": 1}),
        "W1",
    ),
    "clocks further apart than two writes, and each of the writes fails in another tier": (
        SCENARIOS["refusals, sets"]._replace(skew={"B": -15}),
        "W1",
    ),
    "clocks further apart than two writes, L3 refuses the later one, and L2 has lost the earlier one": (
        SCENARIOS["refusals, sets"]._replace(budget={"refuse L3": 1, "evict L2": 1}, filled=(), skew={"B": -15}),
        "W1",
    ),
    "two writers without a lock, and L2 evicts the value of the later one before the earlier one reaches L2": (
        SCENARIOS["race"]._replace(tasks=(("A", ("set",)), ("B", ("set",))), budget={"evict L2": 1}),
        "convergence",
    ),
    "so with two writes of one process": (
        SCENARIOS["own race"]._replace(budget={"evict L2": 1}),
        "convergence",
    ),
}

assert {rule for switch in SWITCHES for rule in switch.off} | set(REDUNDANT) == set(RULES)
