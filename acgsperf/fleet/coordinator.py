"""Tunes the instances of a fleet together: one of them, the coordinator, makes trials in which all take part.

The instances share one `Agreement`. It is replaced by compare-and-set only, so that it is its own fenced lock: a
coordinator that was suspended, and does not know that another one has taken over, cannot write. Nobody compares clocks.
The coordinator writes in every round. An instance that sees no change for some rounds, by its own monotonic clock,
undoes the trial, and becomes coordinator if it is the first to write.
"""

import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Final, Protocol, TypeVar

import msgspec

from acgsperf._native.arguments import checked_positive
from acgsperf.errors import FleetError
from acgsperf.fleet.effects import blocks_needed
from acgsperf.fleet.judging import TrialOptions, Verdict, judged
from acgsperf.fleet.member import Member, Meter
from acgsperf.fleet.trials import (
    MOST_BLOCKS,
    MOST_FINISHED,
    MOST_INSTANCES,
    Agreement,
    Finished,
    NewerFormatError,
    Pause,
    Standing,
    Trial,
    TrialOutcome,
    decode_agreement,
    encoded,
)
from acgsperf.fleet.tunable import Tunable

__all__ = ["Coordinator", "SharedDocument"]

_log: Final = logging.getLogger("acgsperf.fleet")

Standings = Mapping[str, Standing]
_StructT = TypeVar("_StructT", bound=msgspec.Struct)


class SharedDocument(Protocol):
    """A small document on a server, which is replaced by compare-and-set."""

    async def state(self) -> tuple[int, bytes]:
        """Return the revision of the document, and the document; 0 and b"" for none. May raise `FleetError`."""

    async def replace_state(self, expected_revision: int, document: bytes, /) -> bool:
        """Replace the document if it still has a revision; return whether it was replaced. May raise `FleetError`."""


class Coordinator:
    """Takes part in the tuning of a fleet, and coordinates it if no other instance does.

    Call `follow` in every round, publish `standing`, then call `lead`:

        await coordinator.follow()
        await publish(coordinator.standing())
        await coordinator.lead(standings_of_all_live_instances)

    Args:
        document: shared by the fleet.
        instance: names this instance.
        tunables: its settings. The names must differ.
        meter: measures its requests.
        interval: seconds from one round to the next.
        options: how trials are made.
        clock: returns seconds and never goes back.
        new_id: returns a random identifier for a trial. It decides which instances use the new value first.

    Raises:
        ValueError: if two settings have the same name, or `interval` is not greater than 0.
    """

    def __init__(
        self,
        document: SharedDocument,
        instance: str,
        tunables: Iterable[Tunable],
        meter: Meter,
        *,
        interval: float,
        options: TrialOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
        new_id: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self._options = TrialOptions() if options is None else options
        self._interval_s = checked_positive("interval", interval)
        self._document = document
        self._instance = instance
        self._member = Member(instance, tunables, meter, self._options)
        self._clock = clock
        self._new_id = new_id
        self._agreement = Agreement()
        self._revision = -1
        self._is_usable = False
        # Whether another version of the package has written the document.
        self._is_foreign = False
        # When the document last changed, by the clock of this process.
        self._changed_at = clock()
        # The highest revision of the adopted values, in case the server loses them.
        self._adopted: tuple[int, dict[str, float]] = (0, {})
        # The trial, and when this instance first saw it.
        self._seen = ("", 0.0)
        self._alone = False

    @property
    def agreement(self) -> Agreement:
        """What the fleet has agreed on, as far as this instance knows."""
        return self._agreement

    @property
    def revision(self) -> int:
        """The revision of the adopted values in use; 0 for none."""
        return self._adopted[0]

    @property
    def arm(self) -> str:
        """The part of a trial in which this instance is, for people; empty for none."""
        return self._member.arm

    @property
    def is_alone(self) -> bool:
        """Whether this instance knows that it is the only one of its fleet. Then it may tune itself."""
        return self._alone

    def standing(self) -> Standing:
        """Return what this instance tells the coordinator."""
        return self._member.standing()

    def undo(self) -> None:
        """Undo a trial in this instance at once, for example because it shuts down. The next `follow` resumes it."""
        self._member.use(self._adopted[1], None)

    async def follow(self) -> None:
        """Read the agreement, use the values in it, and measure.

        If the server does not answer for some rounds, a trial is undone in this instance.
        """
        try:
            revision, blob = await self._document.state()
        except FleetError as error:
            self._is_usable = False
            _log.debug("fleet: the agreement cannot be read: %s", error)
        else:
            self._hear(revision, blob)
        self._member.measure()
        self._use()

    async def lead(self, standings: Callable[[], Awaitable[Standings]]) -> Finished | None:
        """Coordinate the fleet if this instance is its coordinator, or if there is none.

        Args:
            standings: returns those of all live instances, with this one. It is called if they are needed.

        Returns:
            A trial that this call has ended.
        """
        if not self._is_usable:
            return None
        agreement = self._agreement
        # An instance that knows what the server has lost takes over, to restore it.
        has_lost = agreement.revision < self._adopted[0]
        if agreement.coordinator not in {"", self._instance} and not has_lost and not self._is_silent():
            self._alone = False
            return None
        try:
            found = {**await standings(), self._instance: self._member.standing()}
            decided = self._decided(found)
            if not await self._document.replace_state(self._revision, encoded(decided)):
                # Another instance was faster.
                self._alone = False
                return None
            # The revision of the new document is known after the next `state`.
            self._is_usable = False
        except FleetError as error:
            _log.debug("fleet: the agreement cannot be written: %s", error)
            return None
        self._alone = False
        self._agreement, self._changed_at = decided, self._clock()
        self._remember(decided)
        self._use()
        if len(found) == 1:
            self._alone = True
            self._member.let_go()
        begun = decided.trial
        if begun is not None and (agreement.trial is None or agreement.trial.id != begun.id):
            _log.info(
                "fleet: trial %s of setting '%s' begins: %g against %g on %d instances",
                *(begun.id, begun.setting, begun.value, begun.before, len(begun.instances)),
            )
        known = {finished.id for finished in agreement.finished}
        ended = next((finished for finished in decided.finished if finished.id not in known), None)
        if ended is not None:
            _log.info("%s", _described(ended))
        return ended

    def _hear(self, revision: int, blob: bytes) -> None:
        try:
            agreement = decode_agreement(blob)
        except NewerFormatError as error:
            if not self._is_foreign:
                _log.warning("fleet: this instance does not take part in tuning: %s", error)
            self._agreement, self._is_usable = Agreement(coordinator="another version"), False
            self._is_foreign, self._alone = True, False
            return
        except ValueError as error:
            _log.warning("fleet: the shared document is damaged; a coordinator replaces it: %s", error)
            agreement = Agreement()
        self._is_foreign = False
        if revision != self._revision:
            self._revision, self._changed_at = revision, self._clock()
        self._agreement, self._is_usable = agreement, True
        self._remember(agreement)

    def _remember(self, agreement: Agreement) -> None:
        if agreement.revision >= self._adopted[0]:
            self._adopted = agreement.revision, agreement.settings

    def _is_silent(self) -> bool:
        """Return whether the document has not changed for too long: its coordinator or the server is gone."""
        return self._clock() - self._changed_at > self._options.silent_rounds * self._interval_s

    def _use(self) -> None:
        trial = self._agreement.trial
        if trial is not None:
            now = self._clock()
            if trial.id != self._seen[0]:
                self._seen = trial.id, now
            longest_s = self._options.longest_trial(trial.blocks) * self._interval_s
            if self._is_silent() or now - self._seen[1] > longest_s:
                trial = None
        # Alone, the instance tunes itself.
        if not self._alone:
            self._member.use(self._adopted[1], trial)

    def _decided(self, standings: Standings) -> Agreement:
        """Return the next agreement."""
        agreement = self._agreement
        if agreement.coordinator != self._instance:
            if agreement.trial is not None:
                agreement = self._ended(agreement, agreement.trial, Verdict(TrialOutcome.ABANDONED))
            if not agreement.coordinator:
                agreement = _changed(agreement, rest=self._options.least_pause)
            agreement = _changed(agreement, coordinator=self._instance)
        if agreement.revision < self._adopted[0]:
            # The server has lost it.
            agreement = _changed(agreement, revision=self._adopted[0], settings=self._adopted[1], trial=None)
        pauses = {
            name: _changed(pause, remaining=max(0, pause.remaining - 1)) for name, pause in agreement.pauses.items()
        }
        agreement = _changed(agreement, round=agreement.round + 1, rest=max(0, agreement.rest - 1), pauses=pauses)
        if agreement.trial is not None:
            return self._continued(agreement, agreement.trial, standings)
        if agreement.rest or len(standings) < 2:
            return agreement
        return self._started(agreement, standings)

    def _continued(self, agreement: Agreement, trial: Trial, standings: Standings) -> Agreement:
        verdict = judged(trial, agreement.round - trial.period_since, standings, self._options)
        if verdict is None:
            return agreement
        if verdict.outcome is None:
            following = _changed(trial, period=trial.period + 1, period_since=agreement.round)
            return _changed(agreement, trial=following)
        return self._ended(agreement, trial, verdict)

    def _ended(self, agreement: Agreement, trial: Trial, verdict: Verdict) -> Agreement:
        assert verdict.outcome is not None
        effect, options = verdict.effect, self._options
        took = agreement.round - trial.since
        pause = agreement.pauses.get(trial.setting, Pause())
        if verdict.outcome is TrialOutcome.ADOPTED:
            pause = Pause(direction=pause.direction)
            agreement = _changed(
                agreement,
                revision=agreement.revision + 1,
                settings={**agreement.settings, trial.setting: trial.value},
                rest=took,
            )
        else:
            length = min(max(options.least_pause, 2 * pause.length), options.max_pause)
            pause = Pause(direction=-pause.direction, length=length, remaining=length)
            cost = _cost(trial, verdict, took) / options.most_harm
            agreement = _changed(agreement, rest=min(max(options.least_pause, took, round(cost)), options.max_pause))
        finished = Finished(
            id=trial.id,
            setting=trial.setting,
            before=trial.before,
            value=trial.value,
            outcome=verdict.outcome,
            change=None if effect is None else math.expm1(min(effect.estimate, 100.0)),
            p=None if effect is None else min(effect.p_lower, effect.p_higher),
            instances=len(trial.instances),
        )
        # The setting that was tried last comes last.
        others = {name: other for name, other in agreement.pauses.items() if name != trial.setting}
        return _changed(
            agreement,
            trial=None,
            pauses={**others, trial.setting: pause},
            finished=(*agreement.finished, finished)[-MOST_FINISHED:],
        )

    def _started(self, agreement: Agreement, standings: Standings) -> Agreement:
        for tunable in self._in_turn(agreement.pauses):
            name, value = tunable.name, float(tunable.get())
            pause = agreement.pauses.get(name, Pause())
            if pause.remaining:
                continue
            proposed = tunable.proposal(value, pause.direction)
            if proposed is None:
                pause = Pause(direction=-pause.direction, length=pause.length)
                proposed = tunable.proposal(value, pause.direction)
            instances = sorted(instance for instance, it in standings.items() if it.settings.get(name) == value)
            if proposed is None or len(instances) < 2:
                continue
            if len(instances) > MOST_INSTANCES:
                instances = sorted(secrets.SystemRandom().sample(instances, MOST_INSTANCES))
            trial = Trial(
                id=self._new_id(),
                setting=name,
                before=value,
                value=proposed,
                instances=tuple(instances),
                blocks=min(MOST_BLOCKS, blocks_needed(len(instances), self._options.significance)),
                since=agreement.round,
                period_since=agreement.round,
            )
            return _changed(agreement, trial=trial, pauses={**agreement.pauses, name: pause})
        return agreement

    def _in_turn(self, pauses: Mapping[str, Pause]) -> Iterator[Tunable]:
        """Yield the settings: first those that were never tried, then the one that was tried longest ago."""
        tunables = {tunable.name: tunable for tunable in self._member.tunables}
        yield from (tunable for name, tunable in tunables.items() if name not in pauses)
        yield from (tunables[name] for name in pauses if name in tunables)


def _changed(document: _StructT, **changes: object) -> _StructT:
    """Return a document with other values in some fields."""
    return msgspec.structs.replace(document, **changes)


def _cost(trial: Trial, verdict: Verdict, rounds: int) -> float:
    """Return how many rounds of the whole fleet a trial of so many rounds has cost."""
    harm = verdict.harm
    if verdict.effect is not None:
        harm = max(harm, math.expm1(min(verdict.effect.estimate, 100.0)))
    return harm * rounds * len(trial.treated(max(1, trial.period))) / len(trial.instances)


def _described(finished: Finished) -> str:
    measured = ""
    if finished.change is not None:
        measured = f"; mean latency {finished.change:+.1%} (p = {finished.p:.2g})"
    used = finished.value if finished.outcome is TrialOutcome.ADOPTED else finished.before
    return (
        f"fleet: trial {finished.id} of setting '{finished.setting}' ended, {finished.value:g} against "
        f"{finished.before:g}: {finished.outcome}{measured}; all instances use {used:g}"
    )
