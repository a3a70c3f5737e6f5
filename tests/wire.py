"""Writes and reads tasks as docs/wire-format.md says, with the standard library alone: as other programs would."""

import bz2
import gzip
import hashlib
import hmac
import json
import lzma
import struct
import zlib

JSON = 4
SQUEEZE = {
    1: (zlib.compress, zlib.decompress),
    2: (gzip.compress, gzip.decompress),
    3: (bz2.compress, bz2.decompress),
    4: (lzma.compress, lzma.decompress),
}


def sign(secret, kind, queue, id, header, prefix, body):
    key = hmac.digest(secret, b"delayed sign", hashlib.sha256)
    name = queue.encode()
    about = b"delayed\x01" + kind + struct.pack(">H", len(name)) + name + struct.pack(">QI", id, len(header)) + header
    return hmac.digest(key, about + prefix + body, hashlib.sha256)


def header_of(func, **fields):
    return json.dumps({"v": 1, "f": func, **fields}).encode()


def write(value, queue, id, header=b"", kind=b"T", secret=None, compressor=0):
    body = json.dumps(value).encode()
    if compressor:
        body = SQUEEZE[compressor][0](body)
    prefix = bytes((1, JSON, compressor, 1 if secret else 0))
    seal = sign(secret, kind, queue, id, header, prefix, body) if secret else b""
    return prefix + seal + body


def read(payload, queue, id, header=b"", kind=b"T", secret=None):
    version, serializer, compressor, flags = payload[:4]
    assert (version, serializer) == (1, JSON)
    body = payload[4:]
    if flags == 1:
        seal, body = body[:32], body[32:]
        assert hmac.compare_digest(seal, sign(secret, kind, queue, id, header, payload[:4], body))
    else:
        assert flags == 0 and secret is None
    if compressor:
        body = SQUEEZE[compressor][1](body)
    return json.loads(body)


# -- enqueueing, for each store that can be spoken to by hand ----------------------------------------------------------

RESERVE = """
local time = redis.call('TIME')
local last = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), (time[1] * 1000 + math.floor(time[2] / 1000)) * 2048)
redis.call('SET', KEYS[1], string.format('%.0f', last + 1))
return string.format('%.0f', last + 1)
"""
STORE = """
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('RPUSH', KEYS[1], ARGV[1])
if redis.call('LINDEX', KEYS[3], 0) ~= '1' then redis.call('DEL', KEYS[3]) redis.call('LPUSH', KEYS[3], '1') end
"""


def redis_reserve(client, queue):
    return int(client.eval(RESERVE, 1, f"{queue}_id"))


def redis_store(client, queue, id, header, payload):
    message = struct.pack(">I", len(header)) + header + payload
    client.eval(STORE, 3, queue, f"{queue}_msg", f"{queue}_noti", str(id), message)
    client.sadd("delayed_queues", queue)


def postgres_reserve(cursor, schema, queue):
    return cursor.execute(f"SELECT {schema}.delayed_reserve(%s, 1)", [queue]).fetchone()[0]


def postgres_store(cursor, schema, queue, id, header, payload):
    cursor.execute(
        f"SELECT {schema}.delayed_enqueue(NULL, 0, %s, ARRAY[%s]::bigint[], '{{0}}'::int[], '{{0}}'::float8[],"
        " '{11}'::int[], ARRAY[%s]::bytea[], ARRAY[%s]::bytea[])",
        [queue, id, header, payload],
    )


def sqlite_reserve(db, queue):
    (found,) = db.execute(
        "UPDATE delayed_queue SET counter = counter + 1 WHERE name = ? RETURNING counter", [queue]
    ).fetchall()
    return found[0]


def sqlite_store(db, queue, id, header, payload):
    (found,) = db.execute(
        "UPDATE delayed_queue SET tail = tail + 1, used = 1 WHERE name = ? RETURNING number, tail", [queue]
    ).fetchall()
    db.execute(
        "INSERT INTO delayed_task (queue, id, state, priority, place, at, max_deliveries, header, payload)"
        " VALUES (?, ?, 1, 0, ?, 0, 11, ?, ?)",
        [found[0], id, found[1], header, payload],
    )
