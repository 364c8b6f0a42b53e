"""Make a tokenizer: a Unigram vocabulary over many languages, in XLM-RoBERTa's layout.

1. Count words (after normalising and splitting) in every language.
2. Scale each language's counts to its share: characters ** `exponent` (Conneau et al. 2020, section 3.1).
3. Drop words with characters too rare to deserve a piece; bytes spell them instead.
4. Train a Unigram model (Kudo 2018) and put it behind XLM-RoBERTa's special tokens.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import UnigramTrainer

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
MASK = "<mask>"


def train_tokenizer(
    texts: Mapping[str, Iterable[str]],
    *,
    vocab_size: int,
    num_characters: int = 24_000_000,
    exponent: float = 0.5,
    coverage: float = 0.9995,
    max_word: int = 16,
) -> Tokenizer:
    """A fast tokenizer of exactly `vocab_size` pieces, trained on `texts` by language.

    `num_characters` bounds the training text over all languages together; `coverage` is the share
    of characters in each language that get a piece of their own; words longer than `max_word`
    characters (a Chinese clause is one word) are cut there for training only.
    """
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    words = {
        lang: _count_words(lines, normalizer, splitter, max_word) for lang, lines in texts.items()
    }
    core = Tokenizer(models.Unigram())
    trainer = UnigramTrainer(
        vocab_size=vocab_size - len(SPECIAL) - len(BYTES) - 1,
        special_tokens=[],
        unk_token=None,
        max_piece_length=max_word,
        show_progress=False,
    )
    core.train_from_iterator(_sample(words, num_characters, exponent, coverage), trainer)
    return _assemble(core, vocab_size, normalizer, splitter)


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


def _sample(
    words: Mapping[str, Counter[str]], num_characters: int, exponent: float, coverage: float
) -> Iterator[str]:
    """Words repeated so that each language fills its share of `num_characters`."""
    sizes = {
        lang: sum(len(word) * count for word, count in counts.items())
        for lang, counts in words.items()
    }
    total = sum(size**exponent for size in sizes.values() if size)
    for lang, counts in words.items():
        if not sizes[lang]:
            continue
        scale = num_characters * sizes[lang] ** exponent / total / sizes[lang]
        common = _common_characters(counts, coverage)
        for word, count in counts.items():
            repeats = round(count * scale) if count * scale >= 1 else int(scale >= 1)
            if repeats and common.issuperset(word):
                yield from [word] * repeats


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
    core: Tokenizer,
    vocab_size: int,
    normalizer: normalizers.Normalizer,
    splitter: pre_tokenizers.PreTokenizer,
) -> Tokenizer:
    # The trained scores, read back from the model's own JSON.
    pieces = json.loads(core.to_str())["model"]["vocab"]
    reserved = {*SPECIAL, *BYTES, MASK}
    pieces = [(piece, score) for piece, score in pieces if piece not in reserved]
    worst = min(score for _, score in pieces)
    room = vocab_size - len(reserved)
    if len(pieces) < room:
        raise ValueError(f"only {len(pieces)} pieces could be trained, {room} were asked for")
    vocab = [
        *((piece, 0.0) for piece in SPECIAL),
        *sorted(pieces, key=lambda pair: -pair[1])[:room],
        # Bytes spell what no piece covers, so they must cost more than any piece.
        *((piece, worst - 10.0) for piece in BYTES),
        (MASK, 0.0),
    ]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=SPECIAL.index("<unk>"), byte_fallback=True))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(
        [AddedToken(piece, special=True, normalized=False) for piece in (*SPECIAL, MASK)]
    )
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer
