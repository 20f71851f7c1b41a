"""The people of the demo: two creators and eight clients, and what they have to say."""

from collections.abc import Sequence
from typing import Final, NamedTuple


class Person(NamedTuple):
    """Somebody of the demo, as their token names them."""

    user_id: str
    name: str
    role: str


class Conversation(NamedTuple):
    """A thread of the demo. ``members`` begins with its owner; ``lines`` are (sender, body) in order."""

    key: str
    kind: str
    title: str | None
    members: Sequence[str]
    lines: Sequence[tuple[str, str]]


PEOPLE: Final = {
    person.user_id: person
    for person in (
        Person("ava", "Ava Lindqvist", "creator"),
        Person("noor", "Noor Haddad", "creator"),
        Person("ben", "Ben Okafor", "client"),
        Person("cleo", "Cleo Marchetti", "client"),
        Person("dan", "Dan Petrov", "client"),
        Person("emil", "Emil Sørensen", "client"),
        Person("fay", "Fay Nakamura", "client"),
        Person("gus", "Gus Ferreira", "client"),
        Person("hana", "Hana Kim", "client"),
        Person("ivo", "Ivo Novák", "client"),
    )
}

BOTS: Final = ("noor", "cleo", "dan", "fay")
"""Who lives in the demo by themselves. Ava and Ben are left to whoever tries it."""

DIRECT: Final = (
    *(("ava", client) for client in ("ben", "cleo", "dan", "emil", "fay", "gus")),
    *(("noor", client) for client in ("ben", "cleo", "fay", "gus", "hana", "ivo")),
)

GROUPS: Final = (
    ("studio", "Studio friends", ("ava", "noor", "ben", "cleo", "dan")),
    ("release", "Release day", ("noor", "ava", "fay", "gus", "hana")),
)

OPENINGS: Final = (
    "Hi! I just found your page and had to say hello.",
    "Hello again! The last clip was wonderful.",
    "Hey, do you have a minute?",
    "Good morning from the other side of the world.",
    "I finally watched the whole series. Wow.",
    "Quick question about the tutorial, if that's all right.",
)

CLIENT_LINES: Final = (
    "How long did that take you?",
    "I tried it at home and it almost worked.",
    "Which lens did you use for the night shots?",
    "My sister is a fan too, she says hi.",
    "Will there be a longer version?",
    "That light at the end, was it planned?",
    "I've been practising every day this week.",
    "Could you show the first step again some time?",
    "No hurry, answer when you like.",
    "That makes sense, thank you!",
    "Ha, I knew it.",
    "I'd love to see how you plan these.",
    "Saved it. Watching again tonight.",
    "Is the workshop in spring still happening?",
)

CREATOR_LINES: Final = (
    "Thank you, that means a lot.",
    "About two days, most of it waiting for the weather.",
    "A 35 mm, wide open. Nothing special.",
    "Yes! I'm cutting the long version this week.",
    "Say hi back from me.",
    "Pure luck, to be honest.",
    "Keep going, the third try is usually the good one.",
    "I'll put a clip together that shows just that part.",
    "Spring is still the plan. I'll write as soon as there is a date.",
    "Good eye. Hardly anybody notices.",
    "Ask me anything.",
    "That is exactly how I started.",
)

GROUP_LINES: Final = (
    "Who is in for Saturday?",
    "I am!",
    "Me too, but only after four.",
    "I can bring the small speaker.",
    "Rain is forecast, shall we go indoors?",
    "Indoors is fine, I have the key to the studio.",
    "Perfect. I'll bring something to eat.",
    "Then it's settled.",
    "Can somebody share the address again?",
    "It's pinned in my profile.",
    "See you all there.",
    "Don't forget the charger this time.",
)

ANSWERS: Final = (
    "Ha, good point.",
    "Tell me more?",
    "I was just thinking the same.",
    "Give me a second, I'm reading.",
    "Yes, absolutely.",
    "Not sure yet, let me sleep on it.",
    "Nice to hear from you!",
    "That made my day.",
)
