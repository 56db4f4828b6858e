"""The errors a caller of the package can meet, each one sentence for a person.

Everything raised on purpose derives from `FlashsaleError`; the CLI prints its text on one line and exits with 1.
"""


class FlashsaleError(Exception):
    """Something a person has to read: the text is one clear sentence."""


class InvalidValueError(FlashsaleError, ValueError):
    """An id, a stock, a setting or an address that cannot be used."""


class ConfigError(InvalidValueError):
    """A settings file, an environment variable or a flag that cannot be read."""


class ProductNotFoundError(FlashsaleError):
    """There is no product of that id."""

    def __init__(self, product_id: str) -> None:
        super().__init__(f"Product '{product_id}' not found")
        self.product_id = product_id


class ProductExistsError(FlashsaleError):
    """The product has buyers already, and the operator did not say to overwrite them."""


class ScheduleNotFoundError(FlashsaleError):
    """There is no schedule of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"Schedule '{name}' not found")
        self.name = name


class RefusedError(FlashsaleError):
    """The rules of a sale do not allow what the operator asked for; nothing was changed."""


class OutcomeUnknownError(FlashsaleError):
    """The store fell silent in the middle of an operator's command: it may have been done."""


class StoreUnavailableError(FlashsaleError):
    """Redis cannot be reached, or answered with an error; nothing was changed."""


class StoreRefusedError(FlashsaleError):
    """Redis can be reached but keeps less than was promised to buyers (`--durability`)."""


class ListenError(FlashsaleError):
    """The address to listen on cannot be had."""


class ConnectionLostError(FlashsaleError):
    """The link to the flashsale server broke: the outcome of a request is unknown, unless it is a NotSentError."""


class NotSentError(ConnectionLostError):
    """The request certainly reached no sale: to repeat it is safe, also without a request id."""


class AnswerTimeoutError(FlashsaleError):
    """The flashsale server did not answer in time: the outcome is unknown."""


class ProtocolError(FlashsaleError):
    """The other side sent bytes that are not the protocol of protocol.md."""


class DatabaseError(FlashsaleError):
    """The database of the orders cannot be reached, or refuses; what it refused was not done."""

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final
        """It will never take these rows."""


class BrokerUnavailableError(FlashsaleError):
    """Kafka cannot be reached, or refuses."""


class LedgerGapError(FlashsaleError):
    """Changes of a product are missing between the tables and the ledger."""

    def __init__(self, product_id: str, version: int, next_version: int) -> None:
        super().__init__(
            f"the ledger of product '{product_id}' goes on with version {next_version},"
            f" the tables hold what came up to version {version}"
        )
