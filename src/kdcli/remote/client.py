"""An HTTP client for many requests at once: bounded size, retries with backoff, no request twice."""

import asyncio
import email.utils
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx2
from pydantic import ValidationError

from kdcli.config.sections import ServerConfig
from kdcli.distributed import check_count
from kdcli.errors import InputError, KDError, MachineError, UsageError
from kdcli.remote.address import Address, address_of
from kdcli.remote.replies import ReplyStore
from kdcli.remote.schema import read_models
from kdcli.text import one_line

# What a server can do wrong, each as one line with its exit code.


KEPT = "what was answered so far is kept with -o; run the same command again to go on"


class RetryableError(Exception):
    """A failure that may pass.

    Args:
        error: what to say if it does not.
        seconds: how long the server asks us to wait; None if it does not say.
    """

    def __init__(self, error: KDError, seconds: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.seconds = seconds


_UNREAD = (400, 422)
"""Statuses by which a server says that the request itself is wrong."""


class UnreadError(InputError):
    """A server that knows address, key and model does not take a request as it stands."""


def unreachable(address: Address, reason: str) -> MachineError:
    """Say that no connection could be made or kept (exit code 4)."""
    what = f"cannot be reached: {address.hide(reason) or 'the connection broke'}"
    return MachineError("SERVE-02", what, where=address.url, fix=f"start it or check the address; {KEPT}")


def stalled(address: Address, seconds: float) -> MachineError:
    """Say that a reply did not come in time (exit code 4)."""
    what = f"no reply within {seconds:g} s"
    fix = f"raise server.timeout, or lower server.concurrency; {KEPT}"
    return MachineError("SERVE-03", what, where=address.url, fix=fix)


def failing(address: Address, status: int, raw: bytes) -> MachineError:
    """Say that the server failed or is too busy (exit code 4)."""
    what = f"answers with status {status}{_said(address, raw)}"
    fix = f"lower server.concurrency, or look at the server's log; {KEPT}"
    return MachineError("SERVE-04", what, where=address.url, fix=fix)


def refusing(address: Address, status: int, raw: bytes) -> InputError:
    """Say that the server does not take the request (exit code 3)."""
    fixes = {
        401: "put the key into the variable that server.key_variable names (default OPENAI_API_KEY)",
        403: "put a key that may use this model into the variable that server.key_variable names",
        404: "check the address (it often ends in /v1) and --set server.model=NAME",
    }
    what = f"refuses the request with status {status}{_said(address, raw)}"
    kind = UnreadError if status in _UNREAD else InputError
    return kind("SERVE-05", what, where=address.url, fix=fixes.get(status, "check --set server.model=NAME and lengths"))


def nonsense(address: Address, error: ValueError, raw: bytes) -> InputError:
    """Say that a reply is not what the protocol promises (exit code 3)."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}" if place else "not JSON"
    else:
        reason = str(error)
    what = f"the reply makes no sense ({address.hide(reason, 100)}){_said(address, raw)}"
    return InputError("SERVE-06", what, where=address.url, fix=f"check that it has the OpenAI protocol; {KEPT}")


def too_large(address: Address, limit: int) -> InputError:
    """Say that a reply is larger than any answer can be (exit code 3)."""
    what = f"the reply is larger than {limit // 2**20} MiB"
    return InputError("SERVE-07", what, where=address.url, fix="check that it has the OpenAI protocol")


def _said(address: Address, raw: bytes) -> str:
    text = address.hide(raw[:1000].decode("utf-8", "replace").strip(), 120)
    return f": {text}" if text else ""


# One reply from a server: bounded in time and size, with retries and backoff.


_LIMIT = 16 * 2**20
_CONNECT_SECONDS = 10.0
_LONGEST_WAIT = 60.0
_PASSING = frozenset({408, 409, 425, 429})


class Connection:
    """The way to a server.

    Args:
        config: address and patience.

    Raises:
        UsageError: SERVE-01, an address that no server can have.
        MachineError: HW-01, more connections at once than files may be open.
    """

    def __init__(self, config: ServerConfig) -> None:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        check_count(config.concurrency, max(files // 2, 1), "open connections by ulimit -n", "server.concurrency")
        self._config = config
        self.address = address_of(config)

    def open(self) -> httpx2.AsyncClient:
        """Return a pool of connections; it must be closed."""
        return httpx2.AsyncClient(
            headers={**self.address.headers, "Accept-Encoding": "identity"},
            timeout=httpx2.Timeout(self._config.timeout, connect=min(_CONNECT_SECONDS, self._config.timeout)),
            limits=httpx2.Limits(max_connections=self._config.concurrency),
            trust_env=not self.address.is_loopback,
        )

    async def fetch(
        self, http: httpx2.AsyncClient, method: str, path: str, body: Any, read: Callable[[bytes], Any]
    ) -> bytes:
        """Return a reply that can be read; retry with backoff.

        Args:
            http: the open pool.
            method: GET or POST.
            path: below the base address.
            body: JSON to send; None for none.
            read: raises ValueError where the reply makes no sense.

        Raises:
            KDError: SERVE-02 to SERVE-07.
        """
        for wait in _waits(self._config.wait, self._config.retries):
            try:
                return await self._once(http, method, path, body, read)
            except RetryableError as trouble:
                if wait is None:
                    raise trouble.error from None
                await asyncio.sleep(min(trouble.seconds if trouble.seconds is not None else wait, _LONGEST_WAIT))
        raise AssertionError("the last wait is None")

    async def _once(
        self, http: httpx2.AsyncClient, method: str, path: str, body: Any, read: Callable[[bytes], Any]
    ) -> bytes:
        address = self.address
        try:
            async with asyncio.timeout(self._config.timeout):
                status, after, raw = await self._send(http, method, f"{address.url}/{path}", body)
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise RetryableError(stalled(address, self._config.timeout)) from error
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise RetryableError(unreachable(address, str(error))) from error
        except (httpx2.InvalidURL, ValueError) as error:
            raise unreachable(address, str(error)) from error
        if status in _PASSING or status >= 500:
            raise RetryableError(failing(address, status, raw), after)
        if status != 200:
            raise refusing(address, status, raw)
        try:
            read(raw)
        except ValueError as error:
            raise RetryableError(nonsense(address, error, raw)) from error
        return raw

    async def _send(
        self, http: httpx2.AsyncClient, method: str, url: str, body: Any
    ) -> tuple[int, float | None, bytes]:
        async with http.stream(method, url, json=body) as response:
            raw = bytearray()
            async for chunk in response.aiter_bytes():
                raw += chunk
                if len(raw) > _LIMIT:
                    raise too_large(self.address, _LIMIT)
            return response.status_code, _retry_after(response.headers.get("Retry-After")), bytes(raw)


def _waits(first: float, retries: int) -> Iterator[float | None]:
    """Yield the seconds to wait after each attempt; None after the last.

    >>> list(_waits(0.5, 3))
    [0.5, 1.0, 2.0, None]
    """
    yield from (min(first * 2**retry, _LONGEST_WAIT) for retry in range(retries))
    yield None


def _retry_after(header: str | None) -> float | None:
    """Read ``Retry-After``: seconds or a date; None if it says nothing readable.

    >>> _retry_after("3"), _retry_after("soon"), _retry_after("Thu, 01 Jan 1970 00:00:00 GMT")
    (3.0, None, 0.0)
    """
    if header is None:
        return None
    if header.strip().isdecimal() and len(header) < 10:
        return float(header)
    try:
        return max(email.utils.parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError, OSError):
        return None


T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """One request.

    Args:
        path: below the base address, such as ``completions``.
        body: the JSON to send.
    """

    path: str
    body: dict[str, Any]


class Client:
    """A server with the OpenAI protocol.

    Args:
        config: address, model and patience.
        kept: replies received before, and where to keep new ones; None keeps nothing.

    Raises:
        UsageError: SERVE-01, an address that no server can have.
    """

    def __init__(self, config: ServerConfig, kept: ReplyStore | None = None) -> None:
        self._config = config
        self._kept = kept
        self.connection = Connection(config)

    def model(self) -> str:
        """Return the model's name: the one asked for, else the only one the server has.

        Raises:
            UsageError: SERVE-08, it has none or several.
            KDError: the server cannot be asked.
        """
        if self._config.model is not None:
            return self._config.model
        names = asyncio.run(self._names())
        if len(names) != 1:
            shown = ", ".join(one_line(name, 40) for name in names[:5]) or "none"
            what = f"the server has {len(names)} models ({shown})"
            raise UsageError(
                "SERVE-08", what, where=self.connection.address.url, fix="choose with --set server.model=NAME"
            )
        return names[0]

    def ask(self, requests: Sequence[Request], read: Callable[[bytes], T]) -> Iterator[tuple[int, T]]:
        """Ask every request that has no kept reply, several at once.

        Args:
            requests: what to ask.
            read: turns a reply into an answer; raises ValueError where the reply makes no sense.

        Yields:
            position of a request and its answer, in whatever order they come.

        Raises:
            KDError: SERVE-02 to SERVE-07, the first request that failed for good; replies
                received before are kept.
        """
        waiting: list[int] = []
        for place, request in enumerate(requests):
            known = self._known(request, read)
            if known:
                yield place, known[0]
            else:
                waiting.append(place)
        if not waiting:
            return
        with asyncio.Runner() as runner:
            pool = _Pool(self, requests, read)
            runner.run(pool.start(waiting))
            try:
                for _ in waiting:
                    yield runner.run(pool.next())
            finally:
                runner.run(pool.stop())

    def _known(self, request: Request, read: Callable[[bytes], T]) -> tuple[T] | None:
        """Return the answer in a kept reply if there is one."""
        raw = None if self._kept is None else self._kept.find(self._key(request))
        try:
            return None if raw is None else (read(raw),)
        except ValueError:
            return None

    def _key(self, request: Request) -> tuple[str, dict[str, Any]]:
        return f"{self.connection.address.url}/{request.path}", request.body

    async def _answer(self, http: httpx2.AsyncClient, request: Request, read: Callable[[bytes], T]) -> T:
        raw = await self.connection.fetch(http, "POST", request.path, request.body, read)
        if self._kept is not None:
            self._kept.add(self._key(request), raw)
        return read(raw)

    async def _names(self) -> tuple[str, ...]:
        async with self.connection.open() as http:
            return read_models(await self.connection.fetch(http, "GET", "models", None, read_models))


class _Pool(Generic[T]):
    """Workers that share one list of open requests and put answers into one queue."""

    def __init__(self, client: Client, requests: Sequence[Request], read: Callable[[bytes], T]) -> None:
        self._client = client
        self._requests = requests
        self._read = read
        self._http = client.connection.open()
        self._done: asyncio.Queue[tuple[int, T] | BaseException] = asyncio.Queue()
        self._workers: list[asyncio.Task[None]] = []

    async def start(self, waiting: Sequence[int]) -> None:
        """Set the workers to work."""
        todo = iter(waiting)
        count = min(self._client._config.concurrency, len(waiting))
        self._workers = [asyncio.create_task(self._work(todo)) for _ in range(count)]

    async def next(self) -> tuple[int, T]:
        """Return the next answer, or raise what a worker met."""
        found = await self._done.get()
        if isinstance(found, BaseException):
            raise found
        return found

    async def stop(self) -> None:
        """End the workers and close the connections."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        await self._http.aclose()

    async def _work(self, todo: Iterator[int]) -> None:
        for place in todo:
            try:
                answer = await self._client._answer(self._http, self._requests[place], self._read)
            except Exception as error:
                self._done.put_nowait(error)
                return
            self._done.put_nowait((place, answer))
