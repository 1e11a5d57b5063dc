"""A bare HTTP/1.1 server on uvloop: it answers whatever it is asked, as cheaply as Python can.

`bare.py HOST...` listens on a free port of each, a process for each, and prints address and pid. Many connections
to it cost little.
"""

import asyncio
import ctypes
import os
import re
import signal
import sys

import uvloop

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
# Also a whole answer to an OTLP export.
EMPTY = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n"
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Bare(asyncio.Protocol):
    __slots__ = ("transport", "rest")

    def connection_made(self, transport):
        self.transport = transport
        self.rest = b""

    def data_received(self, data):
        data = self.rest + data
        answers = []
        while True:
            head = data.find(b"\r\n\r\n")
            if head < 0:
                break
            length = LENGTH.search(data, 0, head)
            end = head + 4 + (int(length[1]) if length else 0)
            if len(data) < end:
                break
            answers.append(EMPTY if data.startswith(b"POST") else ANSWER)
            data = data[end:]
        self.rest = data
        if answers:
            self.transport.write(b"".join(answers))


async def main(host):
    server = await asyncio.get_running_loop().create_server(Bare, host, 0, backlog=4096)
    _, port = server.sockets[0].getsockname()
    print(f"listening {host}:{port} {os.getpid()}", flush=True)
    await asyncio.Event().wait()


PR_SET_PDEATHSIG = 1
first, *others = sys.argv[1:]
for host in others:
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        first = host
        break
uvloop.run(main(first))
