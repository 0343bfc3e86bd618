"""The protocol keeps its guarantees in every scenario, and each rule is there for a reason.

`python -m pytest tests/model -s` prints the traces.
"""

import pytest

from .checker import Result, check
from .clocks import RULES as CLOCK_RULES
from .clocks import Clocks
from .postgres_log import RULES as POSTGRES_RULES
from .postgres_log import PostgresLog
from .protocol import Machine
from .scenarios import LIMITS, REDUNDANT, SCENARIOS, SOAK, SWITCHES, Switch
from .state import RULES


class Counter:
    """A counter that violates its invariant at 3, after steps of 1 and 2."""

    def initial(self) -> int:
        return 0

    def steps(self, state: int) -> list[tuple[str, int]]:
        return [(f"add {n}", state + n) for n in (1, 2) if state < 5]

    def violation(self, state: int) -> str | None:
        return "three" if state == 3 else None

    def describe(self, state: int) -> str:
        return str(state)


def test_the_checker_finds_the_shortest_trace():
    result = check(Counter())
    assert result.violation == "three"
    assert [state for _, state in result.trace] in (["0", "1", "3"], ["0", "2", "3"])
    assert "=> three" in str(result)


def test_the_checker_says_when_it_has_not_seen_every_state():
    assert not check(Counter(), limit=1).complete


def holds(result: Result) -> None:
    assert result.violation is None, f"\n{result}"
    assert result.complete


def violates(result: Result, invariant: str, rules: str) -> None:
    print(f"\nwithout: {rules}\n{result}")
    assert result.violation is not None, f"no violation without the rule: {rules}"
    assert result.violation.startswith(invariant), f"\n{result}"


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_protocol_keeps_its_guarantees(name):
    holds(check(Machine(SCENARIOS[name])))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SOAK)
def test_the_protocol_keeps_its_guarantees_in_larger_scenarios(name):
    result = check(Machine(SOAK[name]))
    print(f"\n{name}: {result}")
    holds(result)


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: f"{' + '.join(switch.off)} ({switch.scenario})")
def test_without_a_rule_a_guarantee_is_lost(switch: Switch):
    result = check(Machine(SCENARIOS[switch.scenario], *switch.off))
    violates(result, switch.invariant, "; ".join(RULES[rule] for rule in switch.off))


@pytest.mark.parametrize("rule", REDUNDANT)
def test_a_redundant_rule_changes_nothing_in_the_scenarios_that_concern_it(rule):
    for name in REDUNDANT[rule]:
        holds(check(Machine(SCENARIOS[name], rule)))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SCENARIOS)
def test_without_all_redundant_rules_the_guarantees_hold(name):
    holds(check(Machine(SCENARIOS[name], *REDUNDANT)))


@pytest.mark.parametrize("limit", LIMITS)
def test_the_documented_limits_exist(limit):
    scenario, invariant = LIMITS[limit]
    violates(check(Machine(scenario)), invariant, f"none; the limit: {limit}")


def test_how_long_an_entry_lives_depends_on_no_wall_clock():
    holds(check(Clocks()))


@pytest.mark.parametrize("rule", CLOCK_RULES)
def test_without_a_rule_of_time_a_wall_clock_counts(rule):
    violates(check(Clocks(rule)), "T1", CLOCK_RULES[rule])


def test_a_postgres_listener_misses_no_row():
    holds(check(PostgresLog(3)))


@pytest.mark.parametrize("rule", POSTGRES_RULES)
def test_without_a_rule_a_postgres_listener_misses_a_row(rule):
    invariant = "a row is applied twice" if rule == "duplicates" else "R2"
    violates(check(PostgresLog(3, rule)), invariant, POSTGRES_RULES[rule])
