"""Settings: each source, their order, and what is refused."""

import json
import tomllib
from pathlib import Path

import pytest
from msgspec import structs
from redis.asyncio.connection import parse_url

from flashsale.batching import Limits
from flashsale.config import Config, OnReject, home_directory, load_config, secrets_of, split_address
from flashsale.errors import ConfigError
from flashsale.logs import LogFormat, LogLevel
from flashsale.server import ServerLimits
from flashsale.store.address import redis_url
from flashsale.store.durability import Durability


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "flashsale.toml"
    path.write_text(text)
    return path


def test_defaults() -> None:
    config = load_config(environment={})
    assert config == Config()
    assert config.listen == "127.0.0.1:8080"
    assert config.workers == 1
    assert config.redis is None
    assert config.durability is Durability.LOCAL


def test_limits_have_one_default_each() -> None:
    for limits in (ServerLimits(), Limits()):
        for name, value in structs.asdict(limits).items():
            assert getattr(Config(), name, value) == value


def test_later_sources_win(tmp_path: Path) -> None:
    path = write(tmp_path, 'listen = "a:1"\nhome = "file"\nworkers = 2\nidle_timeout_s = 7\n')
    environment = {"LISTEN_ADDR": "b:2", "FLASHSALE_HOME": "environment", "FLASHSALE_WORKERS": "3", "PATH": "/bin"}
    config = load_config(path, environment, {"listen": "c:3", "home": None, "redis": None})
    assert (config.listen, config.home, config.workers, config.idle_timeout_s) == ("c:3", "environment", 3, 7.0)


@pytest.mark.parametrize("name", [field.name for field in structs.fields(Config)])
def test_each_setting_has_its_variable_and_its_key_in_the_file(tmp_path: Path, name: str) -> None:
    default = getattr(Config(), name)
    of_type = {str: "x", int: 2_000, float: 5.5, bool: not default, type(None): "redis://x", Durability: "relaxed"}
    of_type |= {OnReject: "refund", LogFormat: "json", LogLevel: "error"}
    value = of_type[type(default)]
    value = {"workers": 2, "replicas": 2, "attempts_size_max": 70_000}.get(name, value)
    value = {"rate_route": "purchase=5/s", "trusted_proxies": "10.0.0.0/8"}.get(name, value)
    value = "5/s" if name in {"rate_user", "rate_client"} else value
    text = json.dumps(value)
    assert getattr(load_config(write(tmp_path, f"{name} = {text}\n"), {}), name) == value
    assert getattr(load_config(environment={f"FLASHSALE_{name.upper()}": str(value)}), name) == value
    assert value != default


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({"DB_HOST": "db"}, "postgresql://postgres@db:5432/flashsale"),
        (
            {"DB_HOST": "db", "DB_PORT": "6", "DB_USER": "a@b", "DB_PASSWORD": "p/w:?", "DB_NAME": "shop"},
            "postgresql://a%40b:p%2Fw%3A%3F@db:6/shop",
        ),
        ({"DB_NAME": "shop"}, "postgresql://postgres@localhost:5432/shop"),
        ({"DB_HOST": "db", "POSTGRES_URL": "postgres://other/x"}, "postgres://other/x"),
        ({"DB_HOST": "db", "DB_SSLMODE": "disable"}, "postgresql://postgres@db:5432/flashsale?sslmode=disable"),
        ({"DB_HOST": "", "DB_SSLMODE": "disable"}, None),
    ],
)
def test_a_database_in_parts(variables: dict[str, str], url: str | None) -> None:
    assert load_config(environment=variables).database == url


def test_redis_by_its_usual_names() -> None:
    assert load_config(environment={"REDIS_ADDR": "a:1"}).redis == "a:1"
    assert load_config(environment={"REDIS_ADDR": "a:1", "REDIS_URL": "redis://b"}).redis == "redis://b"
    assert load_config(environment={"REDIS_URL": "redis://b", "FLASHSALE_REDIS": "redis://c"}).redis == "redis://c"


def test_a_way_to_encrypt_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^DB_SSLMODE is 'maybe'; it must be one of disable, allow, prefer, require"):
        load_config(environment={"DB_HOST": "db", "DB_SSLMODE": "maybe"})


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({"REDIS_PASSWORD": "p/w:@", "REDIS_DB": "3"}, "redis://:p%2Fw%3A%40@a:1/3"),
        ({"REDIS_PASSWORD": "", "REDIS_DB": "0"}, "redis://a:1/0"),
        ({"REDIS_PASSWORD": "secret", "REDIS_DB": ""}, "redis://:secret@a:1/0"),
        ({"REDIS_PASSWORD": "secret", "REDIS_URL": "redis://b"}, "redis://b"),
        ({"REDIS_PASSWORD": "secret", "FLASHSALE_REDIS": "redis://c"}, "redis://c"),
        ({"REDIS_PASSWORD": "secret", "REDIS_ADDR": ""}, None),
    ],
)
def test_a_redis_in_parts(variables: dict[str, str], url: str | None) -> None:
    config = load_config(environment={"REDIS_ADDR": "a:1"} | variables)
    assert config.redis == url
    if url is not None:
        assert parse_url(redis_url(url)).get("db", 0) == int(variables.get("REDIS_DB") or 0)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"REDIS_ADDR": "redis://a:1", "REDIS_PASSWORD": "secret"}, "REDIS_ADDR is an URL"),
        ({"REDIS_ADDR": "a:1", "REDIS_DB": "sales"}, "REDIS_DB is 'sales'; it must be the number of a database"),
        ({"REDIS_ADDR": "a:1", "REDIS_DB": "-1"}, "REDIS_DB is '-1'"),
    ],
)
def test_parts_of_a_redis_that_fit_nothing_are_refused(variables: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(environment=variables)


def test_a_port_alone_opens_nothing_to_others(tmp_path: Path) -> None:
    assert load_config(environment={"PORT": "9000"}).listen == "127.0.0.1:9000"
    assert load_config(environment={"PORT": "9000", "LISTEN_ADDR": ":8080"}).listen == ":8080"
    assert load_config(environment={"PORT": "9000", "FLASHSALE_LISTEN": "b:2"}).listen == "b:2"
    assert load_config(environment={"PORT": "9000"}, flags={"listen": "c:3"}).listen == "c:3"
    assert load_config(write(tmp_path, 'listen = "0.0.0.0:1"'), {"PORT": "9000"}).listen == "127.0.0.1:9000"
    with pytest.raises(ConfigError, match=r"'127\.0\.0\.1:many' is not an address"):
        split_address(load_config(environment={"PORT": "many"}).listen)


@pytest.mark.parametrize(
    ("word", "level"), [("debug", LogLevel.DEBUG), ("INFO", LogLevel.INFO), ("warn", LogLevel.WARNING)]
)
def test_what_is_logged_is_said_in_the_words_of_others_too(word: str, level: LogLevel) -> None:
    assert load_config(environment={"LOG_LEVEL": word}).log_level is level
    assert load_config(environment={"LOG_LEVEL": word, "FLASHSALE_LOG_LEVEL": "error"}).log_level is LogLevel.ERROR
    with pytest.raises(ConfigError, match=r"^log_level is 'loud'; it must be one of debug, info, warning, error$"):
        load_config(environment={"LOG_LEVEL": "loud"})


def test_the_secrets_of_the_settings() -> None:
    config = Config(redis=":p%2Fw@a:1", database="postgresql://ann:db-word@h/n")
    assert {secret for secret in secrets_of(config) if secret} == {"p%2Fw", "p/w", "db-word"}
    assert not any(secrets_of(Config(redis="redis://[", database="postgresql://ann@h/n")))


def test_flags_say_which_store_whatever_the_environment_says() -> None:
    environment = {"REDIS_URL": "redis://b"}
    assert load_config(environment=environment, flags={"home": "h", "redis": None}).redis is None
    assert load_config(environment={"FLASHSALE_HOME": "h"}, flags={"redis": "redis://c"}).redis == "redis://c"
    with pytest.raises(ConfigError, match=r"--home .* --redis .*: give one of them"):
        load_config(environment={}, flags={"home": "h", "redis": "redis://c"})


def test_empty_variable_is_not_a_value() -> None:
    assert load_config(environment={"REDIS_URL": "", "LISTEN_ADDR": "", "FLASHSALE_WORKERS": ""}) == Config()


@pytest.mark.parametrize("name", ["home", "redis", "listen"])
def test_empty_flag_or_key_of_the_file_is_refused_and_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"^--{name} is empty: give it a value, or leave it out$"):
        load_config(environment={f"FLASHSALE_{name.upper()}": "x"}, flags={name: ""})
    with pytest.raises(ConfigError, match=f"^{name} is empty"):
        load_config(write(tmp_path, f'{name} = ""\n'), {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workers", "0"),
        ("workers", "65"),
        ("workers", "two"),
        ("payload_size_max", str(1024 * 1024 + 1)),
        ("payload_size_max", "63"),
        ("in_flight_count_max", "0"),
        ("store_deadline_s", "0.1"),
        ("store_deadline_s", "nan"),
        ("idle_timeout_s", "inf"),
        ("queue_count_max", "-1"),
        ("drain_timeout_s", "61"),
        ("durability", "eternal"),
        ("on_reject", "scold"),
        ("batch_count_max", "10001"),
    ],
)
def test_value_out_of_its_range_is_refused_and_named(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(environment={f"FLASHSALE_{name.upper()}": value})
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("rate_user", "fast", "rate_user is wrong: 'fast' is no rate: give one such as 10/s, 100/m or 20/s burst 40"),
        ("rate_route", "refund=1/s", "rate_route is wrong: 'refund=1/s' limits no operation: give purchase=100/s;"),
        ("trusted_proxies", "me", "trusted_proxies is wrong: 'me' names no networks: give such as 10.0.0.0/8,"),
    ],
)
def test_a_limit_that_is_none_is_refused_with_a_sentence(name: str, value: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(environment={f"FLASHSALE_{name.upper()}": value})
    assert str(caught.value).startswith(words)


def test_payload_of_a_mebibyte_may_be_allowed() -> None:
    assert load_config(environment={"FLASHSALE_PAYLOAD_SIZE_MAX": "1048576"}).payload_size_max == 1024 * 1024


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("workers = ", "cannot read"),
        ("worker = 2", "worker"),
        ('workers = "many"', "workers"),
        ("workers = [1]", "workers"),
        ("listen = 8080", "listen"),
    ],
)
def test_file_with_a_mistake_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(write(tmp_path, text), {})


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*missing\.toml"):
        load_config(tmp_path / "missing.toml", {})
    (tmp_path / "latin.toml").write_bytes(b'home = "\xe9"')
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "latin.toml", {})
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path, {})


def test_config_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Config().workers = 2  # type: ignore[misc]


def test_file_of_all_defaults_is_the_defaults(tmp_path: Path) -> None:
    lines = [f"{name} = {json.dumps(value)}" for name, value in structs.asdict(Config()).items() if value is not None]
    text = "\n".join(lines)
    assert tomllib.loads(text)
    assert load_config(write(tmp_path, text), {}) == Config()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        (":8080", ("", 8080)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:80", ("::1", 80)),
        ("[::]:65535", ("::", 65535)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
    ],
)
def test_address_is_split(value: str, expected: tuple[str, int]) -> None:
    assert split_address(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        *("", "8080", "localhost", "localhost:", "localhost:http", "h:65536", "h:-1", "h:٣", "h: 1"),
        *("a..b:80", ".:80", "a" * 64 + ":80", "a\0b:80", "\udcff:80"),
    ],
)
def test_address_that_is_none_is_refused_with_a_sentence(value: str) -> None:
    with pytest.raises(ConfigError, match="is not an address: give HOST:PORT, or :PORT for all interfaces"):
        split_address(value)


def test_home_is_a_directory_or_refused_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert home_directory("~/sales") == Path("/home/ann/sales")
    assert home_directory("sales é") == Path("sales é")
    for value in ("~no-such-user/sales", "a\0b", "/tmp/\udcff"):
        with pytest.raises(ConfigError, match="cannot be the directory of the embedded store: give another"):
            home_directory(value)


def test_what_is_wrong_is_one_sentence_without_secrets(tmp_path: Path) -> None:
    wrong = {
        'workers = "x"': "workers is 'x'; it must be a whole number",
        'idle_timeout_s = "x"': "idle_timeout_s is 'x'; it must be a number",
        'lottery = "x"': "lottery is 'x'; it must be true or false",
        'durability = "x"': "durability is 'x'; it must be one of local, replicated, strict, relaxed",
        "operator_token = 12345": "operator_token must be text",
    }
    for text, sentence in wrong.items():
        with pytest.raises(ConfigError) as error:
            load_config(write(tmp_path, text), {})
        assert str(error.value) == sentence


@pytest.mark.parametrize("token", ["# such as a comment", "open sesame", "\u00e9t\u00e9", "a\tb"])
def test_a_token_that_no_header_would_bear_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match=r"^operator_token is wrong: it has blanks or letters that") as error:
        load_config(environment={"FLASHSALE_OPERATOR_TOKEN": token})
    assert token not in str(error.value)
