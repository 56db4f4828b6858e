"""What a crowd shall do, and what came of it: the two values that pass between the benchmark and its generators."""

from enum import StrEnum

from msgspec import Struct, structs

CONNECTION_COUNT_MAX = 100_000
REQUEST_COUNT_MAX = 100_000_000
"""Requests of one connection: their numbers have eight digits."""
DURATION_S_MAX = 3_600.0
TIMEOUT_S_DEFAULT = 120.0

SUCCESS = "SUCCESS"
SOLD_OUT = "SOLD_OUT"
ECHO = "ECHO"
"""The request itself came back: the answer of the echo peer."""
CONNECTION_LOST = "CONNECTION_LOST"
NO_ANSWER = "NO_ANSWER"
NOT_SENT = "NOT_SENT"
NOT_CONNECTED = "NOT_CONNECTED"
UNCERTAIN = frozenset({"UNKNOWN", "500", "504", CONNECTION_LOST, NO_ANSWER})
"""Kinds of answers behind which a unit may have been sold or not."""


class Door(StrEnum):
    """What a crowd speaks."""

    TCP = "tcp"
    HTTP = "http"
    """POST /api/purchase, always with request ids."""


class Load(Struct, frozen=True, kw_only=True):
    """One run: a closed loop (`pipeline_depth` requests under way on each connection) or an open one (`rate_per_s`).

    Exactly one of `request_count` (of each connection) and `duration_s` says when it ends.
    """

    host: str
    port: int
    product_id: str
    door: Door = Door.TCP
    connection_count: int
    first_connection: int = 0
    """The number of the first connection; it keeps the user ids of several generators apart."""
    pipeline_depth: int = 1
    request_ids: bool = False
    """Whether each request carries a request id, another one each."""
    request_count: int | None = None
    duration_s: float | None = None
    rate_per_s: float | None = None
    """Open loop: requests a second on all connections together, sent when they are due, whatever the server does."""
    first_due_s: float = 0.0
    """Open loop: when the first request is due, so that several generators take turns."""
    timeout_s: float = TIMEOUT_S_DEFAULT
    """From the start to the end of waiting for answers."""

    @property
    def planned_count(self) -> int | None:
        """How many requests there will be, if that is known beforehand."""
        if self.request_count is not None:
            return self.connection_count * self.request_count
        if self.rate_per_s is not None and self.duration_s is not None:
            return max(1, round(self.rate_per_s * self.duration_s))
        return None

    def with_timeout(self, timeout_s: float | None = None) -> "Load":
        """Return the load with this time-out, or with one that leaves it enough time."""
        if timeout_s is None:
            planned_s = self.duration_s or 0.0
            if self.rate_per_s is not None and self.planned_count is not None:
                planned_s = self.planned_count / self.rate_per_s
            timeout_s = planned_s + TIMEOUT_S_DEFAULT
        return structs.replace(self, timeout_s=timeout_s)

    def shared_among(self, process_count: int) -> list["Load"]:
        """Return the parts of as many generators, fewer if there are fewer connections."""
        process_count = min(process_count, self.connection_count)
        parts = []
        first = self.first_connection
        for index in range(process_count):
            count = (self.connection_count + index) // process_count
            part = structs.replace(self, connection_count=count, first_connection=first)
            if self.rate_per_s is not None:
                share = self.rate_per_s * count / self.connection_count
                part = structs.replace(part, rate_per_s=share, first_due_s=index / self.rate_per_s)
            parts.append(part)
            first += count
        return parts


class Sample(Struct, frozen=True, array_like=True):
    """How many answers there were in one slice of the run, TICK_S long."""

    success_count: int
    sold_out_count: int
    other_count: int


TICK_S = 0.1
"""The length of a sample, and how often a generator tells how far it is."""


class Measured(Struct, frozen=True, kw_only=True):
    """What one generator saw. Moments are nanoseconds of the system's monotonic clock, the same in every process."""

    counts: dict[str, int]
    """Requests by what became of them."""
    latencies_us: dict[int, int]
    """Answers by latency in microseconds."""
    started_ns: int
    ended_ns: int
    samples: list[Sample]
    cpu_s: float
    """CPU time that the generator itself used between start and end."""
    memory_kib: int = 0
    """The most that it had in memory."""
