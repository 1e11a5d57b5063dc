"""Asyncio tasks in many states. Prints each one's awaits, as the program knows them, and waits."""
import asyncio
import json
import sys
import threading


async def leaf():
    await asyncio.sleep(100000)


async def middle():
    await leaf()


async def chain():
    await middle()


async def in_generator():
    async def numbers():
        await leaf()
        yield 1

    async for _ in numbers():
        pass


async def in_context():
    class Context:
        async def __aenter__(self):
            await leaf()

        async def __aexit__(self, *_):
            pass

    async with Context():
        pass


async def waits_for(task):
    await task


async def in_gather():
    await asyncio.gather(leaf(), middle())


class Awaitable:
    def __await__(self):
        return (yield from leaf().__await__())


async def awaits_object():
    await Awaitable()


async def in_event(event):
    await event.wait()


def awaits(task):
    """The functions and lines of a task's coroutines, outermost first."""
    found = []
    coro = task.get_coro()
    while coro is not None:
        frame = getattr(coro, "cr_frame", None) or getattr(coro, "gi_frame", None) or getattr(coro, "ag_frame", None)
        if frame is None:
            break
        code = frame.f_code
        found.append([getattr(code, "co_qualname", code.co_name), frame.f_lineno])
        coro = getattr(coro, "cr_await", None) or getattr(coro, "gi_yieldfrom", None) or getattr(coro, "ag_await", None)
    return found


async def main():
    event = asyncio.Event()
    coros = {
        "chain": chain(), "gather": in_gather(), "context": in_context(), "event": in_event(event),
        "größe λ 🦀": chain(),
    }
    tasks = {name: asyncio.create_task(coro, name=name) for name, coro in coros.items()}
    tasks["waits"] = asyncio.create_task(waits_for(tasks["chain"]), name="waits")
    hidden = {"generator": in_generator(), "object": awaits_object()}
    others = {name: asyncio.create_task(coro, name=name) for name, coro in hidden.items()}
    unnamed = [asyncio.create_task(leaf()) for _ in range(50)]
    finished = asyncio.create_task(asyncio.sleep(0), name="finished")
    await finished
    await asyncio.sleep(0.1)
    created = asyncio.create_task(leaf(), name="created")
    truth = {name: awaits(task) for name, task in tasks.items()}
    # The chains that no attribute leads along.
    truth["generator"] = awaits(others["generator"])[:1] + [["in_generator.<locals>.numbers", 0], ["leaf", 0]]
    truth["object"] = awaits(others["object"])[:1] + [["Awaitable.__await__", 0], ["leaf", 0]]
    for task in unnamed:
        truth[task.get_name() if sys.argv[1:] else "unnamed"] = awaits(task)
    print(json.dumps({"tasks": truth, "count": len(asyncio.all_tasks()), "running": asyncio.current_task().get_name()}),
          flush=True)
    # The task runs: it does not wait.
    sys.stdin.read()
    del created, finished


def another_loop():
    asyncio.run(chain())


threading.Thread(target=another_loop, daemon=True).start()
asyncio.run(main())
