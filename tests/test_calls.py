import hiredis

from flashsale.store import keys
from flashsale.store.calls import pack_call


def test_a_call_is_read_as_what_was_packed() -> None:
    for product_id in ("p", "Zoë \r\n $3", "x" * 300):
        reader = hiredis.Reader()
        reader.feed(pack_call(b"EVALSHA", b"digest", product_id, "session", 12, 0, "ü", b"", b"\x00\r\n$1\r\n", 2**60))
        names = [name.encode() for name in keys.script_keys(product_id)]
        arguments = [b"session", b"12", b"0", "ü".encode(), b"", b"\x00\r\n$1\r\n", str(2**60).encode()]
        assert reader.gets() == [b"EVALSHA", b"digest", str(len(names)).encode(), *names, *arguments]
        assert reader.gets() is False
