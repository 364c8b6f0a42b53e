"""All of training in half a minute: texts in, a model with five adapters out.

    polyvec train recipe recipes/debug.py --out runs/debug

On one CPU core, from sentences made here and the notes in examples/. The model is for trying the
machinery, not for use: of 48 held-out sentences it should find the translations of three in four.
Every step leaves a file or a folder in `--out`, as a long run would, and is not repeated:

1. tokenizer.json   1,000 pieces
2. short/, long/    stage 1: hidden words are guessed, one language a batch
3. pairs/           stage 2: a sentence and its translation, in chunks as if memory were short
4. retrieval/, text-matching/, classification/, separation/   stage 3: adapters, backbone frozen
5. model/           for `Encoder.load`, transformers and PEFT
6. sentence/        text-matching alone, for sentence-transformers
"""

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import tokenizers
import torch
import torch.nn.functional as F

from polyvec.checkpoint import save_checkpoint
from polyvec.chunking import split_sentences
from polyvec.config import ModelConfig
from polyvec.export.sentence_transformers import save_sentence_transformer
from polyvec.network import Network
from polyvec.tasks import adapter_index
from polyvec.tokenizer import Tokenizer
from polyvec.train.checkpoints import average_checkpoints
from polyvec.train.data.pairs import plan_pairs, token_ids
from polyvec.train.data.tuples import nli_triplets, number_tokens
from polyvec.train.init.tokenizer import train_tokenizer
from polyvec.train.loop import Settings, Work, train
from polyvec.train.masking import plan_languages, read_vocabulary
from polyvec.train.objectives import (
    Tokens,
    contrast,
    embed,
    masked_lm,
    ordering,
    separation,
    take_turns,
    tuples,
)
from polyvec.train.plot import plot_run

NOTES = Path(__file__).parent.parent / "examples" / "notes"

CONFIG = ModelConfig(
    vocab_size=1_000,
    width=64,
    num_layers=2,
    num_heads=4,
    ffn_width=128,
    max_tokens=256,
    rope_base=10_000.0,
    dims=(16, 32, 64),
)
"""The shape in training; the saved config has the inference base, 20,000."""

STEPS = 30
"""Of every run but two, which have twice as many: stage 1's short one, and stage 2's."""

ANIMALS = ("fox Fuchs zorro", "dog Hund perro", "bear Bär oso", "wolf Wolf lobo")
ANIMALS += ("rabbit Hase conejo", "bird Vogel pájaro", "lion Löwe león", "frog Frosch sapo")
COLOURS = ("red rote rojo", "white weiße blanco", "black schwarze negro", "old alte viejo")
COLOURS += ("grey graue gris", "brown braune marrón")
PLACES = ("forest,Wald,el bosque", "garden,Garten,el jardín", "house,Haus,la casa")
PLACES += ("valley,Tal,el valle", "snow,Schnee,la nieve", "river,Fluss,el río")
SENTENCES = {
    "en": "The {colour} {animal} sleeps in the {place}.",
    "de": "Der {colour} {animal} schläft im {place}.",
    "es": "El {animal} {colour} duerme en {place}.",
}


@dataclass(frozen=True, slots=True)
class Fact:
    """Numbers of an animal, a colour and a place."""

    animal: int
    colour: int
    place: int

    def say(self, pattern: str, lang: str = "en") -> str:
        """The fact in one language."""
        number = [*SENTENCES].index(lang)
        return pattern.format(
            animal=ANIMALS[self.animal].split()[number],
            colour=COLOURS[self.colour].split()[number],
            place=PLACES[self.place].split(",")[number],
        )


ALL = [
    Fact(*parts) for parts in product(range(len(ANIMALS)), range(len(COLOURS)), range(len(PLACES)))
]
HELD = ALL[::6]
FACTS = [fact for fact in ALL if fact not in HELD]


def read_notes() -> list[str]:
    """The sentences of the notes, in ten languages."""
    files = [path for path in sorted(NOTES.iterdir()) if path.is_file()]
    texts = [path.read_text(encoding="utf-8") for path in files]
    return [text[a:b].strip() for text in texts for a, b in split_sentences(text) if b - a > 20]


def make_tokenizer() -> tokenizers.Tokenizer:
    """A vocabulary over everything that is read here."""
    texts = {
        lang: [fact.say(pattern, lang) for fact in FACTS] for lang, pattern in SENTENCES.items()
    }
    texts["notes"] = read_notes()
    return train_tokenizer(texts, vocab_size=CONFIG.vocab_size, num_characters=200_000)


def guess(network: Network, tokenizer: tokenizers.Tokenizer, *, longest: int) -> Work:
    """Stage 1. The notes stand for one more language."""
    texts, langs = read_notes(), ["notes"] * len(read_notes())
    for lang, pattern in SENTENCES.items():
        texts += [fact.say(pattern, lang) for fact in FACTS]
        langs += [lang] * len(FACTS)
    ids = token_ids(tokenizer, texts, max_tokens=longest)
    plan = plan_languages(langs, steps=2 * STEPS, batch_size=32, exponent=0.5, seed=0)
    return masked_lm(network, ids, plan, read_vocabulary(tokenizer), max_tokens=600)


def translate(network: Network, tokenizer: tokenizers.Tokenizer, row: int = -1) -> Work:
    """Stage 2, on English with German and with Spanish; a fact is never its own negative."""
    left = [fact.say(SENTENCES["en"]) for fact in FACTS] * 2
    right = [fact.say(SENTENCES[lang], lang) for lang in ("de", "es") for fact in FACTS]
    one, two = (read(tokenizer, texts) for texts in (left, right))
    groups = np.arange(len(one)) % len(FACTS)
    steps = plan(one, two, steps=2 * STEPS)
    return contrast(network, one, two, groups, steps, rows=(row, row), max_tokens=600)


def retrieve(network: Network, tokenizer: tokenizers.Tokenizer) -> Work:
    """Questions and passages behind their instructions; the same animal elsewhere is the trap."""
    rows = [adapter_index(CONFIG.tasks, f"retrieval.{side}") for side in ("query", "passage")]
    prompts = [CONFIG.tasks[row].prompt for row in rows]
    questions = [fact.say("Which {colour} {animal} lives in the {place}?") for fact in FACTS]
    answers = [fact.say(SENTENCES["en"]) for fact in FACTS]
    traps = [
        [
            replace(fact, place=(fact.place + step) % len(PLACES)).say(SENTENCES["en"])
            for step in (1, 2)
        ]
        for fact in FACTS
    ]
    one, two = (
        read(tokenizer, texts, prompt=prompt)
        for texts, prompt in zip((questions, answers), prompts, strict=True)
    )
    hard = [read(tokenizer, texts, prompt=prompts[1]) for texts in traps]
    return contrast(
        network,
        one,
        two,
        np.arange(len(one)),
        plan(one, two),
        rows=(rows[0], rows[1]),
        negatives=hard,
        num_negatives=2,
    )


def match(network: Network, tokenizer: tokenizers.Tokenizer) -> Work:
    """Scored pairs, and what a sentence entails and contradicts, by turns."""
    row = adapter_index(CONFIG.tasks, "text-matching")
    rng = np.random.default_rng(0)
    pairs = [(FACTS[i], FACTS[j]) for i, j in rng.integers(len(FACTS), size=(2_000, 2))]
    langs = rng.choice([*SENTENCES], size=(len(pairs), 2))
    one, two = (
        read(
            tokenizer,
            [p[k].say(SENTENCES[ls[k]], ls[k]) for p, ls in zip(pairs, langs, strict=True)],
        )
        for k in (0, 1)
    )
    scores = [
        np.mean([a.animal == b.animal, a.colour == b.colour, a.place == b.place]) for a, b in pairs
    ]
    gold = np.array(scores, np.float32)
    scored = ordering(network, one, two, gold, plan(one, two), row=row)
    premises = [fact.say(SENTENCES["en"]) for fact in FACTS for _ in range(2)]
    hypotheses = [
        replace(fact, colour=(fact.colour + step) % len(COLOURS)).say("The {animal} is {colour}.")
        for fact in FACTS
        for step in (0, 1)
    ]
    triplets = nli_triplets(premises, hypotheses, [0, 2] * len(FACTS))
    a = read(tokenizer, [triplet[0] for triplet in triplets])
    b = read(tokenizer, [triplet[1] for triplet in triplets])
    against = [read(tokenizer, triplet[2]) for triplet in triplets]
    same = {text: number for number, text in enumerate(dict.fromkeys(t[1] for t in triplets))}
    groups = np.array([same[triplet[1]] for triplet in triplets])
    inferred = contrast(network, a, b, groups, plan(a, b), rows=(row, row), negatives=against)
    return take_turns([scored, inferred], [0.7, 0.3], steps=STEPS, seed=0)


def classify(network: Network, tokenizer: tokenizers.Tokenizer) -> Work:
    """Tuples of nine over animals, in all languages."""
    texts = [fact.say(pattern, lang) for lang, pattern in SENTENCES.items() for fact in FACTS]
    labels = np.array([fact.animal for fact in FACTS] * len(SENTENCES))
    return tuples(
        network,
        read(tokenizer, texts),
        labels,
        lambda number: number_tokens(tokenizer, number),
        row=adapter_index(CONFIG.tasks, "classification"),
        batch_size=8,
        longest=CONFIG.max_tokens,
    )


def separate(network: Network, tokenizer: tokenizers.Tokenizer) -> Work:
    """Sentences of one place against those of others, by turns with stage 2's pairs."""
    row = adapter_index(CONFIG.tasks, "separation")
    texts = [fact.say(pattern, lang) for lang, pattern in SENTENCES.items() for fact in FACTS]
    ids = read(tokenizer, texts)
    labels = np.array([fact.place for fact in FACTS] * len(SENTENCES))
    apart = separation(network, ids, labels, plan(ids, [ids[0][:0]] * len(ids)), row=row)
    pairs = translate(network, tokenizer, row)
    return take_turns([apart, pairs], [0.5, 0.5], steps=STEPS, seed=0)


def read(tokenizer: tokenizers.Tokenizer, texts: list[str], *, prompt: str = "") -> Tokens:
    """The texts' tokens."""
    return token_ids(tokenizer, texts, max_tokens=CONFIG.max_tokens, prompt=prompt)


def plan(one: Tokens, two: Tokens, *, steps: int = STEPS) -> list[np.ndarray]:
    """The rows of a run's steps."""
    return plan_pairs(one, two, np.ones(len(one)), steps=steps, batch_tokens=1_000, seed=0)


def score_translations(
    network: Network, tokenizer: tokenizers.Tokenizer, row: int = -1
) -> dict[str, float]:
    """For how many of 100 held-out sentences the nearest German one is the translation."""
    sides = [read(tokenizer, [f.say(SENTENCES[lang], lang) for f in HELD]) for lang in ("en", "de")]
    with torch.inference_mode():
        en, de = (F.normalize(embed(network.eval(), side, row), dim=-1) for side in sides)
    network.train()
    nearest = (en @ de.T).argmax(1)
    return {"translations": 100 * float((nearest == torch.arange(len(en))).float().mean())}


ADAPTERS: dict[str, Callable[[Network, tokenizers.Tokenizer], Work]] = {
    "retrieval": retrieve,
    "text-matching": match,
    "classification": classify,
    "separation": separate,
}


def main(out: Path) -> None:
    """Run what is not done yet."""
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "tokenizer.json").exists():
        make_tokenizer().save(str(out / "tokenizer.json"))
    tokenizer = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    network = Network(CONFIG, dropout=0.1, mlm=True)
    settings = Settings(steps=STEPS, learning_rate=2e-3, save_every=STEPS // 2)
    backbone = [(name, p) for name, p in network.named_parameters() if "lora" not in name]
    matrices = [name for name, p in backbone if name.startswith("layers") and p.ndim == 2]

    for name, steps, longest in (("short", 2 * STEPS, 32), ("long", STEPS, 128)):
        stage = replace(settings, steps=steps, muon_rate=2e-3)
        work = guess(network, tokenizer, longest=longest)
        train(backbone, work, stage, out / name, muon=matrices)

    train(
        [(name, p) for name, p in backbone if not name.startswith("mlm")],
        translate(network, tokenizer),
        replace(settings, steps=2 * STEPS),
        out / "pairs",
        evaluate=lambda: score_translations(network, tokenizer),
    )
    network.load_state_dict(average_checkpoints(out / "pairs", last=2), strict=False)
    plot_run(out / "pairs")

    network.requires_grad_(False)
    adapters = [(name, p) for name, p in network.named_parameters() if "lora" in name]
    for _, parameter in adapters:
        parameter.requires_grad_(True)
    for name, make_work in ADAPTERS.items():
        # A run moves its own rows of the bank: the gradient of all others is 0.
        train(adapters, make_work(network, tokenizer), settings, out / name)

    weights = {name: w.numpy() for name, w in network.state_dict().items() if "mlm" not in name}
    config = replace(CONFIG, rope_base=20_000.0)
    files = Tokenizer.load(out, config.max_tokens).files()
    save_checkpoint(out / "model", config, weights, files=files)
    save_sentence_transformer(out / "sentence", config, weights, "text-matching", files=files)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/debug"))
    main(parser.parse_args().out)
