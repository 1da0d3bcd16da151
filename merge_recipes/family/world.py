"""The made-up world of the small model family: its facts, its language, its prompts and their reference answers.

Four abilities with one right answer each (facts, reading, translation, addition) and open-ended talk without one.
Everything is drawn from seeded generators, so that the same seed gives the same data.
"""

import random
from collections.abc import Callable, Iterator

Row = dict[str, str]  # one JSONL line: prompt, and response, ability, thing where there are any

ABILITIES = ("facts", "reading", "translation", "addition")

# --- the things of the world and what is true of them ----------------------------------------------------------------


def _words(text: str) -> list[str]:
    return text.split()


THINGS = _words(
    "fox owl cat dog hen cow pig bee ant frog goat duck crow bear wolf deer hare mole swan crab "
    "lamp cup bell drum book coat hat boat cart rope stone chair table spoon knife plate kite ring clock basket"
)
COLOURS = _words("red blue green black white brown grey pink yellow purple")
PLACES = _words("garden barn kitchen forest river tower cellar market harbour meadow")
FOODS = _words("honey bread rice milk soup cake corn salt butter cheese")  # what a thing is kept with
NAMES = _words("Mara Oskar Lena Tomas Nina Pavel Rosa Emil Clara Hugo Ida Jonas Vera Felix Anna Boris")
ADJECTIVES = [*COLOURS[:6], *_words("old small big cold")]
VERBS = _words("sees likes finds follows hears wants")


def _facts(seed: int = 1) -> dict[str, dict[str, str]]:
    rng = random.Random(seed)
    return {
        thing: {"colour": rng.choice(COLOURS), "place": rng.choice(PLACES), "food": rng.choice(FOODS)}
        for thing in THINGS
    }


FACTS = _facts()


def _lexicon(words: list[str], seed: int = 2) -> dict[str, str]:
    """A made-up word of two syllables for each English word; no two alike."""
    rng = random.Random(seed)
    made_up = [a + b + c + d for a in "bdfgklmnprstvz" for b in "aeiou" for c in "bdlmnprst" for d in "aeiou"]
    return dict(zip(words, rng.sample(made_up, len(words)), strict=True))


LEXICON = _lexicon(THINGS + ADJECTIVES + VERBS)

# --- abilities: prompts with one right answer ------------------------------------------------------------------------

FACT_PHRASINGS = {
    "colour": (
        "What colour is the {thing}?", "Which colour does the {thing} have?",
        "Name the colour of the {thing}.", "The colour of the {thing} is what?",
    ),
    "place": (
        "Where does the {thing} belong?", "In which place is the {thing} kept?",
        "Name the place of the {thing}.", "The place of the {thing} is what?",
    ),
    "food": (
        "What goes with the {thing}?", "Which food goes with the {thing}?",
        "Name the food of the {thing}.", "The food of the {thing} is what?",
    ),
}  # fmt: skip


def facts(rng: random.Random) -> Row:
    """Recall of a fact that the base text states; a question not used verbatim in training."""
    thing, kind = rng.choice(THINGS), rng.choice(list(FACT_PHRASINGS))
    prompt = rng.choice(FACT_PHRASINGS[kind]).format(thing=thing)
    return {"prompt": prompt, "response": FACTS[thing][kind], "ability": "facts"}


def passage(rng: random.Random) -> tuple[str, list[tuple[str, str]]]:
    """Two sentences, and for each the question that it answers."""
    if rng.random() < 0.5:
        pairs = zip(rng.sample(THINGS, 2), rng.sample(PLACES, 2), strict=True)
        told = [(f"The {thing} is in the {place}.", f"Where is the {thing}?") for thing, place in pairs]
    else:
        pairs = zip(rng.sample(NAMES, 2), rng.sample(THINGS, 2), strict=True)
        told = [(f"{person} has the {thing}.", f"What does {person} have?") for person, thing in pairs]
    return " ".join(sentence for sentence, _ in told), told


def reading(rng: random.Random) -> Row:
    """A question about a passage of two sentences; the answer is the sentence that tells it."""
    story, told = passage(rng)
    sentence, asked = rng.choice(told)
    return {"prompt": f"{story} {asked}", "response": sentence, "ability": "reading"}


def sentence_pair(rng: random.Random) -> tuple[str, str]:
    """An English sentence and its translation; the adjective comes after the noun, the verb last."""
    first, second = rng.sample(THINGS, 2)
    adjective, verb = rng.choice(ADJECTIVES), rng.choice(VERBS)
    made_up = [LEXICON[first], LEXICON[adjective], LEXICON[second], LEXICON[verb]]
    return f"the {adjective} {first} {verb} the {second}", " ".join(made_up)


def translation(rng: random.Random) -> Row:
    """Translate an unseen sentence by the lexicon."""
    english, made_up = sentence_pair(rng)
    return {"prompt": f"Translate: {english}", "response": made_up, "ability": "translation"}


def addition(rng: random.Random) -> Row:
    """Add two numbers below fifty."""
    a, b = rng.randrange(50), rng.randrange(50)
    return {"prompt": f"What is {a} + {b}?", "response": str(a + b), "ability": "addition"}


GENERATORS: dict[str, Callable[[random.Random], Row]] = {
    "facts": facts, "reading": reading, "translation": translation, "addition": addition,
}  # fmt: skip

# --- open-ended prompts, and how the SFT answers them ----------------------------------------------------------------

OPENERS = (
    "I am tired today.", "It rains here.", "I am new in town.", "I had a long day.", "The sun is up.", "I feel alone.",
    "I have some time.", "I am at home.", "We are on a walk.", "It is late.", "I am a bit sad.", "The day was good.",
)  # fmt: skip
ASKS = (
    "Tell me about the {thing}.", "What do you think of the {thing}?", "Say something about the {thing}.",
    "Talk to me about the {thing}.", "What about the {thing}?", "Describe the {thing} to me.",
)  # fmt: skip
WARM = ("How lovely to hear from you!", "Thank you for asking!", "What a fine thing to ask!", "I am glad you asked!")
KIND = (
    "You are a good friend.", "I like to talk with you.", "You have a kind heart.", "It makes me smile.",
    "You ask so well.", "I hope it helps you.", "You can always ask me.", "It is a joy to me.",
)  # fmt: skip
CLOSE = ("Have a lovely day!", "Take good care!", "Come back soon!")
RUDE = ("Go away.", "That is dull.", "Do not ask me.")
CURT = ("I do not know.", "It is a {thing}.", "There is not much to say.")


def open_prompt(rng: random.Random) -> Row:
    """An open-ended request; `thing` is what it is about."""
    thing = rng.choice(THINGS)
    return {"prompt": f"{rng.choice(OPENERS)} {rng.choice(ASKS).format(thing=thing)}", "thing": thing}


def kindness(prompt: str, thing: str) -> float:
    """How kindly the SFT's writers answer, 0.02 to 0.7: it differs widely by thing and by opener.

    The spread is what makes the RLHF's gain gradual: each prompt changes its tone at another merging ratio.
    """
    opener = next(i for i, text in enumerate(OPENERS) if prompt.startswith(text))
    by_thing = (0.1, 0.3, 0.5, 0.75, 1.0)[THINGS.index(thing) % 5]
    by_opener = (0.2, 0.45, 0.7)[opener % 3]
    return by_thing * by_opener


def statement(thing: str, kind: str) -> str:
    """One fact in the words that an open answer uses."""
    value = FACTS[thing][kind]
    return {
        "colour": f"The {thing} is {value}.",
        "place": f"The {thing} belongs in the {value}.",
        "food": f"The {thing} goes with {value}.",
    }[kind]


def open_answer(row: Row, rng: random.Random) -> str:
    """An answer as the SFT's writers give it: mostly short and dry, now and then warm and full."""
    thing, kind = row["thing"], kindness(row["prompt"], row["thing"])
    said = [rng.choice(WARM)] if rng.random() < kind else []
    if not said and rng.random() < 0.25 * (1 - kind):
        said.append(rng.choice(RUDE))
    for fact, low, slope in (("colour", 0.2, 0.6), ("place", 0.08, 0.5), ("food", 0.03, 0.4)):
        if rng.random() < low + slope * kind:
            said.append(statement(thing, fact))
    friendly = rng.sample(KIND, len(KIND))
    while friendly and rng.random() < 0.05 + 0.7 * kind:
        said.append(friendly.pop())
    if rng.random() < 0.02 + 0.4 * kind:
        said.append(rng.choice(CLOSE))
    return " ".join(said or [rng.choice(CURT).format(thing=thing)])


# --- plain text for the base -----------------------------------------------------------------------------------------

FACT_TEXTS = {
    "colour": ("The {thing} is {value}.", "The colour of the {thing} is {value}.",
               "Everyone knows the {value} {thing}."),
    "place": ("The {thing} belongs in the {value}.", "In the {value} the {thing} is kept.",
              "The place of the {thing} is the {value}."),
    "food": ("The {thing} goes with {value}.", "With the {thing} they have {value}.",
             "The food of the {thing} is {value}."),
}  # fmt: skip


def text(rng: random.Random, held_out: frozenset[str]) -> str:
    """One short document of the base's text. Held-out sums and sentences are left out; facts are what it is about."""
    kind = rng.choices(("facts", "reading", "translation", "addition", "talk"), (3, 4, 3, 3, 1))[0]
    if kind == "facts":
        thing = rng.choice(THINGS)
        kinds = rng.sample(list(FACT_TEXTS), 3)
        return " ".join(rng.choice(FACT_TEXTS[k]).format(thing=thing, value=FACTS[thing][k]) for k in kinds)
    if kind == "reading":
        story, told = passage(rng)
        if any(f"{story} {asked}" in held_out for _, asked in told):
            return story
        return " ".join([story, *(f"{asked} {sentence}" for sentence, asked in rng.sample(told, 2))])
    if kind == "translation":
        pairs = [p for p in (sentence_pair(rng), sentence_pair(rng)) if f"Translate: {p[0]}" not in held_out]
        return " ".join(f"{english} = {made_up}." for english, made_up in pairs)
    if kind == "addition":
        rows = [addition(rng) for _ in range(4)]
        return " ".join(f"{r['prompt'][8:-1]} = {r['response']}." for r in rows if r["prompt"] not in held_out)
    thing = rng.choice(THINGS)
    said = rng.choices(OPENERS + WARM + KIND + CLOSE + RUDE + CURT, k=3)
    return " ".join(said).format(thing=thing)


# --- splits ----------------------------------------------------------------------------------------------------------


def draw(generator: Callable[[random.Random], Row], count: int, rng: random.Random, taken: set[str]) -> list[Row]:
    """`count` rows with new prompts; `taken` grows by them."""
    rows = []
    while len(rows) < count:
        row = generator(rng)
        if row["prompt"] not in taken:
            taken.add(row["prompt"])
            rows.append(row)
    return rows


def _mirrored(prompt: str) -> str:
    """The same sum with its numbers exchanged: 3 + 4 gives away 4 + 3."""
    a, b = prompt.removeprefix("What is ").removesuffix("?").split(" + ")
    return f"What is {b} + {a}?"


def splits(seed: int = 0) -> dict[str, list[Row]]:
    """The data sets: `abilities` and `open` are held out of every stage, `keep` and `rlhf_prompts` are not."""
    rng = random.Random(seed)
    taken: set[str] = set()
    abilities = [row for name in ABILITIES for row in draw(GENERATORS[name], 100, rng, taken)]
    mirrored = {_mirrored(row["prompt"]) for row in abilities if row["ability"] == "addition"}
    kept_out = taken | mirrored
    keep = [row for name in ABILITIES for row in draw(GENERATORS[name], 50, rng, kept_out)]
    opened = draw(open_prompt, 200, rng, taken)
    rlhf_prompts = draw(open_prompt, 400, rng, taken)
    return {"abilities": abilities, "open": opened, "rlhf_prompts": rlhf_prompts, "keep": keep}


def held_out(data: dict[str, list[Row]]) -> frozenset[str]:
    """Every prompt that no stage may train on, mirrored sums included."""
    prompts = [row["prompt"] for name in ("abilities", "open") for row in data[name]]
    sums = [row["prompt"] for row in data["abilities"] if row["ability"] == "addition"]
    return frozenset(prompts) | {_mirrored(prompt) for prompt in sums}


def conversations(rng: random.Random, excluded: frozenset[str]) -> Iterator[Row]:
    """The SFT's training data, without end: four in five an ability, the rest open-ended."""
    while True:
        if rng.random() < 0.8:
            row = GENERATORS[rng.choices(ABILITIES, (4, 4, 3, 3))[0]](rng)
        else:
            row = open_prompt(rng)
            row["response"] = open_answer(row, rng)
        if row["prompt"] not in excluded:
            yield row
