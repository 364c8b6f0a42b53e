"""Make a tokenizer: a Unigram vocabulary over many languages, in XLM-RoBERTa's layout.

1. Count words (after normalising and splitting) in every language.
2. Scale each language's counts to its share of the sample: characters ** `exponent`
   (Conneau et al. 2020, section 3.1), times a weight for the languages that matter most.
3. Drop words with characters too rare to deserve a piece; bytes spell them instead.
4. Train a Unigram model (Kudo 2018), add the whole words that were asked for, and put it all
   behind XLM-RoBERTa's special tokens.

Axes in this file: V pieces.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import UnigramTrainer

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
MASK = "<mask>"

KEEP = 1000.0
"""Added to the score of a piece that must stay, and taken off again when the vocabulary is cut."""


def train_tokenizer(
    texts: Mapping[str, Iterable[str]],
    *,
    vocab_size: int,
    weights: Mapping[str, float] | None = None,
    whole_words: Iterable[str] = (),
    num_characters: int = 40_000_000,
    exponent: float = 0.5,
    coverage: float = 0.9995,
    max_word: int = 16,
) -> Tokenizer:
    """A fast tokenizer of exactly `vocab_size` pieces, trained on `texts` by language.

    `num_characters` bounds the training text over all languages together; `coverage` is the share
    of characters in each language that get a piece of their own; words longer than `max_word`
    characters (a Chinese clause is one word) are cut there for training only. Each of `whole_words`
    that the sample holds gets a piece of its own: the words a teacher knows, for instance.
    """
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    words = {
        lang: _count_words(lines, normalizer, splitter, max_word) for lang, lines in texts.items()
    }
    alphabets = {lang: _common_characters(counts, coverage) for lang, counts in words.items()}
    core = Tokenizer(models.Unigram())
    trainer = UnigramTrainer(
        vocab_size=vocab_size - len(SPECIAL) - len(BYTES) - 1,
        special_tokens=[],
        unk_token=None,
        max_piece_length=max_word,
        initial_alphabet=sorted(set().union(*alphabets.values())),
        show_progress=False,
    )
    shares = _shares(words, exponent, weights or {})
    sample = _sample(words, alphabets, shares, num_characters)
    core.train_from_iterator(sample.elements(), trainer)
    # The trained scores, read back from the model's own JSON.
    pieces = dict(json.loads(core.to_str())["model"]["vocab"])
    num_pieces = sum(count * max(1, len(word) / 4) for word, count in sample.items())
    for word in whole_words:
        if count := sample["▁" + word]:
            pieces.setdefault("▁" + word, math.log(count / num_pieces))
            pieces["▁" + word] += KEEP
    return _assemble(pieces, vocab_size, normalizer, splitter)


def _count_words(
    lines: Iterable[str],
    normalizer: normalizers.Normalizer,
    splitter: pre_tokenizers.PreTokenizer,
    max_word: int,
) -> Counter[str]:
    counts: Counter[str] = Counter()
    for line in lines:
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(line)):
            for start in range(0, len(word), max_word):
                counts[word[start : start + max_word]] += 1
    return counts


def _shares(
    words: Mapping[str, Counter[str]], exponent: float, weights: Mapping[str, float]
) -> dict[str, float]:
    """Each language's part of the sample; the parts add up to 1."""
    sizes = {lang: _num_characters(counts) for lang, counts in words.items()}
    parts = {lang: size**exponent * weights.get(lang, 1.0) for lang, size in sizes.items() if size}
    total = sum(parts.values())
    return {lang: part / total for lang, part in parts.items()}


def _num_characters(counts: Counter[str]) -> int:
    return sum(len(word) * count for word, count in counts.items())


def _sample(
    words: Mapping[str, Counter[str]],
    alphabets: Mapping[str, set[str]],
    shares: Mapping[str, float],
    num_characters: int,
) -> Counter[str]:
    """Word counts scaled so that each language fills its share of `num_characters`."""
    sample: Counter[str] = Counter()
    for lang, share in shares.items():
        scale = num_characters * share / _num_characters(words[lang])
        for word, count in words[lang].items():
            repeats = round(count * scale)
            if repeats and alphabets[lang].issuperset(word):
                sample[word] += repeats
    return sample


def _common_characters(counts: Counter[str], coverage: float) -> set[str]:
    characters: Counter[str] = Counter()
    for word, count in counts.items():
        for character in word:
            characters[character] += count
    total, seen, kept = characters.total(), 0, set()
    for character, count in characters.most_common():
        if seen > coverage * total:
            break
        kept.add(character)
        seen += count
    return kept


def _assemble(
    pieces: Mapping[str, float],
    vocab_size: int,
    normalizer: normalizers.Normalizer,
    splitter: pre_tokenizers.PreTokenizer,
) -> Tokenizer:
    reserved = {*SPECIAL, *BYTES, MASK}
    room = vocab_size - len(reserved)
    # Single characters stay too: without them a word would fall apart into bytes.
    ranked = sorted(
        ((piece, score) for piece, score in pieces.items() if piece not in reserved),
        key=lambda pair: (len(pair[0]) > 1, -pair[1]),
    )
    if len(ranked) < room:
        raise ValueError(f"only {len(ranked)} pieces could be trained, {room} were asked for")
    kept = [(piece, score - KEEP * (score > 0)) for piece, score in ranked[:room]]
    worst = min(score for _, score in kept)
    vocab = [
        *((piece, 0.0) for piece in SPECIAL),
        *sorted(kept, key=lambda pair: -pair[1]),
        # Bytes spell what no piece covers, so they must cost more than any piece.
        *((piece, worst - 10.0) for piece in BYTES),
        (MASK, 0.0),
    ]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=SPECIAL.index("<unk>"), byte_fallback=True))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return _finish(tokenizer)


def xlm_roberta_tokenizer(pieces: Sequence[tuple[str, float]]) -> Tokenizer:
    """A tokenizer that splits as XLM-RoBERTa's does, over `pieces` with their log probabilities.

    `pieces` are in the order of their numbers, the special ones among them (`SPECIAL`, `MASK`).
    """
    tokenizer = Tokenizer(models.Unigram([*pieces], unk_id=SPECIAL.index("<unk>")))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    return _finish(tokenizer)


def common_pieces(
    tokenizer: Tokenizer,
    texts: Mapping[str, Sequence[str]],
    *,
    vocab_size: int,
    weights: Mapping[str, float] | None = None,
    exponent: float = 0.5,
) -> list[int]:
    """The numbers, ascending, of the `vocab_size` pieces of a Unigram tokenizer to keep.

    Special pieces and single characters stay, so that every text that could be spelt still can.
    Then come the pieces that `texts` use most, each language having its share (as in
    `train_tokenizer`), and of those that no text uses, the likeliest by their own scores.
    """
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    sizes = {lang: sum(map(len, lines)) for lang, lines in texts.items()}
    wanted = {n: size**exponent * (weights or {}).get(n, 1.0) for n, size in sizes.items()}
    used = count_pieces(tokenizer, texts, wanted)
    must = [text in (*SPECIAL, MASK) or len(text.removeprefix("▁")) < 2 for text, _ in pieces]
    # The last key counts most.
    order = np.lexsort([[-score for _, score in pieces], -used, ~np.array(must)])
    if sum(must) > vocab_size:
        raise ValueError(f"{sum(must)} pieces must stay, more than the {vocab_size} asked for")
    return sorted(order[:vocab_size].tolist())


def count_pieces(
    tokenizer: Tokenizer, texts: Mapping[str, Sequence[str]], shares: Mapping[str, float]
) -> Float[np.ndarray, " V"]:
    """How often `texts` use each piece; a language's uses add up to its share."""
    used = np.zeros(tokenizer.get_vocab_size())
    for lang, lines in texts.items():
        found = tokenizer.encode_batch_fast([*lines], add_special_tokens=False)
        counts = np.bincount(np.concatenate([text.ids for text in found]), minlength=len(used))
        used += shares[lang] * counts / counts.sum()
    return used


def _finish(tokenizer: Tokenizer) -> Tokenizer:
    """Special tokens, and `<s>` and `</s>` around every text."""
    tokenizer.add_special_tokens(
        [AddedToken(piece, special=True, normalized=False) for piece in (*SPECIAL, MASK)]
    )
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer
