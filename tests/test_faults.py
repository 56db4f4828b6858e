"""What each error of a store says: not executed, perhaps executed, or a defect."""

import pytest
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from flashsale.domain.batches import Ambiguous, Defective, NotExecuted
from flashsale.store.faults import NOT_EXECUTED_CODES, RECONNECT_CODES, classify, error_code

IN_SCRIPT = " script: 5a2c1a64, on @user_script:83."


def with_status(error: RedisError, code: str) -> RedisError:
    error.status_code = code  # type: ignore[attr-defined]  # as redis-py's parser leaves it
    return error


NOT_EXECUTED = [
    (ResponseError("OOM command not allowed when used memory > 'maxmemory'."), "OOM"),
    (ResponseError("OOM command not allowed when used memory > 'maxmemory'." + IN_SCRIPT), "OOM"),
    (ResponseError("Error running script: @user_script:83: -OOM command not allowed"), "OOM"),
    (with_status(OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), "OOM"), "OOM"),
    (with_status(NoScriptError("No matching script. Please use EVAL."), "NOSCRIPT"), "NOSCRIPT"),
    (with_status(ReadOnlyError("You can't write against a read only replica."), "READONLY"), "READONLY"),
    (ResponseError("READONLY You can't write against a read only replica." + IN_SCRIPT), "READONLY"),
    (with_status(BusyLoadingError("Redis is loading the dataset in memory"), "LOADING"), "LOADING"),
    (with_status(AuthenticationError("Authentication required."), "NOAUTH"), "NOAUTH"),
    (with_status(NoPermissionError("this user has no permissions to run the 'evalsha' command"), "NOPERM"), "NOPERM"),
    (with_status(ClusterDownError("The cluster is down"), "CLUSTERDOWN"), "CLUSTERDOWN"),
    (ResponseError("MISCONF Errors writing to the AOF file: No space left on device"), "MISCONF"),
    (ResponseError("NOREPLICAS Not enough good replicas to write."), "NOREPLICAS"),
    (ResponseError("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."), "MASTERDOWN"),
    (ResponseError("BUSY Redis is busy running a script. You can only call SCRIPT KILL."), "BUSY"),
    (ResponseError("TRYAGAIN Multiple keys request during rehashing of slot"), "TRYAGAIN"),
]


@pytest.mark.parametrize(("error", "code"), NOT_EXECUTED, ids=[f"{code}-{error}"[:50] for error, code in NOT_EXECUTED])
def test_refusal_is_not_executed(error: RedisError, code: str) -> None:
    assert error_code(error) == code
    assert isinstance(classify(error), NotExecuted)


def test_wrong_type_is_a_defect_of_the_keys() -> None:
    error = ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value" + IN_SCRIPT)
    outcome = classify(error)
    assert isinstance(outcome, Defective)
    assert outcome.reason == str(error)


UNKNOWN = [
    ResponseError("value is not an integer or out of range" + IN_SCRIPT),
    ResponseError("ERR user_script:38: attempt to compare number with nil" + IN_SCRIPT),
    ResponseError("unknown command 'EVALSHA'"),
    ResponseError(""),
]


@pytest.mark.parametrize("error", UNKNOWN, ids=[str(error)[:40] for error in UNKNOWN])
def test_anything_else_may_have_come_after_a_write(error: RedisError) -> None:
    assert error_code(error) == "ERR"
    outcome = classify(error)
    assert isinstance(outcome, Ambiguous)
    assert outcome.reason == str(error)


def test_text_of_an_error_that_is_no_reply_is_not_searched_for_codes() -> None:
    assert error_code(ConnectionError("BUSY")) == "ERR"


def test_code_is_a_word_of_its_own() -> None:
    assert error_code(ResponseError("BUSYGROUP Consumer Group name already exists")) == "ERR"


def test_whoever_must_connect_anew_was_not_executed_either() -> None:
    assert RECONNECT_CODES <= NOT_EXECUTED_CODES
