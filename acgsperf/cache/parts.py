"""The parts of a tiered cache, and how they are connected, opened and closed."""

import math
from contextlib import AsyncExitStack
from typing import Any, Final

from msgspec.structs import replace

from acgsperf._native.entry import Codec, Packed
from acgsperf.backplane import Backplane, beside
from acgsperf.cache.l1 import L1, most_entries
from acgsperf.cache.listener import CacheListener
from acgsperf.cache.loading import Loading
from acgsperf.cache.lookup import Lookup
from acgsperf.cache.lower_tiers import LowerTiers
from acgsperf.cache.predicted_loads import PredictedLoads
from acgsperf.cache.prediction import Prediction, Prefetch
from acgsperf.cache.process_lock import ProcessLock
from acgsperf.cache.promotion import Promotion
from acgsperf.cache.repairs import Repairs
from acgsperf.cache.staleness import Staleness
from acgsperf.cache.writes import Writes
from acgsperf.counting import note
from acgsperf.dispatch import BoundedCache, ReadPath
from acgsperf.errors import CacheError
from acgsperf.tiers.base import Tier
from acgsperf.tiers.ids import new_id
from acgsperf.tiers.records import Record

__all__ = ["AUTOMATIC", "Parts"]

# Stands for the backplane on the server of a tier.
AUTOMATIC: Final[Any] = object()
_CLOSE_GRACE_S: Final = 5.0
_PROMOTION: Final = 3
_PROMOTION_WITH_PREDICTION: Final = 1


class Parts:
    """Everything that a `TieredCache` is made of.

    A read goes down: `l1`, `lookup`, `loading`. A write goes down: `writes`, `lower_tiers`. What other processes write
    comes from the backplane through `listener`.

    Args:
        lru: holds the values of L1.
        l2: the faster tier, or None.
        l3: the slower tier, or None.
        namespace: the namespace of the cache.
        staleness: the options about time.
        negative_maxsize: the maximum number of negative entries.
        promotion_threshold: the hit in the lower tiers at which a value is copied to L1; None for 3, or with prediction
            for 1.
        demotion: whether what L1 evicts may be stored in L2.
        backplane: tells other processes what this one writes; None for none, `AUTOMATIC` for one on the server
            of a tier.
        backplane_timeout: the seconds without an answer of its server after which L1 asks the tiers first.
        codec: opens the values; None if they have no declared type.
        prediction: how to fetch keys ahead of their requests; None for not at all.

    Raises:
        TypeError, ValueError: if an argument is not valid.
    """

    def __init__(
        self,
        lru: BoundedCache[str, Any],
        l2: Tier | None,
        l3: Tier | None,
        *,
        namespace: str,
        staleness: Staleness,
        negative_maxsize: int,
        promotion_threshold: int | None,
        demotion: bool,
        backplane: Backplane | None,
        backplane_timeout: float,
        codec: Codec | None,
        prediction: Prediction | None,
    ) -> None:
        self.namespace: Final = namespace
        self.codec: Final = codec
        self.clock: Final = staleness.clock
        self.lower_tiers: Final = LowerTiers(l2, l3, staleness.retention, staleness.deadline)
        tiers = self.lower_tiers
        self.promotion: Final = Promotion(
            _PROMOTION if promotion_threshold is None else promotion_threshold, most_entries(lru)
        )
        lock = None if staleness.lock_ttl is None else ProcessLock(l2, staleness.lock_ttl)
        self.l1: L1[Any] = L1(lru, staleness, negative_maxsize, tiers.demote if demotion else None, bool(tiers.tiers))
        self.lookup: Final = Lookup(self.l1, tiers, staleness, self.promotion)
        self.read_path: Final = ReadPath(
            self.l1.side_caches,
            self.lookup.begin_get or _nothing,
            self.promotion,
            staleness.clock,
            Packed,
            codec is not None,
        )
        self.loading: Final = Loading(namespace, self.l1, tiers, self.lookup, staleness, lock)
        self.prefetch: Final = Prefetch.create(prediction, codec, self.l1, tiers, self.lookup, staleness)
        self.loading.prefetch = self.prefetch
        if self.prefetch is not None and prediction is not None and prediction.loads:
            self.prefetch.loads = PredictedLoads(self.loading.load, self.prefetch.load_ended)
        if self.prefetch is not None and promotion_threshold is None:
            # Otherwise L1 would not get what the policy and the predictor expect it to have.
            self.promotion.set_threshold(_PROMOTION_WITH_PREDICTION)
        self.repairs: Final = Repairs(tiers, self._apply, self._publish)
        self.writes: Final = Writes(self.l1, tiers, self.loading, self.promotion, self.repairs)
        self.listener: Final = CacheListener(
            self.l1, tiers, self.loading, self.repairs, None if lock is None else lock.released
        )
        self._writer = new_id()
        self.backplane: Final = self._connected(backplane, backplane_timeout, lock)
        note(self, lru, l2, l3, self.backplane)

    def switch_prediction(self, wanted: bool) -> None:
        """Turn prediction on or off.

        Raises:
            CacheError: if it cannot be turned on.
        """
        if self.prefetch is not None:
            self.prefetch.enabled = wanted
        elif wanted:
            raise CacheError(f"cache {self.namespace!r} cannot predict: it was made without prediction")

    def _connected(self, backplane: Backplane | None, timeout: float, lock: ProcessLock | None) -> Backplane | None:
        """Choose the backplane, and let the tier on its server publish its own writes."""
        if backplane is AUTOMATIC:
            backplane = None
            for tier in self.lower_tiers.tiers:
                if backplane is None:
                    backplane = beside(tier, timeout)
        elif backplane is not None and not isinstance(backplane, Backplane):
            raise TypeError(f"backplane must be a Backplane or None, got {type(backplane).__name__}")
        if backplane is None:
            return None
        home = next((tier for tier in self.lower_tiers.tiers if backplane.shares_server_with(tier)), None)
        self.writes.publish = backplane.publish
        if home is not None:
            home.writer = self._writer
            self.writes.is_published_by_tier = True
            if home is self.lower_tiers.l2:
                self.lower_tiers.log_position = lambda: backplane.position or None
                if lock is not None:
                    lock.wakes = True
        return backplane

    def _apply(self, record: Record) -> None:
        self.listener.apply(replace(record, writer=self._writer))

    def _publish(self, record: Record) -> None:
        if self.backplane is not None:
            self.backplane.publish(record)

    async def open(self) -> None:
        """Open the tiers, then the backplane."""
        await self.lower_tiers.open(self.namespace)
        try:
            if self.backplane is not None:
                await self.backplane.open(self.namespace, self.listener, self._writer)
        except BaseException:
            await self.lower_tiers.close()
            raise
        self.l1.open()
        self.repairs.open(self.namespace)
        self.lookup.open()
        self.loading.flights.open()
        if self.prefetch is not None:
            self.prefetch.open()

    async def close(self) -> None:
        """Cancel the loads, end the writes, leave the backplane, and close the tiers: all of it, even if cancelled."""
        self.l1.close()
        async with AsyncExitStack() as stack:
            # The last one comes first.
            stack.callback(self.lookup.close)
            stack.push_async_callback(self.lower_tiers.close)
            # The last records of watched tables arrive while the cache leaves.
            stack.push_async_callback(self.listener.close)
            stack.push_async_callback(self._leave)
            stack.push_async_callback(self.lower_tiers.end_stores)
            stack.push_async_callback(self.repairs.close)
            stack.push_async_callback(self.writes.close)
            if self.prefetch is not None:
                stack.push_async_callback(self.prefetch.close)
            await self.loading.flights.close(_CLOSE_GRACE_S)

    async def _leave(self) -> None:
        if self.backplane is not None:
            try:
                await self.backplane.close()
            finally:
                # From now on, this process gets no records of other processes.
                self.l1.verify_all()
                self.l1.answer_until(math.inf)


def _nothing(key: str) -> None:
    """Start no read."""
