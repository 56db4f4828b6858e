"""Changes of one product in memory, as the frames that tell of them: what many subscribers are served from.

The frames lie one behind the other in one buffer, so that whoever stands at a version gets the rest as one slice.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping

from flashsale.domain.events import FeedEvent, Mark
from flashsale.domain.ids import OrderRef, make_order_id
from flashsale.domain.sale import Change, Kind
from flashsale.wire import encode_feed_event

_SOLD = frozenset({Kind.SOLD, Kind.CONFIRMED})


class Window:
    """A stretch of the ledger of one product: the changes behind version `base` up to `version`.

    Versions that are missing in what is added become one event `gap`.
    """

    __slots__ = ("_cut_size", "_ends", "_frames", "_last_slice", "_versions", "base", "epoch", "opened", "product_id")

    def __init__(self, product_id: str, epoch: str, base: int) -> None:
        """Hold nothing yet.

        Args:
            product_id: whose changes they are.
            epoch: of the product.
            base: the version before the first change to come.
        """
        self.product_id = product_id
        self.epoch = epoch
        self.base = base
        self.opened = 0
        """The version with which the sale was opened, if that ever was in here, trimmed or not; 0 otherwise."""
        self._versions: list[int] = []  # up to which each frame tells
        self._ends: list[int] = []  # where each frame ends, counted from the first that ever was in here
        self._cut_size = 0  # bytes that were in here before
        self._frames = bytearray()
        self._last_slice: tuple[int, int, bytes, int] | None = None

    @property
    def version(self) -> int:
        """The version of the last change in here."""
        return self._versions[-1] if self._versions else self.base

    @property
    def count(self) -> int:
        """How many frames are in here."""
        return len(self._versions)

    @property
    def size(self) -> int:
        """How many bytes they have."""
        return len(self._frames)

    def extend(self, changes: Iterable[Change], order_times: Mapping[int, int]) -> None:
        """Add the changes that come next; those that are in here already are left out.

        Args:
            changes: in order of version.
            order_times: version of a refunded order -> when it was made, in Unix ms, as far as it is known.
        """
        expected = self.version + 1
        for change in changes:
            if change.version < expected:
                continue
            if change.kind is Kind.OPENED:
                self.opened = change.version
            elif change.version > expected:
                self.skip_to(change.version - 1)
            self._append(change.version, encode_feed_event(self._event(change, order_times)))
            expected = change.version + 1

    def skip_to(self, version: int) -> None:
        """Tell that the changes up to this version are missing for good."""
        gap = FeedEvent(event=Mark.GAP, product_id=self.product_id, version=version, after_version=self.version)
        self._append(version, encode_feed_event(gap))

    def after(self, version: int, size_max: int) -> tuple[bytes, int]:
        """Return frames that tell what comes behind a version, and the version that they lead to.

        Args:
            version: at least `base`, and less than `version`.
            size_max: in bytes; one frame is returned also when it is larger.
        """
        last = self._last_slice
        if last is not None and last[0] == version and last[1] == size_max:
            return last[2], last[3]  # most subscribers stand at the same version
        first = bisect_right(self._versions, version)
        start = self._ends[first - 1] if first else self._cut_size
        end = max(first + 1, bisect_right(self._ends, start + size_max))
        frames = bytes(self._frames[start - self._cut_size : self._ends[end - 1] - self._cut_size])
        self._last_slice = (version, size_max, frames, self._versions[end - 1])
        return frames, self._versions[end - 1]

    def trim(self, count_max: int, size_max: int) -> None:
        """Let go of the oldest frames beyond so many, or so many bytes."""
        if len(self._versions) <= count_max and len(self._frames) <= size_max:
            return
        end = self._cut_size + len(self._frames)
        cut = max(len(self._versions) - count_max, bisect_left(self._ends, end - size_max) + 1)
        cut = min(cut, len(self._versions))
        self.base = self._versions[cut - 1]
        del self._frames[: self._ends[cut - 1] - self._cut_size]
        self._cut_size = self._ends[cut - 1]
        del self._versions[:cut], self._ends[:cut]
        self._last_slice = None

    def _append(self, version: int, frame: bytes) -> None:
        self._frames += frame
        self._versions.append(version)
        self._ends.append(self._cut_size + len(self._frames))
        self._last_slice = None

    def _event(self, change: Change, order_times: Mapping[int, int]) -> FeedEvent:
        if change.kind in _SOLD:
            order_version, ordered_at_ms = change.version, change.at_ms
        else:
            order_version, ordered_at_ms = change.ref, order_times.get(change.ref, 0)
        is_order = change.kind in _SOLD or (change.kind is Kind.REFUNDED and ordered_at_ms > 0)
        order = OrderRef(self.product_id, self.epoch, order_version, ordered_at_ms)
        return FeedEvent(
            event=change.kind,
            product_id=self.product_id,
            version=change.version,
            timestamp=change.at_ms // 1000,
            remaining=change.remaining,
            buyer=change.user_id,
            quantity=change.quantity,
            item_id=change.item_id,
            order_id=make_order_id(order) if is_order else "",
            epoch=self.epoch if change.kind is Kind.OPENED else "",
        )
