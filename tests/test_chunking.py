import time
from itertools import pairwise

import pytest

from polyvec.chunking import split_sentences, split_text

TEXTS = {
    "english": "One sentence. Another one! A third?\n\nA new paragraph, which is longer. " * 5,
    "chinese": "第一句话。第二句话！第三句话？没有空格的长句子继续下去。" * 10,
    "arabic": "هذه جملة. هل هذه جملة؟ نعم، إنها جملة طويلة جداً.\n" * 8,
    "hindi": "यह एक वाक्य है। यह दूसरा वाक्य है। और यह तीसरा।\n\n" * 8,
    "thai": "ภาษาไทยไม่มีเครื่องหมายจบประโยค แต่มีช่องว่างระหว่างประโยค " * 8,
    "one word": "x" * 1000,
    "windows": "a line\r\n\r\nanother line\r\nand more\r\n" * 8,
    "spaces": " \n\t \n" * 30,
    "markdown": "# A\n\n## B\ntext one. text two.\n```\n# no heading\n```\n## C\n" + "word " * 50,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
@pytest.mark.parametrize("max_size", [1, 7, 40, 10_000])
@pytest.mark.parametrize("markdown", [False, True])
def test_chunks_cover_the_text_without_gap_or_overlap_and_fit(text, max_size, markdown):
    chunks = split_text(text, max_size, markdown=markdown)
    assert "".join(text[chunk.start : chunk.end] for chunk in chunks) == text
    assert all(0 < chunk.end - chunk.start <= max_size for chunk in chunks)


@pytest.mark.parametrize("language", ["english", "chinese", "arabic", "hindi"])
def test_chunks_end_where_sentences_do(language):
    text = TEXTS[language]
    for chunk in split_text(text, 60):
        assert text[chunk.start : chunk.end].rstrip()[-1] in ".!?。！？؟।"


def test_neighbours_are_joined_while_they_fit():
    chunks = split_text(TEXTS["english"], 80)
    sizes = [chunk.end - chunk.start for chunk in chunks]
    assert all(a + b > 80 for a, b in pairwise(sizes))


def test_a_chunk_knows_its_headings_and_crosses_none():
    text = "intro\n# One\na\n## Two\nb\n### Three\nc\n## Four\nd\n"
    chunks = split_text(text, 100, markdown=True)
    assert [chunk.headings for chunk in chunks] == [
        (),
        ("One",),
        ("One", "Two"),
        ("One", "Two", "Three"),
        ("One", "Four"),
    ]


def test_a_heading_without_text_belongs_to_the_next_section():
    (chunk,) = split_text("# One\n\n## Two\ntext", 100, markdown=True)
    assert chunk.headings == ("One", "Two")


@pytest.mark.parametrize("fence", ["```", "~~~~"])
def test_a_comment_in_code_is_not_a_heading(fence):
    text = f"# One\n{fence}sh\n# a comment\n{fence}\n# Two\ntext"
    chunks = split_text(text, 1000, markdown=True)
    assert [chunk.headings for chunk in chunks] == [("One",), ("Two",)]


def test_plain_text_has_no_headings():
    assert split_text("# 1\ntext\n# 2\n", 100) == split_text("# 1\ntext\n# 2\n", 100)[:1]


def test_accents_and_joined_emoji_are_not_split():
    text = "e\u0301" * 50
    assert all(chunk.start % 2 == 0 for chunk in split_text(text, 7))
    family = "👩\u200d👩\u200d👧" * 20
    assert all(family[chunk.start] != "\u200d" for chunk in split_text(family, 6))


def test_sizes_may_be_counted_in_words():
    text = "one two three four five six. seven eight."
    chunks = split_text(text, 3, size=lambda part: len(part.split()))
    parts = [text[chunk.start : chunk.end].split() for chunk in chunks]
    assert max(map(len, parts)) == 3


def test_an_empty_text_has_no_chunks_and_a_size_below_one_is_refused():
    assert split_text("", 10) == []
    with pytest.raises(ValueError, match="at least 1"):
        split_text("text", 0)


SENTENCES = {
    "en": [
        "Dr. Li met Mr. Jones at 5 p.m. on Jan. 3.",
        "It grew by 3.5 percent, e.g. here.",
        "So?",
    ],
    "de": ["Das ist z. B. ein Test von Dr. Müller.", "Am 3. Oktober war er in der Hauptstr. 5."],
    "ru": ["Он родился в 1990 г. в Москве.", "А. С. Пушкин жил на ул. Мойка.", "Всё!"],
    "hi": ["यह एक वाक्य है। ", "क्या आप ठीक हैं?", "हाँ।"],
    "ar": ["هل أنت بخير؟", "نعم، أنا بخير.", "شكرا!"],
    "th": ["ภาษาไทยไม่มีเครื่องหมายจบประโยค", "แต่มีช่องว่างระหว่างประโยค"],
    "ur": ["یہ ایک جملہ ہے۔", "کیا یہ جملہ ہے؟"],
    "am": ["ይህ ዓረፍተ ነገር ነው።", "ሌላ ዓረፍተ ነገር።"],
}


@pytest.mark.parametrize("lang", SENTENCES)
def test_sentences_end_at_full_stops_and_not_at_abbreviations(lang):
    sentences = [sentence.strip() for sentence in SENTENCES[lang]]
    text = " ".join(sentences)
    assert [text[start:end].strip() for start, end in split_sentences(text, lang)] == sentences


def test_chinese_and_japanese_sentences_need_no_space():
    for text in ("第一句话。第二句话！第三句话？", "これは文です。これも文です！そうですか？"):
        assert len(split_sentences(text)) == 3


@pytest.mark.parametrize("text", [*TEXTS.values(), " \n a. b", "\ud800. B\udfff? C", "", "\n\n"])
def test_sentences_lie_end_to_end_and_none_is_white_space(text):
    sentences = split_sentences(text)
    assert "".join(text[start:end] for start, end in sentences) == text
    assert all(text[start:end].strip() for start, end in sentences) or not text.strip()


@pytest.mark.parametrize(
    "unit", ["`", "```\n", "« ", "“a. ", "\n", "\r\n", " ", "# ", "a", "e\u0301", "ก "]
)
def test_any_repetition_is_split_in_linear_time(unit):
    text = "# a" + unit * (200_000 // len(unit)) + "b"
    started = time.process_time()
    chunks = split_text(text, 500, markdown=True)
    assert time.process_time() - started < 10
    assert "".join(text[chunk.start : chunk.end] for chunk in chunks) == text


def test_long_texts_are_split_into_sentences_as_their_parts_are():
    sentences = [f"Dr. Li saw {number} foxes at 5 p.m. on Monday. " for number in range(500)]
    text = "".join(sentences)
    spans = split_sentences(text)
    assert [text[start:end] for start, end in spans] == sentences


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("## Tea ##", "Tea"),
        ("# C#", "C#"),
        ("#  Tea \t", "Tea"),
        ("# ##", ""),
        ("# Tea #1\r", "Tea #1"),
    ],
)
def test_marks_at_the_end_of_a_heading_are_left_out(line, title):
    [chunk] = split_text(line + "\nBoil water.", 100, markdown=True)
    assert chunk.headings == (title,)


TERMINALS = {
    "Armenian": ("Բարեւ։", "Ինչպե՞ս ես։", "Լավ եմ։"),
    "Balinese": ("ᬅᬓ᭟", "ᬩᬮᬶ᭞", "ᬲᬸᬘᬶ᭟"),
    "Burmese": ("ဒါကစက်ပါ။", "ဘယ်မှာလဲ။", "မသိဘူး။"),
    "Cherokee and Canadian": ("ᐃᓄᒃ᙮", "ᓇᓄᖅ᙮", "ᐊᐃ᙮"),
    "Ethiopic": ("ሰላም።", "እንዴት ነህ፧", "ደህና ነኝ።"),
    "Greek": ("Τι αλέθει;", "Πού είναι;", "Κανείς δεν ξέρει."),
    "Hindi": ("यह चक्की है।", "कहाँ है॥", "पता नहीं।"),
    "Javanese": ("ꦱꦸꦒꦼꦁ꧉", "ꦲꦤ꧉", "ꦲꦺꦤꦏ꧉"),
    "Khmer": ("ម៉ាស៊ីនចាស់។", "វាកិនស្រូវ។", "គ្មានអ្នកដឹងទេ។"),
    "Meetei Mayek": ("ꯑꯩ꯫", "ꯅꯪ꯫", "ꯃꯍꯥꯛ꯫"),
    "Mongolian": ("ᠨᠢᠭᠡ᠃", "ᠬᠣᠶᠠᠷ᠃", "ᠭᠤᠷᠪᠠ᠉"),
    "N'Ko": ("ߒ ߕߊ߹", "ߌ ߕߊ߹", "ߊ ߕߊ߹"),
    "Ol Chiki": ("ᱚᱞ᱾", "ᱪᱤᱠᱤ᱿", "ᱥᱟᱱ᱾"),
    "Syriac": ("ܫܠܡܐ܀", "ܐܝܟܐ܂", "ܛܒ܁"),
    "Tibetan": ("འདི་རྙིང་པ་རེད།", "འདིས་འཐག།", "སུས་ཀྱང་མི་ཤེས།"),
    "Urdu": ("یہ چکی ہے۔", "کہاں ہے؟", "معلوم نہیں۔"),
    "Vai": ("ꕙꔤ꘎", "ꕒꕡ꘏", "ꗞꔤ꘎"),
}


@pytest.mark.parametrize("sentences", TERMINALS.values(), ids=TERMINALS)
def test_sentences_of_any_script_end_at_its_marks(sentences):
    text = " ".join(sentences)
    found = [text[start:end].strip() for start, end in split_sentences(text)]
    assert found == list(sentences)


def test_every_sentence_terminal_of_unicode_ends_a_sentence():
    regex = pytest.importorskip("regex")
    marks = regex.findall(r"\p{Sentence_Terminal}", "".join(map(chr, range(0x110000))))
    ascii_like = {"!", ".", "?", "\u2024", "\ufe52"}
    assert len(marks) > 150
    for mark in set(marks) - ascii_like:
        text = f"猫猫{mark} 犬犬{mark}"
        assert len(split_sentences(text)) == 2, f"U+{ord(mark):04X}"


def test_marks_that_end_no_sentence_are_left_alone():
    # "Etc." in Khmer, a semicolon in Latin text, a Greek letter in a formula.
    for text in ("បាយ ត្រី ។ល។", "first this; then that", "the sum over α; β is fixed"):
        assert len(split_sentences(text)) <= 2
    assert len(split_sentences("first this; then that")) == 1
    assert len(split_sentences("the sum over α; β is fixed")) == 1
    # A space before the second of two Tibetan marks.
    assert len(split_sentences("བདེ་ལེགས། །འདི་རེད། །")) == 2


@pytest.mark.parametrize(
    ("before", "run", "after"),
    [
        ("# Chapter 1", " ", "17\n"),
        ("# Chapter 1", "\t", "#\n"),
        ("a", "\n", "b"),
        ("a", " \n", "b"),
        ("a", "\u00a0", "b"),
        ("ก", " ", "ข"),
        ("ཀ།", " ", "ཁ"),
        ("Τι;", " ", "a"),
        ("猫。", "\u3000", "犬"),
        ("猫", "。", "犬"),
        ("αα", '"', "a"),
    ],
)
def test_long_runs_take_linear_time(before, run, after):
    def seconds(size: int) -> float:
        text = before + run * (size // len(run)) + after
        started = time.process_time()
        split_text(text, 500, markdown=True)
        split_sentences(text)
        return time.process_time() - started

    seconds(1_000)
    # With quadratic time, it would be over a hundred times as long.
    assert seconds(160_000) < 40 * max(seconds(16_000), 0.01)


def test_halves_of_a_character_are_not_separated():
    text = "\ud83d\udc4d" * 40
    for chunk in split_text(text, 7):
        assert not "\udc00" <= text[chunk.start] <= "\udfff"
