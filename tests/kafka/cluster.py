"""A Kafka cluster for the tests: librdkafka's own, which is in the wheel of confluent-kafka, in a process of its own.

It speaks the protocol of Kafka over TCP (produce, idempotence, fetch, groups, offsets) and keeps everything in memory.
It is no broker: it says nothing about durability.
"""

import ctypes
import subprocess
import sys
from pathlib import Path

import confluent_kafka


class Cluster:
    """One that runs until it is closed; its topics are made when they are first named, with four partitions."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.brokers = self._read()
        """As a client wants them."""

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        assert self._read() == "done"

    def down(self) -> None:
        """Break all connections, and take no new ones; what it has stays."""
        self._tell("down")

    def up(self) -> None:
        """Take connections again."""
        self._tell("up")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def main() -> None:
    """Run a cluster until the standard input ends."""
    [path] = Path(f"{confluent_kafka.__path__[0]}.libs").glob("librdkafka*")
    library = ctypes.CDLL(str(path))
    library.rd_kafka_new.restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_new.restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    reason = ctypes.create_string_buffer(512)
    client = library.rd_kafka_new(0, None, reason, ctypes.c_size_t(len(reason)))
    assert client, reason.value
    cluster = ctypes.c_void_p(library.rd_kafka_mock_cluster_new(ctypes.c_void_p(client), 1))
    library.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 0)  # the first member need not wait for others
    print(library.rd_kafka_mock_cluster_bootstraps(cluster).decode(), flush=True)  # noqa: T201
    commands = {"down": library.rd_kafka_mock_broker_set_down, "up": library.rd_kafka_mock_broker_set_up}
    for line in sys.stdin:
        commands[line.strip()](cluster, -1)
        print("done", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
