"""Words and templates for `failure_cases`. The two sides have no entity or template in common.

"{x}" is a slot. Each line that you add here adds examples. A line must not be on both sides.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """The words and templates of one side."""

    firsts: tuple[str, ...]
    """First names."""

    lasts: dict[str, str]
    """Surnames that are also common words, each with a sentence about the common meaning."""

    towns: tuple[str, ...]
    trades: tuple[str, ...]

    birth_questions: tuple[str, ...]
    birth_answers: tuple[str, ...]
    other_facts: tuple[str, ...]
    """Facts about the person, but not the place of birth."""

    relations: tuple[tuple[str, str], ...]
    """An action of a on b, and the same action as seen by b, in different words."""

    group_adjectives: tuple[str, ...]
    group_nouns: tuple[str, ...]
    """Names of groups that take part in relations, such as the Red Falcons."""

    settings: tuple[str, ...]
    who_questions: tuple[str, ...]
    who_answers: tuple[str, ...]
    reversals: tuple[tuple[str, str], ...]
    """Sentences with the words of the question, each with its object: b acts on c, c acts on d."""

    who_dodges: tuple[str, ...]
    """Sentences that repeat the question without an answer."""

    abilities: dict[str, dict[str, bool]]
    """The abilities that each thing has (True) and lacks (False)."""

    polar_questions: tuple[str, ...]
    yes_answers: tuple[str, ...]
    no_answers: tuple[str, ...]
    dodges: tuple[str, ...]
    """Sentences that repeat a yes-or-no question without an answer."""

    echoes: tuple[str, ...]
    """Templates of poor documents, made of a question and its words."""


TRAIN = Words(
    firsts=tuple(
        "Alma Bruno Clara Dario Edith Felix Greta Hugo Irma Jonas Karla Leon Mira Nils Olga Paul "
        "Rita Simon Thea Viktor".split()
    ),
    lasts={
        "Winter": "Winter is the coldest season of the year, when many lakes are frozen.",
        "Brook": "A brook is a small stream; many a brook is born from a spring on a hillside.",
        "Stone": "Stone has been cut for houses and walls since the earliest times.",
        "Field": "A field that lies fallow for a year regains its strength.",
        "Marsh": "A marsh is flooded land in which reeds and grasses grow.",
        "Baker": "A baker rises at three in the morning to have bread ready by seven.",
        "Fisher": "Every fisher of the coast mends nets during the storms of autumn.",
        "Bishop": "In chess the bishop moves along the diagonals and never leaves its colour.",
        "Carpenter": "A carpenter needs dry wood, sharp tools and a level floor.",
        "Wolf": "The wolf is born blind and first leaves the den after three weeks.",
    },
    towns=tuple(
        "Aldermoor Brenholt Cressida Dunmere Eastvale Farrowby Glenhaven Harlstead Inverley "
        "Jarrowick Kelmsford Larkhill".split()
    ),
    trades=("painter", "botanist", "composer", "surgeon", "architect", "historian"),
    birth_questions=(
        "Where was the {trade} {name} born?",
        "In which town was {name} born?",
        "What is the birthplace of {name}?",
    ),
    birth_answers=(
        "{name} came into the world in {town}, the third child of a {trade}'s assistant.",
        "{town} is proud of {name}, who grew up there from the first day on and became a {trade}.",
        "A native of {town}, {name} worked as a {trade} for most of a long life.",
    ),
    other_facts=(
        "{name} was asked by many where success comes from, and always said: from patience.",
        "The {trade} {name} received a medal for forty years of work.",
        "A street was named after {name} long after the {trade}'s death.",
    ),
    relations=(
        ("defeated", "lost to"),
        ("hired", "took up a post with"),
        ("taught", "learned the craft from"),
        ("rescued", "owe their survival to"),
        ("sued", "were taken to court by"),
    ),
    group_adjectives=tuple("Red Northern Old Royal Silent Golden Merry Iron".split()),
    group_nouns=tuple(
        "Falcons Millers Printers Ferrymen Stonecutters Lamplighters Singers".split()
    ),
    settings=("in the spring of 1911", "during the long strike", "after the great flood"),
    who_questions=("Who {verb} {b} {setting}?", "Which of them {verb} {b} {setting}?"),
    who_answers=(
        "The papers agree that {b} {converse} {a} {setting}.",
        "What happened {setting} is well known: {b} {converse} {a}.",
    ),
    reversals=(
        ("{b} {verb} {c} {setting}.", "c"),
        ("It was {b} who {verb} {c} {setting}.", "c"),
        ("Who {verb} {d} {setting}? It was {c}.", "d"),
        ("{c} {verb} {d} {setting}.", "d"),
    ),
    who_dodges=(
        "Who {verb} {b} {setting}? The question has been asked ever since.",
        "Who {verb} whom {setting} was the talk of the town.",
        "{b} never said in public who {verb} them.",
    ),
    abilities={
        "penguins": {"fly": False, "swim": True, "climb trees": False, "live on land": True},
        "bats": {"fly": True, "swim": False, "see in the dark": True, "lay eggs": False},
        "ostriches": {"fly": False, "run fast": True, "climb trees": False, "lay eggs": True},
        "squirrels": {"climb trees": True, "lay eggs": False, "fly": False, "run fast": True},
        "salmon": {"swim": True, "live on land": False, "lay eggs": True, "climb trees": False},
        "owls": {"fly": True, "see in the dark": True, "lay eggs": True, "swim": False},
        "moles": {"dig tunnels": True, "fly": False, "swim": True, "lay eggs": False},
        "foxes": {"run fast": True, "see in the dark": True, "fly": False, "dig tunnels": True},
        "eagles": {"fly": True, "lay eggs": True, "climb trees": False, "dig tunnels": False},
        "tortoises": {"lay eggs": True, "run fast": False, "live on land": True, "fly": False},
        "whales": {"swim": True, "lay eggs": False, "live on land": False, "fly": False},
        "cats": {"climb trees": True, "see in the dark": True, "lay eggs": False, "fly": False},
    },
    polar_questions=("Can {thing} {act}?", "Are {thing} able to {act}?"),
    yes_answers=(
        "It has often been observed that {thing} {act} without difficulty.",
        "Yes: {thing} {act}, and they begin to when they are young.",
    ),
    no_answers=(
        "To {act} is beyond {thing}; their bodies are not made for it.",
        "No: nobody has ever seen {thing} {act}.",
    ),
    dodges=(
        "Can {thing} {act}? Children ask this every day, and books about {thing} are popular.",
        "Whether {thing} {act} is the title of a lecture that was put off.",
    ),
    echoes=(
        "{question} {question} {question}",
        "{question} Many people want to know: {question} Read on to learn more about it.",
        "Everything about {words}. Best {words}. {words} explained, {words} for beginners.",
        "Great question! {question} I was wondering about exactly the same thing. Anyone?",
        "Top 10 facts about {words}! Number 7 will surprise you. Click here.",
        "{question} Thank you for asking. We will answer as soon as we can.",
        "tags: {words}",
        "Sorry, I do not know much about {words}, but I find it very interesting. {question}",
    ),
)

EVAL = Words(
    firsts=tuple(
        "Agnes Boris Dora Emil Frida Gustav Helga Ivan Judith Konrad Lydia Moritz".split()
    ),
    lasts={
        "Snow": "Snow falls when water vapour freezes in the clouds.",
        "Rivers": "Rivers carry sand and mud from the mountains to the sea.",
        "Forest": "A forest cools the air above it and keeps the soil from being washed away.",
        "Bell": "A bell is cast in bronze and tuned by turning its inner wall.",
        "Shepherd": "The shepherd counts the flock at dusk and again at dawn.",
        "Potter": "A potter centres the clay before pulling up the wall of a bowl.",
        "Knight": "The knight is the only piece that jumps over others.",
        "Page": "A page of parchment was scraped clean and used again.",
    },
    towns=tuple("Ostrava Perleberg Quimper Rovaniemi Segovia Tartu Uppsala Viborg".split()),
    trades=("chemist", "sculptor", "explorer", "violinist"),
    birth_questions=(
        "What town does {name} come from originally?",
        "Where did the life of the {trade} {name} begin?",
    ),
    birth_answers=(
        "The parish register of {town} records the arrival of {name}, later a famous {trade}.",
        "{name}, the {trade}, spent an entire childhood in {town}, where the family had lived "
        "for generations.",
    ),
    other_facts=(
        "The life of {name} has been filmed twice.",
        "{name} gave up being a {trade} at sixty and kept bees.",
    ),
    relations=(
        ("invited", "were the guests of"),
        ("paid", "received their wages from"),
        ("followed", "arrived earlier than"),
    ),
    group_adjectives=tuple("Blue Southern Young Quiet Grey".split()),
    group_nouns=tuple("Otters Weavers Brewers Astronomers Watchmen".split()),
    settings=("at the midsummer fair", "on the day of the election", "before the bridge was built"),
    who_questions=("By whom were {b} {verb} {setting}?", "{b} were {verb} {setting} by whom?"),
    who_answers=(
        "Witnesses remember that {setting} {b} {converse} {a}.",
        "{b} {converse} {a}, as the chronicle tells of what took place {setting}.",
    ),
    reversals=(
        ("By {b} were {verb} {c} {setting}.", "c"),
        ("{c} were {verb} {setting} by {b}.", "c"),
        ("{d} were {verb} {setting} by {c}, not by {b}.", "d"),
        ("{d} were {verb} by {c} {setting}.", "d"),
    ),
    who_dodges=(
        "By whom were {b} {verb} {setting}? The archive has no answer.",
        "That {b} were {verb} {setting} is certain; by whom is not.",
    ),
    abilities={
        "dry twigs": {"burn": True, "conduct electricity": False, "float on water": True},
        "copper wires": {"conduct electricity": True, "burn": False, "float on water": False},
        "wax candles": {"melt in the sun": True, "burn": True, "rust": False},
        "iron nails": {"rust": True, "conduct electricity": True, "float on water": False},
        "corks": {"float on water": True, "rust": False, "burn": True},
        "glass marbles": {"burn": False, "conduct electricity": False, "rust": False},
        "sugar cubes": {"dissolve in tea": True, "conduct electricity": False, "rust": False},
        "gold coins": {"rust": False, "conduct electricity": True, "dissolve in tea": False},
        "ice cubes": {"melt in the sun": True, "float on water": True, "burn": False},
        "paper boats": {"burn": True, "float on water": True, "rust": False},
        "bars of chocolate": {"melt in the sun": True, "rust": False, "float on water": False},
        "steel blades": {"rust": True, "burn": False, "dissolve in tea": False},
        "grains of salt": {"dissolve in tea": True, "burn": False, "melt in the sun": False},
        "clay bricks": {"burn": False, "float on water": False, "melt in the sun": False},
    },
    polar_questions=("Do {thing} {act}?", "Is it true that {thing} {act}?"),
    yes_answers=(
        "Anyone can try it at home: {thing} really do {act}.",
        "{thing} {act}, which is why they are handled with care.",
    ),
    no_answers=(
        "Contrary to a common belief, {thing} do not {act}.",
        "{thing} never {act}, however long one waits.",
    ),
    dodges=(
        "Do {thing} {act}, or do they not? Opinions differ, said the man who sells {thing}.",
        "Is it true that {thing} {act}, asked the teacher, and wrote {thing} on the board.",
    ),
    echoes=(
        "FAQ. Q: {question} A: see above. Q: {question} A: see below.",
        "{words} - {words} - {words} - buy now - {words} - cheap {words}",
        "You searched for: {question} 0 results. Did you mean: {question}",
        "So, {question} That is what this article is about. In this article we talk about {words}.",
        "lol {question} same here, following this thread",
        "{words} {words} {question} subscribe for more {words}",
    ),
)
