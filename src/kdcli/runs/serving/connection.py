"""One reply from a server: bounded in time and size, asked for again while there is hope."""

import asyncio
import email.utils
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2

from kdcli.config import ServerConfig
from kdcli.processes import check_count
from kdcli.runs.serving import refusals
from kdcli.runs.serving.address import address_of
from kdcli.runs.serving.refusals import TryAgain

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
        """Return a reply that can be read; ask again, ever later, while there is hope.

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
            except TryAgain as trouble:
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
            raise TryAgain(refusals.stalled(address, self._config.timeout)) from error
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise TryAgain(refusals.unreachable(address, str(error))) from error
        except (httpx2.InvalidURL, ValueError) as error:
            raise refusals.unreachable(address, str(error)) from error
        if status in _PASSING or status >= 500:
            raise TryAgain(refusals.failing(address, status, raw), after)
        if status != 200:
            raise refusals.refusing(address, status, raw)
        try:
            read(raw)
        except ValueError as error:
            raise TryAgain(refusals.nonsense(address, error, raw)) from error
        return raw

    async def _send(
        self, http: httpx2.AsyncClient, method: str, url: str, body: Any
    ) -> tuple[int, float | None, bytes]:
        async with http.stream(method, url, json=body) as response:
            raw = bytearray()
            async for chunk in response.aiter_bytes():
                raw += chunk
                if len(raw) > _LIMIT:
                    raise refusals.too_large(self.address, _LIMIT)
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
