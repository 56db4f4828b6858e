"""How much a store keeps, and whether that is as much as was promised to buyers.

The table is the README's "Durability". A store that does not let its settings be read counts as keeping nothing.
"""

from enum import StrEnum

from flashsale.errors import StoreRefusedError


class Durability(StrEnum):
    """What a confirmed sale survives."""

    LOCAL = "local"
    """Kill -9 of anything and a power cut: append-only file, fsync before every answer, no eviction."""

    REPLICATED = "replicated"
    """Besides, the death of the primary: an answer waits until the replicas have what it tells."""

    STRICT = "strict"
    """Besides, the loss of the whole store: an answer waits until the database has what it tells."""

    RELAXED = "relaxed"
    """Whatever the store happens to be set to: a crash of the store may lose confirmed sales."""


REQUIRED = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}
"""The settings of the store that all levels but `relaxed` stand on."""


def check_durability(
    durability: Durability,
    settings: dict[str, str] | None,
    role: str,
    *,
    replica_count: int = 0,
    replicas_needed: int = 0,
) -> None:
    """Raise StoreRefusedError, with the way out in its text, when the store keeps less than was promised.

    Args:
        durability: what was promised.
        settings: the store's CONFIG values of the names in REQUIRED, None when it does not let them be read.
        role: the store's ROLE.
        replica_count: how many replicas are connected to it.
        replicas_needed: how many have to be.
    """
    if role != "master":
        raise StoreRefusedError(f"the store is a {role}, not a primary: it cannot take sales")
    if replica_count < replicas_needed:
        raise StoreRefusedError(
            f"the store has replicas: {replica_count}, and needs {replicas_needed}: start them, or say how many with"
            " --replicas"
        )
    if durability is Durability.RELAXED:
        return
    way_out = f"set that on the store, or accept the risk with --durability {Durability.RELAXED}"
    if settings is None:
        raise StoreRefusedError(
            "the store does not let its settings be read (CONFIG GET), so nothing says that it keeps what it confirms: "
            f"it needs {_settings(REQUIRED)}; {way_out}"
        )
    weaker = {name: settings.get(name, "unset") for name, value in REQUIRED.items() if settings.get(name) != value}
    if weaker:
        needed = {name: REQUIRED[name] for name in weaker}
        raise StoreRefusedError(
            f"the store could lose confirmed sales: it has {_settings(weaker)}, but {_settings(needed)} is needed; "
            f"{way_out}"
        )


def _settings(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
