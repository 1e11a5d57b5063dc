"""A server that puts every byte where a request's path says: `raw.py`, on a free port of the loopback address.

It answers in ways that no server in its right mind does, or that are a matter of chance elsewhere:
how many writes, which system calls, which ends. Each connection has a thread. It knows nothing of
decnet-trace.
"""

import os
import socket
import struct
import tempfile
import threading
import time

END = b"\r\n\r\n"
LOOKALIKE = b"HTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\nnoGET /ghost HTTP/1.1\r\n\r\n"
held = threading.Event()


def message(body, status=b"200 OK", *headers):
    lines = [b"HTTP/1.1 " + status, *headers, b"Content-Length: %d" % len(body)]
    return b"\r\n".join(lines) + END + body


class Connection:
    """A connection: how it reads, and what it has read beyond the last request."""

    def __init__(self, sock):
        self.sock = sock
        self.mode = "recv"
        self.buffer = b""
        self.batch = None
        sock.settimeout(None)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read(self):
        size = 65536
        if self.mode == "read":
            return os.read(self.sock.fileno(), size)
        room = bytearray(size)
        if self.mode == "recv_into":
            return bytes(room[: self.sock.recv_into(room)])
        if self.mode == "readv":
            # Small pieces first: heads come in several of them.
            parts = [bytearray(7), bytearray(1), bytearray(3), bytearray(size)]
            count = os.readv(self.sock.fileno(), parts)
            return b"".join(parts)[:count]
        if self.mode == "recvmsg":
            parts = [bytearray(11), bytearray(size)]
            count = self.sock.recvmsg_into(parts)[0]
            return b"".join(parts)[:count]
        if self.mode == "peek":
            self.sock.recv(size, socket.MSG_PEEK)
            return self.sock.recv(size)
        if self.mode == "small":
            return self.sock.recv(5)
        if self.mode == "impatient":
            self.sock.settimeout(0.2)
        return self.sock.recv(size)

    def fill(self):
        more = self.read()
        self.buffer += more
        return bool(more)

    def request(self):
        while END not in self.buffer:
            if not self.fill():
                return None
        head, self.buffer = self.buffer.split(END, 1)
        line, *headers = head.decode("latin-1").split("\r\n")
        method, path, version = line.split(" ")
        headers = {name.lower(): value.strip() for name, value in (h.split(":", 1) for h in headers)}
        length = int(headers.get("content-length", 0))
        while len(self.buffer) < length:
            if not self.fill():
                return None
        self.buffer = self.buffer[length:]
        return method, path

    def send(self, data, pause=0.0):
        if self.batch is not None:
            self.batch += data
            return
        self.sock.sendall(data)
        if pause:
            time.sleep(pause)

    def answer(self, method, path):
        """Answers one request; whether the connection goes on."""
        sock, fd = self.sock, self.sock.fileno()
        what, _, argument = path[1:].partition("/")
        if what == "plain":
            self.send(message(b"" if method == "HEAD" else b"plain"))
        elif what == "head":
            # As a HEAD's answer has it: the length of what is not sent.
            self.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000" + END)
        elif what == "mode":
            self.mode = argument
            self.send(message(b"so be it"))
        elif what == "two":
            self.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10" + END, 0.02)
            self.send(b"0123456789", 0.02)
        elif what == "split":
            # The head in two writes, the body in one with the head's end.
            self.send(b"HTTP/1.1 201 Created\r\nContent-", 0.02)
            self.send(b"Length: 4" + END + b"done")
        elif what == "bytes":
            for byte in message(b"slowly"):
                self.send(bytes([byte]), 0.001)
        elif what == "sendmsg":
            sock.sendmsg([b"HTTP/1.1 20", b"0 OK\r\nContent-Le", b"ngth: 6" + END, b"sent", b"it"])
        elif what == "writev":
            os.writev(fd, [b"H", b"TTP/1.1 200 OK\r\nContent-Length: 6" + END, b"wrote", b"v"])
        elif what == "write":
            os.write(fd, message(b"written"))
        elif what == "sendfile":
            with tempfile.TemporaryFile() as file:
                file.write(b"x" * int(argument))
                file.flush()
                self.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d" % int(argument) + END)
                sent = 0
                while sent < int(argument):
                    sent += os.sendfile(fd, file.fileno(), sent, int(argument) - sent)
        elif what == "hints":
            self.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>" + END, 0.02)
            self.send(message(b"final"))
        elif what == "empty":
            self.send(b"HTTP/1.1 204 No Content" + END)
        elif what == "lookalike":
            head, body = message(LOOKALIKE).split(END, 1)
            self.send(head + END, 0.02)
            self.send(body, 0.02)
        elif what == "chunks":
            self.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked" + END, 0.02)
            for size in (1, 17, 5000, 70000):
                self.send(b"%x;name=value\r\n" % size, 0.005)
                self.send(b"x" * size + b"\r\n", 0.005)
            self.send(b"0\r\nTrailer: yes" + END if argument == "trailer" else b"0" + END)
        elif what == "false-end":
            # Data that looks like the last chunk at the end of a write, and goes on. What may be the
            # end is waited for, for a while: the rest comes sooner than that.
            body = b"y" * 9000 + b"\r\n0\r\n\r\n"
            self.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked" + END)
            self.send(b"%x\r\n" % (len(body) + 4) + body, 0.002)
            self.send(b"more\r\n0\r\n\r\n")
        elif what == "close":
            self.send(b"HTTP/1.1 200 OK\r\nConnection: close" + END, 0.01)
            for _ in range(int(argument or 3)):
                self.send(b"until the end. ", 0.01)
            return False
        elif what == "half-close":
            self.send(b"HTTP/1.0 200 OK" + END + b"half of it")
            sock.shutdown(socket.SHUT_WR)
            while self.read():
                pass
            return False
        elif what == "abort":
            self.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000" + END + b"x" * 100, 0.02)
            return False
        elif what == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        elif what == "never":
            time.sleep(60)
        elif what == "partial":
            self.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000" + END + b"x" * 100)
            time.sleep(60)
        elif what == "hold":
            held.wait(60)
            self.send(message(b"held"))
        elif what == "release":
            held.set()
            self.send(message(b"released"))
        elif what == "batch":
            # This and the following answers go out together.
            self.batch = bytearray(message(b"first"))
        elif what == "batch-end":
            data, self.batch = bytes(self.batch) + message(b"last"), None
            self.send(data)
        elif what == "fd":
            # The connection comes as another descriptor, through another socket.
            ours, theirs = socket.socketpair()
            socket.send_fds(theirs, [b"x"], [fd])
            _, (copy,), _, _ = socket.recv_fds(ours, 1, 1)
            ours.close()
            theirs.close()
            self.sock = socket.socket(fileno=copy)
            sock.detach()
            os.close(fd)
            self.send(message(b"moved"))
        else:
            self.send(message(b"", b"404 Not Found"))
        return True

    def serve(self):
        try:
            while True:
                request = self.request()
                if request is None or not self.answer(*request):
                    break
        except socket.timeout:
            self.send(message(b"", b"408 Request Timeout", b"Connection: close"))
        except (OSError, ValueError):
            pass
        self.sock.close()


def main():
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    print("port", listener.getsockname()[1], flush=True)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=Connection(sock).serve, daemon=True).start()


main()
