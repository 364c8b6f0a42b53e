r"""Refuse a tokenizer.json that the tokenizers library would accept and then fail on.

The library checks a file's syntax, but a template with an unknown id, a regular expression that
backtracks or a damaged table panics only at an unlucky text, and a normalizer that multiplies its
text fills the memory. Therefore every part has to be of a kind listed here, with fields in bounds:

1. the model can spell every text, so its piece for unknown words is in its vocabulary;
2. normalizers and pre-tokenizers together make a text at most `MAX_GROWTH` times as long;
3. regular expressions are those of well-known models, or simple enough to take linear time;
4. the ids that the post-processor adds are in the vocabulary.
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

MAX_GROWTH = 256
"""Largest factor by which a text's characters may be multiplied before they become tokens."""

MAX_PARTS = 32
"""Most normalizers, pre-tokenizers, post-processors or decoders in a file."""

MAX_ID = 2**21
"""Every token id is below it. No model that is read has more rows (`polyvec.config.LIMITS`)."""

MAX_PIECE = 1_000
"""Most characters of a piece or an added token."""

MAX_ADDED = 10_000
"""Most added tokens."""

MAX_TABLE_BYTES = 2**22
"""Largest table of a Precompiled normalizer. SentencePiece's has 240 kB."""

NORMALIZERS = {
    "NFC": 3,
    "NFD": 4,
    # U+FDFA becomes 18 characters.
    "NFKC": 18,
    "NFKD": 18,
    "Lowercase": 2,
    "BertNormalizer": 3,
    "ByteLevel": 4,
    "Nmt": 1,
    "Strip": 1,
    "StripAccents": 1,
}
"""Normalizers without a text of their own, with the most characters that one character becomes."""

PRE_TOKENIZERS = {
    "BertPreTokenizer": 1,
    "ByteLevel": 4,
    "CharDelimiterSplit": 1,
    "Digits": 1,
    "FixedLength": 1,
    # It puts a character before every piece.
    "Metaspace": 2,
    "Punctuation": 1,
    "Split": 1,
    "UnicodeScripts": 1,
    "Whitespace": 1,
    "WhitespaceSplit": 1,
}
"""Pre-tokenizers, with the most characters that one character becomes."""

DECODERS = frozenset(
    {"BPEDecoder", "ByteFallback", "ByteLevel", "CTC", "Fuse", "Metaspace", "Replace"}
    | {"Strip", "WordPiece"}
)

ATOM = r"(?:\\[sSdDwW]|\\p\{\w{1,20}\}|\[\^?(?:\\?[^\[\]\\&])+\]|[^\\\[\](){}|*+?.^$])"
BRANCH = rf"(?:{ATOM}(?:\+|\{{\d,\}})|{ATOM}{{1,100}})"
SIMPLE = re.compile(rf"{BRANCH}(?:\|{BRANCH})*")
"""Alternatives that are plain characters or one repeated character each.

No two repetitions can share the same text."""

KNOWN_PATTERNS = frozenset(
    {
        # GPT-2
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        # Llama 3
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        # Qwen 2
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        # o200k: GPT-4o, gpt-oss, Llama 4
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        # DeepSeek V3 has three.
        r"\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        r'[!"#$%'
        r"&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
        r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        # BLOOM
        " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+",
        # CLIP
        r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    }
)
"""The patterns of model families that are more than `SIMPLE` and are known to be harmless."""


def check_tokenizer(data: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the field, unless the content of a tokenizer.json is safe to use."""
    ids = _check_model(_object(data.get("model"), "model"))
    ids |= _check_added(data.get("added_tokens") or [], ids)
    growth = _check_parts(data.get("normalizer"), "normalizer", "normalizers", _normalizer)
    growth *= _check_parts(
        data.get("pre_tokenizer"), "pre_tokenizer", "pretokenizers", _pre_tokenizer
    )
    if growth > MAX_GROWTH:
        raise ValueError(
            f"normalizer and pre_tokenizer may make a text {growth:.3g} times as long, of which "
            f"{MAX_GROWTH} are allowed; remove those that put characters into it"
        )
    known = frozenset(ids.values())

    def post_processor(part: Mapping[str, Any], name: str) -> int | float:
        return _post_processor(part, name, known)

    _check_parts(data.get("post_processor"), "post_processor", "processors", post_processor)
    _check_parts(data.get("decoder"), "decoder", "decoders", _decoder)


def _object(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object")
    return value


def _text(part: Mapping[str, Any], key: str, name: str, limit: int = MAX_PIECE) -> str:
    value = part.get(key)
    if not isinstance(value, str) or not 1 <= len(value) <= limit:
        raise ValueError(f"{name}: {key} must be a string of 1..{limit} characters")
    return value


def _integer(value: object, name: str, limit: int = MAX_ID) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise ValueError(f"{name} is {str(value)[:40]}, must be an integer in 0..{limit - 1}")
    return value


def _check_model(model: Mapping[str, Any]) -> dict[str, int]:
    """The vocabulary: each piece's id."""
    kind = model.get("type")
    if kind is None and "merges" in model:
        # Files of early versions do not name the kind.
        kind = "BPE"
    vocab = model.get("vocab")
    if kind == "Unigram":
        ids = _check_unigram(model, vocab)
    elif kind in ("BPE", "WordLevel", "WordPiece"):
        ids = _check_vocab(vocab)
        unknown = model.get("unk_token")
        if not (unknown is None and kind == "BPE") and not (
            isinstance(unknown, str) and unknown in ids
        ):
            raise ValueError(f"model: unk_token {unknown!r:.100} is not in the vocabulary")
    else:
        raise ValueError(f"model: type {kind!r:.100} is not Unigram, BPE, WordPiece or WordLevel")
    if kind == "WordPiece":
        # A word takes quadratic time up to this length, beyond which it is unknown.
        limit = model.get("max_input_chars_per_word", 100)
        _integer(limit, "model: max_input_chars_per_word", 1_001)
    if kind == "BPE":
        _check_merges(model, ids)
    return ids


def _check_unigram(model: Mapping[str, Any], vocab: object) -> dict[str, int]:
    if not isinstance(vocab, list) or not 1 <= len(vocab) <= MAX_ID:
        raise ValueError(f"model: vocab must be a list of 1..{MAX_ID} pieces")
    for number, entry in enumerate(vocab):
        if (
            not isinstance(entry, list)
            or len(entry) != 2
            or type(entry[0]) is not str
            or type(entry[1]) not in (float, int)
            or not -1e9 < entry[1] < 1e9
            or not 0 < len(entry[0]) <= MAX_PIECE
        ):
            raise ValueError(
                f"model: vocab[{number}] must be a piece of 1..{MAX_PIECE} characters with a "
                "finite score"
            )
    ids = {entry[0]: number for number, entry in enumerate(vocab)}
    if len(ids) < len(vocab):
        twice = next(piece for n, (piece, _) in enumerate(vocab) if ids[piece] != n)
        raise ValueError(f"model: vocab has the piece {twice!r} twice")
    unknown = model.get("unk_id")
    if type(unknown) is not int or not 0 <= unknown < len(vocab):
        raise ValueError(f"model: unk_id {unknown!r:.100} is not in the vocabulary")
    return ids


def _check_vocab(vocab: object) -> dict[str, int]:
    if not isinstance(vocab, dict):
        raise ValueError("model: vocab must be an object")
    for piece, number in vocab.items():
        if type(number) is not int or not 0 <= number < MAX_ID or len(piece) > MAX_PIECE:
            raise ValueError(
                f"model: vocab has {piece[:40]!r} with the id {str(number)[:40]}; pieces have at "
                f"most {MAX_PIECE} characters, and ids are integers in 0..{MAX_ID - 1}"
            )
    if len(set(vocab.values())) < len(vocab):
        raise ValueError("model: vocab gives one id to two pieces")
    return dict(vocab)


def _check_merges(model: Mapping[str, Any], ids: Mapping[str, int]) -> None:
    if model.get("dropout"):
        raise ValueError("model: dropout must be null, or a text would have random tokens")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            _text(model, key, "model")
    prefix = model.get("continuing_subword_prefix") or ""
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise ValueError("model: merges must be a list")
    for number, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(piece, str) and piece in ids for piece in pair)
            or pair[0] + pair[1][len(prefix) :] not in ids
        ):
            raise ValueError(f"model: merges[{number}] names a piece that vocab lacks")


def _check_added(added: object, vocab: Mapping[str, int]) -> dict[str, int]:
    if not isinstance(added, list) or len(added) > MAX_ADDED:
        raise ValueError(f"added_tokens must be a list of at most {MAX_ADDED} tokens")
    ids: dict[str, int] = {}
    for number, entry in enumerate(added):
        name = f"added_tokens[{number}]"
        token = _object(entry, name)
        content = _text(token, "content", name)
        token_id = _integer(token.get("id"), f"{name}: id")
        if vocab.get(content, token_id) != token_id or ids.get(content, token_id) != token_id:
            raise ValueError(f"{name}: {content!r:.100} has another id in the vocabulary")
        ids[content] = token_id
    return ids


Check = Callable[[Mapping[str, Any], str], int | float]


def _check_parts(root: object, field: str, members: str, check: Check) -> int | float:
    """Check a part, or all parts of a Sequence, and return the product of their growth."""
    if root is None:
        return 1
    growth, seen = 1.0, 0
    waiting: list[tuple[object, str]] = [(root, field)]
    while waiting:
        value, name = waiting.pop()
        seen += 1
        if seen > MAX_PARTS:
            raise ValueError(f"{field} has more than {MAX_PARTS} parts")
        part = _object(value, name)
        if part.get("type") != "Sequence":
            growth *= check(part, f"{name} {part.get('type')!r:.40}")
            continue
        inner = part.get(members)
        if not isinstance(inner, list) or len(inner) > MAX_PARTS:
            raise ValueError(f"{name}: {members} must be a list of at most {MAX_PARTS} parts")
        waiting += [(one, f"{name}.{members}[{n}]") for n, one in enumerate(inner)]
    return growth


def _kind(part: Mapping[str, Any], name: str, kinds: Iterable[str]) -> str:
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{name} is not supported, only {', '.join(sorted(kinds))}")
    return kind


def _normalizer(part: Mapping[str, Any], name: str) -> int | float:
    kind = _kind(part, name, {*NORMALIZERS, "Precompiled", "Prepend", "Replace"})
    if kind == "Precompiled":
        return check_charsmap(part.get("precompiled_charsmap"), name)
    if kind == "Prepend":
        # It comes before the text, or before each piece between added tokens.
        return 1 + len(_text(part, "prepend", name, 16))
    if kind == "Replace":
        content = part.get("content")
        if not isinstance(content, str) or len(content) > MAX_PIECE:
            raise ValueError(f"{name}: content must be a string of at most {MAX_PIECE} characters")
        return max(1, len(content) / _check_pattern(part, name))
    return NORMALIZERS[kind]


def _pre_tokenizer(part: Mapping[str, Any], name: str) -> int | float:
    kind = _kind(part, name, PRE_TOKENIZERS)
    if kind == "FixedLength" and not _integer(part.get("length", 5), f"{name}: length"):
        raise ValueError(f"{name}: length is 0, must be at least 1")
    if kind == "CharDelimiterSplit":
        _text(part, "delimiter", name, 1)
    if kind == "Metaspace":
        _text(part, "replacement", name, 1)
    if kind == "Split":
        _check_pattern(part, name)
    return PRE_TOKENIZERS[kind]


def _decoder(part: Mapping[str, Any], name: str) -> int | float:
    if _kind(part, name, DECODERS) == "Replace":
        _check_pattern(part, name)
    return 1


def _check_pattern(part: Mapping[str, Any], name: str) -> int:
    """The fewest characters that the pattern of a Split or Replace matches."""
    pattern = _object(part.get("pattern"), f"{name}: pattern")
    if set(pattern) == {"String"}:
        return len(_text(pattern, "String", f"{name}: pattern"))
    regex = _text(pattern, "Regex", f"{name}: pattern")
    if regex not in KNOWN_PATTERNS and not SIMPLE.fullmatch(regex):
        raise ValueError(
            f"{name}: the regular expression {regex!r:.100} is not one that is known to take "
            "linear time"
        )
    return 1


def _post_processor(part: Mapping[str, Any], name: str, ids: frozenset[int]) -> int | float:
    kinds = ("BertProcessing", "ByteLevel", "RobertaProcessing", "TemplateProcessing")
    kind = _kind(part, name, kinds)
    if kind in ("BertProcessing", "RobertaProcessing"):
        for key in ("cls", "sep"):
            pair = part.get(key)
            if (
                not isinstance(pair, list)
                or len(pair) != 2
                or type(pair[1]) is not int
                or pair[1] not in ids
            ):
                raise ValueError(f"{name}: {key} must be a special token and its id")
    if kind == "TemplateProcessing":
        special = _object(part.get("special_tokens"), f"{name}: special_tokens")
        for key, value in special.items():
            where = f"{name}: special_tokens[{key[:40]!r}]"
            numbers = _object(value, where).get("ids")
            if not isinstance(numbers, list) or len(numbers) != 1:
                raise ValueError(f"{where}: ids must be a list of one id")
            if type(numbers[0]) is not int or numbers[0] not in ids:
                raise ValueError(f"{where}: the id {str(numbers[0])[:40]} is not in the vocabulary")
        for key, texts in (("single", {"A"}), ("pair", {"A", "B"})):
            _check_template(part.get(key), f"{name}: {key}", texts, special)
    return 1


def _check_template(
    template: object, name: str, texts: set[str], special: Mapping[str, Any]
) -> None:
    if not isinstance(template, list) or len(template) > MAX_PARTS:
        raise ValueError(f"{name} must be a list of at most {MAX_PARTS} parts")
    found = []
    for piece in template:
        ((kind, value),) = (
            piece.items() if isinstance(piece, dict) and len(piece) == 1 else [(0, 0)]
        )
        token = value.get("id") if isinstance(value, dict) else None
        if not isinstance(token, str) or kind not in ("Sequence", "SpecialToken"):
            raise ValueError(f"{name} must consist of sequences and special tokens")
        if kind == "Sequence":
            found.append(token)
        elif token not in special:
            raise ValueError(f"{name} has {token!r:.100}, which special_tokens lacks")
    if sorted(found) != sorted(texts):
        raise ValueError(f"{name} must have each of the texts {sorted(texts)} once and no other")


def check_charsmap(encoded: object, name: str) -> int | float:
    """The most characters that one character becomes with the table of a Precompiled normalizer.

    The table is SentencePiece's: the size of a trie in bytes, the trie as a double array of 32-bit
    units (darts-clone), and the replacements, each ended by NUL. Bits of a unit: 31 for a value,
    0..7 the label, 8 whether a value belongs to it, 10 and up the offset, which bit 9 scales by
    256. Raises ValueError unless every step of every search stays inside the table.
    """
    name = f"{name}: precompiled_charsmap"
    if not isinstance(encoded, str) or len(encoded) > MAX_TABLE_BYTES:
        raise ValueError(f"{name} must be a string of at most {MAX_TABLE_BYTES:,} characters")
    try:
        raw = base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error):
        raise ValueError(f"{name} is damaged: it is not base64") from None
    size = int.from_bytes(raw[:4], "little")
    if len(raw) < 8 or size % 4 or not 4 <= size <= len(raw) - 4:
        raise ValueError(f"{name} is damaged: its trie does not fit into its {len(raw)} bytes")
    units = np.frombuffer(raw, "<u4", size // 4, 4).astype(np.int64)
    texts = raw[4 + size :]
    try:
        strings = texts.decode("utf-8").split("\0")
    except UnicodeDecodeError:
        raise ValueError(f"{name} is damaged: its replacements are not UTF-8") from None
    inner = units >> 31 == 0
    offsets = (units >> 10) << ((units & 512) >> 6)
    base = np.arange(len(units)) ^ offsets
    # A search goes from a base to any of the 256 units of its block.
    if not inner[0] or np.any((base | 255)[inner] >= len(units)):
        raise ValueError(f"{name} is damaged: its trie leads out of the table")
    values = units[base[inner & (units & 256 > 0)]] & (2**31 - 1)
    starts = np.frombuffer(texts, np.uint8) & 0xC0 != 0x80
    if np.any(values >= len(texts)) or not np.all(starts[values]):
        raise ValueError(f"{name} is damaged: its trie points outside its replacements")
    return max(1, *map(len, strings))
