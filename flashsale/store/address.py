"""Where the store is: one URL, made from whatever the user gave, and fit to be shown."""

from urllib.parse import quote, urlsplit, urlunsplit

from redis.asyncio.connection import parse_url

from flashsale.errors import InvalidValueError


def redis_url(value: str) -> str:
    """Return the URL of a `redis://`, `rediss://` or `unix://` URL or of a `host:port`.

    Raises:
        InvalidValueError: it is none of these.
    """
    url = value if "://" in value else f"redis://{value}"
    try:
        parse_url(url)
        urlsplit(url).port  # noqa: B018 - raises when it is not a number
    except ValueError:
        raise InvalidValueError(
            f"'{shown_url(value)}' is not a Redis address: give redis://, rediss:// or unix:// and a path, or HOST:PORT"
        ) from None
    return url


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
