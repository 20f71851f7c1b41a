"""What every request passes and every answer carries: problems, limits, headers, origins, documents."""

import asyncio
import json
import re
from typing import Any

import httpx
import pytest

from api.app import openapi_document
from shared.protocol import MEANING
from tests.api.support import ORIGIN, Api, make_thread, message_body, running_api
from tests.support.fabric import Fabric

SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
BAD_BODIES: list[tuple[bytes, int, str]] = [
    (b"", 400, "bad_frame"),
    (b"{", 400, "bad_frame"),
    (b"[]", 400, "bad_frame"),
    (b"null", 400, "bad_frame"),
    (b"\xff\xfe", 400, "bad_frame"),
    (b'{"a": NaN}', 400, "bad_frame"),
    (b'{"a": Infinity}', 400, "bad_frame"),
    (b'{"a": 1e400}', 422, "invalid"),
    (b'{"a": 9007199254740993000}', 422, "invalid"),
    (b'{"a": "\\u0000"}', 422, "invalid"),
    (b'{"a": "\\ud800"}', 422, "invalid"),
    (b'{"\\u0000": 1}', 422, "invalid"),
    (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 422, "invalid"),
]


async def test_every_route_answers_bad_bodies_with_the_same_problems(api: Api) -> None:
    # Given every documented route that takes a body, on a thread of the caller's
    ava, root = api.client("ava"), api.client("root", role="admin")
    thread_id = (await make_thread(ava, "ben"))["thread_id"]
    tried = 0
    for path, operations in openapi_document()["paths"].items():
        for method, operation in operations.items():
            if "requestBody" not in operation:
                continue
            target = path.replace("{thread_id}", thread_id).replace("{user_id}", "eve")
            client = root if "/admin/" in path else ava
            # When it gets what is no body for anything
            for body, status, code in BAD_BODIES:
                if not body and not operation["requestBody"]["required"]:
                    continue
                answer = await client.request(
                    method, target, content=body, headers={"Content-Type": "application/json"}
                )
                # Then it says so (the client's hook checks the shape)
                assert (answer.status_code, answer.json()["code"]) == (status, code), (target, body)
            text = await client.request(
                method, target, content=b"a=b", headers={"Content-Type": "text/plain"}
            )
            assert (text.status_code, text.json()["code"]) == (415, "unsupported")
            tried += 1
    assert tried >= 4


async def test_every_route_refuses_unknown_and_repeated_parameters(api: Api) -> None:
    ava = api.client("ava")
    thread_id = (await make_thread(ava, "ben"))["thread_id"]
    for path, operations in openapi_document()["paths"].items():
        for method, operation in operations.items():
            target = path.replace("{thread_id}", thread_id).replace("{message_id}", thread_id)
            answer = await ava.request(method, target, params={"no_such": "1"})
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), target
            assert answer.json()["errors"][0]["path"] == "/no_such"
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "query":
                    name = parameter["name"]
                    twice = await ava.request(method, f"{target}?{name}=1&{name}=1")
                    assert twice.status_code == 422, (target, name)
                    nul = await ava.request(method, f"{target}?{name}=%00")
                    assert nul.json()["errors"][0]["path"] == f"/{name}"


async def test_impossible_pages_are_refused(api: Api) -> None:
    ava = api.client("ava")
    thread_id = (await make_thread(ava, "ben"))["thread_id"]
    lists = (
        "/api/threads?",
        f"/api/threads/{thread_id}/members?",
        f"/api/messages?thread_id={thread_id}&",
    )
    for query in ("limit=0", "limit=201", "limit=x", "limit=1e3", "cursor=%C3%A9", "cursor=abc"):
        for path in lists:
            answer = await ava.get(path + query)
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), path
            assert answer.json()["errors"][0]["path"] == f"/{query.partition('=')[0]}"


async def test_impossible_seqs_are_refused(api: Api) -> None:
    ava = api.client("ava")
    thread_id = (await make_thread(ava, "ben"))["thread_id"]
    for query in ("before=-1", "after=x", "before=99999999999999999999", "after=1&cursor=a.1.2"):
        answer = await ava.get(f"/api/messages?thread_id={thread_id}&{query}")
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), query
    missing = await ava.get("/api/messages")
    assert missing.json()["errors"] == [{"path": "/thread_id", "problem": "Field required"}]


async def test_unknown_paths_and_methods_are_problems(api: Api) -> None:
    ava = api.client("ava")
    for path in ("/api/nothing", "/api/threads/", "/api", "/nothing", "/api/v2/me", "/problems/no"):
        answer = await ava.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
    for method, path in (("PUT", "/api/threads"), ("POST", "/api/me"), ("TRACE", "/api/me")):
        answer = await ava.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
        assert answer.headers["allow"]


async def test_a_body_over_one_mebibyte_is_too_large_however_it_is_sent(api: Api) -> None:
    ava = api.client("ava")
    huge = b'{"body": "' + b"x" * (1024 * 1024) + b'"}'

    async def chunked() -> Any:  # noqa: ANN401 - an async generator of bytes
        for start in range(0, len(huge), 65_536):
            yield huge[start : start + 65_536]

    told = await ava.post("/api/messages", content=huge)
    untold = await ava.post(
        "/api/messages", content=chunked(), headers={"Content-Type": "application/json"}
    )
    # A route that reads no body does not take one either
    unread = await ava.request("GET", "/api/me", content=huge)
    for answer in (told, untold, unread):
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    # Just below, it is read
    allowed = b'{"body": "' + b"x" * (1024 * 1024 - 12) + b'"}'
    fits = await ava.post(
        "/api/messages", content=allowed, headers={"Content-Type": "application/json"}
    )
    assert fits.status_code == 422


async def test_a_bug_is_an_internal_problem_without_its_stack(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    # Given an api whose token check breaks
    def broken(_token: str) -> None:
        raise RuntimeError("the secret reason")

    api.parts.verifier.verify = broken  # type: ignore[method-assign, assignment]
    # When somebody asks
    answer = await api.client(None).get(
        "/api/me", headers={"Authorization": "Bearer x", "X-Request-ID": "find-me-42"}
    )
    # Then they learn nothing but the id under which the logs have all of it
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert answer.json()["trace_id"] == "find-me-42"
    assert "secret reason" not in answer.text
    assert "the secret reason" in caplog.text


async def test_without_postgresql_requests_are_unavailable(fabric: Fabric) -> None:
    async with running_api(fabric, relays=False) as api:
        ava = api.client("ava")
        assert (await ava.get("/api/me")).status_code == 200
        # When every connection breaks and none can be made
        await api.parts.pool.close()
        answer = await ava.get("/api/me")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"] == "1"


async def test_a_request_keeps_its_name(api: Api) -> None:
    client = api.client("ava")
    named = await client.get("/api/me", headers={"X-Request-ID": "abc-1"})
    assert named.headers["x-request-id"] == "abc-1"
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    traced = await client.get("/api/me", headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
    assert traced.headers["x-request-id"] == trace
    for bad in ("a" * 200, "<script>", "a b"):
        made = await client.get("/api/me", headers={"X-Request-ID": bad})
        assert re.fullmatch(r"[0-9a-f]{32}", made.headers["x-request-id"])


async def test_every_answer_carries_the_security_headers(api: Api) -> None:
    ava = api.client("ava")
    for path in ("/", "/docs", "/api/me", "/api/nothing", "/livez", "/openapi.json", "/problems"):
        answer = await ava.get(path)
        for name, value in SECURITY_HEADERS.items():
            assert answer.headers[name] == value, (path, name)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
    assert (await ava.get("/api/me")).headers["cache-control"] == "no-store"


async def test_only_listed_origins_may_read_answers(api: Api) -> None:
    ava = api.client("ava")
    preflight = {
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "if-match",
    }
    # A listed origin may
    allowed = await ava.get("/api/me", headers={"Origin": ORIGIN})
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "ETag" in allowed.headers["access-control-expose-headers"]
    asked = await ava.options("/api/threads", headers={"Origin": ORIGIN, **preflight})
    assert asked.status_code == 204
    assert "PATCH" in asked.headers["access-control-allow-methods"]
    assert "Idempotency-Key" in asked.headers["access-control-allow-headers"]
    # Even its errors can be read
    error = await api.client(None).get("/api/me", headers={"Origin": ORIGIN})
    assert error.headers["access-control-allow-origin"] == ORIGIN
    # Others may not, in whatever spelling
    for origin in ("https://evil.example", "null", ORIGIN.upper(), f"{ORIGIN}.evil.example"):
        refused = await ava.get("/api/me", headers={"Origin": origin})
        assert "access-control-allow-origin" not in refused.headers
        answer = await ava.options("/api/threads", headers={"Origin": origin, **preflight})
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert allowed.headers["vary"] == "Origin"


async def test_reads_are_limited_per_user(fabric: Fabric) -> None:
    async with running_api(fabric, messaging_throttle_limit=100) as api:
        ava, ben = api.client("ava"), api.client("ben")
        answers = await asyncio.gather(*(ava.get("/api/me") for _ in range(120)))
        limited = [answer for answer in answers if answer.status_code == 429]
        assert limited
        assert limited[0].json()["code"] == "rate_limited"
        assert limited[0].headers["retry-after"] == "1"
        assert (await ben.get("/api/me")).status_code == 200


async def test_writes_are_limited_and_say_so(fabric: Fabric) -> None:
    # A window so long that none of this crosses its border.
    async with running_api(
        fabric, messaging_throttle_limit=10, messaging_throttle_ttl=3_600_000
    ) as api:
        ava = api.client("ava")
        thread_id = (await make_thread(ava, "ben"))["thread_id"]
        answers = [await ava.post("/api/messages", json=message_body(thread_id)) for _ in range(12)]
        taken = [answer for answer in answers if answer.status_code == 201]
        refused = answers[-1]
        # Making the thread took one of the ten
        assert len(taken) == 9
        assert answers[0].headers["ratelimit-policy"] == '"default";q=10;w=3600'
        left = [re.match(r'"default";r=(\d+);t=\d+', one.headers["ratelimit"]) for one in taken]
        assert [match and int(match[1]) for match in left] == list(range(8, -1, -1))
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["ratelimit"].startswith('"default";r=0;t=')
        # The other one has units of their own
        assert (
            await api.client("ben").post("/api/messages", json=message_body(thread_id))
        ).is_success


async def test_pages_load_nothing_from_elsewhere(api: Api) -> None:
    client = api.client(None)
    pages = [await client.get(path) for path in ("/", "/docs", "/docs/asyncapi", "/problems")]
    pages += [await client.get(f"/problems/{code}") for code in MEANING]
    for page in pages:
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        sources = re.findall(r'(?:src|href)="([^"]*)"', page.text)
        assert all(source.startswith("/") and not source.startswith("//") for source in sources)
        for source in sources:
            linked = await client.get(source)
            assert linked.status_code in (200, 503), source
            assert (
                "http://" not in linked.text.replace("http://json-schema.org", "")
                or "json" in source
            )
    script = await client.get("/docs/assets/docs.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert "http" not in re.sub(r"http_status", "", script.text)
    assert (await client.get("/docs/assets/..%2Fapp.py")).status_code == 404
    assert (await client.get("/docs/assets/secrets.txt")).status_code == 404


async def test_operations_paths_need_no_token(api: Api) -> None:
    client = api.client(None)
    assert (await client.get("/livez")).json()["status"] == "alive"
    assert (await client.get("/readyz")).status_code == 200
    await api.client("ava").get("/api/me")
    metrics = (await client.get("/metrics")).text
    assert 'messaging_api_requests_total{method="GET",route="me_get",status="200"} 1.0' in metrics
    # No path of a caller's becomes a label
    await client.get("/api/some/secret/path")
    assert "secret" not in (await client.get("/metrics")).text


async def test_the_documents_are_served(api: Api) -> None:
    client = api.client(None)
    assert (await client.get("/openapi.json")).json() == json.loads(json.dumps(openapi_document()))
    assert (await client.get("/asyncapi.json")).json()["asyncapi"].startswith("3.")


async def test_half_an_answer_is_not_followed_by_a_problem(api: Api) -> None:
    # Given a request whose client goes away in the middle
    async with (
        httpx.AsyncClient(base_url=api.url) as client,
        client.stream("GET", "/openapi.json") as answer,
    ):
        assert answer.status_code == 200
    # Then the next one is served as if nothing had happened
    assert (await api.client("ava").get("/api/me")).status_code == 200
