"""``nats/authorization.conf``: accounts and users of the server, rendered from ``shared.subjects``. Pure: no I/O.

``nats/README.md`` says how to write a fresh copy.
"""

from collections.abc import Iterable
from typing import Final

from shared.subjects import ROLES, SERVER_STATE, Permissions, permissions

STREAMS_MAX: Final = 8
"""The committed file names this many message streams. Names of streams that do not exist harm nobody."""

ANSWER_LIFE: Final = "2m"
"""An answer may come this late. Longer than any deadline of an asker: a later one would end the answering process."""

_HEAD: Final = """\
# Generated from shared/subjects.py by shared/provision/authorization.py; a test keeps it fresh. Do not edit.
#
# One user per service with least permissions. Passwords come from the environment, in double quotes.
"""


def render_authorization(streams: int = STREAMS_MAX) -> str:
    """Return the text of ``nats/authorization.conf`` for up to ``streams`` message streams."""
    users = "\n".join(_user(role, streams) for role in ROLES)
    return f"""{_HEAD}
accounts {{
  LILITH {{
    jetstream: enabled
    imports: [
      # Services compare the configuration of the running server with what they promise.
      {{ service: {{ account: SYS, subject: "{SERVER_STATE}" }} }}
    ]
    users: [
{users}
    ]
  }}
  SYS {{
    exports: [
      {{ service: "{SERVER_STATE}", response_type: stream, accounts: [LILITH] }}
    ]
  }}
}}
system_account: SYS
"""


def _user(role: str, streams: int) -> str:
    granted = permissions(role, streams)
    answers = (
        f'          allow_responses: {{ max: 1, expires: "{ANSWER_LIFE}" }}\n'
        if granted.answers
        else ""
    )
    return f"""\
      {{
        user: {role}
        password: $LILITH_NATS_{role.upper()}_PASSWORD
        permissions: {{
          publish: {{
{_rules(granted)}
          }}
          subscribe: {{
            allow: [
{_lines(granted.subscribe)}
            ]
          }}
{answers}        }}
      }}"""


def _rules(granted: Permissions) -> str:
    rules = f"            allow: [\n{_lines(granted.publish)}\n            ]"
    if granted.publish_denied:
        rules += f"\n            deny: [\n{_lines(granted.publish_denied)}\n            ]"
    return rules


def _lines(subjects: Iterable[str]) -> str:
    return "\n".join(f'              "{subject}"' for subject in subjects)
