"""Routes that execute statements through SQLAlchemy's async engine, each with its request's id in the name of
a column: SQLAlchemy runs in greenlets, which leave the C stack while aiosqlite's threads execute them.
"""

import asyncio
import contextvars
import os
import queue
import tempfile
from contextlib import asynccontextmanager

import greenlet
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

folder = tempfile.TemporaryDirectory()
engine = create_async_engine(f"sqlite+aiosqlite:///{os.path.join(folder.name, 'db')}")
session = async_sessionmaker(engine)


@asynccontextmanager
async def lifespan(app):
    yield
    await engine.dispose()
    folder.cleanup()


app = FastAPI(lifespan=lifespan)


async def select(way, rid, n):
    async with session() as db:
        await db.execute(text(f"SELECT {n} AS {way}_{rid}_{n}"))


@app.get("/orm/{rid}")
async def orm(rid: str):
    async with session() as db:
        await db.execute(text(f"SELECT 1 AS orm_{rid}_1"))
        await asyncio.sleep(0.001)
        await db.execute(text(f"SELECT 2 AS orm_{rid}_2"))


@app.get("/gathered/{rid}")
async def gathered(rid: str):
    await asyncio.gather(*(select("gathered", rid, n) for n in range(2)))


@app.get("/within/{rid}")
async def within(rid: str):
    """Several statements within one greenlet."""

    def work(connection):
        for n in range(3):
            connection.execute(text(f"SELECT {n} AS within_{rid}_{n}"))

    async with engine.connect() as connection:
        await connection.run_sync(work)


@app.get("/greenlets/{rid}")
async def greenlets(rid: str):
    """Greenlets that take turns between and during calls of the functions that have probes."""
    one, two = queue.SimpleQueue(), queue.SimpleQueue()

    def turns(mine, others, depth):
        if depth:
            return turns(mine, others, depth - 1)
        for n in range(20):
            others.put(n)
            contextvars.copy_context().run(main.switch)
            assert mine.get() == n
            main.switch()

    main = greenlet.getcurrent()
    both = [greenlet.greenlet(turns) for _ in range(2)]
    for each, queues in zip(both, [(one, two), (two, one)]):
        each.switch(*queues, 10)
    while not all(each.dead for each in both):
        for each in both:
            each.switch()
    await select("greenlets", rid, 1)


@app.get("/ready")
async def ready():
    return "ready"
