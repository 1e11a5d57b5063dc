"""Routes that make outbound calls in every way that asyncio and threads know.

Each call carries its request's id in its path, so that whoever links calls to requests can be judged:
`/WAY/ID` calls `BACKEND/WAY/ID/N` for some N.
"""

import asyncio
import contextvars
import os
import sys
from contextlib import asynccontextmanager

import anyio
import httpx
from fastapi import BackgroundTasks, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from starlette.middleware.base import BaseHTTPMiddleware

BACKEND = os.environ["BACKEND"]
current = contextvars.ContextVar("current", default=None)
detached = set()


@asynccontextmanager
async def lifespan(app):
    if os.environ.get("EAGER"):
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(limits=limits, timeout=30) as client:
        app.state.client = client
        app.state.plain = httpx.Client(limits=limits, timeout=30)
        one = httpx.Limits(max_connections=1)
        docker = httpx.AsyncHTTPTransport(uds=os.environ.get("DOCKER", "/nowhere"))
        app.state.docker = httpx.AsyncClient(transport=docker, timeout=30)
        app.state.pool = [httpx.AsyncClient(limits=one, timeout=30) for _ in range(2)]
        yield


app = FastAPI(lifespan=lifespan)


async def call(way, rid, n):
    await app.state.client.get(f"{BACKEND}/{way}/{rid}/{n}")


def call_plainly(way, rid, n):
    app.state.plain.get(f"{BACKEND}/{way}/{rid}/{n}")


def keep(task):
    """Keeps a task that nobody awaits from being collected."""
    detached.add(task)
    task.add_done_callback(detached.discard)


@app.get("/await/{rid}")
async def plain_await(rid: str):
    await call("await", rid, 1)
    await asyncio.sleep(0.001)
    await call("await", rid, 2)


@app.get("/task/{rid}")
async def create_task(rid: str):
    await asyncio.create_task(call("task", rid, 1))


@app.get("/gather/{rid}")
async def gather(rid: str):
    await asyncio.gather(*(call("gather", rid, n) for n in range(3)))


@app.get("/wait_for/{rid}")
async def wait_for(rid: str):
    await asyncio.wait_for(call("wait_for", rid, 1), 30)


@app.get("/shield/{rid}")
async def shield(rid: str):
    await asyncio.shield(call("shield", rid, 1))


@app.get("/nested/{rid}")
async def nested(rid: str):
    async def outer():
        await asyncio.gather(asyncio.create_task(call("nested", rid, 1)), call("nested", rid, 2))

    await asyncio.create_task(outer())


@app.get("/detached/{rid}")
async def detached_task(rid: str):
    async def later():
        await asyncio.sleep(0.05)
        await call("detached", rid, 1)

    keep(asyncio.create_task(later()))


@app.get("/descendant/{rid}")
async def descendant(rid: str):
    """A task that outlives its request, and one of its own that outlives both."""

    async def grandchild():
        await asyncio.sleep(0.04)
        await call("descendant", rid, 2)

    async def child():
        await asyncio.sleep(0.02)
        keep(asyncio.create_task(grandchild()))
        await call("descendant", rid, 1)

    keep(asyncio.create_task(child()))


@app.get("/call_later/{rid}")
async def call_later(rid: str):
    loop = asyncio.get_running_loop()
    loop.call_later(0.02, lambda: keep(loop.create_task(call("call_later", rid, 1))))


@app.get("/sync/{rid}")
def sync(rid: str):
    call_plainly("sync", rid, 1)


@app.get("/to_thread/{rid}")
async def to_thread(rid: str):
    await asyncio.to_thread(call_plainly, "to_thread", rid, 1)


@app.get("/executor/{rid}")
async def executor(rid: str):
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, call_plainly, "executor", rid, 1)


@app.get("/generator/{rid}")
async def generator(rid: str):
    async def numbers():
        for n in range(2):
            await call("generator", rid, n)
            yield n

    return [n async for n in numbers()]


@app.get("/stream/{rid}")
async def stream(rid: str):
    async def chunks():
        for n in range(3):
            await call("stream", rid, n)
            yield b"chunk"

    return StreamingResponse(chunks())


@app.get("/background/{rid}")
async def background(rid: str, tasks: BackgroundTasks):
    tasks.add_task(call, "background", rid, 1)
    tasks.add_task(call_plainly, "background", rid, 2)


@app.get("/variable/{rid}")
async def variable(rid: str):
    token = current.set(rid)
    await call("variable", rid, 1)
    current.reset(token)
    await call("variable", rid, 2)


@app.get("/task_group/{rid}")
async def task_group(rid: str):
    if sys.version_info < (3, 11):
        await asyncio.gather(*(call("task_group", rid, n) for n in range(2)))
        return
    async with asyncio.TaskGroup() as group:
        for n in range(2):
            group.create_task(call("task_group", rid, n))


@app.get("/eager/{rid}")
async def eager(rid: str):
    if sys.version_info < (3, 12):
        await asyncio.create_task(call("eager", rid, 1))
        return
    loop = asyncio.get_running_loop()
    # As the eager factory does, but for the tasks of this route alone.
    await asyncio.Task(call("eager", rid, 1), loop=loop, eager_start=True)


@app.get("/big/{rid}")
async def big(rid: str):
    """A response that does not fit into the socket: the rest of it is sent by the event loop."""

    async def chunks():
        for n in range(3):
            await call("big", rid, n)
            yield b"x" * (1 << 20)

    return StreamingResponse(chunks())


@app.get("/turns/{rid}")
async def in_turns(rid: str):
    """A pool of two connections, which requests use in turn."""
    pool = app.state.pool
    while not pool:
        await asyncio.sleep(0.001)
    client = pool.pop()
    try:
        await client.get(f"{BACKEND}/turns/{rid}/1")
    finally:
        pool.append(client)


@app.get("/drip/{rid}")
async def drip(rid: str):
    """A response that lasts for as long as its client wants it."""

    async def chunks():
        yield b"first"
        await call("drip", rid, 1)
        while True:
            await asyncio.sleep(0.1)
            yield b"next"

    return StreamingResponse(chunks())


@app.get("/docker/{rid}")
async def docker(rid: str):
    await app.state.docker.get(f"http://localhost/v1.43/containers/{rid}/json")
    await app.state.docker.get(f"http://localhost/v1.43/images/team/{rid}/history")


@app.get("/many/{rid}")
async def many(rid: str):
    """Thousands of tasks, of which the last makes a call."""

    async def nothing():
        await asyncio.sleep(0)

    await asyncio.gather(*(nothing() for _ in range(10_000)))
    await asyncio.create_task(call("many", rid, 1))


@app.get("/storm/{rid}")
async def storm(rid: str):
    """Thousands of contexts that end at once, and pass their addresses on."""
    for n in range(2):
        for _ in range(1_000):
            contextvars.copy_context().run(int)
        await asyncio.create_task(call("storm", rid, n))


@app.get("/slow/{rid}")
async def slow(rid: str):
    """For clients that do not wait for the answer."""
    await call("slow", rid, 1)
    await asyncio.sleep(0.2)
    await call("slow", rid, 2)


@app.get("/cancelled/{rid}")
async def cancelled(rid: str):
    """A response that is cancelled when its client goes away, and makes a call as its last."""

    async def chunks():
        try:
            yield b"first"
            await call("cancelled", rid, 1)
            yield b"second"
            await asyncio.sleep(30)
        finally:
            # Starlette's scope cancels whatever is awaited, again and again, if it is not shielded.
            with anyio.CancelScope(shield=True):
                await call("cancelled", rid, 2)

    return StreamingResponse(chunks())


@app.get("/watched/{rid}")
async def watched(rid: str, request: Request):
    """Is cancelled by a watcher when its client goes away, and makes a call as its last."""
    handler = asyncio.current_task()

    async def watch():
        # `is_disconnected` never is behind a BaseHTTPMiddleware.
        while (await request.receive())["type"] != "http.disconnect":
            pass
        handler.cancel()

    await call("watched", rid, 1)
    keep(asyncio.create_task(watch()))
    try:
        await asyncio.sleep(30)
    finally:
        await call("watched", rid, 2)


@app.websocket("/socket/{rid}")
async def socket(websocket: WebSocket, rid: str):
    await websocket.accept()
    async for n in websocket.iter_text():
        await call("socket", rid, n)
        await websocket.send_text(n)


class Middleware(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        if request.url.path.startswith("/middleware/"):
            rid = request.url.path.rsplit("/", 1)[1]
            await call("middleware", rid, 1)
            response = await call_next(request)
            await call("middleware", rid, 3)
            return response
        return await call_next(request)


if os.environ.get("MIDDLEWARE"):
    app.add_middleware(Middleware)


@app.get("/middleware/{rid}")
async def behind_middleware(rid: str):
    await call("middleware", rid, 2)


@app.get("/nobody")
async def nobody():
    """Starts a task that is no request's: its context is empty."""

    async def ticking():
        while True:
            await asyncio.sleep(0.01)
            await call("nobody", "nobody", 0)

    keep(contextvars.Context().run(asyncio.get_running_loop().create_task, ticking()))


@app.get("/ready")
async def ready():
    return "ready"
