"""The service of `cargo xtask bench overhead`: routes whose cost is known in other ways too.

BENCH_BACKEND    http://HOST:PORT that is called, and that takes OpenTelemetry's exports
BENCH_POSTGRES   a DSN; without it /postgres is not there
BENCH_WITH       a tool that works inside of the process: otel, memray or pyinstrument
"""

import os
import sqlite3
from contextlib import AsyncExitStack, asynccontextmanager

import aiosqlite
import httpx
from fastapi import FastAPI

BACKEND = os.environ["BENCH_BACKEND"]
POSTGRES = os.environ.get("BENCH_POSTGRES")
WITH = os.environ.get("BENCH_WITH")
ROWS = 100_000
DATABASE = "bench.sqlite"


@asynccontextmanager
async def lifespan(app: FastAPI):
    async with AsyncExitStack() as stack:
        if WITH == "memray":
            import memray

            stack.enter_context(memray.Tracker("memray.bin"))
        with sqlite3.connect(DATABASE) as made:
            made.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, name TEXT, price REAL)")
            made.executemany(
                "INSERT INTO rows VALUES (?, ?, ?)",
                ((n, f"name-{n}", n / 7) for n in range(ROWS)),
            )
        made.close()
        app.state.db = await stack.enter_async_context(aiosqlite.connect(DATABASE))
        limits = httpx.Limits(max_connections=100, max_keepalive_connections=100)
        app.state.client = await stack.enter_async_context(httpx.AsyncClient(limits=limits, timeout=30))
        if POSTGRES:
            import asyncpg

            app.state.pool = await stack.enter_async_context(
                asyncpg.create_pool(POSTGRES, min_size=4, max_size=16)
            )
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/plain")
async def plain():
    return {"plain": True}


@app.get("/sqlite")
async def query(id: int = 7):
    """One query, which aiosqlite makes in its own thread."""
    async with app.state.db.execute("SELECT name, price FROM rows WHERE id = ?", (id,)) as cursor:
        name, price = await cursor.fetchone()
    return {"name": name, "price": price}


@app.get("/def")
def sync():
    """Runs in the thread pool."""
    return {"sync": True}


@app.get("/calls")
async def calls():
    """Three outbound calls, one after another."""
    statuses = []
    for n in range(3):
        response = await app.state.client.get(f"{BACKEND}/stock/{n}")
        statuses.append(response.status_code)
    return statuses


@app.get("/rows")
async def rows():
    """All rows at once."""
    async with app.state.db.execute("SELECT id, name, price FROM rows") as cursor:
        found = await cursor.fetchall()
    return {"rows": len(found)}


if POSTGRES:

    @app.get("/postgres")
    async def postgres(id: int = 7):
        async with app.state.pool.acquire() as connection:
            row = await connection.fetchrow("SELECT $1::int AS id, 'name' AS name", id)
        return dict(row)


if WITH == "otel":
    # As its documentation says; what `opentelemetry-instrument` does is the same.
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation import dbapi
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{BACKEND}/v1/traces")))
    trace.set_tracer_provider(provider)
    FastAPIInstrumentor.instrument_app(app)
    HTTPXClientInstrumentor().instrument()
    # What opentelemetry-instrumentation-sqlite3 does; aiosqlite connects through the same function.
    dbapi.wrap_connect(__name__, sqlite3, "connect", "sqlite")
elif WITH == "pyinstrument":
    # As its documentation says for FastAPI.
    from pyinstrument import Profiler

    @app.middleware("http")
    async def profile(request, call_next):
        profiler = Profiler(interval=0.001, async_mode="enabled")
        profiler.start()
        response = await call_next(request)
        profiler.stop()
        profiler.output_html()
        return response
elif WITH not in (None, "", "memray"):
    raise SystemExit(f"BENCH_WITH={WITH} is not known")
