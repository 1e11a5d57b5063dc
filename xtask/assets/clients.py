"""Routes that call with each of the HTTP clients, through a proxy where `PROXY` names one.

`/WAY/ID` calls `BACKEND/hop/ID.0`, and then `ID.1` to `ID.3`, of which two at once where the client can.
"""

import asyncio
import http.client
import os
import urllib.parse
from contextlib import asynccontextmanager

import aiohttp
import httpx
import requests
import urllib3
from fastapi import FastAPI

BACKEND = os.environ["BACKEND"]
PROXY = os.environ.get("PROXY")


@asynccontextmanager
async def lifespan(app):
    limits = httpx.Limits(max_connections=8)
    async with httpx.AsyncClient(limits=limits, timeout=30, proxy=PROXY, trust_env=False) as client:
        connector = aiohttp.TCPConnector(limit=8)
        async with aiohttp.ClientSession(connector=connector) as session:
            app.state.httpx = client
            app.state.aiohttp = session
            yield


app = FastAPI(lifespan=lifespan)
urllib3_pool = (
    urllib3.ProxyManager(PROXY, maxsize=8) if PROXY else urllib3.PoolManager(maxsize=8)
)
requests_session = requests.Session()
requests_session.trust_env = False
if PROXY:
    requests_session.proxies = {"http": PROXY}


def url(rid, n):
    return f"{BACKEND}/hop/{rid}.{n}?page=2&token=s3cr3t-{n}"


async def calls(call, rid):
    await call(url(rid, 0))
    await asyncio.gather(call(url(rid, 1)), call(url(rid, 2)))
    await call(url(rid, 3))


def plain_calls(call, rid):
    for n in range(4):
        call(url(rid, n))


@app.get("/httpx/{rid}")
async def by_httpx(rid: str):
    await calls(app.state.httpx.get, rid)


@app.get("/aiohttp/{rid}")
async def by_aiohttp(rid: str):
    async def call(url):
        async with app.state.aiohttp.get(url, proxy=PROXY) as response:
            await response.read()

    await calls(call, rid)


@app.get("/requests/{rid}")
def by_requests(rid: str):
    plain_calls(requests_session.get, rid)


@app.get("/urllib3/{rid}")
def by_urllib3(rid: str):
    plain_calls(lambda url: urllib3_pool.request("GET", url), rid)


@app.get("/tunnel/{rid}")
def through_a_tunnel(rid: str):
    """What is said in a tunnel is between the ends of it."""
    proxy, backend = (urllib.parse.urlsplit(where) for where in (PROXY, BACKEND))
    connection = http.client.HTTPConnection(proxy.hostname, proxy.port)
    connection.set_tunnel(backend.hostname, backend.port)
    connection.request("GET", f"/hop/{rid}.0")
    connection.getresponse().read()
    connection.close()
