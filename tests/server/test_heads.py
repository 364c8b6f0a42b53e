"""Heads of requests are bounded, and say what the server needs to know."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyvec.server.errors import ApiError
from polyvec.server.heads import find_body_length, find_head_length, ignore_upgrade
from polyvec.server.limits import Limits

LIMITS = Limits(request_line_bytes=40, headers=5, header_bytes=60)


def make_head(url_bytes=1, headers=1, header_bytes=None):
    """A head whose headers have that many bytes in all, if given."""
    lines = [b"h:%d" % number for number in range(headers)]
    if header_bytes is not None:
        lines[0] += b"a" * (header_bytes - sum(len(line) + 2 for line in lines))
    return b"\r\n".join([b"GET /%b HTTP/1.1" % (b"u" * (url_bytes - 1)), *lines, b"\r\n"])


def refuse(data, **options):
    with pytest.raises(ApiError) as error:
        find_head_length(data, LIMITS, **options)
    return error.value.status


@pytest.mark.parametrize(
    ("largest", "status"),
    [
        ({"url_bytes": 40 - len("GET  HTTP/1.1")}, 414),
        ({"headers": 5}, 431),
        ({"header_bytes": 60}, 431),
    ],
)
def test_a_limit_is_the_largest_that_is_accepted(largest, status):
    """One more byte of the URL, one more header, one more byte of headers."""
    head = make_head(**largest)
    assert find_head_length(head + b"body", LIMITS) == len(head)
    assert refuse(make_head(**{name: value + 1 for name, value in largest.items()})) == status


@pytest.mark.parametrize(
    ("start", "status"), [(b"GET /", 414), (b"GET / HTTP/1.1\r\nx:", 431), (b"G", 414)]
)
def test_a_head_without_an_end_is_refused_as_soon_as_it_is_too_large(start, status):
    data = start
    while len(data) < 200:
        data += b"a"
        try:
            assert find_head_length(data, LIMITS, searched=len(data) - 1) == 0
        except ApiError as error:
            assert error.status == status
            break
    limit = LIMITS.request_line_bytes + LIMITS.header_bytes
    assert len(data) <= limit + 8


@given(st.integers(1, 27), st.integers(1, 5), st.data())
def test_an_end_is_found_however_the_head_is_cut(url_bytes, headers, data):
    """In any two pieces, with anything behind it."""
    head = make_head(url_bytes, headers)
    cut = data.draw(st.integers(1, len(head) - 1))
    assert find_head_length(head[:cut], LIMITS) == 0
    rest = data.draw(st.binary(max_size=9))
    assert find_head_length(head + rest, LIMITS, searched=cut) == len(head)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_head_or_refused_or_wait(data):
    """What waits is never larger than a head may be."""
    try:
        length = find_head_length(data, LIMITS)
    except ApiError as error:
        assert error.status in (400, 414, 431)
        return
    assert length or len(data) <= LIMITS.request_line_bytes + LIMITS.header_bytes + 4


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/3.0\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"PLAY / RTSP/1.0\r\n\r\n",
    ],
)
def test_other_protocols_are_refused_at_once(data):
    """TLS, bare line feeds, HTTP/2, HTTP/0.9, a later version, a proxy's method, RTSP."""
    assert refuse(data) == 400


def test_an_offer_to_upgrade_changes_nothing_else():
    head = b"GET /upgrade: HTTP/1.1\r\nUPGRADE: a\r\nx: upgrade: b\r\nupgrade:c\r\n\r\n"
    ignored = b"GET /upgrade: HTTP/1.1\r\nx-offer: a\r\nx: upgrade: b\r\nx-offer:c\r\n\r\n"
    assert ignore_upgrade(head) == ignored


def test_the_length_of_a_body_is_known_from_its_headers():
    assert find_body_length([]) == 0
    assert find_body_length([(b"content-length", b"12 ")]) == 12
    assert find_body_length([(b"transfer-encoding", b"Chunked")]) is None
    with pytest.raises(ApiError, match="chunked"):
        find_body_length([(b"transfer-encoding", b"gzip, chunked")])
