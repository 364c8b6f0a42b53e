"""All stages of training in 15 seconds: a tokenizer, a backbone and five adapters.

    polyvec train recipe recipes/debug.py --out runs/debug

The recipe runs on one CPU core, with sentences that it makes and the notes in examples/. It tests
the training code; the model has no other use. For three of four of its 48 held-out sentences, the
model should find the translation. Every phase writes a file or a folder to `--out`, and is not
repeated if that exists:

1. tokenizer.json   1,000 pieces
2. short/, long/    stage 1: masked words, one language per step
3. pairs/           stage 2: sentences and their translations, in chunks to test GradCache
4. retrieval/, text-matching/, classification/, separation/   stage 3: adapters, backbone frozen
5. model/           the model for `Encoder.load`, transformers and PEFT
6. sentence/        the task text-matching alone, for sentence-transformers
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
from polyvec.tasks import NO_ADAPTER, adapter_index, choose_task
from polyvec.tokenizer import Tokenizer
from polyvec.train.checkpoints import average_checkpoints
from polyvec.train.data.batches import Plan, plan_by_language, plan_pairs
from polyvec.train.data.tokens import TokenIds, tokenise
from polyvec.train.data.tuples import nli_triplets, tuple_id_tokens
from polyvec.train.init.tokenizer import train_tokenizer
from polyvec.train.loop import Settings, StepFn, train
from polyvec.train.masking import read_vocabulary
from polyvec.train.objectives import (
    alternate,
    contrast,
    embed,
    masked_lm,
    ordering,
    separation,
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
"""Shape of the model in training. The saved config has the rotary base of inference, 20,000."""

STEPS = 30
"""Steps of a run. The short run of stage 1 and the run of stage 2 have twice as many."""

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
    """A fact about an animal, a colour and a place, as their numbers."""

    animal: int
    colour: int
    place: int

    def say(self, pattern: str, lang: str = "en") -> str:
        """A sentence that states the fact in one language."""
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
    """Read the sentences of the notes, which are in ten languages."""
    files = [path for path in sorted(NOTES.iterdir()) if path.is_file()]
    texts = [path.read_text(encoding="utf-8") for path in files]
    return [text[a:b].strip() for text in texts for a, b in split_sentences(text) if b - a > 20]


def make_tokenizer() -> tokenizers.Tokenizer:
    """Train a tokenizer on all texts of the recipe."""
    texts = {
        lang: [fact.say(pattern, lang) for fact in FACTS] for lang, pattern in SENTENCES.items()
    }
    texts["notes"] = read_notes()
    return train_tokenizer(texts, vocab_size=CONFIG.vocab_size, num_characters=200_000)


def predict_masked(network: Network, tokenizer: tokenizers.Tokenizer, *, max_tokens: int) -> StepFn:
    """Stage 1. The notes count as one more language."""
    texts, langs = read_notes(), ["notes"] * len(read_notes())
    for lang, pattern in SENTENCES.items():
        texts += [fact.say(pattern, lang) for fact in FACTS]
        langs += [lang] * len(FACTS)
    ids = tokenise(tokenizer, texts, max_tokens=max_tokens)
    plan = plan_by_language(langs, steps=2 * STEPS, batch_size=32, exponent=0.5, seed=0)
    return masked_lm(network, ids, plan, read_vocabulary(tokenizer), chunk_tokens=600)


def translate(
    network: Network, tokenizer: tokenizers.Tokenizer, adapter_id: int = NO_ADAPTER
) -> StepFn:
    """Stage 2 on English with German and Spanish. A fact is never its own negative."""
    left = [fact.say(SENTENCES["en"]) for fact in FACTS] * 2
    right = [fact.say(SENTENCES[lang], lang) for lang in ("de", "es") for fact in FACTS]
    one, two = (to_ids(tokenizer, texts) for texts in (left, right))
    groups = np.arange(len(one)) % len(FACTS)
    plan = plan_steps(one, two, steps=2 * STEPS)
    adapters = (adapter_id, adapter_id)
    return contrast(network, one, two, groups, plan, adapter_ids=adapters, chunk_tokens=600)


def retrieve(network: Network, tokenizer: tokenizers.Tokenizer) -> StepFn:
    """Questions and passages with their instructions. Negatives have the animal elsewhere."""
    query, passage = (
        choose_task(CONFIG.tasks, f"retrieval.{side}") for side in ("query", "passage")
    )
    questions = [fact.say("Which {colour} {animal} lives in the {place}?") for fact in FACTS]
    answers = [fact.say(SENTENCES["en"]) for fact in FACTS]
    negatives = [
        [
            replace(fact, place=(fact.place + step) % len(PLACES)).say(SENTENCES["en"])
            for step in (1, 2)
        ]
        for fact in FACTS
    ]
    one = to_ids(tokenizer, questions, prompt=query.prompt)
    two = to_ids(tokenizer, answers, prompt=passage.prompt)
    hard = [to_ids(tokenizer, texts, prompt=passage.prompt) for texts in negatives]
    return contrast(
        network,
        one,
        two,
        np.arange(len(one)),
        plan_steps(one, two),
        adapter_ids=(query.adapter_id, passage.adapter_id),
        negatives=hard,
        num_negatives=2,
    )


def match(network: Network, tokenizer: tokenizers.Tokenizer) -> StepFn:
    """Scored pairs, and triplets of entailment and contradiction; one of them per step."""
    adapter_id = adapter_index(CONFIG.tasks, "text-matching")
    rng = np.random.default_rng(0)
    pairs = [(FACTS[i], FACTS[j]) for i, j in rng.integers(len(FACTS), size=(2_000, 2))]
    langs = rng.choice([*SENTENCES], size=(len(pairs), 2))
    one, two = (
        to_ids(
            tokenizer,
            [p[k].say(SENTENCES[ls[k]], ls[k]) for p, ls in zip(pairs, langs, strict=True)],
        )
        for k in (0, 1)
    )
    scores = [
        np.mean([a.animal == b.animal, a.colour == b.colour, a.place == b.place]) for a, b in pairs
    ]
    gold = np.array(scores, np.float32)
    plan = plan_steps(one, two)
    scored = ordering(network, one, two, gold, plan, adapter_id=adapter_id)
    premises = [fact.say(SENTENCES["en"]) for fact in FACTS for _ in range(2)]
    hypotheses = [
        replace(fact, colour=(fact.colour + step) % len(COLOURS)).say("The {animal} is {colour}.")
        for fact in FACTS
        for step in (0, 1)
    ]
    triplets = nli_triplets(premises, hypotheses, [0, 2] * len(FACTS))
    a = to_ids(tokenizer, [triplet[0] for triplet in triplets])
    b = to_ids(tokenizer, [triplet[1] for triplet in triplets])
    against = [to_ids(tokenizer, triplet[2]) for triplet in triplets]
    same = {text: number for number, text in enumerate(dict.fromkeys(t[1] for t in triplets))}
    groups = np.array([same[triplet[1]] for triplet in triplets])
    entailed = contrast(
        network,
        a,
        b,
        groups,
        plan_steps(a, b),
        adapter_ids=(adapter_id, adapter_id),
        negatives=against,
    )
    return alternate([scored, entailed], [0.7, 0.3], steps=STEPS, seed=0)


def classify(network: Network, tokenizer: tokenizers.Tokenizer) -> StepFn:
    """Tuples of nine, with animals as classes, in all languages."""
    texts = [fact.say(pattern, lang) for lang, pattern in SENTENCES.items() for fact in FACTS]
    labels = np.array([fact.animal for fact in FACTS] * len(SENTENCES))
    return tuples(
        network,
        to_ids(tokenizer, texts),
        labels,
        lambda number: tuple_id_tokens(tokenizer, number),
        adapter_id=adapter_index(CONFIG.tasks, "classification"),
        batch_size=8,
        max_tokens=CONFIG.max_tokens,
    )


def separate(network: Network, tokenizer: tokenizers.Tokenizer) -> StepFn:
    """Sentences of one place and of others, and the pairs of stage 2; one of them per step."""
    adapter_id = adapter_index(CONFIG.tasks, "separation")
    texts = [fact.say(pattern, lang) for lang, pattern in SENTENCES.items() for fact in FACTS]
    ids = to_ids(tokenizer, texts)
    labels = np.array([fact.place for fact in FACTS] * len(SENTENCES))
    plan = plan_steps(ids, [ids[0][:0]] * len(ids))
    places = separation(network, ids, labels, plan, adapter_id=adapter_id)
    pairs = translate(network, tokenizer, adapter_id)
    return alternate([places, pairs], [0.5, 0.5], steps=STEPS, seed=0)


def to_ids(tokenizer: tokenizers.Tokenizer, texts: list[str], *, prompt: str = "") -> TokenIds:
    """Token ids of the texts behind an instruction."""
    return tokenise(tokenizer, texts, max_tokens=CONFIG.max_tokens, prompt=prompt)


def plan_steps(one: TokenIds, two: TokenIds, *, steps: int = STEPS) -> Plan:
    """Plan steps of 1,000 tokens, in which all pairs have the same weight."""
    return plan_pairs(one, two, np.ones(len(one)), steps=steps, batch_tokens=1_000, seed=0)


def score_translations(network: Network, tokenizer: tokenizers.Tokenizer) -> dict[str, float]:
    """Percentage of held-out sentences whose nearest German sentence is the translation."""
    sides = [
        to_ids(tokenizer, [f.say(SENTENCES[lang], lang) for f in HELD]) for lang in ("en", "de")
    ]
    with torch.inference_mode():
        en, de = (F.normalize(embed(network.eval(), side, NO_ADAPTER), dim=-1) for side in sides)
    network.train()
    nearest = (en @ de.T).argmax(1)
    return {"translations": 100 * float((nearest == torch.arange(len(en))).float().mean())}


ADAPTERS: dict[str, Callable[[Network, tokenizers.Tokenizer], StepFn]] = {
    "retrieval": retrieve,
    "text-matching": match,
    "classification": classify,
    "separation": separate,
}


def main(out: Path) -> None:
    """Run all phases whose results do not exist yet."""
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "tokenizer.json").exists():
        make_tokenizer().save(str(out / "tokenizer.json"))
    tokenizer = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    network = Network(CONFIG, dropout=0.1, mlm=True)
    settings = Settings(steps=STEPS, learning_rate=2e-3, save_every=STEPS // 2)
    backbone = [(name, p) for name, p in network.named_parameters() if "lora" not in name]
    matrices = [name for name, p in backbone if name.startswith("layers") and p.ndim == 2]

    for name, steps, max_tokens in (("short", 2 * STEPS, 32), ("long", STEPS, 128)):
        stage = replace(settings, steps=steps, muon_rate=2e-3)
        step_fn = predict_masked(network, tokenizer, max_tokens=max_tokens)
        train(backbone, step_fn, stage, out / name, muon=matrices)

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
    for name, make_objective in ADAPTERS.items():
        # A run changes only its own adapters in the bank: the gradient of all others is 0.
        train(adapters, make_objective(network, tokenizer), settings, out / name)

    weights = {name: w.numpy() for name, w in network.state_dict().items() if "mlm" not in name}
    config = replace(CONFIG, rope_base=20_000.0)
    files = Tokenizer.load(out, config.max_tokens).files()
    save_checkpoint(out / "model", config, weights, files=files)
    save_sentence_transformer(out / "sentence", config, weights, "text-matching", files=files)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/debug"), help="folder of the results"
    )
    main(parser.parse_args().out)
