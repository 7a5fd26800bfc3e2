"""Prefect's SQLite database, whose transactions wait for their turn instead of failing.

Prefect begins most transactions with ``BEGIN DEFERRED``: what reads first and then writes has the snapshot of
its first read, and where another connection has written since, SQLite refuses its write at once ("database is
locked"), however long the connection would be ready to wait. So heartbeats of workers and marks on queues
were lost, the more of them the busier the server was. ``BEGIN IMMEDIATE`` takes the write lock at the begin,
for which SQLite waits (Prefect sets 60 s). No setting of Prefect's does that.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from prefect.server.database.configurations import SQLITE_BEGIN_MODE, AioSqliteConfiguration
from prefect.server.database.dependencies import set_database_config
from prefect.server.utilities.database import get_dialect
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction


class WaitingSqlite(AioSqliteConfiguration):
    """SQLite as Prefect sets it up, but for how transactions begin."""

    @asynccontextmanager
    async def begin_transaction(
        self, session: AsyncSession, with_for_update: bool = False
    ) -> AsyncGenerator[AsyncSessionTransaction, None]:
        """A transaction that has the write lock from its first statement on.

        One that is opened inside another, by a second session, begins as Prefect has it: it would wait for
        the lock of the first, which waits for it.
        """
        outermost = SQLITE_BEGIN_MODE.get() is None
        token = SQLITE_BEGIN_MODE.set("IMMEDIATE" if outermost or with_for_update else "DEFERRED")
        try:
            async with session.begin() as transaction:
                yield transaction
        finally:
            SQLITE_BEGIN_MODE.reset(token)

    def begin_sqlite_stmt(self, conn: Connection) -> None:
        """Begin; sessions that are opened meanwhile, inside this transaction, only read for now."""
        super().begin_sqlite_stmt(conn)
        if SQLITE_BEGIN_MODE.get() is not None:
            SQLITE_BEGIN_MODE.set("DEFERRED")


def use_waiting_sqlite() -> None:
    """Let this process's Prefect server use it, where its database is SQLite."""
    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    if url and get_dialect(url).name == "sqlite":
        set_database_config(WaitingSqlite(connection_url=url))
