"""The few REST calls that a chat client needs, on the standard library alone: threads, history, changes, oneself."""

import asyncio
import http.client
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from lilith_client.errors import RestError
from lilith_client.objects import Synced, SyncedThread

TIMEOUT_S: Final = 10.0
ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
PAGE: Final = 200
Token = str | Callable[[], Awaitable[str]]


class Rest:
    """``GET`` and ``POST`` on the api at ``address`` (``http://host:port``), as the user of ``token``.

    Every method raises ``RestError`` for an answer of 400 and more, and for none.
    """

    def __init__(self, address: str, token: Token, *, timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(address)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"no http address: {address}")
        self._https = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port
        self._prefix = parts.path.rstrip("/")
        self._timeout_s = timeout_s
        self.token = token

    async def me(self) -> dict[str, Any]:
        """Return the caller's own record."""
        return await self.request("GET", "/api/me")

    async def threads(self, **filters: str) -> list[dict[str, Any]]:
        """Return every thread of the caller, the most recently active first."""
        threads: list[dict[str, Any]] = []
        cursor = None
        while True:
            query = {"limit": f"{PAGE}", **filters, **({"cursor": cursor} if cursor else {})}
            page = await self.request("GET", "/api/threads", query=query)
            threads += page["items"]
            cursor = page["next_cursor"]
            if not cursor:
                return threads

    async def thread(self, thread_id: str) -> dict[str, Any]:
        """Return one thread with its latest 50 messages (``messages``, oldest first)."""
        return await self.request("GET", f"/api/threads/{quote(thread_id, safe='')}")

    async def create_thread(
        self,
        participants: Sequence[str],
        *,
        kind: str = "direct",
        title: str | None = None,
        metadata: dict[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> dict[str, Any]:
        """Make a thread with ``participants``; a direct one that exists already is returned as it is."""
        body: dict[str, Any] = {"participants": list(participants), "kind": kind}
        if title is not None:
            body["title"] = title
        if metadata is not None:
            body["metadata"] = metadata
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return await self.request("POST", "/api/threads", body=body, headers=headers)

    async def messages(
        self,
        thread_id: str,
        *,
        before: int | None = None,
        after: int | None = None,
        limit: int = PAGE,
        up_to: str | None = None,
    ) -> list[dict[str, Any]]:
        """Return one page of a thread: oldest first with ``after`` (a seq), else newest first.

        ``up_to`` is a cursor that the answer must have seen; the server waits a moment for it, or answers 503.
        """
        query = {"thread_id": thread_id, "limit": f"{limit}"}
        if before is not None:
            query["before"] = f"{before}"
        if after is not None:
            query["after"] = f"{after}"
        headers = {"Messaging-Cursor": up_to} if up_to else {}
        page = await self.request("GET", "/api/messages", query=query, headers=headers)
        items: list[dict[str, Any]] = page["items"]
        return items

    async def changes(
        self,
        thread_id: str,
        *,
        after: str,
        cursor: str | None = None,
        limit: int = PAGE,
        up_to: str | None = None,
    ) -> dict[str, Any]:
        """Return one page of what changed in a thread since the cursor ``after``, as frames, oldest first.

        Its ``next_cursor`` is the ``cursor`` of the next page. On the last one, ``cursor`` is where the thread ends.
        """
        query = {"after": after, "limit": f"{limit}", **({"cursor": cursor} if cursor else {})}
        headers = {"Messaging-Cursor": up_to} if up_to else {}
        path = f"/api/threads/{quote(thread_id, safe='')}/changes"
        return await self.request("GET", path, query=query, headers=headers)

    async def sync(self, after: str | None = None) -> Synced:
        """Return the threads that changed since a sync cursor; all of them without one, or when it says nothing here.

        Every page is read. A thread may be told twice by two calls, none is ever left out.
        """
        items: list[SyncedThread] = []
        query = {"limit": f"{PAGE}", **({"after": after} if after else {})}
        while True:
            try:
                page = await self.request("GET", "/api/sync", query=query)
            except RestError as error:
                if error.code != "gone" or after is None:
                    raise
                return await self.sync()  # The database was restored: the server forgot our cursor.
            items += msgspec.convert(page["items"], list[SyncedThread])
            if page["next_cursor"] is None:
                return Synced(items, page["cursor"], complete=after is None)
            query["cursor"] = page["next_cursor"]

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: object = None,
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Return the JSON object that the api answers.

        Raises:
            RestError: It answered with an error, with no JSON object, or not within the deadline.
        """
        token = self.token if isinstance(self.token, str) else await self.token()
        target = f"{self._prefix}{path}" + (f"?{urlencode(query)}" if query else "")
        sent = {"Authorization": f"Bearer {token}", "Accept": "application/json", **(headers or {})}
        payload = None
        if body is not None:
            payload = msgspec.json.encode(body)
            sent["Content-Type"] = "application/json"
        return await asyncio.to_thread(self._exchange, method, target, payload, sent)

    def _exchange(
        self, method: str, target: str, payload: bytes | None, headers: dict[str, str]
    ) -> dict[str, Any]:
        connection = self._connection()
        try:
            connection.request(method, target, body=payload, headers=headers)
            answer = connection.getresponse()
            data = answer.read(ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            reason = f"no answer from {self._host}: {error}"
            raise RestError(0, "unreachable", reason) from error
        finally:
            connection.close()
        if answer.status >= 400:
            raise _problem(answer.status, data, answer.getheader("Retry-After"))
        return _object(data)

    def _connection(self) -> http.client.HTTPConnection:
        if not self._https:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=self._timeout_s, context=ssl.create_default_context()
        )


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(data) if data else {}
    except msgspec.DecodeError as error:
        raise RestError(0, "unreadable", f"the answer is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise RestError(0, "unreadable", "the answer is no JSON object")
    return value


def _problem(status: int, data: bytes, retry_after: str | None) -> RestError:
    """Return the error in an ``application/problem+json``, or in whatever a proxy answered instead."""
    wait_s = float(retry_after) if retry_after and retry_after.isdigit() else None
    try:
        problem = _object(data)
    except RestError:
        problem = {}
    detail = str(problem.get("detail") or problem.get("title") or http.client.responses.get(status))
    return RestError(status, str(problem.get("code", "unknown")), detail, retry_after_s=wait_s)
