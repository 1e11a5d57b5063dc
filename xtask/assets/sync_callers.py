"""A WSGI application whose routes make outbound calls in every way that threads know, and servers for it.

As `callers.py`: `/WAY/ID` calls `BACKEND/WAY/ID/N` for some N. `python sync_callers.py SERVER` serves
it by the standard library alone; gunicorn serves it as `sync_callers:app`.
"""

import asyncio
import contextvars
import http.client
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from socketserver import ThreadingMixIn
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

BACKEND = urlsplit(os.environ["BACKEND"])
current = contextvars.ContextVar("current", default=None)
pool = ThreadPoolExecutor(8)
connections = threading.local()


def call(way, rid, n):
    connection = getattr(connections, "backend", None)
    if connection is None:
        connection = connections.backend = http.client.HTTPConnection(BACKEND.netloc, timeout=30)
    connection.request("GET", f"{BACKEND.path}/{way}/{rid}/{n}")
    connection.getresponse().read()


def plain(rid):
    call("plain", rid, 1)
    time.sleep(0.001)
    call("plain", rid, 2)


def variable(rid):
    token = current.set(rid)
    call("variable", rid, 1)
    current.reset(token)
    call("variable", rid, 2)


def copied(rid):
    contextvars.copy_context().run(call, "copied", rid, 1)


def pooled(rid):
    for future in [pool.submit(call, "pooled", rid, n) for n in range(3)]:
        future.result()


def later(rid):
    def work():
        time.sleep(0.02)
        call("later", rid, 1)

    pool.submit(work)


def in_a_loop(rid):
    async def work():
        await asyncio.gather(asyncio.to_thread(call, "in_a_loop", rid, 1), on_the_loop())

    async def on_the_loop():
        reader, writer = await asyncio.open_connection(BACKEND.hostname, BACKEND.port)
        path = f"{BACKEND.path}/in_a_loop/{rid}/2"
        writer.write(f"GET {path} HTTP/1.0\r\nHost: backend\r\n\r\n".encode())
        await reader.read()
        writer.close()

    asyncio.run(work())


def nobody(rid):
    def ticking():
        while True:
            time.sleep(0.01)
            call("nobody", "nobody", 0)

    threading.Thread(target=ticking, daemon=True).start()


WAYS = {
    function.__name__: function
    for function in (plain, variable, copied, pooled, later, in_a_loop, nobody)
}


def app(environ, start_response):
    way, _, rid = environ["PATH_INFO"].strip("/").partition("/")
    work = WAYS.get(way)
    if work is not None:
        work(rid)
    start_response("200 OK" if work else "404 Not Found", [("Content-Length", "2")])
    return [b"ok"]


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass


class Threaded(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    server = make_server(
        "127.0.0.1",
        0,
        app,
        server_class=Threaded if sys.argv[1] == "threaded" else WSGIServer,
        handler_class=Quiet,
    )
    server.socket.listen(128)
    print(f"Listening at: http://127.0.0.1:{server.server_port} ({os.getpid()})", flush=True)
    print(f"Booting worker with pid: {os.getpid()}", flush=True)
    server.serve_forever()
