"""Busy in every kind of frame in turn. Prints the stacks that it can have: those at its innermost calls,
learnt from the interpreter, as lists of [name, line]."""

import functools
import json
import sys
import time

learning = True
known = []


def spin():
    if learning:
        learn(sys._getframe())
        return 1
    end = time.thread_time() + 0.004
    while time.thread_time() < end:
        pass
    return 1


def learn(frame):
    stack = []
    while frame:
        code = frame.f_code
        stack.append([getattr(code, "co_qualname", code.co_name), frame.f_lineno])
        frame = frame.f_back
    known.append(stack[::-1])


def recursion(depth=40):
    if depth:
        return recursion(depth - 1)
    return spin()


def inner_generator():
    yield spin()


def generator():
    yield from inner_generator()


def generators():
    # The first iterable of a generator expression is made outside of it: its function would be called by another
    # one than the one that it runs under.
    return sum(x for _ in [1] for x in generator())


class Awaitable:
    def __await__(self):
        spin()
        yield 1


async def inner_coroutine():
    await Awaitable()


async def coroutine():
    await inner_coroutine()


def coroutines():
    driven = coroutine()
    driven.send(None)
    try:
        driven.send(None)
    except StopIteration:
        pass


async def async_generator():
    spin()
    yield 1


async def async_for():
    async for _ in async_generator():
        pass


def async_generators():
    try:
        async_for().send(None)
    except StopIteration:
        pass


def sort_key():
    return sorted([2, 1], key=lambda value: (
        value,
        spin(),
    ))


class Key:
    def __lt__(self, other):
        return bool(spin())


def comparing():
    return min([Key(), Key()])


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(
            *args,
            **kwargs,
        )

    return wrapper


@decorated
def through_decorators(value):
    return [spin() for _ in range(value)]


class Outer:
    class Inner:
        def __init__(self):
            self.value

        @property
        def value(self):
            return spin()

        @classmethod
        def make(cls):
            return cls()


def class_body():
    class Body:
        attribute = spin()


text = compile("\n\ndef f():\n    spin()\n\nf()\n", "<erzählt λ 🦀>", "exec")


def executed():
    exec(text, {"spin": spin})


def größe():
    def λ():
        spin()

    λ()


def mapped():
    return list(map(lambda _: spin(), [1]))


def reduced():
    return functools.reduce(lambda a, b: a + spin(), [1, 2])


KINDS = [
    recursion, generators, coroutines, async_generators, sort_key, comparing,
    lambda: through_decorators(2), Outer.Inner.make, class_body, executed, größe, mapped, reduced,
]


def main():
    global learning
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for kind in KINDS:
            kind()
        if learning:
            learning = False
            print("ready", flush=True)
            print(json.dumps(known), flush=True)


main()
