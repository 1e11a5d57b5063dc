"""`callers.py`, and a route that reads large bodies."""

from callers import app, call
from fastapi import Request


@app.post("/upload/{rid}")
async def upload(rid: str, request: Request):
    """Reads a body that is larger than what the server takes before it is asked for more."""
    await request.body()
    await call("upload", rid, 1)
