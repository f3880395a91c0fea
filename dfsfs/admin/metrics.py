"""Metrics over HTTP, for Prometheus to scrape: `GET /metrics` and nothing else.

The library's own server answers each request in a thread of its own, without bound or deadline, and
would look at a node from outside of its loop. So the few lines of HTTP are here: one request a
connection, at most `METRICS_CONNECTIONS_MAX` at a time, each with a deadline.
Imported only by a node that is asked for metrics: the library costs two MiB and a moment.
"""

import trio
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from dfsfs.admin.operator import Operator
from dfsfs.admin.prometheus import registry_of
from dfsfs.base.errors import Unavailable
from dfsfs.base.limits import (
    METRICS_CONNECTIONS_MAX,
    METRICS_REQUEST_BYTES_MAX,
    METRICS_TIMEOUT_S,
)

PATH = "/metrics"
_END = b"\r\n\r\n"
_PLAIN = "text/plain; charset=utf-8"


async def serve_metrics(
    operator: Operator,
    host: str,
    port: int,
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; started with the URL, which has the real port if `port` is 0.

    Raises:
        Unavailable: the address cannot be had.
    """
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise Unavailable(f"cannot serve metrics at {host}:{port}: {error.strerror}") from error
    registry = registry_of(operator.status)
    free = trio.CapacityLimiter(METRICS_CONNECTIONS_MAX)

    async def answer(stream: trio.SocketStream) -> None:
        try:
            free.acquire_on_behalf_of_nowait(stream)
        except trio.WouldBlock:
            return  # whoever serves the listener closes the connection
        try:
            with trio.move_on_after(METRICS_TIMEOUT_S):
                await _answer(stream, registry)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the other side has gone
        finally:
            free.release_on_behalf_of(stream)

    port = listeners[0].socket.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, answer, listeners)
        task_status.started(f"http://{shown}:{port}{PATH}")


async def _answer(stream: trio.SocketStream, registry: CollectorRegistry) -> None:
    request = await _read_head(stream)
    method, _, rest = request.partition(" ")
    path = rest.partition(" ")[0].partition("?")[0]
    if method not in ("GET", "HEAD"):
        await stream.send_all(_response("405 Method Not Allowed", _PLAIN, b"only GET\n"))
    elif path != PATH:
        await stream.send_all(_response("404 Not Found", _PLAIN, f"see {PATH}\n".encode()))
    else:
        body = generate_latest(registry)
        await stream.send_all(
            _response("200 OK", CONTENT_TYPE_LATEST, body, with_body=method == "GET")
        )


async def _read_head(stream: trio.SocketStream) -> str:
    """The request's first line; "" if there is none within bounds."""
    head = bytearray()
    while _END not in head and len(head) < METRICS_REQUEST_BYTES_MAX:
        piece = await stream.receive_some(METRICS_REQUEST_BYTES_MAX)
        if not piece:
            break
        head += piece
    return bytes(head).partition(b"\r\n")[0].decode("latin-1")


def _response(status: str, kind: str, body: bytes, *, with_body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    ).encode("ascii")
    return head + body if with_body else head
