"""A network that is a millisecond slower: TCP proxies on loopback, in a process of their own.

    python -m benchmarks.delay MILLISECONDS PORT…

forwards a free port to each ``PORT`` of 127.0.0.1, and passes on each piece of data that many
milliseconds after it came, in both directions: a round trip takes twice as much longer. Prints the
free ports as JSON, and ends with its input. Delays in the kernel would cost less of the processor,
but need its netem module, which many machines don't have.
"""

from __future__ import annotations

import asyncio
import json
import selectors
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

from typing_extensions import Self

__all__ = ["Delay"]


class Delay:
    """``async with Delay(1.0, [27017]) as delay``: ``delay.ports`` leads to the given ports."""

    def __init__(self, milliseconds: float, ports: Sequence[int]) -> None:
        self.ports: list[int] = []
        self._arguments = [str(milliseconds), *map(str, ports)]
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.delay", *self._arguments),
            stdin=PIPE,
            stdout=PIPE,
            cwd=Path(__file__).parents[1],
            start_new_session=True,  # Ctrl-C in a terminal is ours to handle
        )
        assert self._process.stdout is not None
        self.ports = json.loads(await self._process.stdout.readline())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            await self._process.wait()


class _Direction(asyncio.Protocol):
    """One end of a connection: what it hears goes to the other end, later."""

    def __init__(self, seconds: float) -> None:
        self._later = asyncio.get_running_loop().call_later
        self._seconds = seconds
        self._other: asyncio.Transport | None = None
        self._heard: list[bytes] = []
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def lead_to(self, other: asyncio.Transport) -> None:
        """Pass on what was heard already, and all that comes."""
        self._other = other
        for data in self._heard:
            self.data_received(data)

    def data_received(self, data: bytes) -> None:
        if self._other is None:
            self._heard.append(data)
        else:
            self._later(self._seconds, self._other.write, data)

    def connection_lost(self, _: Exception | None) -> None:
        if self._other is not None:
            self._later(self._seconds, self._other.close)


class _Arriving(_Direction):
    """The end of a client, which is connected to the server by then."""

    def __init__(self, seconds: float, port: int) -> None:
        super().__init__(seconds)
        self._port = port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        assert self.transport is not None
        loop, seconds = asyncio.get_running_loop(), self._seconds
        try:
            there, server = await loop.create_connection(
                lambda: _Direction(seconds), "127.0.0.1", self._port
            )
        except OSError:
            self.transport.close()
            return
        server.lead_to(self.transport)
        self.lead_to(there)


async def _forward(milliseconds: float, ports: Sequence[int]) -> None:
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    arriving = [partial(_Arriving, milliseconds / 1000, port) for port in ports]
    servers = [await loop.create_server(made, "127.0.0.1") for made in arriving]
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    await lines.read()


if __name__ == "__main__":
    # epoll rounds waits up to whole milliseconds, and select does not.
    _loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    _loop.run_until_complete(_forward(float(sys.argv[1]), [int(port) for port in sys.argv[2:]]))
