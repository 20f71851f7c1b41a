"""Public keys of tokens (JWKS, RFC 7517): parsed strictly, found by ``kid``, renewed while the process runs.

Only keys of the one configured algorithm are taken. A document that turns bad later never empties the key ring: the
keys that were good stay, and the log says so.
"""

import asyncio
import logging
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Protocol
from urllib.parse import urlsplit

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from typing_extensions import override

from shared.errors import ConfigurationError

Algorithm = Literal["EdDSA", "ES256", "RS256"]
PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey
KeyRing = Mapping[str, PublicKey]
"""Keys by ``kid``; a key without one is under ``""``."""

DOCUMENT_BYTES_MAX: Final = 256 * 1024
RSA_BITS_MIN: Final = 2048
FETCH_TIMEOUT_S: Final = 5.0
REFRESH_S: Final = 300.0
"""How often a URL is asked again. A token of an unknown key asks at once, at most every ``REFRESH_GAP_S``."""
REFRESH_GAP_S: Final = 10.0

_KINDS: Final[dict[str, tuple[str, str | None]]] = {
    "EdDSA": ("OKP", "Ed25519"),
    "ES256": ("EC", "P-256"),
    "RS256": ("RSA", None),
}
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_log = logging.getLogger(__name__)


class KeySource(Protocol):
    """Where the public keys of tokens come from."""

    def find(self, kid: str | None) -> PublicKey | None:
        """Return the key with this id; without an id the only key, if there is just one."""


def parse_key_ring(document: bytes, algorithm: Algorithm) -> KeyRing:
    """Return the keys of ``algorithm`` in a JWKS document; keys for other uses or algorithms are passed over.

    Raises:
        ConfigurationError: No JWKS, no usable key, a weak key, or a private one.
    """
    if len(document) > DOCUMENT_BYTES_MAX:
        raise ConfigurationError(f"the JWKS is larger than {DOCUMENT_BYTES_MAX} bytes")
    try:
        parsed = msgspec.json.decode(document)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigurationError(f"the JWKS is no JSON: {error}") from error
    entries = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigurationError('the JWKS must be {"keys": [...]}')
    ring = {
        str(entry.get("kid", "")): _key(entry, algorithm)
        for entry in entries
        if _fits(entry, algorithm)
    }
    if not ring:
        raise ConfigurationError(f"the JWKS holds no key for {algorithm}")
    return ring


class KeyFile(KeySource):
    """A JWKS file, read again whenever it changed."""

    def __init__(self, path: Path, algorithm: Algorithm) -> None:
        self._path = path
        self._algorithm = algorithm
        try:
            self._stamp = _stamp(path)
            self._ring = parse_key_ring(path.read_bytes(), algorithm)
        except OSError as error:
            raise ConfigurationError(f"JWT_JWKS: {error}") from error

    @override
    def find(self, kid: str | None) -> PublicKey | None:
        self._read_again_if_changed()
        return _find(self._ring, kid)

    def _read_again_if_changed(self) -> None:
        try:
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._ring = parse_key_ring(self._path.read_bytes(), self._algorithm)
            _log.info("token keys read again: %d", len(self._ring))
        except (OSError, ConfigurationError) as error:
            _log.error("token keys kept, the new ones cannot be used: %s", error)


class KeyUrl(KeySource):
    """A JWKS behind a URL, fetched by ``run``. Until the first fetch no token is accepted."""

    def __init__(self, url: str, algorithm: Algorithm) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
            raise ConfigurationError("JWT_JWKS must be a file or an https URL")
        self._url = url
        self._algorithm = algorithm
        self._ring: KeyRing = {}
        self._wanted = asyncio.Event()

    @override
    def find(self, kid: str | None) -> PublicKey | None:
        key = _find(self._ring, kid)
        if key is None:
            self._wanted.set()
        return key

    async def refresh(self) -> None:
        """Fetch the keys now.

        Raises:
            OSError: No answer in time, or not 200.
            ConfigurationError: The answer cannot be used. The keys stay as they were.
        """
        self._ring = parse_key_ring(await asyncio.to_thread(self._fetch), self._algorithm)

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the keys fresh until ``stop`` is set."""
        while not stop.is_set():
            started = time.monotonic()
            try:
                await self.refresh()
            except (OSError, ValueError, ConfigurationError) as error:
                _log.error("token keys kept, %s cannot be used: %s", self._url, error)
            self._wanted.clear()
            await _first_of(stop.wait(), self._wanted.wait(), within_s=REFRESH_S)
            gap_s = REFRESH_GAP_S - (time.monotonic() - started)
            if gap_s > 0:
                await _first_of(stop.wait(), within_s=gap_s)

    def _fetch(self) -> bytes:
        request = urllib.request.Request(self._url, headers={"accept": "application/json"})  # noqa: S310 - checked above
        with urllib.request.urlopen(request, timeout=FETCH_TIMEOUT_S) as answer:  # noqa: S310 - checked above
            document: bytes = answer.read(DOCUMENT_BYTES_MAX + 1)
        return document


async def _first_of(*waits: Any, within_s: float) -> None:  # noqa: ANN401 - coroutines of any result
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _find(ring: KeyRing, kid: str | None) -> PublicKey | None:
    if kid is None:
        return next(iter(ring.values())) if len(ring) == 1 else None
    return ring.get(kid)


def _fits(entry: dict[str, Any], algorithm: Algorithm) -> bool:
    kind, curve = _KINDS[algorithm]
    return (
        entry.get("kty") == kind
        and (curve is None or entry.get("crv") == curve)
        and entry.get("use", "sig") == "sig"
        and entry.get("alg", algorithm) == algorithm
    )


def _key(entry: dict[str, Any], algorithm: Algorithm) -> PublicKey:
    name = entry.get("kid", "(without kid)")
    if "d" in entry:
        raise ConfigurationError(
            f"key {name} of the JWKS is a private key: publish the public part only"
        )
    try:
        key = jwt.get_algorithm_by_name(algorithm).from_jwk(entry)
    except (jwt.PyJWTError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"key {name} of the JWKS cannot be used: {error}") from error
    if not isinstance(key, RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey):
        raise ConfigurationError(f"key {name} of the JWKS is no public key for {algorithm}")
    if isinstance(key, RSAPublicKey) and key.key_size < RSA_BITS_MIN:
        raise ConfigurationError(f"key {name} of the JWKS is shorter than {RSA_BITS_MIN} bits")
    return key


def _stamp(path: Path) -> tuple[int, int, int]:
    # Size and inode too: a secret of Kubernetes is replaced by moving a link, within one tick of the clock.
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino
