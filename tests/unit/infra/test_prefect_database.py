"""What reads first and then writes waits for its turn, where Prefect's own setting lets it fail at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa
from prefect.server.database.configurations import AioSqliteConfiguration

from infra.local.prefect_database import WaitingSqlite

COUNT = sa.text("SELECT n FROM counts")
ADD = sa.text("UPDATE counts SET n = n + 1")


async def _count_together(database: AioSqliteConfiguration, writers: int) -> int:
    engine = await database.engine()
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE counts (n INTEGER)"))
        await connection.execute(sa.text("INSERT INTO counts VALUES (0)"))

    async def write() -> None:
        session = await database.session(engine)
        async with session, database.begin_transaction(session):
            await session.execute(COUNT)
            await asyncio.sleep(0.02)  # the others begin meanwhile
            # Inside a transaction others read: as they were before it.
            other = await database.session(engine)
            async with other:
                await other.execute(COUNT)
            await session.execute(ADD)

    await asyncio.gather(*(write() for _ in range(writers)))
    session = await database.session(engine)
    async with session:
        found = (await session.execute(COUNT)).scalar_one()
    await engine.dispose()
    return int(found)


def test_transactions_wait_for_each_other(tmp_path: Path) -> None:
    database = WaitingSqlite(connection_url=f"sqlite+aiosqlite:///{tmp_path}/waiting.db")
    assert asyncio.run(_count_together(database, writers=5)) == 5


def test_prefect_itself_lets_them_fail(tmp_path: Path) -> None:
    """The day that this fails, ``prefect_database`` is no longer needed."""
    database = AioSqliteConfiguration(connection_url=f"sqlite+aiosqlite:///{tmp_path}/own.db")
    with pytest.raises(sa.exc.OperationalError, match="database is locked"):
        asyncio.run(_count_together(database, writers=5))
