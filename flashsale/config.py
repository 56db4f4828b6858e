"""Settings: defaults < TOML file < environment < flags, in one frozen value. Read by app alone."""

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import msgspec
from msgspec import Struct, structs

from flashsale.attempts import GROUP_SIZE_MAX, SIZE_MAX_DEFAULT
from flashsale.batching import Limits
from flashsale.errors import ConfigError, InvalidValueError
from flashsale.limiting import parse_rate, parse_route_rates
from flashsale.logs import LogFormat, LogLevel
from flashsale.peers import Proxies
from flashsale.server import ServerLimits
from flashsale.store.address import is_host
from flashsale.store.durability import Durability
from flashsale.store.trimming import Window
from flashsale.wire import PAYLOAD_SIZE_MAX

ENVIRONMENT = {
    "LISTEN_ADDR": "listen",
    "REDIS_ADDR": "redis",
    "REDIS_URL": "redis",
    "POSTGRES_URL": "database",
    "DATABASE_URL": "database",
    "LOG_LEVEL": "log_level",
}
"""Variables with names of their own, the later ones winning; any other setting is FLASHSALE_<NAME>."""

DATABASE_PARTS = {
    "DB_HOST": "localhost",
    "DB_PORT": "5432",
    "DB_USER": "postgres",
    "DB_PASSWORD": "",
    "DB_NAME": "flashsale",
}
"""A PostgreSQL in parts, with what each is when another one is given; an URL wins."""
SSL_MODE = "DB_SSLMODE"
"""… and how its connection is encrypted, in libpq's words."""
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

REDIS_PARTS = ("REDIS_PASSWORD", "REDIS_DB")
"""What else there is to say of the Redis at REDIS_ADDR; an URL has it all."""

PORT = "PORT"
"""Of `listen`, which stays on loopback unless LISTEN_ADDR says otherwise: who may buy is nothing to be guessed."""


HTTP_WORDS = frozenset({"shared", "off"})
"""What the setting `http` may be instead of an address."""


class OnReject(StrEnum):
    """What becomes of an order that the database does not take."""

    KEEP = "keep"
    """It stands, and is a dead letter until somebody looks after it."""
    REFUND = "refund"
    """Its units go back to stock; the dead letter tells of it."""


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every setting of a server, with its default. Sizes are in bytes, times in seconds."""

    listen: str = "127.0.0.1:8080"
    """HOST:PORT; an empty host means all interfaces, port 0 a free one."""
    http: str = "shared"
    """Where HTTP is spoken: on the port of `listen`, on HOST:PORT instead, or `off`."""
    grpc: str | None = None
    """HOST:PORT of the gRPC door."""
    workers: int = 1
    """Server processes that share the port."""
    home: str = "~/.local/state/flashsale"
    """The embedded store's directory."""
    redis: str | None = None
    """A store of one's own instead of the embedded one."""
    database: str | None = None
    """URL of the orders' database; else it is a SQLite file in the home directory."""
    orders: bool = True
    """Whether a server moves orders into the database, in a process beside its own."""
    ledger_count: int = Window().count
    """Changes of each product that its ledger keeps although they are in the database."""
    ledger_age_s: float = Window().age_s
    """For how long a ledger keeps a change although it is in the database."""
    record_attempts: bool = False
    """Whether a server records what buyers ask and are told, in a process beside its own."""
    attempts_size_max: int = SIZE_MAX_DEFAULT
    durability: Durability = Durability.LOCAL
    """What a confirmed sale survives."""
    replicas: int = 1
    """How many must have a sale before it is confirmed; of `replicated`."""
    backlog_max: int = 1_000_000
    """Changes of a product that may wait for the database."""
    on_reject: OnReject = OnReject.KEEP
    """What becomes of an order that the database does not take."""
    payload_size_max: int = ServerLimits().payload_size_max
    connection_count_max: int = ServerLimits().connection_count_max
    in_flight_count_max: int = ServerLimits().in_flight_count_max
    frame_timeout_s: float = ServerLimits().frame_timeout_s
    idle_timeout_s: float = ServerLimits().idle_timeout_s
    write_timeout_s: float = ServerLimits().write_timeout_s
    queue_count_max: int = Limits().queue_count_max
    queue_size_max: int = Limits().queue_size_max
    batch_count_max: int = Limits().batch_count_max
    batch_size_max: int = Limits().batch_size_max
    store_deadline_s: float = Limits().store_deadline_s
    queue_age_max_s: float = Limits().queue_age_max_s
    breaker_pause_s: float = Limits().breaker_pause_s
    rate_user: str | None = None
    """How often a user may come, such as `20/s burst 40`; of one worker, as the two that follow."""
    rate_client: str | None = None
    """How often a client may come, which is an address."""
    rate_route: str | None = None
    """How often an operation may be asked for, such as `purchase=1000/s,reserve=500/s`."""
    trusted_proxies: str | None = None
    """Networks of those who are believed when they say in X-Forwarded-For for whom they ask."""
    operator_token: str | None = None
    """What an operator shows over HTTP who is not on this machine."""
    lottery: bool = True
    """Whether one purchase in a hundred at `/purchase` is told a surprise."""
    drain_delay_s: float = 0.0
    """From the signal until the server takes no more: meanwhile `/readyz` sends buyers elsewhere."""
    drain_timeout_s: float = 8.0
    """From then to the end of a server."""
    log_format: LogFormat = LogFormat.TEXT
    """How the lines on stderr look."""
    log_level: LogLevel = LogLevel.INFO
    """What is told there."""


_FIELD = re.compile(r"`\$\.(\w+)`$")  # where msgspec found it
_KINDS = {int: "a whole number", float: "a number", bool: "true or false"}
_TOKEN = re.compile(r"[!-~]+")


def _check_token(value: str) -> None:
    if not _TOKEN.fullmatch(value):
        raise InvalidValueError(
            "it has blanks or letters that a header does not take: `openssl rand -hex 24` makes a good one"
        )


_GRAMMARS: dict[str, Callable[[str], object]] = {
    "rate_user": parse_rate,
    "rate_client": parse_rate,
    "rate_route": parse_route_rates,
    "trusted_proxies": Proxies,
    "operator_token": _check_token,
}
"""What reads the settings that say more than one thing."""

_RANGES: dict[str, tuple[float, float]] = {
    "workers": (1, 64),
    "replicas": (1, 64),
    "backlog_max": (1, 2**40),
    "ledger_count": (0, 2**40),
    "ledger_age_s": (0, 2**31),
    "attempts_size_max": (GROUP_SIZE_MAX, 2**32),
    "payload_size_max": (64, PAYLOAD_SIZE_MAX),
    "connection_count_max": (1, 1_000_000),
    "in_flight_count_max": (1, 65_536),
    "frame_timeout_s": (1, 3600),
    "idle_timeout_s": (1, 86_400),
    "write_timeout_s": (1, 3600),
    "queue_count_max": (1, 10_000_000),
    "queue_size_max": (1, 2**40),
    "batch_count_max": (1, 10_000),  # a larger batch of holds could take the store longer than store_deadline_s
    "batch_size_max": (1, 2**30),
    "store_deadline_s": (0.3, 60),
    "queue_age_max_s": (0.3, 600),
    "breaker_pause_s": (0.05, 10),
    "drain_delay_s": (0, 60),
    "drain_timeout_s": (1, 60),
}


def load_config(
    path: Path | None = None,
    environment: Mapping[str, str] = os.environ,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """Return the settings from a TOML file, the environment and flags, each overriding those before it.

    Args:
        path: the TOML file, if there is one; its keys are the fields of Config.
        environment: FLASHSALE_<NAME> for each field, and the names in ENVIRONMENT.
        flags: by field; None means not given.

    Raises:
        ConfigError: a file that cannot be read, an unknown name, a value that is empty, of the wrong type or out of
            its range.
    """
    values = ({} if path is None else _read_file(path)) | _read_environment(environment)
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    if "home" in given and "redis" in given:
        raise ConfigError("--home is the embedded store's directory and --redis another store: give one of them")
    if "home" in given:
        values.pop("redis", None)  # a flag says which store, whatever the environment says
    values |= given
    for name, value in values.items():
        if value == "":  # an unset variable of a shell, most likely: nobody shall guess which store was meant
            raise ConfigError(f"{f'--{name}' if name in given else name} is empty: give it a value, or leave it out")
    try:
        config = msgspec.convert(values, Config, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(_what_is_wrong(error, values)) from error
    for name, (low, high) in _RANGES.items():
        if not low <= getattr(config, name) <= high:
            raise ConfigError(f"{name} is {getattr(config, name)}; it must be from {low} to {high}")
    _check_grammars(config)
    return config


def _what_is_wrong(error: msgspec.ValidationError, values: Mapping[str, Any]) -> str:
    """Return that as one sentence, without what may be a secret."""
    found = _FIELD.search(str(error))
    if found is None:
        return f"a setting is wrong: {error}"
    name = found[1]
    kind = next(field.type for field in structs.fields(Config) if field.name == name)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return f"{name} is {values[name]!r}; it must be one of {', '.join(kind)}"
    if kind in _KINDS:
        return f"{name} is {values[name]!r}; it must be {_KINDS[kind]}"
    return f"{name} must be text"


def _check_grammars(config: Config) -> None:
    for name, read in _GRAMMARS.items():
        said = getattr(config, name)
        try:
            if said is not None:
                read(said)
        except InvalidValueError as error:
            raise ConfigError(f"{name} is wrong: {error}") from error


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    names = {f"FLASHSALE_{field.name.upper()}": field.name for field in structs.fields(Config)}
    values = {
        name: environment[variable] for variable, name in (ENVIRONMENT | names).items() if environment.get(variable)
    }
    if "database" not in values and any(map(environment.get, DATABASE_PARTS)):
        values["database"] = _database_of(environment)
    if "listen" not in values and environment.get(PORT):
        values["listen"] = f"127.0.0.1:{environment[PORT]}"
    address = environment.get("REDIS_ADDR")
    if address and values["redis"] == address and any(map(environment.get, REDIS_PARTS)):
        values["redis"] = _redis_of(environment)
    return values


def _database_of(environment: Mapping[str, str]) -> str:
    """Return the URL of the PostgreSQL that DB_HOST and the others name."""
    host, port, user, password, name = (
        quote(environment.get(part) or default, safe="") for part, default in DATABASE_PARTS.items()
    )
    mode = environment.get(SSL_MODE, "")
    if mode and mode not in _SSL_MODES:
        raise ConfigError(f"{SSL_MODE} is {mode!r}; it must be one of {', '.join(_SSL_MODES)}")
    url = f"postgresql://{user}{f':{password}' if password else ''}@{host}:{port}/{name}"
    return f"{url}?sslmode={mode}" if mode else url


def _redis_of(environment: Mapping[str, str]) -> str:
    """Return the URL of the Redis at REDIS_ADDR with its password and the number of its database."""
    address, password, number = (environment.get(part, "") for part in ("REDIS_ADDR", *REDIS_PARTS))
    if "://" in address:
        raise ConfigError("REDIS_ADDR is an URL, to which REDIS_PASSWORD and REDIS_DB add nothing: write them into it")
    if number and not (number.isascii() and number.isdigit()):
        raise ConfigError(f"REDIS_DB is {number!r}; it must be the number of a database")
    login = f":{quote(password, safe='')}@" if password else ""
    return f"redis://{login}{address}/{number or 0}"


def secrets_of(config: Config) -> list[str]:
    """Return what of the settings must never be shown."""
    found = [config.operator_token or ""]
    for url in (config.redis, config.database):
        with suppress(ValueError):  # none at all, of which somebody else will complain
            found.append(urlsplit(url if url and "://" in url else f"redis://{url}").password or "")
    return [*found, *map(unquote, found)]


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def split_address(value: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT, :PORT or [IPV6]:PORT; raises ConfigError when it is none of these."""
    host, separator, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if separator and port.isascii() and port.isdigit() and int(port) <= 65_535 and (not host or is_host(host)):
        return host, int(port)
    raise ConfigError(f"{value!r} is not an address: give HOST:PORT, or :PORT for all interfaces")


def home_directory(value: str) -> Path:
    """Return the directory that the setting `home` names; raises ConfigError when there can be none of that name."""
    with suppress(UnicodeEncodeError, RuntimeError):  # RuntimeError: there is no such user
        if "\0" not in value and value.encode():  # it becomes part of a URL
            return Path(value).expanduser()
    raise ConfigError(f"{value!r} cannot be the directory of the embedded store: give another with --home")
