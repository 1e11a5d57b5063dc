#!/usr/bin/python3 -IB
"""The first and only program of a virtual machine: it runs the agent on a real service, says on the
console what came of it, and switches the machine off.

The last line that matters begins with `RESULT ` and is JSON. See xtask/src/vm.
"""

import ctypes
import fcntl
import http.client
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback

REQUESTS = 100
CONNECTIONS = 4
AGENT = "/bin/decnet-trace"
PORT = 8000

libc = ctypes.CDLL(None, use_errno=True)


def mount(kind, where):
    os.makedirs(where, exist_ok=True)
    if libc.mount(kind.encode(), where.encode(), kind.encode(), 0, None) != 0:
        print(f"cannot mount {kind}: {os.strerror(ctypes.get_errno())}", flush=True)


def loopback_up():
    """SIOCSIFFLAGS with IFF_UP | IFF_RUNNING (netdevice(7))."""
    with socket.socket() as s:
        fcntl.ioctl(s, 0x8914, struct.pack("16sH14s", b"lo", 0x41, b""))


def power_off():
    os.sync()
    libc.reboot(0x4321FEDC)


def wait_port(process):
    for _ in range(1200):
        if process.poll() is not None:
            raise RuntimeError("the service did not come up")
        try:
            socket.create_connection(("127.0.0.1", PORT)).close()
            return
        except OSError:
            time.sleep(0.25)
    raise RuntimeError("the service took too long")


def load(first, statuses):
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
    for n in range(first, REQUESTS, CONNECTIONS):
        connection.request("GET", f"/items/{n}")
        response = connection.getresponse()
        response.read()
        statuses[f"/items/{n}"] = response.status


def spans(path):
    with open(path) as lines:
        for line in lines:
            for resource in json.loads(line)["resourceSpans"]:
                for scope in resource["scopeSpans"]:
                    yield from scope["spans"]


def judge(path, statuses):
    """How many requests have exactly one span, with their path and status."""
    seen = {}
    for span in spans(path):
        attributes = {a["key"]: next(iter(a["value"].values())) for a in span.get("attributes", [])}
        status = attributes.get("http.response.status_code")
        seen.setdefault(attributes.get("url.path"), []).append(status)
    right = sum(seen.get(path) == [str(status)] for path, status in statuses.items())
    return {"sent": len(statuses), "spans": sum(map(len, seen.values())), "right": right}


def refused():
    """What `run` says where it cannot work."""
    run = subprocess.run(
        [AGENT, "run", "--duration", "1", "--port", "1"], capture_output=True, text=True, timeout=300
    )
    return {"exit": run.returncode, "said": run.stderr.strip().splitlines()}


def smoke(venv):
    service = subprocess.Popen(
        [f"{venv}/bin/python", "-m", "uvicorn", "app:app", "--app-dir", "/", "--port", str(PORT)]
        + ["--log-level", "warning", "--no-access-log"]
    )
    wait_port(service)
    begun = time.time()
    agent = subprocess.Popen(
        [AGENT, "run", "--port", str(PORT), "--spans-file", "/spans.jsonl"],
        stderr=subprocess.PIPE,
        text=True,
    )
    attached, ready = [], threading.Event()

    def listen():
        for line in agent.stderr:
            print("  |", line, end="", flush=True)
            if found := re.search("attached: ([^,]*)", line):
                attached.append((found[1], time.time() - begun))
                ready.set()
        ready.set()

    listener = threading.Thread(target=listen)
    listener.start()
    ready.wait(400)
    if agent.poll() is not None or not attached:
        agent.kill()
        listener.join()
        return {"exit": agent.wait(), "why": "the agent did not attach"}
    time.sleep(2)
    statuses = {}
    threads = [threading.Thread(target=load, args=(n, statuses)) for n in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(1)
    agent.terminate()
    listener.join()
    hooks, seconds = attached[0]
    result = {"exit": agent.wait(), "hooks": hooks, "attached_s": round(seconds, 1)}
    result.update(judge("/spans.jsonl", statuses))
    service.terminate()
    return result


def main():
    for kind, where in (
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
        ("securityfs", "/sys/kernel/security"),
    ):
        mount(kind, where)
    loopback_up()
    os.environ.update(PATH="/bin:/usr/bin", HOME="/root", PYTHONDONTWRITEBYTECODE="1")
    result = {"kernel": os.uname().release}
    print(f"STARTED {result['kernel']}", flush=True)
    try:
        doctor = subprocess.run([AGENT, "doctor"], capture_output=True, text=True, timeout=300)
        print(doctor.stdout + doctor.stderr, flush=True)
        result["doctor"] = doctor.returncode
        if doctor.returncode == 0:
            with open("/venv") as file:
                result.update(smoke(file.read()))
        else:
            result.update(refused())
    except Exception as error:
        traceback.print_exc()
        result["why"] = f"{type(error).__name__}: {error}"
    print(f"RESULT {json.dumps(result)}", flush=True)
    # The console's buffer.
    time.sleep(1)


try:
    main()
finally:
    power_off()
    sys.exit(1)
