"""Tokenizers: Unigram vocabularies for many languages, in XLM-RoBERTa's layout.

`train_tokenizer` makes one in four steps:

1. Count the words of every language, after normalising and splitting.
2. Scale the counts of each language to its share of the sample, which is in proportion to
   characters ** `exponent` (Conneau et al. 2020, section 3.1), times the language's weight.
3. Drop words with rare characters, which have no piece and are spelt in bytes.
4. Train a Unigram model (Kudo 2018), add the requested whole words, and add XLM-RoBERTa's special
   tokens.

`common_pieces` selects a part of an existing vocabulary instead.

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

REQUIRED_BONUS = 1000.0
"""Added to the score of a required piece while the vocabulary is cut, and then subtracted."""


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
    """Train a tokenizer of exactly `vocab_size` pieces on `texts`, which are keyed by language.

    `num_characters` is the size of the training sample over all languages. `coverage` is the
    fraction of each language's text whose characters have their own piece. For training only,
    words of more than `max_word` characters are cut (a Chinese clause is one word). Each of
    `whole_words` that occurs in the sample gets its own piece. Raises ValueError if the texts have
    too few words for `vocab_size` pieces.
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
    # The library has no other access to the trained scores than the model's JSON.
    pieces = dict(json.loads(core.to_str())["model"]["vocab"])
    num_pieces = sum(count * max(1, len(word) / 4) for word, count in sample.items())
    for word in whole_words:
        if count := sample["▁" + word]:
            pieces.setdefault("▁" + word, math.log(count / num_pieces))
            pieces["▁" + word] += REQUIRED_BONUS
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
    """Each language's fraction of the sample. The sum is 1."""
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
    """Word counts, scaled so that each language has its share of `num_characters`."""
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
    # Single characters must stay; without them, words would be spelt in bytes.
    ranked = sorted(
        ((piece, score) for piece, score in pieces.items() if piece not in reserved),
        key=lambda pair: (len(pair[0]) > 1, -pair[1]),
    )
    if len(ranked) < room:
        raise ValueError(
            f"only {len(ranked)} pieces could be trained, but vocab_size requires {room}; "
            "add texts or lower vocab_size"
        )
    kept = [(piece, score - REQUIRED_BONUS * (score > 0)) for piece, score in ranked[:room]]
    worst = min(score for _, score in kept)
    vocab = [
        *((piece, 0.0) for piece in SPECIAL),
        *sorted(kept, key=lambda pair: -pair[1]),
        # Bytes spell text without a piece, so they must cost more than any piece.
        *((piece, worst - 10.0) for piece in BYTES),
        (MASK, 0.0),
    ]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=SPECIAL.index("<unk>"), byte_fallback=True))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return _finish(tokenizer)


def xlm_roberta_tokenizer(pieces: Sequence[tuple[str, float]]) -> Tokenizer:
    """A tokenizer that splits like XLM-RoBERTa's, with the given pieces and log probabilities.

    The order of `pieces` is that of their ids. It includes the special pieces (`SPECIAL`, `MASK`).
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
    """Ids, ascending, of the `vocab_size` pieces of a Unigram tokenizer that `texts` use most.

    Special pieces and single characters are always included, so that every text can still be
    spelt. Each language has its share, as in `train_tokenizer`. Pieces that no text uses are
    ordered by their own scores. Raises ValueError if more than `vocab_size` pieces must stay.
    """
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    sizes = {lang: sum(map(len, lines)) for lang, lines in texts.items()}
    wanted = {n: size**exponent * (weights or {}).get(n, 1.0) for n, size in sizes.items()}
    used = count_pieces(tokenizer, texts, wanted)
    must = [text in (*SPECIAL, MASK) or len(text.removeprefix("▁")) < 2 for text, _ in pieces]
    # `lexsort` sorts by its last key first.
    order = np.lexsort([[-score for _, score in pieces], -used, ~np.array(must)])
    if sum(must) > vocab_size:
        raise ValueError(f"{sum(must)} pieces must stay, but vocab_size is {vocab_size}")
    return sorted(order[:vocab_size].tolist())


def count_pieces(
    tokenizer: Tokenizer, texts: Mapping[str, Sequence[str]], shares: Mapping[str, float]
) -> Float[np.ndarray, " V"]:
    """Count the uses of each piece in `texts`. The sum over a language's texts is its share."""
    used = np.zeros(tokenizer.get_vocab_size())
    for lang, lines in texts.items():
        encodings = tokenizer.encode_batch_fast([*lines], add_special_tokens=False)
        ids = np.concatenate([encoding.ids for encoding in encodings])
        counts = np.bincount(ids, minlength=len(used))
        used += shares[lang] * counts / counts.sum()
    return used


def _finish(tokenizer: Tokenizer) -> Tokenizer:
    """Add special tokens, and `<s>` and `</s>` around every text."""
    tokenizer.add_special_tokens(
        [AddedToken(piece, special=True, normalized=False) for piece in (*SPECIAL, MASK)]
    )
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer
