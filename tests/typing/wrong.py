"""What type checkers have to reject: each line that is marked; it is not run."""

from __future__ import annotations

from delayed import Hidden, Limit, Queue, Retry, delayed
from delayed.delay import delay, delay_in_time, delay_with_params

queue = Queue("typed", "memory://")


@delayed(queue)
def add(a: int, b: int) -> int:
    return a + b


@delayed(queue, timeout=3)
def with_options(a: int) -> str:
    return str(a)


@delayed(queue)
def shout(text: str) -> str:
    return text


@delayed
def bare(a: int) -> str:
    return str(a)


def plain(a: int) -> str:
    return str(a)


def decide(error: str) -> bool:
    return bool(error)


Retry(3, on=3)  # wrong
Retry(3, backoff=3)  # wrong
Retry(3, policy=decide)  # wrong
Retry.later(None)  # wrong
add.delay("x")  # wrong
add.delay(1, "x")  # wrong
add.delay(1)  # wrong
add.delay(1, 2, 3)  # wrong
add.delay(1, c=2)  # wrong
add.delay(1, 2, timeout=3)  # wrong
add("x", 1)  # wrong
add.timeout(3)("x", 1)  # wrong
add.options(retry=3).delay("x", 1)  # wrong
with_options.delay("x")  # wrong
bare.delay("x")  # wrong
add.after("5m").delay("x", 1)  # wrong
add.after(None).delay(1, 2)  # wrong
add.at("tomorrow").delay(1, 2)  # wrong
delay(queue)(plain)("x")  # wrong
delay_in_time(queue)(plain, 3)("x")  # wrong
delay_with_params(queue)(timeout=3)(plain)("x")  # wrong
with_options.map(["x"])  # wrong
with_options.options(keep=60).map(["x"])  # wrong
with_options.map(3)  # wrong
add.starmap([1, 2])  # wrong
texts: list[int] = with_options.map([1]).results()  # wrong
add.delay(1, 2).then(shout)  # wrong
add.delay(1, 2).then(add, "x")  # wrong
with_options.delay(1).then(plain)  # wrong
with_options.map([1]).then(shout)  # wrong
Limit("3")  # wrong
number: str = add.delay(1, 2).result()  # wrong
add.delay(1, 2).result([3])  # wrong


async def main() -> None:
    (await add.delay(1, 2)).upper()  # wrong
    await add.adelay("x", 1)  # wrong
    await with_options.amap(["x"])  # wrong
    await add.options(retry=3).adelay("x", 1)  # wrong


@delayed(queue)
def log_in(user: str, password: Hidden[str]) -> str:
    return password


log_in.delay("me", 3)  # wrong
log_in("me", 3)  # wrong
