"""Routes that execute statements, each with its request's id in the name of a column."""

import sqlite3
import threading
from contextlib import asynccontextmanager

import aiosqlite
from fastapi import FastAPI

local = threading.local()


def database():
    if not hasattr(local, "db"):
        local.db = sqlite3.connect(":memory:", check_same_thread=False)
    return local.db


@asynccontextmanager
async def lifespan(app):
    async with aiosqlite.connect(":memory:") as db:
        app.state.db = db
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/sync/{rid}")
def sync(rid: str):
    for n in range(2):
        database().execute(f"SELECT {n} AS sync_{rid}_{n}").fetchall()


@app.get("/cursor/{rid}")
def cursor(rid: str):
    """Leaves it to the collector to end the statement."""
    database().execute(f"SELECT 1 AS cursor_{rid}_1 UNION SELECT 2 AS cursor_{rid}_1").fetchone()


@app.get("/loop/{rid}")
async def in_the_loop(rid: str):
    database().execute(f"SELECT 1 AS loop_{rid}_1").fetchall()


@app.get("/aiosqlite/{rid}")
async def in_another_thread(rid: str):
    async with app.state.db.execute(f"SELECT 1 AS aiosqlite_{rid}_1") as cursor:
        await cursor.fetchall()


@app.get("/ready")
async def ready():
    return "ready"
