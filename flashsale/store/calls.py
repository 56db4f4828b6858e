"""A call of the decision script as the bytes that Redis reads: the library's packer took half of a small round."""

from functools import lru_cache

from flashsale.store import keys


def pack_call(command: bytes, script: bytes, product_id: str, *arguments: int | str | bytes) -> bytes:
    """Return one EVALSHA or EVAL with the product's keys, as the Redis protocol (RESP) writes a command.

    Args:
        command: EVALSHA or EVAL.
        script: the digest or the source.
        product_id: whose keys it gets.
        arguments: ARGV.
    """
    count, packed_keys = _pack_keys(product_id)
    packed = [b"*%d\r\n" % (3 + count + len(arguments)), _pack(command), _pack(script), packed_keys]
    packed += [_pack(value if isinstance(value, bytes) else str(value).encode()) for value in arguments]
    return b"".join(packed)


@lru_cache(maxsize=1024)
def _pack_keys(product_id: str) -> tuple[int, bytes]:
    names = keys.script_keys(product_id)
    return len(names), b"".join([_pack(str(len(names)).encode()), *(_pack(name.encode()) for name in names)])


def _pack(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)
