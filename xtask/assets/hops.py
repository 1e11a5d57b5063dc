"""A service that calls the next one, so that whoever joins the two can be judged.

`/hop/ID` calls `NEXT/hop/ID.0` and `NEXT/hop/ID.1` at once, and then `NEXT/hop/ID.2`, where there is a next one.
With `NEXT_SOCKET` that is asked through a unix socket.
"""

import asyncio
import os
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI, Request, Response

NEXT = os.environ.get("NEXT")
SOCKET = os.environ.get("NEXT_SOCKET")


@asynccontextmanager
async def lifespan(app):
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=32)
    transport = httpx.AsyncHTTPTransport(uds=SOCKET, limits=limits)
    async with httpx.AsyncClient(transport=transport, timeout=60) as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/hop/{rid}")
async def hop(rid: str):
    if NEXT:
        call = lambda n: app.state.client.get(f"{NEXT}/hop/{rid}.{n}")
        await asyncio.gather(call(0), call(1))
        await call(2)
    return rid


@app.get("/slow/{rid}")
async def slow(rid: str):
    """Takes its time; the next one does, where there is one."""
    if NEXT:
        await app.state.client.get(f"{NEXT}/slow/{rid}.0")
    else:
        await asyncio.sleep(0.3)
    return rid


@app.get("/fail/{rid}")
async def fail(rid: str):
    """The last one fails, and nobody before it minds."""
    if NEXT:
        await app.state.client.get(f"{NEXT}/fail/{rid}.0")
        return rid
    return Response(status_code=500)


@app.get("/late/{rid}")
async def late(rid: str):
    """Takes its time when the next one has answered, who does not."""
    if NEXT:
        await app.state.client.get(f"{NEXT}/late/{rid}.0")
        await asyncio.sleep(0.3)
    return rid


@app.get("/impatient/{rid}")
async def impatient(rid: str):
    """Gives up before the next one answers."""
    try:
        await app.state.client.get(f"{NEXT}/slow/{rid}.0", timeout=0.1)
    except httpx.ReadTimeout:
        return "late"


@app.get("/named/{rid}")
async def named(rid: str, request: Request):
    """Passes on what its caller says of the trace."""
    names = ["traceparent", "tracestate"]
    headers = {name: request.headers[name] for name in names if name in request.headers}
    if NEXT:
        await app.state.client.get(f"{NEXT}/named/{rid}.0", headers=headers)
    return rid
