"""What an audit of a product found, and what would set it right."""

from typing import TypeAlias

from msgspec import Struct, field

DIFFERENCES_KEPT = 1_000
"""Of a product; the others are only counted."""
Command: TypeAlias = tuple[str | int | bytes, ...]
"""Name, number of the key, arguments."""


class Difference(Struct, frozen=True):
    """One thing that is not as the ledger says."""

    what: str
    found: str
    expected: str


class Report(Struct, kw_only=True):
    """What an audit of a product found."""

    product_id: str
    first_version: int = 0
    """0 for a product without a ledger, whose stock was set by hand."""
    version: int = 0
    trimmed: bool = False
    """The ledger begins in the middle of the sale: only counters and versions were compared."""
    units: int = 0
    remaining: int = 0
    held: int = 0
    sold: int = 0
    fault: str = ""
    """What is wrong with the ledger itself, so that nothing could be computed from it."""
    differences: list[Difference] = field(default_factory=list)
    difference_count: int = 0
    commands: list[Command] = field(default_factory=list)
    """What mends them."""

    @property
    def ok(self) -> bool:
        """Whether all is well."""
        return not self.fault and not self.difference_count

    def differ(self, what: str, found: object, expected: object, *commands: Command) -> None:
        """Note that something is not as it must be, and what mends it."""
        self.difference_count += 1
        if len(self.differences) < DIFFERENCES_KEPT:
            self.differences.append(Difference(what, shown(found), shown(expected)))
        self.commands += commands

    def compare(self, what: str, found: object, expected: object, *commands: Command) -> None:
        """Note a difference if there is one."""
        if shown(found) != shown(expected):
            self.differ(what, found, expected, *commands)


def shown(value: object) -> str:
    """Return a value as it is compared and told."""
    if value is None:
        return "none"
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, float):
        return f"{value:.0f}" if value == int(value) else str(value)
    return str(value)
