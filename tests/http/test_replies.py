"""How an answer gets onto the wire."""

import pytest

from flashsale.http.replies import Reply, json_reply
from tests.http.client import Raw

PURCHASE = b"POST /api/purchase HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n%s\r\n{}"


def test_a_reply_is_its_bytes():
    reply = json_reply(200, {"a": 1}, headers=[(b"x", b"y")])
    head, body = reply.as_bytes((b"connection", b"close")).split(b"\r\n\r\n")
    assert body == b'{"a":1}'
    assert head.split(b"\r\n")[0] == b"HTTP/1.1 200 OK"
    assert {b"connection: close", b"content-length: 7", b"x: y"} < set(head.split(b"\r\n"))


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb"])
def test_a_header_has_one_line(value):
    with pytest.raises(ValueError, match="more than one line"):
        Reply(200, [(b"x", value)], b"").as_bytes()


def test_an_answer_comes_in_one_piece_and_the_connection_goes_on(server):
    with Raw(server.http_port) as raw:
        for _ in range(50):
            raw.send(PURCHASE % b"")
            assert raw.socket.recv(1 << 16).endswith(b'{"success":false,"message":"missing required fields"}')


def test_who_wants_no_other_answer_is_told_so(server):
    with Raw(server.http_port) as raw:
        raw.send(PURCHASE % b"Connection: close\r\n")
        answer = raw.read()
    assert b"connection: close\r\n" in answer
    assert answer.endswith(b'"missing required fields"}')
