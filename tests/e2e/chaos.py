"""A bad network between a program and the server: what goes wrong next, a seeded deck decides."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from urllib.parse import urlsplit

DELAY_SECONDS = 0.3
PLAIN = 9  # requests in a deck to which nothing happens
# The first calls have no retries that last: what fails here fails where no server is at all.
SPARED = ("client/config", "client/dynamic_config", "telemetry", "session_heartbeat")


class Fault(StrEnum):
    """What happens to a request. A deck has each of them once."""

    PLAIN = "plain"
    DROP = "drop"  # the connection ends before the server hears of it
    LOSE = "lose"  # the server answers, and nobody hears of that
    CUT = "cut"  # half of the answer arrives
    DELAY = "delay"
    REPEAT = "repeat"  # the server gets the same bytes twice, at the same time
    BUSY = "busy"  # 429 from somewhere on the way
    DOWN = "down"  # 503 from there


ANSWERS = {
    Fault.BUSY: b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\n{}",
    Fault.DOWN: b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}",
}


class BadNetwork:
    """`url` takes the place of the server's; `done` counts what went wrong, by fault and path."""

    def __init__(self, upstream: str, seed: int) -> None:
        place = urlsplit(upstream)
        self.upstream = (place.hostname or "", place.port or 80)
        self.dice = random.Random(seed)
        self.deck: list[Fault] = []
        self.done: Counter[Fault] = Counter()
        self.hit: Counter[tuple[Fault, str]] = Counter()
        self.url = ""

    def draw(self) -> Fault:
        """Shuffled like cards: every fault comes in any order, and none stays away for long."""
        if not self.deck:
            faults = [fault for fault in Fault if fault is not Fault.PLAIN]
            self.deck = [*faults, *[Fault.PLAIN] * PLAIN]
            self.dice.shuffle(self.deck)
        return self.deck.pop()

    async def listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of the program, until a fault or its end."""
        with suppress(OSError, asyncio.IncompleteReadError):
            while await self.pass_on(reader, writer):
                pass
        writer.close()

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request. False: the connection is to end."""
        request = await read_message(reader)
        path = request.split(b" ", 2)[1].decode().partition("/api/v1/")[2]
        fault = Fault.PLAIN if path in SPARED else self.draw()
        self.done[fault] += 1
        self.hit[fault, path.split("/")[0]] += 1
        if fault is Fault.DROP:
            return False
        if fault is Fault.DELAY:
            await asyncio.sleep(DELAY_SECONDS)
        answer = ANSWERS.get(fault) or await self.ask(request, 2 if fault is Fault.REPEAT else 1)
        if fault is Fault.LOSE:
            return False
        writer.write(answer[: len(answer) // 2] if fault is Fault.CUT else answer)
        await writer.drain()
        return fault is not Fault.CUT

    async def ask(self, request: bytes, times: int) -> bytes:
        return (await asyncio.gather(*(self.ask_once(request) for _ in range(times))))[0]

    async def ask_once(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*self.upstream)
        try:
            writer.write(request)
            return await read_message(reader)
        finally:
            writer.close()


async def read_message(reader: asyncio.StreamReader) -> bytes:
    """A request or an answer, as it travels; nobody here sends chunks."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").lower().split("\r\n")
    found = (line.partition(":")[2] for line in lines if line.startswith("content-length:"))
    return head + await reader.readexactly(int(next(found, "0")))


@contextmanager
def bad_network(upstream: str, seed: int) -> Iterator[BadNetwork]:
    """On a thread of its own, while a program runs."""
    network = BadNetwork(upstream, seed)
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(network.listen())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield network
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.run_until_complete(end_tasks(loop))
        loop.close()


async def end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop) - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
