"""Questions of a process to Redis, gathered: what its tasks ask in one turn of the event loop is one round trip.

An idle service does little else than ask Redis now and then, and each round trip wakes it twice, with cold caches,
whatever is asked. So its loops rest until the same moments, see `Ticks`, and send and read what they ask together.
Blocking commands have no place here: they would hold up everybody.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from typing import Any

import redis.asyncio
from redis.exceptions import ResponseError

from tandem_common.redis_client import TIMEOUT_S, is_cluster
from tandem_common.ticks import Ticks

Command = tuple[str | bytes | int, ...]


class RedisLine:
    """One connection that all tasks of a client share. `ticks` tells them when to ask."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        """Connections are the client's, which closes them too."""
        self._client = client
        self._is_cluster = is_cluster(client)
        self._connection: Any = None
        self._asked: list[tuple[Sequence[Command], asyncio.Future[list[Any]]]] = []
        self._exchanging: asyncio.Task[None] | None = None
        self.ticks = Ticks()

    async def ask(self, *commands: Command) -> list[Any]:
        """The answers as Redis gives them; in place of one that a command itself is to blame for, its ResponseError.

        Raises RedisError or OSError when Redis does not answer: some of the commands may have been carried out.
        """
        if self._is_cluster:
            async with self._client.pipeline(transaction=False) as pipeline:
                for command in commands:
                    pipeline.execute_command(*command)
                return list(await pipeline.execute(raise_on_error=False))
        answers: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._asked.append((commands, answers))
        if self._exchanging is None:
            # Serves whoever asks: it must not carry the context of the first into logs and spans.
            self._exchanging = asyncio.create_task(
                self._exchange_all(), name="redis-line", context=contextvars.Context()
            )
        return await answers

    async def _exchange_all(self) -> None:
        """Until nobody asks any more. Who asks during a round trip is part of the next."""
        try:
            while self._asked:
                asked, self._asked = self._asked, []
                try:
                    answers = iter(await self._exchange([one for commands, _ in asked for one in commands]))
                except Exception as error:  # noqa: BLE001 - it is for those who asked
                    for _, future in asked:
                        if not future.done():
                            future.set_exception(error)
                else:
                    for commands, future in asked:
                        theirs = [next(answers) for _ in commands]
                        if not future.done():
                            future.set_result(theirs)
        finally:
            self._exchanging = None

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        connection = await self._connected()
        answers = []
        try:
            # One time-out for all, where the connection would start one for each command and answer.
            async with asyncio.timeout(TIMEOUT_S):
                await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
                for _ in commands:
                    try:
                        answers.append(await connection.read_response())
                    except ResponseError as error:
                        answers.append(error)
        except BaseException:
            # Whatever comes later is not the answer to what is asked next.
            await connection.disconnect(nowait=True)
            raise
        return answers

    async def _connected(self) -> Any:
        if self._connection is None:
            pool: Any = self._client.connection_pool
            self._connection = await pool.get_connection()
        connection = self._connection
        # After any failure it is closed; and Redis may have closed it since.
        if not connection.is_connected or await connection.can_read():
            connection.socket_timeout = TIMEOUT_S
            await connection.disconnect()
            await connection.connect()
        connection.socket_timeout = None
        return connection


def line_of(client: redis.asyncio.Redis) -> RedisLine:
    """The line that everybody shares who has this client."""
    line: RedisLine | None = getattr(client, "_tandem_line", None)
    if line is None:
        line = RedisLine(client)
        client._tandem_line = line  # type: ignore[attr-defined] # noqa: SLF001 - lives as long as the client
    return line
