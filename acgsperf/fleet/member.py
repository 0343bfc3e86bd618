"""What every instance of a fleet does for coordinated tuning: it uses the values that were agreed on, and measures."""

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from acgsperf.fleet.judging import TrialOptions
from acgsperf.fleet.trials import Figures, Standing, Trial
from acgsperf.fleet.tunable import Tunable

__all__ = ["Member", "Meter"]

_log: Final = logging.getLogger("acgsperf.fleet")


class Meter(Protocol):
    """Measures the requests of this instance."""

    def restart(self) -> None:
        """Begin a new measurement."""

    def figures(self, rounds: int) -> Figures:
        """Return what was measured since the last restart, `rounds` rounds ago."""


class Member:
    """The settings of one instance, and what it measures in the current trial.

    Args:
        instance: names this instance.
        tunables: its settings; their names must differ.
        meter: measures its requests.
        options: how trials are made.

    Raises:
        ValueError: if two settings have the same name.
    """

    def __init__(self, instance: str, tunables: Iterable[Tunable], meter: Meter, options: TrialOptions) -> None:
        self._instance = instance
        listed = list(tunables)
        self._settings: Final = {tunable.name: _Setting(tunable) for tunable in listed}
        if len(self._settings) < len(listed):
            raise ValueError(f"tunables must have different names, got {[tunable.name for tunable in listed]}")
        self._meter = meter
        self._settle_rounds = options.settle_rounds
        self._trial = ""
        self._period = -1
        self._rounds_to_settle = 0
        self._rounds = 0
        self._periods: dict[int, Figures] = {}

    @property
    def tunables(self) -> list[Tunable]:
        """The settings that only the fleet changes. Someone else has changed the others."""
        return [setting.tunable for setting in self._settings.values() if not setting.released]

    @property
    def arm(self) -> str:
        """The part of a trial that this instance is in, for people; empty for none."""
        return f"{self._trial}/{self._period}" if self._trial else ""

    def use(self, adopted: Mapping[str, float], trial: Trial | None) -> None:
        """Use the adopted values, and in a trial the one that this instance is to try. Everything else is undone."""
        wanted = dict(adopted)
        takes_part = trial is not None and self._instance in trial.instances
        if trial is not None and takes_part:
            treated = self._instance in trial.treated(trial.period)
            wanted[trial.setting] = trial.value if treated else trial.before
        self._note_measurement(trial if takes_part else None)
        for name, setting in self._settings.items():
            used = setting.use(wanted.get(name))
            if trial is not None and name == trial.setting and not used:
                takes_part = False
        if trial is None or not takes_part or trial.setting not in self._settings:
            self._trial, self._period, self._periods = "", -1, {}

    def let_go(self) -> None:
        """Leave the settings as they are to someone else, until the next `use`."""
        for setting in self._settings.values():
            setting.let_go()

    def measure(self) -> None:
        """End a round."""
        if not self._trial:
            return
        if self._rounds_to_settle:
            self._rounds_to_settle -= 1
            if self._period == 1:
                # The first use of a new value: if that is much worse, the trial ends at once.
                self._periods[1] = self._meter.figures(0)
            if not self._rounds_to_settle:
                self._meter.restart()
                self._rounds = 0
            return
        self._rounds += 1
        self._periods[self._period] = self._meter.figures(self._rounds)

    def standing(self) -> Standing:
        """Return what this instance tells the coordinator."""
        settings = {tunable.name: float(tunable.get()) for tunable in self.tunables}
        return Standing(settings=settings, trial=self._trial, periods=self._periods)

    def _note_measurement(self, trial: Trial | None) -> None:
        """Begin another measurement if the trial or its period is another one."""
        found = ("", -1) if trial is None else (trial.id, trial.period)
        if found == (self._trial, self._period):
            return
        if found[0] != self._trial:
            self._periods = {}
        self._trial, self._period = found
        self._rounds_to_settle = self._settle_rounds
        self._meter.restart()


class _Setting:
    """A setting: its own value, and the one that the fleet has given it.

    Attributes:
        tunable: the setting.
        released: whether someone else has changed it meanwhile. Then their value stays, until the process ends.
    """

    def __init__(self, tunable: Tunable) -> None:
        self.tunable: Final = tunable
        self.released = False
        self._own: float | None = None
        self._given: float | None = None

    def let_go(self) -> None:
        """Forget which values are in use."""
        self._own = self._given = None

    def use(self, wanted: float | None) -> bool:
        """Use a value; None for the one from before the fleet changed it. Return whether it is in use."""
        tunable = self.tunable
        if self.released:
            return False
        if self._given is not None and not math.isclose(tunable.get(), self._given, rel_tol=1e-9):
            self.released = True
            _log.warning(
                "setting '%s': changed to %g by the application; the fleet no longer tunes it in this process",
                *(tunable.name, tunable.get()),
            )
            return False
        if wanted is None and self._given is None:
            return True
        value = self._own if wanted is None else wanted
        assert value is not None
        if wanted is not None and not tunable.lower <= wanted <= tunable.upper:
            # Bounds differ between instances if their configuration does.
            self.use(None)
            return False
        if self._own is None:
            self._own = tunable.get()
        if value != tunable.get():
            try:
                tunable.set(value)
            except Exception:
                _log.exception("setting '%s': cannot be set to %r; trying again in the next round", tunable.name, value)
                self._given = tunable.get()
                return False
        self._given = None if wanted is None else tunable.get()
        if wanted is None:
            self._own = None
        return True
