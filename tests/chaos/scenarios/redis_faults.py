"""What happens to Redis alone: it forgets scripts, cuts connections, pauses, is full, or refuses to write."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.chaos import tasks
from tests.chaos.proxy import Proxy
from tests.chaos.records import now
from tests.chaos.scenarios.outages import BACK, SLACK, back
from tests.chaos.scenarios.producing import Pressing, Producing
from tests.chaos.scenarios.scene import Scene, scenario
from tests.servers.redis import RedisServer, redis_server

if TYPE_CHECKING:
    import redis

NAP = 0.02  # seconds that a task takes
LOAD = "x" * 100_000
ROOM = 8 << 20  # bytes that a Redis has left
AT_ONCE = 1.0  # seconds in which a busy machine refuses what a store has no room for
LAG = 0.5  # seconds by which a replica is behind
COMPLAINTS = 3  # lines in the log of a worker while a store does not serve it


@scenario("B2", stores=("redis",), proxied=False)
def nothing_on_disk(scene: Scene) -> None:
    """A Redis that writes nothing to its disk is killed: what it had is gone, as workers had warned at their start."""
    server = _server(scene)
    server.kill()
    server.arguments = ("--appendonly", "no")
    server.start()
    with _two_workers_at_work(scene):
        scene.measure("workers that had warned", scene.worker_log().count("keeps no append-only file"), least=2)
        _come_back_with_less(scene, 0.0, server.start)


@scenario("B5", stores=("redis",), proxied=False)
def snapshot(scene: Scene) -> None:
    """A server starts again from what it had half a second before."""
    server = _server(scene)
    with _two_workers_at_work(scene), _admin(scene) as admin:
        since = now()
        admin.save()
        scene.put(NAP, count=scene.tasks)
        time.sleep(LAG)
        server.arguments = ("--appendonly", "no")  # else it starts from its log
        _come_back_with_less(scene, since, server.start)


@scenario("B5", stores=("redis",), proxied=False)
def promotion(scene: Scene) -> None:
    """A replica that has heard nothing for half a second is promoted, and gets the address of its primary."""
    primary = _server(scene)
    replica = scene.later.enter_context(redis_server("--replicaof", "127.0.0.1", str(primary.port)))
    with _client(replica.url) as admin, _admin(scene) as primary_admin:
        scene.wait_for(lambda: admin.info("replication")["master_link_status"] == "up")
        with _two_workers_at_work(scene):
            since = now()
            offset = primary_admin.info("replication")["master_repl_offset"]
            scene.wait_for(lambda: admin.info("replication")["slave_repl_offset"] >= offset)
            admin.replicaof("127.0.0.1", 1)  # nobody is there
            scene.put(NAP, count=scene.tasks)
            time.sleep(LAG)

            def promote() -> None:
                admin.replicaof("NO", "ONE")
                scene.later.enter_context(Proxy(replica.url, Path(replica.folder), at=primary.port))

            _come_back_with_less(scene, since, promote)


@contextlib.contextmanager
def _two_workers_at_work(scene: Scene) -> Iterator[None]:
    scene.worker()
    scene.worker()
    with Producing(scene, NAP):
        numbers = [*scene.put(scene.arena.lease, count=1), *scene.put_watched(scene.arena.lease)]
        scene.put(NAP, count=scene.tasks)
        scene.wait_for(lambda: all(scene.runs(number) for number in numbers))
        yield


def _come_back_with_less(scene: Scene, since: float, replace: Callable[[], None]) -> None:
    """The server is killed; `replace` brings it back, or another one, that knows what there was at a time."""
    scene.arena.note("down", lossy=True, since=since)
    _server(scene).kill()
    replace()
    scene.arena.note("up")
    scene.put(NAP, count=scene.tasks)
    scene.measure("served again after", back(scene), most=BACK + SLACK)


@scenario("R1", stores=("redis",), proxied=False)
def flushes(scene: Scene) -> int:
    """Scripts are forgotten ten times a second, connections end once a second, and all stands still for a while."""
    harm = 0
    scene.worker()
    scene.worker()
    with _admin(scene) as admin, Producing(scene, NAP):
        for tenth in range(1, 101):
            admin.script_flush()
            harm += 1
            if tenth % 10 == 0:
                admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                harm += 1
            if tenth == 33:
                admin.execute_command("DEBUG", "SLEEP", scene.arena.lease / 2)
                harm += 1
            if tenth == 66:
                admin.execute_command("CLIENT", "PAUSE", int(scene.arena.lease / 2 * 1000))
                harm += 1
            time.sleep(0.1)
    scene.measure("lines that tell of a script", scene.worker_log().count("NOSCRIPT"), most=0)
    return harm


@scenario("R2", stores=("redis",), proxied=False, lease=15.0)  # it takes a while to fill, before anything is run
def full(scene: Scene) -> int:
    """Memory is full, and producers press: they are refused at once, all else goes on, and makes room."""
    arena = scene.arena
    with _admin(scene) as admin:
        scene.put(count=scene.tasks * 10)
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", admin.info("memory")["used_memory"] + ROOM)
        with Pressing(scene, LOAD) as pressing:
            scene.wait_for(lambda: scene.refused() > 5)
            scene.worker()
            scene.worker()
            scene.wait_for(lambda: scene.begun() > scene.tasks * 5)
        scene.measure("refused after", pressing.longest, most=AT_ONCE)
        scene.wait_for(lambda: not sum(arena.counts()[:3]))
        refused = scene.refused()
        for _ in range(10):
            arena.put(tasks.bulky, LOAD)
        scene.measure("refused when there was room again", scene.refused() - refused, most=0)
    return 1


@scenario("R3", stores=("redis",), proxied=False)
def busy(scene: Scene) -> None:
    """Somebody's script runs for long: nobody else is served."""

    @contextlib.contextmanager
    def harm(admin: redis.Redis) -> Iterator[None]:
        import redis

        def loop() -> None:
            with _admin(scene) as other, contextlib.suppress(redis.RedisError):
                other.eval("while true do end", 0)

        admin.config_set("lua-time-limit", 50)
        thread = threading.Thread(target=loop)
        thread.start()
        yield
        admin.script_kill()
        thread.join()

    _not_served(scene, harm)


@scenario("R3", stores=("redis",), proxied=False)
def misconfigured(scene: Scene) -> None:
    """A snapshot fails, and Redis takes no writes until one succeeds."""

    @contextlib.contextmanager
    def harm(admin: redis.Redis) -> Iterator[None]:
        def save(status: str) -> None:
            admin.bgsave()
            scene.wait_for(lambda: admin.info("persistence")["rdb_last_bgsave_status"] == status)

        in_the_way = Path(str(admin.config_get("dir")["dir"])) / "dump.rdb"
        in_the_way.mkdir()
        admin.config_set("save", "3600 1")
        save("err")
        yield
        in_the_way.rmdir()
        save("ok")

    _not_served(scene, harm)


@scenario("R3", stores=("redis",), proxied=False)
def read_only_redis(scene: Scene) -> None:
    """It is made a replica, which takes no writes, and then a master again."""

    @contextlib.contextmanager
    def harm(admin: redis.Redis) -> Iterator[None]:
        admin.replicaof("127.0.0.1", "1")
        yield
        admin.replicaof("NO", "ONE")

    _not_served(scene, harm)


@scenario("R3", stores=("redis",), proxied=False)
def forbidden(scene: Scene) -> None:
    """Its user may not run scripts for a while."""

    @contextlib.contextmanager
    def harm(admin: redis.Redis) -> Iterator[None]:
        admin.execute_command("ACL", "SETUSER", "default", "-@scripting")
        yield
        admin.execute_command("ACL", "SETUSER", "default", "+@scripting")

    _not_served(scene, harm, contextlib.nullcontext())  # a producer is told at once, by an error that is no outage


def _not_served(
    scene: Scene,
    harm: Callable[[redis.Redis], contextlib.AbstractContextManager[None]],
    producing: contextlib.AbstractContextManager[Any] | None = None,
) -> None:
    """For one and a half leases, while tasks come and some run: a pause."""
    seconds = 1.5 * scene.arena.lease
    scene.worker()
    scene.worker()
    with _admin(scene) as admin, producing or Producing(scene, NAP):
        (number,) = scene.put(seconds + SLACK, count=1)
        scene.wait_for(lambda: scene.runs(number))
        scene.put(NAP, count=scene.tasks)
        before = scene.worker_log().count("can't reach")
        scene.arena.note("down", lossy=False)
        with harm(admin):
            time.sleep(seconds)
        scene.arena.note("up")
        scene.put(NAP, count=1)
        scene.measure("served again after", back(scene), most=BACK + SLACK)
    scene.measure(
        "lines in the log of a worker", (scene.worker_log().count("can't reach") - before) / 2, most=COMPLAINTS
    )


def _server(scene: Scene) -> RedisServer:
    server = scene.store.server
    assert isinstance(server, RedisServer)
    return server


def _admin(scene: Scene) -> contextlib.AbstractContextManager[redis.Redis]:
    return _client(scene.store.url)


@contextlib.contextmanager
def _client(url: str) -> Iterator[redis.Redis]:
    import redis

    with redis.Redis.from_url(url, decode_responses=True) as client:
        yield client
