"""The folder of one embedded platform: whose it is now, and what the next start must find again.

::

    lock           held by the running supervisor
    state.json     ports, and where the servers' data lies
    secrets.json   generated once, mode 0600
    pids.json      the processes of the running (or killed) supervisor
    log/           one file per process, the last runs as .1 .2 .3
    postgres/ nats/    the servers' data
"""

import fcntl
import json
import os
import secrets
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from cli.embedded.nats import NATS_USERS
from cli.embedded.privileges import REACHABLE_HOME, Account, can_reach
from cli.processes import ProcessName, is_running, process_name
from shared.errors import LilithError

_SECRET_BYTES: Final = 32


class DataDirectoryInUseError(LilithError):
    """Another supervisor runs on this folder."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(
            f"{path} is in use by the supervisor with pid {holder or 'unknown'}: "
            "stop that one, or choose another folder with --data-dir"
        )


class LocalSecrets(NamedTuple):
    """The passwords of the embedded servers and the key of the tokens; there is no default for any."""

    jwt_secret: str
    postgres_password: str
    postgres_superuser_password: str
    nats_passwords: Mapping[str, str]


class Recorded(NamedTuple):
    """One child as ``pids.json`` knows it."""

    process: ProcessName | None
    ready: bool
    stop_signal: signal.Signals = signal.SIGTERM


class DataDirectory:
    """One such folder. Only the holder of ``lock()`` writes, except for ``secrets.json``."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.log = self.path / "log"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder, making it when it is missing.

        Raises:
            DataDirectoryInUseError: Somebody else holds it.
        """
        self.log.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                lock.seek(0)
                raise DataDirectoryInUseError(self.path, lock.read().strip()) from error
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            yield

    def state(self) -> dict[str, Any]:
        """Return what the last start left, ``{}`` at the first one."""
        return self._read("state.json")

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Leave ``state`` for the next start."""
        self._write("state.json", state)

    def secrets(self) -> LocalSecrets:
        """Return the secrets, generated at the first call on this folder."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._read("secrets.json"):
            fresh = {
                "jwt_secret": secrets.token_urlsafe(_SECRET_BYTES),
                "postgres_password": secrets.token_urlsafe(_SECRET_BYTES),
                "postgres_superuser_password": secrets.token_urlsafe(_SECRET_BYTES),
                "nats_passwords": {u: secrets.token_urlsafe(_SECRET_BYTES) for u in NATS_USERS},
            }
            self._write("secrets.json", fresh, only_new=True)
        return LocalSecrets(**self._read("secrets.json"))

    def record(self, children: Mapping[str, Recorded]) -> None:
        """Write down which processes run, for ``ps`` and for the start after a kill."""
        entries = {
            name: {"process": child.process, "ready": child.ready, "signal": child.stop_signal}
            for name, child in children.items()
        }
        supervisor = process_name(os.getpid())
        self._write("pids.json", {"boot": _boot(), "supervisor": supervisor, "children": entries})

    def recorded(self) -> dict[str, Recorded]:
        """Return what ``record`` wrote; processes that are gone (or of another boot) are None."""
        record = self._read("pids.json")
        same_boot = record.get("boot") == _boot()
        children: dict[str, Recorded] = {}
        for name, child in record.get("children", {}).items():
            process = _name(child["process"]) if same_boot else None
            running = process is not None and is_running(process)
            children[name] = Recorded(
                process=process if running else None,
                ready=child["ready"] and running,
                stop_signal=signal.Signals(child["signal"]),
            )
        return children

    def supervisor_is_running(self) -> bool:
        """Return whether the recorded supervisor still runs."""
        record = self._read("pids.json")
        process = _name(record.get("supervisor"))
        return process is not None and record.get("boot") == _boot() and is_running(process)

    def forget_record(self) -> None:
        """A clean stop leaves no pids."""
        (self.path / "pids.json").unlink(missing_ok=True)

    def servers_home(self, state: dict[str, Any], account: Account | None) -> Path:
        """Return where the servers' data lies: here, or where ``account`` can reach it.

        A folder below a closed home (root's, usually) is not opened; a folder of random name below
        ``/var/lib/lilith`` takes its place and is remembered in ``state``.
        """
        remembered = state.get("servers_home")
        if remembered is not None:
            return Path(remembered)
        if can_reach(self.path, account):
            return self.path  # Not remembered: the folder may be moved.
        REACHABLE_HOME.mkdir(mode=0o755, parents=True, exist_ok=True)
        home = REACHABLE_HOME / f"data-{secrets.token_hex(6)}"
        home.mkdir(mode=0o755)
        state["servers_home"] = f"{home}"
        return home

    def _read(self, name: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return content

    def _write(self, name: str, content: Mapping[str, Any], *, only_new: bool = False) -> None:
        """Replace a file at once (mode 0600): a reader, or a start after a kill, sees old or new."""
        descriptor, unfinished = tempfile.mkstemp(prefix=f"{name}.", dir=self.path)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        if not only_new:
            Path(unfinished).replace(self.path / name)
            return
        # ``token`` and ``up`` may make the secrets at the same moment: the first one wins.
        with suppress(FileExistsError):
            os.link(unfinished, self.path / name)
        Path(unfinished).unlink()


def _name(fields: list[int] | None) -> ProcessName | None:
    return ProcessName(fields[0], fields[1]) if fields else None


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
