"""What is shown of a URL."""

from __future__ import annotations

import pytest

from delayed.brokers.masked import masked

S = "hunter2"  # of which nothing may be seen


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        # nothing to hide
        ("redis://localhost", None),
        ("redis://localhost:6379/0", None),
        ("redis://me@localhost:6379/0?db=2&socket_timeout=3", None),
        ("redis://[::1]:6379/0", None),
        ("redis://a:1,b:2,[fe80::1%25eth0]:3/?cluster=1", None),
        ("redis://localhost/0?client_name=me@work", None),
        ("unix:///run/redis@1.sock?db=3", None),
        ("unix:///run/a:b@c.sock", None),
        ("sqlite:////home/a:b@c/tasks.db?durability=disk", None),
        ("sqlite:///tasks.db", None),
        ("memory://name", None),
        ("postgresql:///db?host=/run/postgresql&user=me&port=5433", None),
        ("postgresql://%2Frun%2Fpostgresql/db", None),
        ("postgresql://me@a:5432,b:5433/db?target_session_attrs=read-write&application_name=x@y", None),
        ("mongodb://%2Ftmp%2Fmongodb-27017.sock/db", None),
        ("mongodb+srv://a.example.com/db?authSource=admin&replicaSet=rs", None),
        ("tasks.db", None),
        ("", None),
        # between user and host
        (f"redis://me:{S}@host:6379/0", "redis://me:***@host:6379/0"),
        (f"redis://:{S}@host", "redis://:***@host"),
        ("redis://me:@host", "redis://me:***@host"),
        (f"redis://me:{S}@[::1]:6379/0", "redis://me:***@[::1]:6379/0"),
        (f"rediss://me:{S}@a:1,b:2/0?sentinel=mymaster", "rediss://me:***@a:1,b:2/0?sentinel=mymaster"),
        (f"unix://me:{S}@/run/redis.sock?db=3", "unix://me:***@/run/redis.sock?db=3"),
        (f"postgresql://me:{S}@a,b:2/db", "postgresql://me:***@a,b:2/db"),
        (f"postgres://me:{S}@%2Frun/db", "postgres://me:***@%2Frun/db"),
        (f"mongodb://me:{S}@a:1,[::1]:2/db?tls=true", "mongodb://me:***@a:1,[::1]:2/db?tls=true"),
        (f"REDIS+x://me:{S}@host", "REDIS+x://me:***@host"),
        # ... with letters that mean something in a URL, escaped and not
        (f"redis://m%3Ae:%3F{S}%40%2F@host", "redis://m%3Ae:***@host"),
        (f"redis://me:{S}@{S}@host", "redis://me:***@host"),
        (f"redis://me:{S}:{S}@host", "redis://me:***@host"),
        (f"redis://me:{S}/{S}@host/0", "redis://me:***@host/0"),
        (f"redis://me:1/{S}@host/0", "redis://me:***@host/0"),
        (f"redis://me:{S}?{S}@host/0", "redis://me:***@host/0"),
        (f"redis://me:{S}?{S}?{S}@host/0?db=1", "redis://me:***@host/0?db=1"),
        (f"redis://me:{S}#{S}@host/0", "redis://me:***@host/0"),
        (f"redis://me:{S}[{S}@host/0", "redis://me:***@host/0"),
        (f"redis://me:{S}%@host/0", "redis://me:***@host/0"),
        (f"redis://me:{S}\n{S} {S}@host/0", "redis://me:***@host/0"),
        (f"redis://me:{S}\u2100{S}@host/0", "redis://me:***@host/0"),
        (f"redis://me:1?{S}&@host/0", "redis://***"),
        (f"redis://me:1?{S}=1@host/0", "redis://***"),
        (f"mongodb://a:{S}@h1,b:{S}@h2/db", "mongodb://a:***@h2/db"),
        # ... with the host left out, or the slashes
        (f"redis://:{S}", "redis://:***"),
        (f"redis://me:{S}/0", "redis://me:***/0"),
        (f"redis://me:{S}:{S}/0", "redis://me:***/0"),
        ("redis://:1234567890/0", "redis://:***/0"),
        (f"redis:me:{S}@host/0?password={S}", "redis:***@host/0?password=***"),
        (f"//me:{S}@host/0", "//me:***@host/0"),
        (f"me:{S}@host", "me:***@host"),
        (f'"redis://me:{S}@host"', '"redis:***@host"'),
        (f" redis://me:{S}@host", " redis:***@host"),
        # among the options
        (f"redis://host/0?password={S}&db=1", "redis://host/0?password=***&db=1"),
        (f"redis://host/0?PassWord={S}", "redis://host/0?PassWord=***"),
        (f"redis://host/0?pass%77ord={S}", "redis://host/0?pass%77ord=***"),
        (f"redis://a/0?sentinel=m&sentinel_password={S}&ssl_password={S}@{S}",
         "redis://a/0?sentinel=m&sentinel_password=***&ssl_password=***"),
        (f"postgresql://h/db?application_name=me@x&password={S}", "postgresql://h/db?application_name=me@x&password=***"),
        (f"postgresql://h/db?sslpassword={S}&sslmode=require", "postgresql://h/db?sslpassword=***&sslmode=require"),
        (f"mongodb://h/db?tls=true;authMechanismProperties=AWS_SESSION_TOKEN:{S}",
         "mongodb://h/db?tls=true;authMechanismProperties=***"),
        (f"redis://host?{S}", "redis://host?***"),
        (f"redis://host?unheard_of={S}", "redis://host?unheard_of=***"),
        (f"redis://host?unheard_of={S}@{S}", "redis://***"),
        # as libpq has them, too
        (f"host=a user=me password={S} dbname=db", "host=a user=me password=*** dbname=db"),
        (f"host = a  password = '{S} it\\'s {S}' user=me", "host=a  password=*** user=me"),
        (f"password={S}\\ {S} host=a", "password=*** host=a"),
        (f"password= {S} sslpassword={S} host=", "password=*** sslpassword=*** host="),
        (f"host=a password='{S} {S}", "***"),
        (f"host=a password={S} {S}", "***"),
    ],
)  # fmt: skip
def test_what_is_shown_of_a_url(url: str, shown: str | None) -> None:
    assert masked(url) == (url if shown is None else shown)
    assert S not in masked(url)
