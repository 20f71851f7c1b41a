"""Bans, lifted bans and "log out everywhere" over REST: written first, told to everybody, then answered."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import jwt
import msgspec
import pytest

from api.app import openapi_document
from shared.events import timestamp
from shared.identity import new_id
from shared.standing import STREAM, StandingMirror, StandingTable, Verdict
from shared.subjects import STANDING_BUCKET, SVC_MESSAGE_SEND
from tests.api.support import SECRET, Api, entry_of, make_thread, message_body, running_api
from tests.support.eventually import eventually, eventually_passes
from tests.support.fabric import Fabric

FOREVER = "9999-12-31T23:59:59.999Z"


def admin_of(api: Api) -> httpx.AsyncClient:
    return api.client("root", role="admin")


def later(**delta: float) -> str:
    return timestamp(datetime.now(UTC) + timedelta(**delta))


async def ban(api: Api, user: str, **body: Any) -> dict[str, Any]:  # noqa: ANN401
    answer = await admin_of(api).put(f"/api/admin/bans/{user}", json=body)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def audit(api: Api) -> list[tuple[str, str, str]]:
    rows = await api.fabric.pool.fetch("SELECT actor_id, action, target FROM audit_log ORDER BY id")
    return [(row["actor_id"], row["action"], row["target"]) for row in rows]


# ------------------------------------------------------------------ bans


async def test_a_ban_is_in_force_when_it_is_answered(api: Api) -> None:
    # Given a user who may do everything
    eve = api.client("eve")
    assert (await eve.get("/api/threads")).status_code == 200
    # When an administrator bans them
    made = await ban(api, "eve", reason="spam")
    # Then the entry that the edges follow is there, and the line in the audit log
    assert (made["user_id"], made["until"], made["reason"]) == ("eve", None, "spam")
    assert made["banned_by"] == "root"
    assert await entry_of(api, STANDING_BUCKET, "eve") == {
        "user_id": "eve",
        "revision": 1,
        "banned_until": FOREVER,
        "reason": "spam",
        "min_iat": 0,
        "deactivated": False,
    }
    assert await audit(api) == [("root", "user.ban", "eve")]
    # And the user is refused everywhere
    refused = await eve.get("/api/threads")
    assert (refused.status_code, refused.json()["code"]) == (403, "banned")
    assert (await admin_of(api).get("/api/admin/bans/eve")).json() == made


async def test_a_banned_user_is_refused_by_every_route_but_me(api: Api) -> None:
    # Given somebody who is banned
    await ban(api, "eve")
    eve = api.client("eve", role="admin")
    # When they ask for anything
    for path, operations in openapi_document()["paths"].items():
        for method, operation in operations.items():
            place = path.format(**dict.fromkeys(_names_in(path), new_id()))
            for prefix in ("/api", "/api/v1"):
                answer = await eve.request(method, place.replace("/api", prefix, 1))
                # Then it is refused, whoever they are; but who they are is told
                if operation["operationId"] == "me_get":
                    assert answer.json()["standing"] == "banned"
                else:
                    seen = (answer.status_code, answer.json()["code"])
                    assert seen == (403, "banned"), operation["operationId"]


async def test_without_the_check_a_banned_user_would_be_served(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ban(api, "eve")
    monkeypatch.setattr(StandingTable, "verdict", lambda *_: None)
    assert (await api.client("eve").get("/api/threads")).status_code == 200


async def test_a_platform_service_cannot_send_for_a_banned_user(api: Api) -> None:
    thread = (await make_thread(api.client("eve"), "ava"))["thread_id"]
    bus = await api.fabric.bus("platform")
    try:
        asked = msgspec.json.encode({**message_body(thread), "sender_id": "eve"})
        sent = msgspec.json.decode(await bus.request(SVC_MESSAGE_SEND, asked, timeout_s=5))
        assert sent["body"] == "hello"
        await ban(api, "eve")
        asked = msgspec.json.encode({**message_body(thread), "sender_id": "eve"})
        refused = msgspec.json.decode(await bus.request(SVC_MESSAGE_SEND, asked, timeout_s=5))
        assert (refused["type"], refused["code"]) == ("error", "banned")
    finally:
        await bus.close()


async def test_a_ban_ends_by_itself(api: Api) -> None:
    made = await ban(api, "eve", until=later(seconds=1))
    assert (await api.client("eve").get("/api/threads")).status_code == 403
    assert made["until"] is not None

    async def is_over() -> None:
        assert (await api.client("eve").get("/api/threads")).status_code == 200

    await eventually_passes(is_over)
    assert (await api.client("eve").get("/api/me")).json()["standing"] == "active"
    assert (await admin_of(api).get("/api/admin/bans/eve")).status_code == 404


async def test_a_lifted_ban_lets_in_at_once_and_lifting_none_changes_nothing(api: Api) -> None:
    await ban(api, "eve")
    for _ in range(2):
        lifted = await admin_of(api).delete("/api/admin/bans/eve")
        assert (lifted.status_code, lifted.content) == (204, b"")
    assert (await admin_of(api).delete("/api/admin/bans/nobody")).status_code == 204
    assert (await api.client("eve").get("/api/threads")).status_code == 200
    assert (await admin_of(api).get("/api/admin/bans/eve")).status_code == 404
    assert await audit(api) == [("root", "user.ban", "eve"), ("root", "user.unban", "eve")]


async def test_a_ban_replaces_the_one_before_it(api: Api) -> None:
    await ban(api, "eve", reason="first", until=later(hours=1))
    until = later(hours=2)
    made = await ban(api, "eve", until=until)
    assert (made["reason"], made["until"]) == (None, until)
    assert (await entry_of(api, STANDING_BUCKET, "eve"))["revision"] == 2


async def test_the_body_may_be_left_out(api: Api) -> None:
    answer = await admin_of(api).put("/api/admin/bans/eve")
    assert (answer.status_code, answer.json()["until"]) == (200, None)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"until": "2020-01-01T00:00:00Z"}, "/until"),
        ({"until": "tomorrow"}, "/until"),
        ({"until": "2999-01-01"}, "/until"),
        ({"until": "2999-01-01T00:00:00"}, "/until"),
        ({"until": 5}, "/until"),
        ({"reason": "x" * 501}, "/reason"),
        ({"reason": "a\0b"}, "/reason"),
    ],
)
async def test_an_impossible_ban_is_refused(api: Api, body: dict[str, Any], path: str) -> None:
    answer = await admin_of(api).put("/api/admin/bans/eve", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert [problem["path"] for problem in answer.json()["errors"]] == [path]
    assert await api.fabric.count("standings") == await api.fabric.count("audit_log") == 0


async def test_only_administrators_ban(api: Api) -> None:
    for role in ("client", "creator", "service"):
        client = api.client("ava", role=role)
        for method in ("GET", "PUT", "DELETE"):
            for user in ("eve", "x" * 65):
                answer = await client.request(method, f"/api/admin/bans/{user}")
                assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert await api.fabric.count("standings") == 0


async def test_an_id_that_nobody_has_is_not_found(api: Api) -> None:
    for user in ("x" * 65, "a.b", "*", "%00"):
        for method in ("GET", "PUT", "DELETE"):
            answer = await admin_of(api).request(method, f"/api/admin/bans/{user}")
            assert answer.status_code == 404, (method, user)


# ------------------------------------------------------------------ log out everywhere


def token_of(user: str, issued_at: float) -> str:
    claims = {"sub": user, "iat": issued_at, "exp": int(time.time()) + 600}
    return jwt.encode(claims, SECRET, algorithm="HS256")


async def test_every_token_until_now_is_revoked_and_the_next_one_is_good(api: Api) -> None:
    # Given a user with two tokens, one of them made in this very second
    older = api.client(None)
    older.headers["Authorization"] = f"Bearer {token_of('ava', time.time() - 60)}"
    # When they log out everywhere
    mine = api.client("ava")
    answer = await mine.post("/api/sessions/revoke")
    assert (answer.status_code, answer.content) == (204, b"")
    # Then both are refused, at me too
    for client in (older, mine):
        for path in ("/api/me", "/api/threads"):
            refused = await client.get(path)
            assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
    # And a token that is made after the answer is a good one
    assert (await api.client("ava").get("/api/me")).json()["standing"] == "active"
    # And nobody else was logged out
    assert (await api.client("ben").get("/api/me")).status_code == 200
    assert await audit(api) == [("ava", "sessions.revoke", "ava")]


async def test_a_revocation_lifts_no_ban_and_a_ban_no_revocation(api: Api) -> None:
    ava = api.client("ava")
    await ava.post("/api/sessions/revoke")
    await ban(api, "ava")
    assert (await ava.get("/api/threads")).status_code == 401
    assert (await api.client("ava").get("/api/threads")).status_code == 403
    entry = await entry_of(api, STANDING_BUCKET, "ava")
    assert (entry["revision"], entry["min_iat"] > 0) == (2, True)


async def test_without_the_comparison_of_times_an_old_token_would_be_served(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    ava = api.client("ava")
    await ava.post("/api/sessions/revoke")
    monkeypatch.setattr(StandingTable, "verdict", lambda *_: None)
    assert (await ava.get("/api/me")).status_code == 200


# ------------------------------------------------------------------ without NATS, and upkeep


async def test_without_nats_a_ban_holds_and_none_is_written(fabric: Fabric) -> None:
    async with running_api(fabric) as api:
        await ban(api, "eve")
        fabric.nats.kill9()
        await eventually(lambda: not api.parts.bus.connected)
        # PostgreSQL is asked, and others read on
        assert (await api.client("eve").get("/api/threads")).status_code == 403
        assert (await api.client("ava").get("/api/threads")).status_code == 200
        # What could not be told to anybody is refused as a whole
        for answer in (
            await admin_of(api).put("/api/admin/bans/adam"),
            await api.client("ava").post("/api/sessions/revoke"),
        ):
            assert answer.status_code == 503
        assert await fabric.count("standings") == 1
        fabric.nats.start()
        await eventually(lambda: api.parts.bus.connected, within_s=15)


async def test_a_ban_that_could_not_be_told_in_time_says_so_and_is_told_later(
    fabric: Fabric,
) -> None:
    async with running_api(fabric, relays=False) as api:
        publish = api.parts.outbox._publish

        async def dies(*_rows: Any) -> None:  # noqa: ANN401 - nothing of it is looked at
            raise TimeoutError

        api.parts.outbox._publish = dies
        assert (await admin_of(api).put("/api/admin/bans/eve")).status_code == 503
        # The same request again finds its way
        api.parts.outbox._publish = publish
        assert (await admin_of(api).put("/api/admin/bans/eve")).status_code == 200
        assert (await entry_of(api, STANDING_BUCKET, "eve"))["banned_until"] == FOREVER


async def test_a_bucket_that_was_lost_is_written_anew(fabric: Fabric) -> None:
    # Given bans, and a bucket that is made anew while no api runs
    async with running_api(fabric) as api:
        await ban(api, "eve")
        await ban(api, "adam")
        await admin_of(api).delete("/api/admin/bans/adam")
    bus = await fabric.bus("provision")
    config = (await bus.api(f"STREAM.INFO.{STREAM}"))["config"]
    await bus.api(f"STREAM.DELETE.{STREAM}")
    await bus.api(f"STREAM.CREATE.{STREAM}", config)
    await bus.close()
    # When an api starts
    async with running_api(fabric) as api:
        # Then the bucket says again what PostgreSQL knows: the ban, and that the other one was lifted
        async def is_there() -> None:
            assert (await entry_of(api, STANDING_BUCKET, "eve"))["banned_until"] == FOREVER
            assert (await entry_of(api, STANDING_BUCKET, "adam"))["banned_until"] is None

        await eventually_passes(is_there)
        assert await api.parts.standing.restore() == 0


async def test_what_has_no_effect_any_more_leaves_the_bucket_and_may_come_back(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a ban that is over, one that is not, and then one more that is over
    await ban(api, "over", until=later(milliseconds=300))
    await ban(api, "eve")
    await ban(api, "last", until=later(milliseconds=300))
    await asyncio.sleep(0.4)
    # When the bucket is looked after
    monkeypatch.setattr("shared.standing.EXPIRED_KEPT_S", 0.0)
    await api.parts.standing.purge()
    # Then only what has an effect is left, and the last entry, by which mirrors know how far they are
    assert await api.parts.bus.kv_get(STANDING_BUCKET, "over") is None
    assert await api.parts.bus.kv_get(STANDING_BUCKET, "eve") is not None
    assert await api.parts.bus.kv_get(STANDING_BUCKET, "last") is not None
    mirror = StandingMirror(
        api.parts.bus, api.parts.bus, clock=time.monotonic, metrics=api.parts.metrics.standing
    )
    await mirror.start()
    assert mirror.table.verdict("eve", 0, time.time()) is Verdict.BANNED
    # And a new ban is a new ban
    await ban(api, "over")
    assert (await entry_of(api, STANDING_BUCKET, "over"))["revision"] == 2
    assert (await api.client("over").get("/api/threads")).status_code == 403


def _names_in(path: str) -> list[str]:
    return [part[1:-1] for part in path.split("/") if part.startswith("{")]
