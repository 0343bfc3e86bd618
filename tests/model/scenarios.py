"""Scenarios: each small enough to be searched completely, and which rules it proves necessary."""

from typing import Final

from .state import Scenario

LOAD: Final = ("load",)

SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        Scenario("slow load", (("A", LOAD), ("B", ("delete", "load"))), {"evict L2": 2}),
        Scenario("slow load, set", (("A", LOAD), ("B", ("set",)), ("A'", LOAD)), {"evict L2": 1, "evict L1": 1}),
        Scenario("slow load, L2 alone", (("A", LOAD), ("B", ("delete", "set"))), {"evict L2": 2}, tiers=(2,)),
        Scenario("slow load, L3 alone", (("A", LOAD), ("B", ("delete",))), {"tick": 3}, tiers=(3,)),
        Scenario("copy", (("A", ("get",)), ("B", ("delete",)), ("A'", LOAD)), {"evict L2": 2}, filled=(3,)),
        Scenario("demotion", (("B", ("delete",)),), {"demote": 1, "tick": 3}, filled=(2, 3, "A")),
        Scenario("demotion, evictions", (("B", ("delete",)),), {"demote": 1, "evict L2": 1}, filled=(2, 3, "A")),
        Scenario("clocks", (("A", ("set", "set")), ("B", ("set", "delete"))), {}, skew={"B": -5}),
        Scenario("race", (("A", ("set",)), ("B", ("set",)), ("A'", LOAD)), {}, racing=True),
        Scenario("race of three", (("A", ("set",)), ("B", ("set",)), ("C", ("set",))), {}, processes="ABC", racing=True, skew={"B": -3, "C": 4}),
        Scenario("late", (("A", ("set",)), ("B", ("set",))), {"lose L2": 1, "lose L3": 1}, filled=(2, 3), skew={"B": -5}, failing="A"),
        Scenario("refusals", (("A", ("set",)), ("B", LOAD)), {"refuse L2": 1, "refuse L3": 1, "evict L2": 1}, filled=(2, 3)),
        Scenario("refusals, sets", (("A", ("set",)), ("B", ("set",))), {"refuse L2": 1, "refuse L3": 1, "evict L2": 1}, filled=(2, 3)),
        Scenario("refusals, lost replies", (("A", ("set",)), ("B", ("set",))), {"refuse L2": 1, "lose L3": 1, "lose L2": 1}, filled=(2, 3)),
        Scenario("refusals, deletes", (("A", ("delete",)), ("B", LOAD)), {"refuse L2": 1, "refuse L3": 1, "evict L2": 1}, filled=(2, 3)),
        Scenario("refresh", (("A", ("refresh",)), ("B", ("delete",))), {"evict L2": 1}, filled=(2, 3)),
        Scenario("blind", (("A", LOAD), ("B", ("delete",))), {"blind L2": 1, "blind L3": 1, "evict L2": 1}, filled=(3,)),
        Scenario("expiry", (("A", LOAD), ("B", ("set",))), {"tick": 3}, tiers=(3,), ttl=0),
        Scenario("records", (("A", LOAD), ("A'", ("set",)), ("B", LOAD)), {"evict L1": 1}, filled=(2, 3, "A", "B")),
        Scenario("gap", (("A", LOAD), ("B", ("set",))), {"trim": 2, "replace": 1}, filled=(2, 3, "A")),
        Scenario("lease", (("A", LOAD), ("B", ("set",))), {"tick": 4}, filled=(2, 3, "A")),
        Scenario("cluster", (("A", LOAD), ("B", ("set", "delete"))), {"publish": 1}, filled=(2, 3, "A"), cluster=True),
        Scenario("tag", (("A", LOAD), ("B", ("invalidate",)), ("B'", LOAD)), {}, tagged=True),
        Scenario("tag, copy", (("A", LOAD), ("B", ("invalidate",))), {"evict L2": 1, "evict token": 1, "evict count": 1}, filled=(3,), tagged=True),
        Scenario("tag, demotion", (("B", ("invalidate",)),("B'", LOAD)), {"demote": 1, "evict L2": 1}, filled=(2,3,"A"), tagged=True),
        Scenario("restart", (("A", LOAD), ("B", ("delete",))), {"snapshot": 1, "restart": 1, "evict L2": 1}, filled=(2, 3, "A"), tagged=True),
    )
}
