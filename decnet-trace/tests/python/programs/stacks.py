"""Threads in many kinds of places. Prints the stack of each, as the interpreter sees it, and waits."""
import asyncio
import functools
import hashlib
import json
import sys
import threading
import time

FOREVER = 100000
started = threading.Semaphore(0)


def block():
    started.release()
    time.sleep(FOREVER)


def recursion(depth=500):
    if depth:
        return recursion(depth - 1)
    block()


def generator():
    yield 1
    yield from inner_generator()


def inner_generator():
    block()
    yield 2


def generators():
    return sum(x for x in generator())


async def inner_coroutine():
    await asyncio.sleep(0)
    block()


async def coroutine():
    await asyncio.gather(inner_coroutine())


def coroutines():
    asyncio.run(coroutine())


async def async_generator():
    await asyncio.sleep(0)
    block()
    yield 1


async def drain():
    async for _ in async_generator():
        pass


def async_generators():
    asyncio.run(drain())


def sort_key():
    return sorted([3, 1, 2], key=lambda value: (
        value,
        block(),
    ))


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        try:
            return function(
                *args,
                **kwargs,
            )
        finally:
            pass

    return wrapper


@decorated
@functools.lru_cache(maxsize=None)
def through_decorators(a, b=1):
    with threading.Lock():
        for _ in range(
            a,
            b,
        ):
            [block() for _ in "x"]


class Outer:
    class Inner:
        def __init__(self):
            self.value

        @property
        def value(self):
            return block()

        @classmethod
        def make(cls):
            return cls()


def class_body():
    class Body:
        attribute = block()


def executed():
    exec(compile("\n\ndef f():\n    block()\n\nf()\n", "<erzählt λ 🦀>", "exec"), {"block": block})


def größe():
    """Latin-1."""
    def λ():
        """Two bytes a character."""
        # Four bytes a character.
        scope = {"block": block}
        exec("def 𐍈():\n    block()", scope)
        scope["𐍈"]()

    λ()


def without_gil():
    started.release()
    # Minutes of work with the GIL released.
    hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 2000000000)


def far_down():
    # A line far from the one before, and back: long forms in the line tables.
    value = (
        1,



























































































        block(),
    )
    return value


def in_lock(lock=threading.Lock()):
    lock.acquire()
    started.release()
    lock.acquire()


def mapped():
    return list(map(lambda _: block(), [1]))


def comparing():
    class Key:
        def __lt__(self, other):
            return block()

    return min([Key(), Key()])


TARGETS = [
    recursion, generators, coroutines, async_generators, sort_key, lambda: through_decorators(0),
    Outer.Inner.make, class_body, executed, größe, without_gil, far_down, in_lock, mapped, comparing,
]


def name(code):
    return getattr(code, "co_qualname", code.co_name)


def stack(frame):
    frames = []
    while frame:
        frames.append([name(frame.f_code), frame.f_code.co_filename, frame.f_lineno or 0])
        frame = frame.f_back
    return frames


def main():
    threads = [threading.Thread(target=target, daemon=True) for target in TARGETS]
    for thread in threads:
        thread.start()
    for _ in threads:
        if not started.acquire(timeout=20):
            sys.exit("a thread did not start")
    # From `started.release` into the call that blocks.
    time.sleep(0.5)
    frames = sys._current_frames()
    truth = {thread.native_id: stack(frames[thread.ident]) for thread in threads}
    print(json.dumps(truth), flush=True)
    sys.stdin.read()


threading.stack_size(64 << 20)
main()
