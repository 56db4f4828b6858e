"""Where the store is: one URL, made from whatever the user gave, and fit to be shown."""

from urllib.parse import quote, urlsplit, urlunsplit

from redis.asyncio.connection import ConnectionPool, parse_url
from redis.exceptions import RedisError

from flashsale.errors import InvalidValueError


def redis_url(value: str) -> str:
    """Return the URL of a `redis://`, `rediss://` or `unix://` URL or of a `host:port`.

    Raises:
        InvalidValueError: it is none of these, or says not where: what is left out may be localhost for the library,
            but here it is most likely a variable that was never set.
    """
    url = value if "://" in value else f"redis://{value}"
    try:
        where = parse_url(url)
        urlsplit(url).port  # noqa: B018 - raises when it is not a number
        # raises when there is no such parameter, and does not connect yet
        ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
        if "\0" in url or not (where.get("path") or is_host(where.get("host", ""))):
            raise ValueError
    except (ValueError, TypeError, AttributeError, RedisError):  # the last three tell of parameters
        raise InvalidValueError(
            f"'{shown_url(value)}' is not a Redis address: give redis://HOST, rediss://HOST, unix://PATH or HOST:PORT"
        ) from None
    return url


def is_host(name: str) -> bool:
    """Whether it can be looked up as the name or address of a machine; an empty one is none."""
    try:
        return bool(name.encode("idna")) and "\0" not in name
    except UnicodeError:  # an empty label, or one of more than 63 characters
        return False


def unix_url(path: str) -> str:
    """Return the URL of a unix socket."""
    return f"unix://{quote(path)}"


def shown_url(url: str) -> str:
    """Return the URL as it may be printed and logged: `redis://` alone goes, and a password never shows."""
    try:
        parts = urlsplit(url)
    except ValueError:  # no URL at all: show nothing that could be a password
        return "***@" + url.rpartition("@")[2] if "@" in url else url
    if "@" in parts.netloc:
        parts = parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2])
    if "password" in parts.query:
        parts = parts._replace(query="***")
    shown = urlunsplit(parts)
    return f"unix://{parts.path}" if parts.scheme == "unix" else shown.removeprefix("redis://")
