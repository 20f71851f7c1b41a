"""Tokens: every one that must be refused is, and keys can be changed while the process runs."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import hypothesis.strategies as st
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from typing_extensions import override

from shared.auth import TOKEN_BYTES_MAX, Verifier, make_token
from shared.auth.keys import DOCUMENT_BYTES_MAX, Algorithm, KeyUrl, parse_key_ring
from shared.errors import ConfigurationError, InvalidIdError, TokenError
from shared.settings import Settings, load_settings
from tests.support.eventually import eventually

SECRET = "EFto0sWWAlj1TijEFwQo0oxFOsQrv7zM4_7108fVfgD"
PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def configured(**explicit: object) -> Settings:
    return load_settings(jwt_secret=SECRET, **explicit)


def claims(**changed: object) -> dict[str, Any]:
    now = int(time.time())
    made = {"sub": "ava", "iat": now, "exp": now + 60, **changed}
    return {name: value for name, value in made.items() if value is not ...}


def signed(
    payload: dict[str, Any],
    *,
    algorithm: str = "HS256",
    key: str | PrivateKey = SECRET,
    headers: dict[str, Any] | None = None,
) -> str:
    return jwt.encode(payload, key, algorithm=algorithm, headers=headers)


def raw(header: object, payload: object) -> str:
    """Sign anything with our secret, also what the library would not write."""
    parts = [
        base64.urlsafe_b64encode(part if isinstance(part, bytes) else json.dumps(part).encode())
        for part in (header, payload)
    ]
    text = b".".join(part.rstrip(b"=") for part in parts)
    signature = hmac.digest(SECRET.encode(), text, hashlib.sha256)
    return b".".join([text, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


def private_key(algorithm: str) -> PrivateKey:
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=65_537, key_size=2_048)


def jwk(key: PrivateKey, algorithm: str, **extra: object) -> dict[str, Any]:
    encoded = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    assert isinstance(encoded, dict)
    return {"use": "sig", **encoded, **extra}


def document(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"keys": entries}).encode()


def test_a_token_made_here_is_accepted_here() -> None:
    # Given a token with everything in it
    settings = configured(jwt_audience="lilith", jwt_issuer="platform")
    token = make_token(settings, "ava", "creator", "Ava Ä.", ttl_s=60)
    # When it is verified
    identity = Verifier(settings).verify(token)
    # Then it says who, as what, and until when
    assert (identity.user_id, identity.role, identity.name) == ("ava", "creator", "Ava Ä.")
    assert identity.expires_at == identity.issued_at + 60


def test_role_and_name_may_be_missing() -> None:
    identity = Verifier(configured()).verify(signed(claims()))
    assert (identity.role, identity.name) == ("client", None)


@pytest.mark.parametrize(
    "changed",
    [
        {"sub": ...},
        {"exp": ...},
        {"iat": ...},
        {"sub": ""},
        {"sub": "a b"},
        {"sub": "a.b"},
        {"sub": "*"},
        {"sub": "a" * 65},
        {"sub": 7},
        {"sub": None},
        {"role": "root"},
        {"role": None},
        {"role": ["admin"]},
        {"role": {}},
        {"name": "n" * 101},
        {"name": 5},
        {"name": ["x"]},
        {"name": "a\0b"},
        {"exp": "9999999999"},
        {"iat": True},
        {"exp": 10**400},
        {"exp": 1e300},
        {"iat": -1},
        {"exp": None},
        {"exp": [1]},
        {"iat": "1"},
        {"iat": int(time.time()) + 3600},
        {"nbf": int(time.time()) + 3600},
    ],
)
def test_a_claim_that_is_missing_or_impossible_refuses_the_token(changed: dict[str, Any]) -> None:
    with pytest.raises(TokenError) as refusal:
        Verifier(configured()).verify(raw({"alg": "HS256", "typ": "JWT"}, claims(**changed)))
    assert not refusal.value.expired


def test_an_expired_token_is_told_from_a_bad_one_and_gets_no_second_of_leeway() -> None:
    # Given a token that ended this very second
    token = signed(claims(exp=int(time.time())))
    # When it is verified
    # Then it is refused as expired
    with pytest.raises(TokenError) as refusal:
        Verifier(configured()).verify(token)
    assert refusal.value.expired
    # And one that is expired and forged is only bad
    with pytest.raises(TokenError) as forged:
        Verifier(configured()).verify(signed(claims(exp=1), key="x" * 40))
    assert not forged.value.expired


@pytest.mark.parametrize("algorithm", ["none", "None", "HS384", "HS512", "RS256", "EdDSA"])
def test_the_token_never_chooses_the_algorithm(algorithm: str) -> None:
    # Given tokens of every other algorithm, the unsigned one among them
    token = raw({"alg": algorithm}, claims())
    if algorithm.lower() == "none":
        token = token.rpartition(".")[0] + "."
    elif algorithm.startswith("HS"):
        token = signed(claims(), algorithm=algorithm, key=SECRET * 2)
    # When they are verified
    # Then they are refused
    with pytest.raises(TokenError):
        Verifier(configured()).verify(token)


def test_a_public_key_is_never_taken_for_a_secret(tmp_path: Path) -> None:
    # Given a verifier for RS256, and a token signed by HS256 with the text of its public key
    key = private_key("RS256")
    path = tmp_path / "jwks.json"
    path.write_bytes(document(jwk(key, "RS256", kid="a")))
    verifier = Verifier(configured(jwt_algorithm="RS256", jwt_jwks=str(path)))
    text = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"a"}').rstrip(b"=")
    body = base64.urlsafe_b64encode(json.dumps(claims()).encode()).rstrip(b"=")
    signature = hmac.digest(path.read_bytes(), text + b"." + body, hashlib.sha256)
    forged = b".".join([text, body, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()
    # When it comes
    # Then it is refused
    with pytest.raises(TokenError):
        verifier.verify(forged)


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "é.é.é",
        "\ud800",
        "a" * (TOKEN_BYTES_MAX + 1),
        raw([1], claims()),
        raw({}, claims()),
        raw({"alg": ["HS256"]}, claims()),
        raw({"alg": "HS256", "crit": ["x"], "x": 1}, claims()),
        raw({"alg": "HS256"}, [1]),
        raw({"alg": "HS256"}, b"not json"),
        raw({"alg": "HS256"}, b'{"sub":"ava","iat":1,"exp":NaN}'),
        raw({"alg": "HS256"}, b'{"sub":"ava","iat":1,"exp":Infinity}'),
        raw({"alg": "HS256"}, b'{"sub":"ava","iat":1,"exp":1e400}'),
        raw({"alg": "HS256"}, b'{"sub":"ava","iat":1,"exp":99999999999,"name":"\\ud800"}'),
        raw(b"[" * 1_400, claims()),
        raw({"alg": "HS256"}, b"[" * 1_400),
    ],
)
def test_what_is_no_token_at_all_is_refused_not_a_crash(token: str) -> None:
    with pytest.raises(TokenError):
        Verifier(configured()).verify(token)


def test_a_token_longer_than_a_header_should_be_is_refused() -> None:
    # Given a good token that its maker filled up
    token = signed(claims(padding="x" * TOKEN_BYTES_MAX))
    # When it comes
    # Then it is not even looked at
    with pytest.raises(TokenError, match="at most 4096"):
        Verifier(configured()).verify(token)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_no_text_gets_in_or_crashes_the_verifier(text: str) -> None:
    with pytest.raises(TokenError):
        Verifier(configured()).verify(text)


@given(st.integers(min_value=0, max_value=10_000), st.integers(min_value=1, max_value=255))
def test_no_single_changed_byte_gets_in(place: int, change: int) -> None:
    token = raw({"alg": "HS256"}, claims(exp=99_999_999_999))
    place %= len(token) - 1  # The last character holds two bits that base64 ignores.
    changed = token[:place] + chr((ord(token[place]) ^ change) & 0x7F) + token[place + 1 :]
    if changed != token:
        with pytest.raises(TokenError):
            Verifier(configured()).verify(changed)


def test_audience_and_issuer_count_only_when_configured() -> None:
    # Given a token for somebody else
    token = signed(claims(aud="other", iss="elsewhere"))
    # When nothing is configured
    # Then it is accepted
    assert Verifier(configured()).verify(token).user_id == "ava"
    # And with either one configured it is not, nor is a token without it
    for settings in (configured(jwt_audience="lilith"), configured(jwt_issuer="platform")):
        for refused in (token, signed(claims())):
            with pytest.raises(TokenError):
                Verifier(settings).verify(refused)


def test_without_a_safe_secret_nothing_starts() -> None:
    for secret in ("", "short", "x" * 31):
        with pytest.raises(ConfigurationError, match="JWT_SECRET"):
            Verifier(load_settings(jwt_secret=secret))


@pytest.mark.parametrize(
    ("user", "role", "name", "error"),
    [
        ("a b", "client", None, InvalidIdError),
        ("ava", "root", None, TokenError),
        ("ava", "client", "n" * 101, TokenError),
    ],
)
def test_no_token_is_made_that_nobody_could_use(
    user: str, role: str, name: str | None, error: type[Exception]
) -> None:
    with pytest.raises(error):
        make_token(configured(), user, role, name)


def test_with_foreign_keys_no_token_is_made_here(tmp_path: Path) -> None:
    settings = configured(jwt_algorithm="EdDSA", jwt_jwks=str(tmp_path / "none.json"))
    with pytest.raises(ConfigurationError, match="identity provider"):
        make_token(settings, "ava")


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "RS256"])
def test_a_new_key_in_the_file_is_used_without_a_restart(algorithm: str, tmp_path: Path) -> None:
    # Given a verifier with one key in its file
    old, new = private_key(algorithm), private_key(algorithm)
    path = tmp_path / "jwks.json"
    path.write_bytes(document(jwk(old, algorithm, kid="old")))
    verifier = Verifier(configured(jwt_algorithm=algorithm, jwt_jwks=str(path)))
    by_old = signed(claims(), algorithm=algorithm, key=old, headers={"kid": "old"})
    by_new = signed(claims(), algorithm=algorithm, key=new, headers={"kid": "new"})
    assert verifier.verify(by_old).user_id == "ava"
    with pytest.raises(TokenError, match="unknown key"):
        verifier.verify(by_new)
    # When a second one joins, and later the first one leaves
    path.write_bytes(document(jwk(old, algorithm, kid="old"), jwk(new, algorithm, kid="new")))
    # Then both count, and then only the new one
    assert verifier.verify(by_old).user_id == verifier.verify(by_new).user_id == "ava"
    path.write_bytes(document(jwk(new, algorithm, kid="new")))
    assert verifier.verify(by_new).user_id == "ava"
    with pytest.raises(TokenError, match="unknown key"):
        verifier.verify(by_old)


def test_a_kid_cannot_lend_another_keys_name(tmp_path: Path) -> None:
    # Given two keys, and a token that is signed with one and names the other
    first, second = private_key("EdDSA"), private_key("EdDSA")
    path = tmp_path / "jwks.json"
    path.write_bytes(document(jwk(first, "EdDSA", kid="a"), jwk(second, "EdDSA", kid="b")))
    verifier = Verifier(configured(jwt_algorithm="EdDSA", jwt_jwks=str(path)))
    # When it comes, or names none of the two
    # Then it is refused
    for headers in ({"kid": "b"}, {"kid": "c"}, {}):
        with pytest.raises(TokenError):
            verifier.verify(signed(claims(), algorithm="EdDSA", key=first, headers=headers))


def test_a_single_key_needs_no_kid(tmp_path: Path) -> None:
    key = private_key("EdDSA")
    path = tmp_path / "jwks.json"
    path.write_bytes(document(jwk(key, "EdDSA")))
    verifier = Verifier(configured(jwt_algorithm="EdDSA", jwt_jwks=str(path)))
    assert verifier.verify(signed(claims(), algorithm="EdDSA", key=key)).user_id == "ava"


def test_a_file_that_turns_bad_leaves_the_good_keys(tmp_path: Path) -> None:
    # Given a verifier with a good file
    key = private_key("EdDSA")
    path = tmp_path / "jwks.json"
    path.write_bytes(document(jwk(key, "EdDSA", kid="a")))
    verifier = Verifier(configured(jwt_algorithm="EdDSA", jwt_jwks=str(path)))
    token = signed(claims(), algorithm="EdDSA", key=key, headers={"kid": "a"})
    # When it is overwritten with nonsense, and removed
    # Then tokens are still verified
    path.write_text("nonsense")
    assert verifier.verify(token).user_id == "ava"
    path.unlink()
    assert verifier.verify(token).user_id == "ava"


WEAK_RSA = rsa.generate_private_key(public_exponent=65_537, key_size=1_024)  # noqa: S505


@pytest.mark.parametrize(
    ("algorithm", "text", "problem"),
    [
        ("EdDSA", b"nonsense", "no JSON"),
        ("EdDSA", b"[" * 100_000, "no JSON"),
        ("EdDSA", b"x" * (DOCUMENT_BYTES_MAX + 1), "larger"),
        ("EdDSA", b"[]", "must be"),
        ("EdDSA", b'{"keys":5}', "must be"),
        ("EdDSA", b'{"keys":["x"]}', "must be"),
        ("EdDSA", b'{"keys":[]}', "no key for EdDSA"),
        ("EdDSA", document({"kty": "oct", "k": "c2VjcmV0"}), "no key for EdDSA"),
        ("EdDSA", document(jwk(private_key("ES256"), "ES256")), "no key for EdDSA"),
        ("EdDSA", document(jwk(private_key("EdDSA"), "EdDSA", use="enc")), "no key for EdDSA"),
        ("EdDSA", document(jwk(private_key("EdDSA"), "EdDSA", alg="ES256")), "no key for EdDSA"),
        ("EdDSA", document(jwk(private_key("EdDSA"), "EdDSA", d="x")), "private"),
        ("EdDSA", document(jwk(private_key("EdDSA"), "EdDSA", x="?")), "cannot be used"),
        (
            "ES256",
            document({"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"}),
            "no key for ES256",
        ),
        ("ES256", document({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}), "cannot be used"),
        (
            "RS256",
            document(jwk(WEAK_RSA, "RS256")),
            "shorter",
        ),
    ],
)
def test_a_key_document_that_is_not_safe_is_refused(
    algorithm: Algorithm, text: bytes, problem: str
) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        parse_key_ring(text, algorithm)


class KeyServer:
    """An identity provider's key document on HTTP."""

    def __init__(self) -> None:
        self.document = b""
        self.status = 200
        self.asked = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.asked += 1
                self.send_response(owner.status)
                self.end_headers()
                self.wfile.write(owner.document)

            @override
            def log_message(self, *_arguments: object) -> None:
                """Print nothing."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/jwks"
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def key_server() -> Iterator[KeyServer]:
    server = KeyServer()
    yield server
    server.close()


async def test_keys_behind_a_url_are_fetched_and_renewed(
    key_server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an api whose keys come from a URL
    monkeypatch.setattr("shared.auth.keys.REFRESH_GAP_S", 0.05)
    old, new = private_key("EdDSA"), private_key("EdDSA")
    key_server.document = document(jwk(old, "EdDSA", kid="old"))
    settings = configured(jwt_algorithm="EdDSA", jwt_jwks=key_server.url)
    verifier = Verifier(settings, may_fetch=True)
    by_old = signed(claims(), algorithm="EdDSA", key=old, headers={"kid": "old"})
    by_new = signed(claims(), algorithm="EdDSA", key=new, headers={"kid": "new"})
    with pytest.raises(TokenError):
        verifier.verify(by_old)
    stop = asyncio.Event()
    running = asyncio.create_task(verifier.run(stop))
    await eventually(lambda: _accepts(verifier, by_old))
    # When the provider changes its key, after an outage
    key_server.status = 500
    assert not _accepts(verifier, by_new)
    asked = key_server.asked
    await eventually(lambda: key_server.asked > asked)
    assert _accepts(verifier, by_old)
    key_server.status, key_server.document = 200, document(jwk(new, "EdDSA", kid="new"))
    # Then a token of the new key makes it known
    await eventually(lambda: _accepts(verifier, by_new))
    stop.set()
    await running


def _accepts(verifier: Verifier, token: str) -> bool:
    try:
        verifier.verify(token)
    except TokenError:
        return False
    return True


@pytest.mark.parametrize(
    "url", ["http://example.com/jwks", "ftp://127.0.0.1/x", "file:///etc/passwd"]
)
def test_keys_are_not_fetched_from_an_unsafe_place(url: str) -> None:
    with pytest.raises(ConfigurationError, match="https"):
        KeyUrl(url, "EdDSA")


def test_a_service_that_makes_no_http_calls_wants_a_file() -> None:
    settings = configured(jwt_algorithm="EdDSA", jwt_jwks="https://example.com/jwks")
    with pytest.raises(ConfigurationError, match="must be a file"):
        Verifier(settings)
    with pytest.raises(ConfigurationError, match="needs JWT_JWKS"):
        Verifier(configured(jwt_algorithm="EdDSA"))
    with pytest.raises(ConfigurationError, match="JWT_JWKS"):
        Verifier(configured(jwt_algorithm="EdDSA", jwt_jwks="/nowhere/jwks.json"))


async def test_a_verifier_with_a_secret_has_nothing_to_renew() -> None:
    await asyncio.wait_for(Verifier(configured()).run(asyncio.Event()), 1)
