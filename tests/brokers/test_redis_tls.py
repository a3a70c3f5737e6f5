"""What Redis URLs say of TLS: workers over it are tested in tests/workers/test_tls.py."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.sentinel import Sentinel

from delayed.brokers import broker_for
from delayed.brokers.redis import RedisBroker
from delayed.errors import BrokerError, BrokerUnavailable, ConfigError, UnknownOption
from tests.servers import ServerError, unavailable
from tests.servers.redis import RedisServer, redis_server
from tests.servers.tls import Authority, terminated


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.mark.parametrize(
    ("url", "error", "hint"),
    [
        ("rediss://h/?ssl_ca_cert=/ca.pem", UnknownOption, "did you mean ssl_ca_certs"),
        ("rediss://h/?ssl_validate_ocsp=true", UnknownOption, "no option 'ssl_validate_ocsp'"),  # would not be heeded
        ("redis://h/?ssl_ca_certs=/ca.pem", UnknownOption, "for TLS, write rediss://"),
        ("rediss://h/?ssl_ca_certs=/nowhere/ca.pem", ConfigError, "ssl_ca_certs= .* can't be read: /nowhere/ca.pem"),
        ("rediss://h/?ssl_cert_reqs=yes", ConfigError, "'required' .* 'optional' or 'none'"),
        ("rediss://h/?sentinel=main&sentinel_ssl=maybe", ConfigError, "'yes' .* or 'no'"),
    ],
)
def test_a_wrong_option_of_tls_is_refused_when_the_broker_is_made(url: str, error: type[Exception], hint: str) -> None:
    with pytest.raises(error, match=hint):
        RedisBroker(url)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ssl_check_hostname": False},
        {"ssl_cert_reqs": None},
        {"ssl_cert_reqs": "none"},
        {"ssl_cert_reqs": ssl.CERT_NONE},
        {"ssl_cert_reqs": ssl.CERT_REQUIRED},
        {"ssl_ciphers": "ECDHE+AESGCM"},
        {"ssl_min_version": ssl.TLSVersion.TLSv1_3},
    ],
)
def test_the_spec_of_a_client_trusts_no_more_and_no_less(settings: dict[str, Any], authority: Authority) -> None:
    client = redis.Redis(ssl=True, ssl_ca_certs=str(authority.file), **settings)
    spec = RedisBroker(client).spec()
    assert spec

    mine = client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    again = RedisBroker(spec)._client._client.connection_pool
    theirs = again.connection_class(**again.connection_kwargs)
    for name in ("ca_certs", "cert_reqs", "check_hostname", "ssl_ciphers", "ssl_min_version"):
        assert getattr(theirs, name) == getattr(mine, name), name


@pytest.mark.parametrize("setting", [{"ssl_validate_ocsp": True}, {"ssl_ca_data": b"\x30\x82"}])
def test_a_client_whose_trust_no_url_can_say_has_no_spec(setting: dict[str, Any]) -> None:
    assert RedisBroker(redis.Redis(ssl=True, **setting)).spec() is None


def test_certificates_in_a_client_are_in_its_spec_and_not_in_the_log(authority: Authority) -> None:
    text = authority.file.read_text()
    with redis_server() as server, terminated(server.url, authority.issue("127.0.0.1")) as url:
        port = int(url.rpartition(":")[2].partition("/")[0])
        broker = RedisBroker(redis.Redis("127.0.0.1", port, ssl=True, ssl_ca_data=text, ssl_password="hunter2"))

        again = broker_for(broker.spec())
        again.check()
        again.close()

    for shown in (repr(broker), repr(again)):
        assert "CERTIFICATE" not in shown
        assert "hunter2" not in shown


def test_a_server_that_wants_a_certificate_of_clients_gets_it(authority: Authority) -> None:
    """Redis does by default."""
    own = authority.issue("127.0.0.1")
    with redis_server() as server, terminated(server.url, own, known=authority.file) as url:
        secure = f"{url.replace('redis:', 'rediss:')}?ssl_ca_certs={authority.file}"

        broker = RedisBroker(secure)
        with pytest.raises(BrokerError):  # the reason is not always told before the connection is closed
            broker.check()
        broker.close()
        broker = RedisBroker(f"{secure}&ssl_certfile={own}&ssl_keyfile={own}")
        broker.check()
        broker.close()


def test_a_cluster_whose_certificate_does_not_hold_is_no_outage(authority: Authority) -> None:
    with redis_server() as server, terminated(server.url, authority.issue("127.0.0.1")) as url:
        broker = RedisBroker(f"{url.replace('redis:', 'rediss:')}?cluster=1")

        with pytest.raises(BrokerError, match="signed by an authority in ssl_ca_certs=") as caught:
            broker.check()
        assert not isinstance(caught.value, BrokerUnavailable)


def test_sentinels_are_asked_over_tls_too(authority: Authority, tmp_path: Path) -> None:
    certificate = authority.issue("127.0.0.1")
    trust = {"ssl": True, "ssl_ca_certs": str(authority.file)}
    with redis_server() as server, terminated(server.url, certificate) as master:
        # It can't talk to this master, which it takes for down after 30 seconds; until then it names it.
        settings = tmp_path / "sentinel.conf"
        settings.write_text(f"sentinel monitor main 127.0.0.1 {_port(master)} 1\n")
        watch = RedisServer(tmp_path)
        watch.settings = lambda: [str(settings), "--sentinel", "--port", str(watch.port)]  # type: ignore[method-assign]
        try:
            watch.start()
        except ServerError as error:
            unavailable(str(error))
        try:
            with terminated(watch.url, certificate) as secured:
                for port, of_watch, option in ((_port(secured), trust, ""), (watch.port, {}, "sentinel_ssl=no")):
                    sentinel: Any = Sentinel([("127.0.0.1", port)], sentinel_kwargs=of_watch, **trust)  # type: ignore[no-untyped-call, unused-ignore]
                    client = sentinel.master_for("main")
                    spec = RedisBroker(client).spec()
                    assert spec
                    assert option in spec
                    again = broker_for(spec)
                    again.check()
                    again.close()
                    sentinel.sentinels[0].close()
        finally:
            watch.kill()


def _port(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])
