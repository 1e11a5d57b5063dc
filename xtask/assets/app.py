"""The service of the test bed: a FastAPI application with one route for each shape of request.

Run it with `uvicorn app:app`. It knows nothing of decnet-trace.
"""

import asyncio
import time
from contextlib import asynccontextmanager

import aiosqlite
from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from starlette.responses import StreamingResponse

CHUNK = b"x" * 65536


@asynccontextmanager
async def lifespan(app: FastAPI):
    async with aiosqlite.connect(":memory:") as db:
        await db.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
        await db.executemany(
            "INSERT INTO users VALUES (?, ?)", [(n, f"user-{n}") for n in range(1000)]
        )
        await db.commit()
        app.state.db = db
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/")
async def index():
    return {"hello": "world"}


@app.get("/items/{item_id}")
async def item(item_id: int):
    return {"id": item_id, "name": f"item-{item_id}"}


@app.post("/echo")
async def echo(request: Request):
    """Reads the whole body and says how long it was."""
    return {"bytes": len(await request.body())}


@app.get("/slow")
async def slow(ms: float = 50):
    """Waits, and leaves the CPU alone."""
    await asyncio.sleep(ms / 1000)
    return {"slept_ms": ms}


def burn_outer(until: float) -> int:
    return burn_middle(until) + 1


def burn_middle(until: float) -> int:
    return burn_inner(until) + 1


def burn_inner(until: float) -> int:
    turns = 0
    while time.perf_counter() < until:
        turns += sum(range(100))
    return turns


@app.get("/cpu")
async def cpu(ms: float = 5):
    """Burns the CPU in functions whose names a flamegraph can be checked for."""
    return {"turns": burn_outer(time.perf_counter() + ms / 1000)}


@app.get("/block")
async def block(ms: float = 100):
    """Holds up the event loop, and says when it no longer did, in nanoseconds since the epoch."""
    time.sleep(ms / 1000)
    return time.time_ns()


@app.head("/head")
async def head():
    """A response to HEAD, with the length of the body that it lacks."""
    return Response(headers={"Content-Length": "1000"})


@app.get("/error")
async def error():
    raise RuntimeError("this route always fails")


@app.get("/sized/{size}")
async def sized(size: int):
    """A body of that many bytes, with Content-Length."""
    return Response(b"x" * size, media_type="application/octet-stream")


@app.get("/stream/{chunks}/{size}")
async def stream(chunks: int, size: int):
    """A chunked body: `chunks` chunks of `size` bytes."""

    async def body():
        for _ in range(chunks):
            yield b"x" * size
            await asyncio.sleep(0)

    return StreamingResponse(body(), media_type="application/octet-stream")


@app.get("/sync")
def sync():
    """A route that runs in the thread pool."""
    return {"sync": True}


@app.get("/db")
async def query(user: int = 1):
    """One query, which aiosqlite makes in its own thread."""
    async with app.state.db.execute("SELECT name FROM users WHERE id = ?", (user,)) as cursor:
        row = await cursor.fetchone()
    return {"name": row[0] if row else None}


@app.websocket("/upgrade")
async def upgrade(socket: WebSocket):
    """Sends every message back."""
    await socket.accept()
    try:
        while True:
            await socket.send_text(await socket.receive_text())
    except WebSocketDisconnect:
        pass


@app.get("/nocontent", status_code=204)
async def nocontent():
    return Response(status_code=204)


@app.get("/notmodified", status_code=304)
async def notmodified():
    return Response(status_code=304, headers={"ETag": '"1"'})


@app.get("/file/{mib}")
async def file(mib: int):
    """A large body with Content-Length, written piece by piece."""

    async def body():
        for _ in range(mib * 16):
            yield CHUNK

    return StreamingResponse(
        body(),
        media_type="application/octet-stream",
        headers={"Content-Length": str(mib << 20)},
    )
