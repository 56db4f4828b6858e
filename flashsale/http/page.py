"""The page at `/`, on which people watch sales: one file, sent as it is."""

import hashlib
import re
from base64 import b64encode
from importlib.resources import files

from flashsale.http.asks import header
from flashsale.http.replies import Headers, Receive, Reply, Scope

_INLINE = {kind: re.compile(rb"<%s>(.*?)</%s>" % (kind, kind), re.DOTALL) for kind in (b"style", b"script")}


class WatchPage:
    """Answers with the page, or that it is the one that the browser has already."""

    def __init__(self) -> None:
        body = files("flashsale.http").joinpath("page.html").read_bytes()
        tag = b'"%s"' % hashlib.sha256(body).hexdigest()[:32].encode()
        headers = [(b"etag", tag), (b"cache-control", b"no-cache"), *_protection(body)]
        kind = [(b"content-type", b"text/html; charset=utf-8"), (b"content-length", b"%d" % len(body))]
        self._tag = tag.decode()
        self._page = Reply(200, [*kind, *headers], body)
        self._unchanged = Reply(304, headers, b"")

    async def read(self, scope: Scope, receive: Receive) -> Reply:
        """Answer GET /."""
        known = header(scope, b"if-none-match") or ""
        tags = {tag.strip().removeprefix("W/") for tag in known.split(",")}
        return self._unchanged if tags & {self._tag, "*"} else self._page


def _protection(body: bytes) -> Headers:
    """Return headers that let the page run its own style and script, ask this server, and nothing else.

    What buyers call themselves is shown on it: should one of them ever become markup, it still does nothing.
    """
    rules = {
        b"default-src": b"'none'",
        b"style-src": _digests(b"style", body),
        b"script-src": _digests(b"script", body),
        b"connect-src": b"'self'",
        b"img-src": b"data:",
        b"base-uri": b"'none'",
        b"form-action": b"'none'",
        b"frame-ancestors": b"'none'",
    }
    policy = b"; ".join(b"%s %s" % rule for rule in rules.items())
    return [
        (b"content-security-policy", policy),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    ]


def _digests(kind: bytes, body: bytes) -> bytes:
    """Return the sources that allow the style or the script as it stands in the page."""
    found = (b64encode(hashlib.sha256(text).digest()) for text in _INLINE[kind].findall(body))
    return b" ".join(b"'sha256-%s'" % digest for digest in found)
