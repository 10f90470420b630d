"""Asks a server many requests at once: bounded, patient, and never twice for what was answered."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx2

from kdcli.config import ServerConfig
from kdcli.errors import UsageError
from kdcli.runs.serving.connection import Connection
from kdcli.runs.serving.kept import Kept
from kdcli.runs.serving.wire import read_models
from kdcli.text import one_line

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
    """A server that speaks the OpenAI protocol.

    Args:
        config: address, model and patience.
        kept: replies received before, and where to keep new ones; None keeps nothing.

    Raises:
        UsageError: SERVE-01, an address that no server can have.
    """

    def __init__(self, config: ServerConfig, kept: Kept | None = None) -> None:
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
