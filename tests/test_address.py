"""The address of a store: read from whatever the user gave, and shown without its secrets."""

import pytest
from redis.asyncio.connection import parse_url

from flashsale.errors import InvalidValueError
from flashsale.store.address import redis_url, shown_url, unix_url

ADDRESSES = [
    ("localhost:6379", "redis://localhost:6379", "localhost:6379"),
    ("10.0.0.1:7000", "redis://10.0.0.1:7000", "10.0.0.1:7000"),
    ("[::1]:6379", "redis://[::1]:6379", "[::1]:6379"),
    ("localhost", "redis://localhost", "localhost"),
    ("redis://localhost:6379/2", "redis://localhost:6379/2", "localhost:6379/2"),
    ("rediss://example.com:6380", "rediss://example.com:6380", "rediss://example.com:6380"),
    ("unix:///run/redis.sock", "unix:///run/redis.sock", "unix:///run/redis.sock"),
    ("redis://user:secret@host:1", "redis://user:secret@host:1", "***@host:1"),
    ("redis://:p@ss@host:1", "redis://:p@ss@host:1", "***@host:1"),
    ("user:secret@host:1", "redis://user:secret@host:1", "***@host:1"),
    ("rediss://:secret@host", "rediss://:secret@host", "rediss://***@host"),
    ("redis://host?password=secret&db=1", "redis://host?password=secret&db=1", "host?***"),
    ("unix://:secret@/run/r.sock", "unix://:secret@/run/r.sock", "unix:///run/r.sock"),
]


@pytest.mark.parametrize(("given", "url", "shown"), ADDRESSES)
def test_address_is_read_and_shown(given: str, url: str, shown: str) -> None:
    assert redis_url(given) == url
    assert shown_url(url) == shown
    assert "secret" not in shown_url(url)
    assert "p@ss" not in shown_url(url)


@pytest.mark.parametrize(
    "given",
    [
        *(
            "http://localhost:6379",
            "localhost:port",
            "redis://localhost:99999",
            "valkey+unix:///x",
            "://",
            "redis://[::1",
        ),
        *("", ":", ":6379", "redis://", "redis://:6379", "redis:///2", "redis://user:pass@", "unix://"),  # where?
        *("a..b:6379", "redis://a..b", "redis://a\0b", "unix:///a\0b"),
        *("redis://h?no_such=1", "redis://h?retry=1", "redis://h?protocol=7"),
    ],
)
def test_address_that_is_none_is_refused_with_a_sentence(given: str) -> None:
    with pytest.raises(InvalidValueError, match="is not a Redis address: give redis://"):
        redis_url(given)


def test_refusal_does_not_show_the_password() -> None:
    with pytest.raises(InvalidValueError) as caught:
        redis_url("http://user:secret@host")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("path", ["/run/flash sale/v.sock", "/tmp/50%/v.sock", "/tmp/ü/v.sock", "/tmp/a?b/v.sock"])
def test_unix_socket_of_any_name_is_found(path: str) -> None:
    assert parse_url(unix_url(path))["path"] == path
