"""Jobs in the transactions of SQLAlchemy's sessions and connections, on both engines."""

import contextlib

import pytest

from deferred import EngineError
from deferred.engines import Job, find_engine

sqlalchemy = pytest.importorskip("sqlalchemy.ext.asyncio")
pytest.importorskip("greenlet")


@pytest.fixture(params=["sqlite", "postgres"])
def urls(request, tmp_path):
    """Return the URLs of one database: ours and SQLAlchemy's."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/jobs.db", f"sqlite+aiosqlite:///{tmp_path}/jobs.db"
    url = request.getfixturevalue("postgres_url")
    return url, url.replace("postgresql:", "postgresql+asyncpg:")


@pytest.fixture
async def both(urls):
    """Return an engine of ours, and one of SQLAlchemy on the same database."""
    engine, other = find_engine(urls[0]), sqlalchemy.create_async_engine(urls[1])
    await engine.setup()
    yield engine, other
    await other.dispose()
    await engine.close()


def job(job_id, **more):
    """Return a job."""
    return Job(id=job_id, name="task", payload=b"{}", **more)


async def test_sessions_and_connections_are_joined(both):
    """A job is stored with the transaction of a session or a connection, savepoints included, or not at all. D01."""
    engine, other = both
    async with sqlalchemy.AsyncSession(other) as session:
        async with session.begin():
            assert await engine.enqueue([job("1")], session) == ["1"]
            assert await engine.enqueue([job("2", key="k")], session) == ["2"]
            assert (await engine.depth()).waiting == 0
        await engine.enqueue([job("never")], session)
        await session.rollback()
    async with other.begin() as connection:
        await engine.enqueue([job("3")], connection)
        with contextlib.suppress(ZeroDivisionError):
            async with connection.begin_nested():
                await engine.enqueue([job("inner")], connection)
                raise ZeroDivisionError
    with contextlib.suppress(ZeroDivisionError):
        async with other.begin() as connection:
            await engine.enqueue([job("never")], connection)
            raise ZeroDivisionError
    assert (await engine.depth()).waiting == 3


async def test_what_is_no_open_connection_is_refused(both):
    """An engine, a session that is not asynchronous, a closed connection and one that commits by itself. D01."""
    from sqlalchemy.orm import Session

    engine, other = both
    for stranger in (other, other.sync_engine, Session(other.sync_engine)):
        with pytest.raises(EngineError, match=rf"SQLAlchemy {type(stranger).__name__}, .* pass an AsyncSession"):
            await engine.enqueue([job("never")], stranger)
    async with other.connect() as connection:
        pass
    for closed in (connection, other.connect()):
        with pytest.raises(EngineError, match="cannot be joined"):
            await engine.enqueue([job("never")], closed)
    async with other.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        with pytest.raises(EngineError, match="no transaction is open"):
            await engine.enqueue([job("never")], connection)
    assert (await engine.depth()).waiting == 0
