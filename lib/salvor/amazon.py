"""Clients of Amazon's services, whose credentials come within a deadline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from salvor.deadline import within
from salvor.errors import CannotError

ANSWERING = 20.0
"""Seconds that credentials have to come: a program that a profile names (credential_process) has no deadline."""


def client(make: Callable[[], Any]) -> Any:
    """The boto3 client that `make` makes, which looks for its credentials. Raises what boto3 says, and CannotError for
    what it leaves to whoever calls it: a program that hangs, is not there or says what cannot be read, a wrong
    AWS_ENDPOINT_URL.
    """
    try:
        return within(ANSWERING, make)
    except TimeoutError:
        why = f"its credentials did not come within {ANSWERING:g} s"
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
    raise CannotError(
        f"Amazon cannot be asked: {why.rstrip('.')}.",
        safe="nothing was sent there",
        hint="see what your profile says (credential_process), and by hand: aws sts get-caller-identity",
    )
