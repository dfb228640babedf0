"""A TCP proxy between one client and the broker: it can stop forwarding without closing, and lose messages.

It runs on a thread of its own. What it holds back is passed on in order once it forwards again, as a network that
comes back may do.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator

#: Decides about a message on its way from the broker, by topic: whether it vanishes although its sender was told that
#: it arrived.
Loses = Callable[[str], bool]

_PUBLISH, _PUBACK = 3, 4


class Proxy:
    """Forwards `port` to the broker's."""

    def __init__(self, broker_port: int, loses: Loses = lambda topic: False) -> None:
        self.port = 0
        self.lost: list[str] = []
        self._broker_port = broker_port
        self._loses = loses
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Forward nothing from now on, in either direction; connections stay open, and new ones are accepted."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def restore(self) -> None:
        """Forward again, what was held back first."""
        self._loop.call_soon_threadsafe(self._open.set)

    def start(self) -> None:
        self._thread.start()
        self._started.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._open, self._ended = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._ended.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        to_broker = None
        try:
            await self._open.wait()
            broker, to_broker = await asyncio.open_connection("127.0.0.1", self._broker_port)
            up = asyncio.ensure_future(self._pass_up(client, to_broker))
            down = asyncio.ensure_future(self._pass_down(broker, to_client, to_broker))
            done, pending = await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            for side in (*done, *pending):
                side.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for writer in (to_client, to_broker):
                if writer is not None:
                    writer.close()

    async def _pass_up(self, client: asyncio.StreamReader, to_broker: asyncio.StreamWriter) -> None:
        while data := await client.read(65536):
            await self._open.wait()
            to_broker.write(data)
            await to_broker.drain()

    async def _pass_down(
        self, broker: asyncio.StreamReader, to_client: asyncio.StreamWriter, to_broker: asyncio.StreamWriter
    ) -> None:
        while True:
            head, body = await _packet(broker)
            await self._open.wait()
            if head[0] >> 4 == _PUBLISH and self._swallow(head[0], body, to_broker):
                continue
            to_client.write(head + body)
            await to_client.drain()

    def _swallow(self, flags: int, body: bytes, to_broker: asyncio.StreamWriter) -> bool:
        end = 2 + int.from_bytes(body[:2], "big")
        topic = body[2:end].decode()
        if not self._loses(topic):
            return False
        self.lost.append(topic)
        if flags >> 1 & 3:  # QoS 1: the broker must believe that it was delivered, or it sends it again
            to_broker.write(bytes((_PUBACK << 4, 2)) + body[end : end + 2])
        return True


async def _packet(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """One MQTT 3.1.1 control packet: its fixed header and the rest. Section 2.2 of the standard."""
    head = await reader.readexactly(1)
    length = shift = 0
    while True:
        byte = await reader.readexactly(1)
        head += byte
        length |= (byte[0] & 127) << shift
        shift += 7
        if byte[0] < 128:
            return head, await reader.readexactly(length)


@contextlib.contextmanager
def proxy(broker_port: int, loses: Loses = lambda topic: False) -> Iterator[Proxy]:
    """A running proxy, gone at the end."""
    found = Proxy(broker_port, loses)
    found.start()
    try:
        yield found
    finally:
        found.stop()
