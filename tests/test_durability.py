"""A store that keeps less than was promised is refused, with the way out in the sentence."""

import pytest

from flashsale.errors import StoreRefusedError
from flashsale.store.durability import REQUIRED, Durability, check_durability


def test_store_that_keeps_everything_is_taken() -> None:
    check_durability(Durability.LOCAL, dict(REQUIRED), "master")
    check_durability(Durability.LOCAL, {**REQUIRED, "hz": "10"}, "master")


@pytest.mark.parametrize(
    ("changed", "has", "needed"),
    [
        ({"appendonly": "no"}, "appendonly no", "appendonly yes is needed"),
        ({"appendfsync": "everysec"}, "appendfsync everysec", "appendfsync always is needed"),
        ({"maxmemory-policy": "allkeys-lru"}, "maxmemory-policy allkeys-lru", "maxmemory-policy noeviction is needed"),
        (
            {"appendonly": "no", "appendfsync": "no"},
            "appendonly no, appendfsync no",
            "appendonly yes, appendfsync always is needed",
        ),
    ],
)
def test_weaker_store_is_refused_and_the_flag_is_named(changed: dict[str, str], has: str, needed: str) -> None:
    settings = {**REQUIRED, **changed}
    with pytest.raises(StoreRefusedError) as caught:
        check_durability(Durability.LOCAL, settings, "master")
    sentence = str(caught.value)
    assert f"it has {has}, but {needed}" in sentence
    assert "--durability relaxed" in sentence
    check_durability(Durability.RELAXED, settings, "master")


def test_setting_the_store_does_not_know_counts_as_unset() -> None:
    with pytest.raises(StoreRefusedError, match="it has appendfsync unset"):
        check_durability(Durability.LOCAL, {"appendonly": "yes", "maxmemory-policy": "noeviction"}, "master")


def test_store_that_does_not_let_itself_be_looked_at_is_refused() -> None:
    with pytest.raises(
        StoreRefusedError, match=r"CONFIG GET.*appendonly yes, appendfsync always.*--durability relaxed"
    ):
        check_durability(Durability.LOCAL, None, "master")
    check_durability(Durability.RELAXED, None, "master")


@pytest.mark.parametrize("durability", list(Durability))
@pytest.mark.parametrize("role", ["slave", "sentinel"])
def test_store_that_is_no_primary_is_refused_whatever_was_promised(durability: Durability, role: str) -> None:
    with pytest.raises(StoreRefusedError, match=f"the store is a {role}, not a primary"):
        check_durability(durability, dict(REQUIRED), role)
