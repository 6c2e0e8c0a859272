from __future__ import annotations

import errno
import os

import pytest
from obstore import exceptions

from penstock.errors import (
    AccessDenied,
    ObjectNotFound,
    PreconditionFailed,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from penstock.store.failures import CODE_ERRORS, STATUS_ERRORS, classify
from penstock.store.oserrors import ERRNO_ERRORS, os_errors

EXPECTED = {
    errno.ENOENT: ObjectNotFound,
    errno.ENOTDIR: ObjectNotFound,
    errno.EACCES: AccessDenied,
    errno.EPERM: AccessDenied,
    errno.EROFS: AccessDenied,
    errno.EEXIST: PreconditionFailed,
    errno.ENOSPC: StoreFull,
    errno.EDQUOT: StoreFull,
    errno.EFBIG: StoreFull,
    errno.EIO: StoreUnavailable,
    errno.ESTALE: StoreUnavailable,
    errno.ETIMEDOUT: StoreUnavailable,
    errno.EMFILE: StoreError,
    errno.ENFILE: StoreError,
    errno.ELOOP: StoreError,
    errno.ENAMETOOLONG: StoreError,
    errno.EISDIR: StoreError,
}


def test_the_table_of_error_numbers_is_tested_whole():
    assert set(ERRNO_ERRORS) == set(EXPECTED)


@pytest.mark.parametrize("number", [*EXPECTED, errno.EBADF, None])
def test_an_error_number_has_its_error(number: int | None):
    with pytest.raises(StoreError) as caught, os_errors("/data/k", "reading"):
        raise OSError(number, "whatever") if number else OSError("whatever")
    assert type(caught.value) is EXPECTED.get(number or 0, StoreError)
    message = str(caught.value)
    assert message.startswith("reading /data/k: ")
    assert number is None or os.strerror(number) in message
    assert "; " in message, "says what to do"
    assert isinstance(caught.value.__cause__, OSError)


def test_our_own_errors_pass_unchanged():
    error = ObjectNotFound("mine, though it is an OSError")
    with pytest.raises(ObjectNotFound) as caught, os_errors("/data/k", "reading"):
        raise error
    assert caught.value is error


def client_error(status: int, code: str = "") -> Exception:
    """An error as the client words it, with things in it that must not get out."""
    body = f"<Error><Code>{code}</Code><StringToSign>AWS4 KEYID-leaks</StringToSign></Error>" if code else ""
    return exceptions.GenericError(
        f"Generic S3 error: Error performing GET https://h/k?X-Amz-Signature=leaks in 1ms - "
        f"Server returned non-2xx status code: {status} Something: {body}\n\n"
        f"Debug source:\nStatus {{ status: {status}, }}"
    )


@pytest.mark.parametrize("status", [*STATUS_ERRORS, 400, 405, 418, 500, 502, 503, 504, 599])
def test_a_status_has_its_error(status: int):
    failure = classify(client_error(status), "s3://b/k", timeout_s=3)
    expected = STATUS_ERRORS.get(status, (StoreUnavailable if status >= 500 else StoreError, ""))[0]
    assert type(failure.error) is expected
    assert failure.outcome == ("throttled" if status in {429, 503} else "answered")
    assert str(failure.error).startswith("s3://b/k: ")
    assert str(status) in str(failure.error)
    assert "leaks" not in str(failure.error)


@pytest.mark.parametrize("code", [*CODE_ERRORS])
def test_a_store_s_own_code_says_more_than_its_status(code: str):
    failure = classify(client_error(400, code), "s3://b/k", timeout_s=3)
    assert type(failure.error) is CODE_ERRORS[code][0]
    assert code in str(failure.error)
    assert "leaks" not in str(failure.error)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (TimeoutError(), StoreUnavailable, "no answer within 3 s"),
        (FileNotFoundError("Object at location k not found"), ObjectNotFound, "no such object"),
        (exceptions.AlreadyExistsError("x"), PreconditionFailed, "somebody else"),
        (exceptions.PreconditionError("x"), PreconditionFailed, "somebody else"),
        (exceptions.GenericError("x\n HttpError { kind: Connect, source"), StoreUnavailable, "can't connect"),
        (exceptions.GenericError("x\n HttpError { kind: Timeout, source"), StoreUnavailable, "stopped answering"),
        (exceptions.GenericError("x\n HttpError { kind: New, source"), StoreUnavailable, "connection failed"),
        (exceptions.GenericError("source: NotPartial,"), StoreError, "200, not 206"),
        (exceptions.GenericError("PUT http://169.254.169.254/latest/api"), StoreUnavailable, "AWS_ACCESS_KEY_ID"),
        (exceptions.GenericError("PUT http://169.254.169.254/x: status code: 403 "), AccessDenied, "AWS_ACCESS_KEY_ID"),
        (exceptions.GenericError("GET http://169.254.169.254/x: status code: 500 "), StoreUnavailable, "metadata"),
        (exceptions.GenericError("leaks"), StoreError, "GenericError"),
        (ValueError("Could not parse path: leaks"), StoreError, "can't be addressed"),
    ],
)
def test_what_is_no_answer_has_its_error(error: Exception, kind: type, words: str):
    failure = classify(error, "s3://b/k", timeout_s=3)
    assert type(failure.error) is kind
    assert words in str(failure.error)
    assert "leaks" not in str(failure.error)
    assert failure.outcome == "failed"
