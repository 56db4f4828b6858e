"""The tables: what a shop reads of its sales. Made by the migrations beside this file, which have the same names.

Every row follows from the ledger alone, but those of dead_letters and of the attempts, which are no part of it.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeDecorator, TypeEngine

from flashsale.domain.bounds import ID_SIZE_MAX, REQUEST_ID_SIZE_MAX, USER_ID_SIZE_MAX

ORDER_ID_SIZE_MAX = ID_SIZE_MAX + 64
"""Time, version and epoch stand before the product; 32 is what they have in this century."""
_NAME_COUNT = 1_000
"""Products in one query: databases take some ten thousand values at most."""
RESET = "reset"
"""The state of a product that the store has no more, as an operator or a schedule wanted it."""
MYSQL = ("mysql", "mariadb")
"""Two names for what is one to us."""


def pages(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield names in the number that one query takes."""
    for first in range(0, len(names), _NAME_COUNT):
        yield names[first : first + _NAME_COUNT]


ANY_TEXT: dict[str, Any] = {"mysql_default_charset": "utf8mb4", "mariadb_default_charset": "utf8mb4"}
"""For the texts that are no names: those of MySQL may be of another century."""


class Name(TypeDecorator[str]):
    """A text that is compared byte by byte: no two names are the same for a database that are not for the store."""

    impl = String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the type of this database; those of MySQL would take `a`, `A` and `a ` for one."""
        if dialect.name not in MYSQL:
            return dialect.type_descriptor(self.impl_instance)
        collation = "utf8mb4_nopad_bin" if getattr(dialect, "is_mariadb", False) else "utf8mb4_0900_bin"
        assert isinstance(self.impl_instance, String)
        kind = mysql.VARCHAR(self.impl_instance.length, charset="utf8mb4", collation=collation)
        return dialect.type_descriptor(kind)


class Moment(TypeDecorator[int]):
    """A time: Unix milliseconds for us, UTC in the database."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the type of this database; that of MySQL has no fractions of a second unless asked."""
        kind = mysql.DATETIME(fsp=3) if dialect.name in MYSQL else DateTime(timezone=True)
        return dialect.type_descriptor(kind)

    def process_bind_param(self, value: int | None, dialect: Dialect) -> datetime | None:
        """Return the time as the driver takes it."""
        if value is None:
            return None
        seconds, milliseconds = divmod(value, 1000)
        moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=milliseconds * 1000)
        return moment.replace(tzinfo=None) if dialect.name in MYSQL else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> int | None:
        """Return Unix milliseconds."""
        if value is None:
            return None
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        return round(moment.timestamp() * 1000)


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

products = Table(
    "products",
    metadata,
    Column("product_id", Name(ID_SIZE_MAX), primary_key=True),
    Column("epoch", Name(8), nullable=False),  # of its present sale
    Column("version", BigInteger, nullable=False),  # of the last change that is in these tables
    Column("initial", BigInteger, nullable=False),
    Column("restocked", BigInteger, nullable=False),
    Column("sold", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
    Column("state", Name(8), nullable=False),
    Column("opened_at", Moment, nullable=False),
    Column("changed_at", Moment, nullable=False),
    Column("early", BigInteger, nullable=False),  # units sold before the ledger began, to buyers it does not name
    Column("terms", Text),  # JSON of what the operator said; none of a stock that was set by hand
    CheckConstraint("sold >= 0 AND held >= 0", name="not_negative"),
    CheckConstraint("sold + held <= initial + restocked", name="not_oversold"),
)

stores = Table(
    "stores",
    metadata,
    Column("store_id", Name(32), primary_key=True),  # of the store whose ledgers are in these tables
)

orders = Table(
    "orders",
    metadata,
    Column("order_id", Name(ORDER_ID_SIZE_MAX), primary_key=True),
    Column("product_id", Name(ID_SIZE_MAX), nullable=False),
    Column("epoch", Name(8), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("user_id", Name(USER_ID_SIZE_MAX), nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("item_id", BigInteger),
    Column("request_id", Name(REQUEST_ID_SIZE_MAX)),
    Column("hold_version", BigInteger),  # of the hold that was confirmed
    Column("status", Name(16), nullable=False),  # confirmed, refunded
    Column("created_at", Moment, nullable=False),
    Column("refunded_at", Moment),
    Column("refund_version", BigInteger),
    Column("remaining", BigInteger),  # units left after it
    UniqueConstraint("product_id", "epoch", "version"),
    UniqueConstraint("product_id", "epoch", "request_id"),
    Index(None, "user_id"),
)

holds = Table(
    "holds",
    metadata,
    Column("product_id", Name(ID_SIZE_MAX), primary_key=True),
    Column("epoch", Name(8), primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("user_id", Name(USER_ID_SIZE_MAX), nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("item_id", BigInteger),
    Column("request_id", Name(REQUEST_ID_SIZE_MAX)),
    Column("status", Name(16), nullable=False),  # held, confirmed, cancelled, expired
    Column("created_at", Moment, nullable=False),
    Column("expires_at", Moment, nullable=False),
    Column("ended_at", Moment),
    Index(None, "user_id"),
)

past_sales = Table(
    "past_sales",  # whose product was opened anew: what is told of them again is nothing new
    metadata,
    Column("product_id", Name(ID_SIZE_MAX), primary_key=True),
    Column("epoch", Name(8), primary_key=True),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("product_id", Name(ID_SIZE_MAX), nullable=False),
    Column("epoch", Name(8), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("entry", Text().with_variant(mysql.LONGTEXT(), *MYSQL), nullable=False),  # JSON of the change
    Column("later", Text, nullable=False),  # JSON of what has become of its row since, by the names of the columns
    Column("error", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("solved_at", Moment),
    UniqueConstraint("product_id", "epoch", "version"),
    **ANY_TEXT,
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at", Moment, nullable=False),
    Column("product_id", Name(ID_SIZE_MAX), nullable=False),
    Column("user_id", Name(USER_ID_SIZE_MAX)),  # of what is asked of a hold, by its code, there is none
    Column("kind", Name(8), nullable=False),
    Column("quantity", BigInteger),
    Column("item_id", BigInteger),
    Column("request_id", Name(REQUEST_ID_SIZE_MAX)),
    Column("outcome", Name(16), nullable=False),
    Column("detail", Text),
    Column("version", BigInteger),
    Index(None, "product_id", "id"),
    **ANY_TEXT,
)

attempts_dropped = Table(
    "attempts_dropped",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at", Moment, nullable=False),
    Column("attempt_count", BigInteger, nullable=False),
    Column("reason", Name(16), nullable=False),  # full, refused, killed
)

attempt_recorders = Table(
    "attempt_recorders",
    metadata,
    Column("name", Name(16), primary_key=True),  # of the run of a server
    Column("settled", BigInteger, nullable=False),  # its attempts in the two tables above
)
