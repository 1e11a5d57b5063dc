"""A server in which one task serves all requests of a connection in turn; as `callers.py` otherwise.

`/pause/ID` calls while it is served; a call of `/left/ID` is made by a task that is left behind, while the next
request on the connection is.
"""

import asyncio
import os
from urllib.parse import urlsplit

BACKEND = urlsplit(os.environ["BACKEND"])
left = set()


async def call(way, rid, n):
    reader, writer = await asyncio.open_connection(BACKEND.hostname, BACKEND.port)
    path = f"{BACKEND.path}/{way}/{rid}/{n}"
    writer.write(f"GET {path} HTTP/1.0\r\nHost: backend\r\n\r\n".encode())
    await reader.read()
    writer.close()


async def later(rid):
    await asyncio.sleep(0.03)
    await call("left", rid, 1)


async def handle(way, rid):
    if way == "left":
        task = asyncio.create_task(later(rid))
        left.add(task)
        task.add_done_callback(left.discard)
    elif way == "pause":
        await call("pause", rid, 1)
        await asyncio.sleep(0.06)
        await call("pause", rid, 2)


async def serve(reader, writer):
    try:
        while line := await reader.readline():
            while (await reader.readline()).strip():
                pass
            _, way, rid = line.split()[1].decode().split("/")
            await handle(way, rid)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await writer.drain()
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    print(f"listening on 127.0.0.1:{port}", flush=True)
    await server.serve_forever()


asyncio.run(main())
