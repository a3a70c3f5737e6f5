"""What type checkers have to accept; it is not run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from delayed import Group, Hidden, Limit, Lock, Queue, Retry, RetryLater, TaskHandle, delayed
from delayed.delay import delay, delay_in_time, delay_with_params
from delayed.retry import exponential, fixed
from delayed.worker.verdict import Verdict

queue = Queue("typed", "memory://")


@delayed(queue)
def add(a: int, b: int) -> int:
    return a + b


@delayed(queue, timeout=3, retry=Retry(3))
def with_options(a: int) -> str:
    return str(a)


@delayed(queue, retry=Retry(5, on=(OSError, "app.Busy"), never=ValueError, backoff=exponential("1s", max=timedelta(1))))
def with_policy(a: int) -> str:
    raise Retry.later("30s") if a else RetryLater(timedelta(seconds=1), count=True)


def decide(error: BaseException, attempt: int) -> float | None:
    return 1.5 * attempt if isinstance(error, OSError) else None


assert_type(Retry(policy=decide), Retry)
assert_type(Retry(backoff=fixed(1, "5s")), Retry)


@delayed()
def on_default(a: int) -> str:
    return str(a)


@delayed
def bare(a: int, *, flag: bool = False) -> str:
    return str(a) if flag else ""


@delayed(queue)()
def twice(a: int) -> str:
    return str(a)


@delayed(queue)(10)
def in_time(a: int) -> str:
    return str(a)


@delayed(queue)
async def later(a: int) -> str:
    return str(a)


@delayed(queue, at_once=3, rate="100/m")
def shout(text: str) -> str:
    return text


@delayed(queue, limit=Limit(3, rate="5/10s", by="separator"))
def join(texts: list[str], separator: str) -> str:
    return separator.join(texts)


class Shop:
    @staticmethod
    @delayed(queue)
    def total(price: int) -> int:
        return price


assert_type(add(1, 2), int)
assert_type(add.delay(1, 2), TaskHandle[int])
assert_type(add.delay(a=1, b=2), TaskHandle[int])
assert_type(add.timeout(3)(1, 2), TaskHandle[int])
assert_type(add.timeout(None)(1, 2), TaskHandle[int])
assert_type(add.options(retry=3).delay(1, b=2), TaskHandle[int])
assert_type(add.options(retry=3).options(timeout=4).delay(1, 2), TaskHandle[int])
assert_type(with_options.delay(1), TaskHandle[str])
assert_type(on_default.delay(1), TaskHandle[str])
assert_type(bare.delay(1, flag=True), TaskHandle[str])
assert_type(twice.delay(1), TaskHandle[str])
assert_type(in_time.delay(1), TaskHandle[str])
assert_type(later.delay(1), TaskHandle[str])
assert_type(Shop.total.delay(1), TaskHandle[int])
assert_type(delay(queue)(pow)(1, 2), TaskHandle[Any])
assert_type(add.after("5m").delay(1, b=2), TaskHandle[int])
assert_type(add.after(timedelta(1)).options(retry=3).delay(1, b=2), TaskHandle[int])
assert_type(add.at(datetime.now(UTC)).after(2.5).delay(1, b=2), TaskHandle[int])
assert_type(queue.reschedule(1, "5m"), bool)
assert_type(queue.cancel(1), bool)
assert_type(queue.paused, bool)
assert_type(add.delay(1, 2).result(), int)
assert_type(add.delay(1, 2).result(timeout=3), int)
assert_type(later.delay(1).result(3.5), str)
assert_type(later.timeout(3)(1), TaskHandle[str])
assert_type(later.options(keep=60).delay(1), TaskHandle[str])
assert_type(delay(queue)(later)(1), TaskHandle[Any])
assert_type(add.delay(1, 2).verdict, Verdict | None)
assert_type(add.delay(1, 2).cancel(), bool)
assert_type(queue.handle(5), TaskHandle[Any])
assert_type(add.options(keep="1h").delay(1, 2).id, int)
assert_type(with_options.map([1, 2]), Group[str])
assert_type(with_options.options(keep="1h").map(range(3)), Group[str])
assert_type(bare.map([1]), Group[str])
assert_type(later.map([1, 2]), Group[str])
assert_type(later.options(keep=60).map([1]).results(timeout=3), list[str])
assert_type(add.starmap([(1, 2)]), Group[int])
assert_type(later.starmap([(1,)]), Group[str])
assert_type(add.starmap([(1, 2)])[0], TaskHandle[int])
assert_type(add.starmap([(1, 2)])[:1], Group[int])
assert_type(add.starmap([(1, 2)]).results(), list[int])
assert_type([handle.result() for handle in with_options.map([1]).as_completed()], list[str])
assert_type(queue.group([1, 2]), Group[Any])
assert_type(with_options.delay(1).then(shout), TaskHandle[str])
assert_type(with_options.delay(1).then(shout.options(keep="1h")), TaskHandle[str])
assert_type(add.delay(1, 2).then(add, 3), TaskHandle[int])
assert_type(add.delay(1, 2).then(add, b=3), TaskHandle[int])
assert_type(add.delay(1, 2).then(later), TaskHandle[str])
assert_type(with_options.map([1]).then(join, ","), TaskHandle[str])
assert_type(add.options(after=[add.delay(1, 2), add.starmap([(1, 2)])]).delay(1, 2), TaskHandle[int])
number, name = add.delay(1, 2)
assert_type(number, int)
assert_type(name, str)


def plain(a: int) -> str:
    return str(a)


assert_type(delay(queue)(plain)(1), TaskHandle[Any])
assert_type(delay_in_time(queue)(plain, 3)(1), TaskHandle[Any])
assert_type(delay_in_time(queue)(plain, timeout=3)(a=1), TaskHandle[Any])
assert_type(delay_with_params(queue)(timeout=3)(plain)(1), TaskHandle[Any])


async def main() -> None:
    assert_type(await add.adelay(1, 2), TaskHandle[int])
    assert_type(await add.options(delay=3).adelay(1, 2), TaskHandle[int])
    assert_type(await later(1), str)
    assert_type(await add.delay(1, 2), int)
    assert_type(await (await add.adelay(1, 2)), int)
    assert_type(await add.delay(1, 2).aresult(timeout=3), int)
    assert_type(await later.delay(1), str)
    assert_type(await with_options.map([1]), list[str])
    assert_type(await later.delay(1).aresult(), str)
    assert_type(await with_options.amap([1]), Group[str])
    assert_type(await later.options(keep=60).amap([1]), Group[str])
    assert_type(await add.astarmap([(1, 2)]), Group[int])
    assert_type(await later.astarmap([(1,)]), Group[str])
    assert_type([handle.result() async for handle in with_options.map([1]).as_completed("1m")], list[str])
    assert_type(await add.starmap([(1, 2)]).acancel("5s"), int)
    assert_type(await add.delay(1, 2).areschedule("5m"), bool)


@delayed(queue)
def log_in(user: str, password: Hidden[str], *codes: Hidden[int], **more: Hidden[list[str]]) -> str:
    assert_type(password, str)
    assert_type(codes, tuple[int, ...])
    assert_type(more, dict[str, list[str]])
    return password


@dataclass
class Login:
    password: Hidden[str] = ""


assert_type(Login("x").password, str)
assert_type(log_in("me", "x"), str)
assert_type(log_in.delay("me", "x", 1, 2, a=["b"]), TaskHandle[str])

with queue.lock("name", ttl="1m", wait=5) as lock:
    assert_type(lock, Lock)
    assert_type(lock.fencing_token, int)
assert_type(queue.keys.get("name"), bytes | None)
assert_type(queue.keys.list(), list[str])
queue.schedule("name", add, 1, b=2, every="5m")
queue.schedule("name", add.options(retry=3), 1, 2, cron="* * * * *", tz="UTC")
queue.schedule("name", plain, 1, every=60, late="1m")
