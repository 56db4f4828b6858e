"""What a process tells of itself on stderr: lines for people, or a JSON object for each; never a secret.

The code calls `logging` and nothing else. How its records look is decided here, once, when a process begins; processes
that are forked from it write the same way.
"""

import logging
import re
import sys
from collections.abc import Iterable, MutableMapping
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum
from types import TracebackType
from typing import Any

from flashsale.errors import ConfigError

TEXT_SIZE_MAX = 2_000
"""Characters of a message, or of any text in a JSON line: most lines fit into a pipe at once, whoever else writes."""
FRAME_COUNT_MAX = 12
"""Of the calls that led to an exception, in a JSON line."""
SECRET_SIZE_MIN = 4
"""Characters; what is shorter is part of other words, and hiding it there would tell what it is."""

HIDDEN = "***"
_ROOT = "flashsale"
_TEXT = "%(asctime)s %(levelname)s %(message)s"

_TELLING_WORDS = r"authorization|password|passwd|secret|token|api[-_]?key"
_SHAPES = (
    # a hold's code: 22 characters nobody can guess, and the product
    (re.compile(r"(?<![\w-])[A-Za-z0-9_-]{22}(?=\.\S)"), HIDDEN),
    # in a URL: user and password
    (re.compile(r"(?<=://)[^/\s@'\"]*@"), f"{HIDDEN}@"),
    # the value of an Authorization header
    (re.compile(r"\b(bearer|basic)(\s+)[\w.~+/=-]+", re.IGNORECASE), rf"\1\2{HIDDEN}"),
    # password=…, "token": "…", ?code=…
    (
        re.compile(rf"\b({_TELLING_WORDS})(['\"]?\s*[:=]\s*['\"]?)(?!bearer\b|basic\b)[^\s'\"&,;}}]+", re.I),
        rf"\1\2{HIDDEN}",
    ),
    (re.compile(r"([?&]code=)[^\s'\"&]+"), rf"\1{HIDDEN}"),
)
_SECRET_NAME = re.compile(rf".*({_TELLING_WORDS})|code", re.IGNORECASE)

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the HTTP request that is being answered; empty when there is none."""

_log = logging.getLogger(__name__)


def printable(text: str) -> str:
    """Return the text with what could play tricks on a terminal escaped: user ids come from strangers."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class LogFormat(StrEnum):
    """How lines look."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """What is told: that, and what is worse. Upper case, and `warn`, are understood too."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @classmethod
    def _missing_(cls, value: object) -> "LogLevel | None":
        word = str(value).lower()
        return next((level for level in cls if word in {level.value, level.value.removesuffix("ing")}), None)


class Redactor:
    """Takes secrets out of text: those it was told, and what looks like one. The code logs none; this is the belt."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted({secret for secret in secrets if len(secret) >= SECRET_SIZE_MIN}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def __call__(self, text: str) -> str:
        """Return the text without them."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        for shape, shown in _SHAPES:
            text = shape.sub(shown, text)
        return text

    def values(self, value: Any) -> Any:
        """Return the same of a whole value made of dicts, lists and text; long text is cut."""
        match value:
            case str():
                text = self(value)
                return text if len(text) <= TEXT_SIZE_MAX else text[:TEXT_SIZE_MAX] + "…"
            case dict():
                return {
                    name: HIDDEN if isinstance(what, str) and _SECRET_NAME.fullmatch(name) else self.values(what)
                    for name, what in value.items()
                }
            case list() | tuple():
                return [self.values(what) for what in value]
            case _:
                return value


class TextFormatter(logging.Formatter):
    """One line for people, and the traceback of an exception below it."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__(_TEXT)
        self._redact = redact

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line, with the id of the request that it is about; nobody can make it look like two."""
        about = request_id.get()
        return printable(super().formatMessage(record).rstrip()) + (f" (request {about})" if about else "")

    def format(self, record: logging.LogRecord) -> str:
        """Return all of it, without secrets."""
        return self._redact(super().format(record))


def json_formatter(redact: Redactor) -> logging.Formatter:
    """Return what makes each record one line of JSON.

    Its members are `time`, `level`, `logger`, `event`, `pid`, and where they apply `request_id`, what the caller gave
    as `extra`, and `exception`, a list with the exception and what caused it.

    Raises:
        ConfigError: structlog is not installed.
    """
    try:
        from structlog import processors, stdlib
        from structlog.tracebacks import ExceptionDictTransformer
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the log format 'json' needs {error.name}: install 'flashsale[http]', or use 'text'"
        ) from error

    def hide(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return dict(redact.values(line))

    # local variables are what secrets stand in
    exceptions = ExceptionDictTransformer(show_locals=False, max_frames=FRAME_COUNT_MAX)
    return stdlib.ProcessorFormatter(
        foreign_pre_chain=[_describe, stdlib.ExtraAdder()],
        processors=[
            stdlib.ProcessorFormatter.remove_processors_meta,
            processors.ExceptionRenderer(exceptions),
            hide,
            processors.JSONRenderer(),
        ],
    )


def _describe(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Begin the line with what each has."""
    record: logging.LogRecord = line["_record"]
    about = request_id.get()
    return {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": line["event"],
        "pid": record.process,
        **({"request_id": about} if about else {}),
        **line,
    }


def set_up(log_format: LogFormat, level: LogLevel, secrets: Iterable[str] = ()) -> None:
    """Have this process, and those that it forks, log to stderr.

    Args:
        log_format: how.
        level: what is told by this program; of the libraries, whatever is worth a warning.
        secrets: what must never show, besides what can be known by its looks.

    Raises:
        ConfigError: what it takes is not installed.
    """
    redact = Redactor(secrets)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(json_formatter(redact) if log_format is LogFormat.JSON else TextFormatter(redact))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger(_ROOT).setLevel(level.value.upper())
    if log_format is LogFormat.JSON:
        logging.captureWarnings(capture=True)
        sys.excepthook = _log_uncaught


def complain(sentence: str) -> None:
    """Say on stderr why this process ends: as it is, or as a line of the log where programs read that."""
    if sys.excepthook is _log_uncaught:
        _log.critical("%s", sentence)
    else:
        sys.stderr.write(f"{sentence}\n")


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _log.critical("the process failed", exc_info=(kind, error, trace))
