"""Who may do what: every route against every kind of caller. A new route without an entry here fails."""

from typing import Any, NamedTuple

import httpx

from api.app import openapi_document
from shared.identity import new_id
from tests.api.support import Api, make_thread, message_body

NOT_FOUND = 404
HIDDEN = ("ex-member", "stranger", "admin")
"""None of them is a member; a platform's admin is no exception, but for what only they may do."""


class Route(NamedTuple):
    """How to ask, and what each kind of caller is answered."""

    method: str
    path: str
    body: dict[str, Any] | None
    owner: int
    member: int
    hidden: int
    admin: int | None = None
    """Only where a platform's admin is an exception."""


ENDS_THE_CALLER = {"sessions_revoke"}
"""Whoever asks for it cannot ask again; ``test_standing`` does."""

MATRIX = {
    "threads_list": Route("GET", "/api/threads", None, 200, 200, 200),
    "threads_create": Route(
        "POST", "/api/threads", {"kind": "group", "participants": []}, 201, 201, 201
    ),
    "threads_get": Route("GET", "/api/threads/{thread}", None, 200, 200, NOT_FOUND),
    "threads_replace": Route("PUT", "/api/threads/{thread}", {"title": "new"}, 200, 403, NOT_FOUND),
    "threads_update": Route("PATCH", "/api/threads/{thread}", {"title": "a"}, 200, 403, NOT_FOUND),
    "threads_archive": Route("DELETE", "/api/threads/{archived}", None, 204, 403, NOT_FOUND),
    "threads_members": Route("GET", "/api/threads/{thread}/members", None, 200, 200, NOT_FOUND),
    "threads_changes": Route("GET", "/api/threads/{thread}/changes", None, 200, 200, NOT_FOUND),
    "members_add": Route(
        "POST", "/api/threads/{thread}/members", {"user_id": "ben"}, 200, 403, NOT_FOUND
    ),
    "members_remove": Route(
        "DELETE", "/api/threads/{thread}/members/left", None, 204, 403, NOT_FOUND
    ),
    "messages_list": Route("GET", "/api/messages?thread_id={thread}", None, 200, 200, NOT_FOUND),
    "messages_get": Route("GET", "/api/messages/{message}", None, 200, 200, NOT_FOUND),
    "messages_send": Route("POST", "/api/messages", {"send": "{thread}"}, 201, 201, NOT_FOUND),
    "messages_edit": Route(
        "PUT", "/api/messages/{message}", {"body": "not so secret"}, 200, 403, NOT_FOUND
    ),
    "messages_history": Route("GET", "/api/messages/{message}/history", None, 200, 200, NOT_FOUND),
    "messages_delete": Route("DELETE", "/api/messages/{deleted}", None, 204, 403, NOT_FOUND),
    "me_sync": Route("GET", "/api/sync", None, 200, 200, 200),
    "me_get": Route("GET", "/api/me", None, 200, 200, 200),
    "bans_get": Route("GET", "/api/admin/bans/rude", None, 403, 403, 403, admin=404),
    "bans_set": Route("PUT", "/api/admin/bans/rude", {}, 403, 403, 403, admin=200),
    "bans_lift": Route("DELETE", "/api/admin/bans/rude", None, 403, 403, 403, admin=204),
}


class World(NamedTuple):
    """A thread of ava's with ben, and with somebody who was removed again."""

    names: dict[str, str]
    clients: dict[str, httpx.AsyncClient]


async def make_world(api: Api) -> World:
    owner = api.client("ava")
    people = ("ben", "gone", "left")
    thread = (await make_thread(owner, *people, title="secret plans"))["thread_id"]
    archived = (await make_thread(owner, "ben", "gone"))["thread_id"]
    sent, deleted = [
        (await owner.post("/api/messages", json=message_body(thread, "a secret"))).json()
        for _ in range(2)
    ]
    await api.fabric.pool.execute(
        "UPDATE thread_members SET removed_at = now() WHERE user_id = 'gone'"
    )
    clients = {
        "owner": owner,
        "member": api.client("ben"),
        "ex-member": api.client("gone"),
        "stranger": api.client("eve"),
        "admin": api.client("root", role="admin"),
        "nobody": api.client(None),
    }
    names = {
        "thread": thread,
        "archived": archived,
        "message": sent["message_id"],
        "deleted": deleted["message_id"],
    }
    return World(names, clients)


async def ask(
    client: httpx.AsyncClient, route: Route, names: dict[str, str], prefix: str = "/api"
) -> httpx.Response:
    path = route.path.format(**names).replace("/api", prefix, 1)
    body = route.body
    if body is not None and "send" in body:
        body = message_body(names["thread"])
    return await client.request(route.method, path, json=body)


async def test_every_route_answers_every_kind_of_caller_as_it_should(api: Api) -> None:
    # Given a thread with a member, a former one, and strangers
    async with api.fabric.persister():
        world = await make_world(api)
        await api.fabric.reached(1 << 40)
        # When each of them asks for everything, under both prefixes
        for operation, route in MATRIX.items():
            for who, client in world.clients.items():
                admin = route.hidden if route.admin is None else route.admin
                wanted = {
                    "owner": route.owner,
                    "member": route.member,
                    "nobody": 401,
                    "admin": admin,
                }.get(who, route.hidden)
                for prefix in ("/api", "/api/v1"):
                    answer = await ask(client, route, world.names, prefix)
                    # Then each gets what they may
                    assert answer.status_code == wanted, (operation, who, prefix, answer.text)
                    if who in (*HIDDEN, "nobody"):
                        assert "secret" not in answer.text
                    if who == "nobody":
                        assert answer.headers["www-authenticate"].startswith("Bearer")


def test_no_route_is_missing_from_the_matrix() -> None:
    documented = {
        operation["operationId"]: (method.upper(), path)
        for path, operations in openapi_document()["paths"].items()
        for method, operation in operations.items()
    }
    assert set(documented) == set(MATRIX) | ENDS_THE_CALLER
    for operation, route in MATRIX.items():
        method, path = documented[operation]
        plain = route.path.partition("?")[0]
        assert method == route.method
        assert plain.count("/") == path.count("/")


async def test_what_may_not_be_seen_is_one_answer_whatever_the_reason(api: Api) -> None:
    async with api.fabric.persister():
        world = await make_world(api)
        answers = await _ask_for_anything(world)
    # Then no answer tells them apart
    texts = {answer.text.replace(answer.json()["trace_id"], "") for answer in answers}
    assert {answer.status_code for answer in answers} == {404}
    assert len(texts) == 1, texts


async def _ask_for_anything(world: World) -> list[httpx.Response]:
    """Ask as a stranger for ids that are malformed, unknown, another's, of another kind, or hostile."""
    stranger = world.clients["stranger"]
    ids = [
        world.names["thread"],
        world.names["message"],
        new_id(),
        "x",
        "*",
        "'; DROP TABLE threads; --",
        "00000000000000000000000000000000' OR '1'='1",
        "a" * 5000,
        "%00",
        "%2e%2e",
        "\u2603",
        world.names["thread"] + ">",
    ]
    answers = []
    for one in ids:
        quoted = one if one.startswith("%") else httpx.URL(path=f"/{one}").raw_path.decode()[1:]
        answers.append(await stranger.get(f"/api/threads/{quoted}"))
        answers.append(await stranger.get(f"/api/threads/{quoted}/members"))
        answers.append(await stranger.get(f"/api/messages/{quoted}"))
        answers.append(await stranger.patch(f"/api/threads/{quoted}", json={"title": "x"}))
        answers.append(await stranger.delete(f"/api/threads/{quoted}"))
        answers.append(await stranger.get(f"/api/threads/{quoted}/changes"))
        answers.append(
            await stranger.post(f"/api/threads/{quoted}/members", json={"user_id": "eve"})
        )
        answers.append(await stranger.delete(f"/api/threads/{quoted}/members/eve"))
        answers.append(await stranger.get(f"/api/messages/{quoted}/history"))
        answers.append(await stranger.put(f"/api/messages/{quoted}", json={"body": "x"}))
        answers.append(await stranger.delete(f"/api/messages/{quoted}"))
        if one != "%00":
            answers.append(await stranger.get("/api/messages", params={"thread_id": one}))
    return answers


async def test_ids_may_carry_hyphens_and_capitals(api: Api) -> None:
    ava = api.client("ava")
    thread = (await make_thread(ava, "ben"))["thread_id"]
    spelled = f"{thread[:8]}-{thread[8:12]}-{thread[12:16]}-{thread[16:20]}-{thread[20:]}".upper()
    assert (await ava.get(f"/api/threads/{spelled}")).json()["thread_id"] == thread
    sent = await ava.post("/api/messages", json=message_body(spelled))
    assert sent.json()["thread_id"] == thread


BAD_HEADERS = (
    None,
    "Bearer",
    "Bearer not.a.token",
    "Basic YTpi",
    "Token x",
    "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhdmEiLCJpYXQiOjEsImV4cCI6OTk5OTk5OTk5OX0.",
)


async def test_a_missing_or_bad_token_is_refused_before_anything_else(api: Api) -> None:
    client = api.client(None)
    for header in BAD_HEADERS:
        headers = {} if header is None else {"Authorization": header}
        for path in ("/api/me", "/api/threads?no_such=1", "/api/messages", "/api/threads/x"):
            answer = await client.get(path, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
            assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_two_authorization_headers_are_no_authorization(api: Api) -> None:
    token = api.token("ava")
    headers = [("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {token}")]
    assert (await api.client(None).get("/api/me", headers=headers)).status_code == 401
