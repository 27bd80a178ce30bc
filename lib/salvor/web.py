"""HTTP as Salvor asks by it: no proxies of the environment, no other scheme by a redirect, bounded in time and size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from salvor import clock

if TYPE_CHECKING:
    from email.message import Message
    from urllib.request import OpenerDirector


def body(response: Any, until: float, *, most: int) -> bytes:
    """At most so many bytes of a body. Raises TimeoutError when it goes on after `until`, a time of clock.monotonic."""
    return b"".join(_pieces(response, until, most))


def _pieces(response: Any, until: float, most: int) -> Iterator[bytes]:
    """A socket's timeout is for one read, so a server that drips needs a look at the clock."""
    left = most
    while left and (piece := response.read1(left)):
        yield piece
        left -= len(piece)
        if clock.monotonic() > until:
            raise TimeoutError("the body did not end in time")


def opener(*, follow: bool) -> OpenerDirector:
    """HTTP and HTTPS alone: urllib's usual opener would also follow a redirect to ftp, and open files. Proxies of the
    environment are not used: what is asked is the service, not somebody's cache of it.
    """
    from urllib.error import URLError
    from urllib.request import (
        HTTPDefaultErrorHandler,
        HTTPErrorProcessor,
        HTTPHandler,
        HTTPRedirectHandler,
        HTTPSHandler,
        OpenerDirector,
        Request,
    )

    class Redirect(HTTPRedirectHandler):
        def redirect_request(
            self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message[str, str], newurl: str
        ) -> Request | None:
            scheme = urlsplit(newurl).scheme
            if scheme != "https" and scheme != req.type:
                raise URLError(f"it redirects from {req.type} to {scheme}, which is not followed")
            return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]

    opener = OpenerDirector()
    handlers = [HTTPHandler, HTTPSHandler, HTTPErrorProcessor, HTTPDefaultErrorHandler, *([Redirect] if follow else [])]
    for handler in handlers:
        opener.add_handler(handler())
    return opener
