"""A fleet in simulated time: the real `Coordinator` of each instance, with requests drawn from a model."""

import asyncio
import math
import random
from statistics import fmean

from acgsperf.errors import FleetError
from acgsperf.fleet.coordinator import Coordinator
from acgsperf.fleet.judging import TrialOptions
from acgsperf.fleet.trials import Figures
from acgsperf.fleet.tunable import Tunable

INTERVAL_S = 30.0
REQUESTS_A_ROUND = 60
OPTIONS = TrialOptions(settle_rounds=1, period_rounds=3, period_requests=150)


class Document:
    """The shared document of a server that never fails, unless it is told to."""

    def __init__(self):
        self.revision = 0
        self.blob = b""
        self.down = False

    async def state(self):
        if self.down:
            raise FleetError("it is down")
        return self.revision, self.blob

    async def replace_state(self, expected_revision, document):
        if self.down:
            raise FleetError("it is down")
        if expected_revision != self.revision:
            return False
        self.revision += 1
        self.blob = document
        return True

    def lose_everything(self):
        self.revision, self.blob = 0, b""


class Instance:
    """An instance whose requests take longer or shorter by the value of its setting."""

    def __init__(self, fleet, name, effects):
        self.name = name
        self.value = 5
        self.sets = []
        self.alive = True
        self._fleet = fleet
        self._effects = effects
        self._random = random.Random(f"{fleet.seed}/{name}")
        # Instances differ, and the difference changes slowly.
        self._slowness = self._random.gauss(0, 0.3)
        self._wandering = 0.0
        self._took = []
        self.coordinator = Coordinator(
            fleet.document,
            name,
            [Tunable(name="size", get=lambda: self.value, set=self.set, lower=4, upper=6, step=1)],
            self,
            interval=INTERVAL_S,
            options=fleet.options,
            clock=lambda: fleet.now,
            new_id=lambda: f"{self._random.getrandbits(64):016x}",
        )

    def set(self, value):
        self.value = int(value)
        self.sets.append(self.value)

    def restart(self):
        self._took = []

    def figures(self, rounds):
        took = sorted(self._took)
        if not took:
            return Figures(0, 0, 0.0, 0.0, rounds)
        return Figures(len(took), 0, 1e6 * fmean(took), 1e6 * took[int(0.99 * len(took))], rounds)

    @property
    def effect(self):
        """The factor of the latency by the setting."""
        return 1 + self._effects.get(self.value, 0.0)

    def serve(self):
        """Answer the requests of a round; return the mean latency that the setting cannot change."""
        self._wandering = 0.8 * self._wandering + self._random.gauss(0, 0.03)
        mean = self._slowness + self._wandering + self._fleet.load + self._random.gauss(0, 0.02)
        self._took += [self.effect * self._random.lognormvariate(mean, 1.0) for _ in range(REQUESTS_A_ROUND)]
        return math.exp(mean)


class Fleet:
    """Instances that share a document.

    Args:
        seed: makes a run repeatable.
        instances: how many.
        effects: for a value of the setting, the share by which its latency is higher.
    """

    def __init__(self, seed, instances, effects=None, options=OPTIONS):
        self.seed = seed
        self.now = 0.0
        self.load = 0.0
        self.options = options
        self.document = Document()
        self.finished = []
        self._effects = effects or {}
        self._random = random.Random(seed)
        self.instances = []
        self._without = self._with = 0.0
        for _ in range(instances):
            self.join()

    def join(self):
        self.instances.append(Instance(self, f"{self._random.getrandbits(64):016x}", self._effects))

    @property
    def live(self):
        return [instance for instance in self.instances if instance.alive]

    @property
    def values(self):
        return [instance.value for instance in self.live]

    @property
    def trial(self):
        return next((it.coordinator.agreement.trial for it in self.live if it.coordinator.agreement.trial), None)

    @property
    def leader(self):
        return next(it for it in self.live if it.name == it.coordinator.agreement.coordinator)

    @property
    def harm(self):
        """The share by which the requests of all instances took longer than with the first value."""
        return self._with / self._without - 1

    async def standings(self):
        return {instance.name: instance.coordinator.standing() for instance in self.live}

    async def rounds(self, number):
        for _ in range(number):
            self.now += INTERVAL_S
            # The load of all changes: a day has 500 rounds, and there are gusts.
            day = 0.3 * math.sin(2 * math.pi * self.now / INTERVAL_S / 500)
            self.load = day + self._random.gauss(0, 0.05)
            for instance in self.live:
                usual = instance.serve()
                self._without += usual
                self._with += usual * instance.effect
            for instance in self._random.sample(self.live, len(self.live)):
                await instance.coordinator.follow()
                ended = await instance.coordinator.lead(self.standings)
                if ended is not None:
                    self.finished.append(ended)

    async def until(self, condition, most=200):
        for _ in range(most):
            if condition():
                return
            await self.rounds(1)
        raise AssertionError("it did not happen")


def run(seed, instances, effects, rounds):
    """Return a fleet after some rounds."""
    fleet = Fleet(seed, instances, effects)
    asyncio.run(fleet.rounds(rounds))
    return fleet
