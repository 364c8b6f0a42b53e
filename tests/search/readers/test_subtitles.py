"""Subtitles are read without what is not said."""

from polyvec.search.documents import read_document

SUBRIP = """1
00:00:01,000 --> 00:00:02,500
<i>The fox</i> sleeps

2
00:00:03,000 --> 00:00:04,000
{\\an8}in 1984
"""

WEBVTT = """WEBVTT - a title

NOTE a remark
that goes on

first
00:01.000 --> 00:02.000 align:start
<v Ann>Where is <00:01.500>it?</v>

00:01:03.000 --> 00:01:04.000
2 < 3
"""


def test_words_are_read_with_their_lines():
    document = read_document(SUBRIP.encode(), "a.srt")
    assert document.text.splitlines() == ["The fox sleeps", "in 1984"]
    assert document.locate(document.text.index("1984")) == 7


def test_remarks_and_settings_are_not_read():
    document = read_document(WEBVTT.replace("\n", "\r\n").encode(), "a.vtt")
    assert document.text.splitlines() == ["Ann: Where is it?", "2 < 3"]
