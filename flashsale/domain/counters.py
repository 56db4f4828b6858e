"""What the changes of a sale add up to: how much was sold, how much is held, how much there is."""

from msgspec import Struct

from flashsale.domain.sale import Change, Kind

_STATES = {Kind.PAUSED: "paused", Kind.RESUMED: "open", Kind.CLOSED: "closed"}


class Counters(Struct, array_like=True):
    """Sums over the changes of a sale up to a version, or over a stretch of them."""

    version: int = 0
    """Of the last change."""
    initial: int = 0
    restocked: int = 0
    sold: int = 0
    held: int = 0
    state: str = ""
    """open, paused or closed; empty while no change has said so."""

    @property
    def units(self) -> int:
        """Units of the whole sale."""
        return self.initial + self.restocked

    @property
    def remaining(self) -> int:
        """Units left; negative when more were sold than there are."""
        return self.units - self.sold - self.held

    def follow(self, change: Change) -> None:
        """Add the next change."""
        self.version = change.version
        match change.kind:
            case Kind.OPENED:
                self.initial, self.sold, self.state = change.quantity, change.ref, "open"
            case Kind.SOLD:
                self.sold += change.quantity
            case Kind.HELD:
                self.held += change.quantity
            case Kind.CONFIRMED:
                self.held -= change.quantity
                self.sold += change.quantity
            case Kind.CANCELLED | Kind.EXPIRED:
                self.held -= change.quantity
            case Kind.REFUNDED:
                self.sold -= change.quantity
            case Kind.RESTOCKED:
                self.restocked += change.quantity
            case Kind.PAUSED | Kind.RESUMED | Kind.CLOSED:
                self.state = _STATES[change.kind]
            case _:
                pass  # extended: the same units
