"""Live state in Redis, for processes of many machines.

Acknowledged data survives a crash of Redis only with an append-only file: ``appendonly yes`` with ``appendfsync
everysec`` loses nothing if the process is killed and up to a second in a power failure, ``appendfsync always`` nothing
in either case. ``maxmemory-policy noeviction`` is also required: any other policy evicts histories. One Redis or a
primary with replicas, not a cluster: scripts use several keys. Keys, all under ``setrec:``:

- ``events:USER``: sorted set; score: the time; member: a sequence number of 16 digits, the item id and, after a control
character that ids must not contain, the type of the event, if any
- ``keys:USER``: set of the user's idempotency keys
- ``erased``: set of users; ``changes``: hash, subject to entry; ``log``: sorted set, the same subjects by number
- ``seq``: the counter of all sequence numbers
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from serving.stores.base import (
    Appended,
    Change,
    Event,
    ItemKind,
    LiveHistory,
    Position,
    RulesKind,
    StoredEvent,
    StoreError,
    subject_of,
)

log = logging.getLogger(__name__)

_PREFIX = "setrec:"
_TIMEOUT_SECONDS = 0.5
_REST_SECONDS = 0.5  # after a failed connection, other calls fail immediately instead of waiting
_DIGITS, _SEPARATOR = 16, "\x1f"

# Scripts are atomic, and sequence numbers appear in order.
_APPEND = """
local accepted = 0
for i = 1, #ARGV, 4 do
    local user, entry, time, key = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
    if key == '' or redis.call('SADD', KEYS[1] .. 'keys:' .. user, string.sub(key, 2)) == 1 then
        local seq = string.format('%016d', redis.call('INCR', KEYS[1] .. 'seq'))
        redis.call('ZADD', KEYS[1] .. 'events:' .. user, time, seq .. entry)
        accepted = accepted + 1
    end
end
return accepted
"""
_RECORD = """
local seq = redis.call('INCR', KEYS[1] .. 'seq')
redis.call('HSET', KEYS[1] .. 'changes', ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[1] .. 'log', seq, ARGV[1])
return seq
"""
_ERASE = """
local events = redis.call('ZCARD', KEYS[1] .. 'events:' .. ARGV[1])
redis.call('UNLINK', KEYS[1] .. 'events:' .. ARGV[1], KEYS[1] .. 'keys:' .. ARGV[1])
redis.call('SADD', KEYS[1] .. 'erased', ARGV[1])
local seq = redis.call('INCR', KEYS[1] .. 'seq')
redis.call('HSET', KEYS[1] .. 'changes', ARGV[2], ARGV[3])
redis.call('ZADD', KEYS[1] .. 'log', seq, ARGV[2])
return events
"""
_CHANGES = """
local found = redis.call('ZRANGEBYSCORE', KEYS[1] .. 'log', '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
local changes = {}
for i = 1, #found, 2 do
    changes[#changes + 1] = {found[i + 1], redis.call('HGET', KEYS[1] .. 'changes', found[i])}
end
return changes
"""

T = TypeVar("T")


class RedisStore:
    """A :class:`serving.stores.base.LiveStore` in the Redis at ``url``, which need not answer yet."""

    def __init__(self, url: str, prefix: str = _PREFIX) -> None:
        """``prefix`` begins every key.

        Raises:
            StoreError: ``url`` is not a Redis URL.
        """
        self._prefix = prefix
        try:
            self._client = redis.Redis.from_url(
                url,
                decode_responses=True,
                socket_timeout=_TIMEOUT_SECONDS,
                socket_connect_timeout=_TIMEOUT_SECONDS,
                # A failed command may have been executed: the caller decides whether to repeat it.
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError as error:
            raise StoreError(f"not a Redis URL: {error}") from error
        scripts = {"append": _APPEND, "record": _RECORD, "erase": _ERASE, "changes": _CHANGES}
        self._scripts = {name: self._client.register_script(text) for name, text in scripts.items()}
        self._rests_until = 0.0
        self._checked = False

    def append(self, events: Sequence[Event]) -> Appended:
        """See :class:`serving.stores.base.HistoryStore`."""
        # Keys have a prefix, so that an empty key differs from none.
        fields = [(e.user_id, _entry(e), repr(e.time), "" if e.key is None else f"={e.key}") for e in events]
        accepted = self._run("append", *(field for event in fields for field in event)) if events else 0
        return Appended(accepted, len(events) - accepted)

    def latest(self, user_ids: Sequence[str], limit: int) -> list[LiveHistory]:
        """See :class:`serving.stores.base.HistoryStore`."""

        def ask() -> list[Any]:
            with self._client.pipeline(transaction=False) as pipeline:
                for user_id in user_ids:
                    pipeline.zrange(self._events(user_id), -limit, -1)
                    pipeline.sismember(f"{self._prefix}erased", user_id)
                return pipeline.execute()

        found = self._call(ask)
        return [
            LiveHistory.of([_parsed(member) for member in members], bool(erased))
            for members, erased in zip(found[::2], found[1::2], strict=True)
        ]

    def page(self, user_id: str, limit: int, before: Position | None = None) -> list[StoredEvent]:
        """See :class:`serving.stores.base.HistoryStore`."""
        name, start = self._events(user_id), 0
        if before is not None:
            start = self._call(lambda: self._client.zcount(name, f"({before[0]!r}", "+inf"))
        page: list[StoredEvent] = []
        more = True
        while more and len(page) < limit:  # repeats only if many events have exactly the position's time
            found = self._backwards(name, start, limit)
            page += [event for event in found if before is None or event.position < before]
            start, more = start + limit, len(found) == limit
        return page[:limit]

    def erase(self, user_id: str) -> int:
        """See :class:`serving.stores.base.HistoryStore`."""
        return int(self._run("erase", user_id, f"user:{user_id}", json.dumps(["erase", user_id, None])))

    def record(self, kind: ItemKind | RulesKind, id: str, payload: str | None = None) -> int:
        """See :class:`serving.stores.base.ChangeLog`."""
        return int(self._run("record", f"{subject_of(kind)}:{id}", json.dumps([kind, id, payload])))

    def changes(self, after: int, limit: int = 500) -> list[Change]:
        """See :class:`serving.stores.base.ChangeLog`."""
        return [Change(int(seq), *json.loads(entry)) for seq, entry in self._run("changes", after, limit)]

    def close(self) -> None:
        """See :class:`serving.stores.base.LiveStore`."""
        self._client.close()

    def _events(self, user_id: str) -> str:
        return f"{self._prefix}events:{user_id}"

    def _backwards(self, name: str, start: int, limit: int) -> list[StoredEvent]:
        """Return events from the end of a history, without the last ``start``."""
        rows: Any = self._call(lambda: self._client.zrange(name, start, start + limit - 1, desc=True, withscores=True))
        events = [(*_parsed(member), score, int(member[:_DIGITS])) for member, score in rows]
        return [StoredEvent(item_id, (score, seq), type_) for item_id, type_, score, seq in events]

    def _run(self, script: str, *arguments: Any) -> Any:
        return self._call(lambda: self._scripts[script](keys=[self._prefix], args=arguments))

    def _call(self, ask: Callable[[], T]) -> T:
        if time.monotonic() < self._rests_until:
            raise StoreError("Redis did not answer a moment ago")
        try:
            if not self._checked:
                self._check()
            return ask()
        except (redis.ConnectionError, redis.TimeoutError) as error:
            self._rests_until = time.monotonic() + _REST_SECONDS
            raise StoreError(f"Redis does not answer: {' '.join(str(error).split())}") from error
        except redis.RedisError as error:
            raise StoreError(f"Redis refuses: {' '.join(str(error).split())}") from error

    def _check(self) -> None:
        """Warn once about settings under which acknowledged events can be lost."""
        wanted = {"appendonly": "yes", "maxmemory-policy": "noeviction"}
        try:
            found: dict[Any, Any] = self._client.config_get(*wanted)
        except redis.ResponseError:  # many hosts do not allow clients to read the configuration
            found = dict(wanted)
        self._checked = True
        for name, value in wanted.items():
            if found.get(name) != value:
                log.warning("Redis has %s %s; without %s acknowledged events can be lost", name, found.get(name), value)


def _entry(event: Event) -> str:
    """Return the member of an event in a history, without its number."""
    return f"{event.item_id}{_SEPARATOR}{event.type}" if event.type else event.item_id


def _parsed(member: str) -> tuple[str, str]:
    """Return item id and type of the event."""
    item_id, _, type_ = member[_DIGITS:].partition(_SEPARATOR)
    return item_id, type_
