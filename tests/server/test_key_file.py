"""Key files and the environment variable are read as their operator means them, or refused."""

import hashlib
import os

import pytest

from polyvec.server.api_keys import hash_key
from polyvec.server.key_file import (
    KEYS_VARIABLE,
    MAX_FILE_BYTES,
    load_api_keys,
    read_key_file,
    read_keys,
    read_variable,
)

SECRET = "pv-secret-0123456789abcdef"
DIGEST = hashlib.sha256(SECRET.encode()).hexdigest()
BLANK_LINE = hashlib.sha256(b"\n").hexdigest()
OTHER = hashlib.sha256(b"another").hexdigest()


@pytest.fixture
def key_file(tmp_path):
    """Write a key file that only its owner may change; returns its path."""

    def write(content, mode=0o600):
        path = tmp_path / "keys.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
        return path

    return write


@pytest.mark.parametrize("value", ["", " ", ",", " , \n,\t"])
def test_a_variable_without_a_key_is_an_error(value):
    with pytest.raises(ValueError, match=KEYS_VARIABLE) as error:
        read_variable({KEYS_VARIABLE: value})
    assert "unset" in str(error.value)


@pytest.mark.parametrize("value", ["a b c", "a,b,c", "a\nb\r\nc\n", " a, b,, c ,"])
def test_spaces_commas_and_lines_separate_keys(value):
    keys = read_variable({KEYS_VARIABLE: value})
    assert [key.digest for key in keys] == [hash_key(key) for key in "abc"]
    assert read_variable({}) == []


def test_a_key_has_one_name():
    with pytest.raises(ValueError, match="twice"):
        read_variable({KEYS_VARIABLE: "a b a"})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_editors_file_is_read(key_file, encoding, end):
    lines = ["# name digest", "", f"zoë {DIGEST.upper()} requests=2 tokens=9 concurrency=1", ""]
    [key] = read_key_file(key_file(end.join(lines).encode(encoding)))
    assert (key.name, key.digest, key.concurrency) == ("zoë", hash_key(SECRET), 1)
    assert key.requests.size == 2 and key.tokens.size == 9


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("alice", "a line must have"),
        (f"alice {SECRET}", "not a SHA-256"),
        (f"{SECRET} alice", "not a SHA-256"),
        (f"alice {DIGEST[:-1]}", "not a SHA-256"),
        (f"alice {DIGEST} {SECRET}", "requests=N"),
        (f"alice {DIGEST} speed=3", "requests=N"),
        (f"alice {DIGEST} tokens=0", "requests=N"),
        (f"alice {DIGEST} tokens=-1", "requests=N"),
        (f"alice {DIGEST} tokens=1e9", "requests=N"),
        (f"alice {DIGEST} tokens={'9' * 5_000}", "requests=N"),
        (f"alice {DIGEST} tokens=1 tokens=2", "twice"),
        (f"bob {OTHER}", "same name"),
        (f"alice {DIGEST.upper()}\nbob2 {DIGEST}", "same key"),
        (f"{'x' * 65} {DIGEST}", "at most 64"),
        (f"a\x1b[2J {DIGEST}", "printable"),
        (f"anyone {DIGEST}", "anyone"),
        (f"alice {hashlib.sha256().hexdigest()}", "empty text"),
        (f"alice {BLANK_LINE}", "empty text"),
        (b"alice \xff", "UTF-8"),
        (f"alice {DIGEST}".encode("utf-16-le"), "zero bytes"),
    ],
)
def test_a_wrong_line_is_named_and_not_repeated(key_file, line, reason):
    """The message fits on one line, and holds neither the key nor anything that may be one."""
    content = f"bob {hashlib.sha256(b'bob').hexdigest()}\n".encode()
    path = key_file(content + (line if isinstance(line, bytes) else line.encode()))
    with pytest.raises(ValueError, match=reason) as error:
        read_key_file(path)
    message = str(error.value)
    assert str(path) in message and "\n" not in message and len(message) < 500
    assert SECRET not in message and DIGEST not in message
    assert "line 2" in message or "line 3" in message or "zero bytes" in message


def test_a_name_that_is_a_key_is_warned_of_without_the_key(key_file, caplog):
    """Names are written to the log."""
    path = key_file(f"{SECRET} {DIGEST}")
    for environment in ({}, {KEYS_VARIABLE: "another-key"}):
        caplog.clear()
        assert read_keys(path, environment)[0].name == SECRET
        assert "plain text" in caplog.text and SECRET not in caplog.text


def test_the_file_and_the_variable_do_not_share_keys_or_names(key_file):
    path = key_file(f"alice {DIGEST}")
    assert len(read_keys(path, {KEYS_VARIABLE: "another"})) == 2
    with pytest.raises(ValueError, match="key-2"):
        read_keys(path, {KEYS_VARIABLE: f"another {SECRET}"})
    with pytest.raises(ValueError, match="key-1"):
        read_keys(key_file(f"key-1 {DIGEST}"), {KEYS_VARIABLE: "another"})


@pytest.mark.parametrize("content", ["", "\n\n", "# only a comment\n", b"\xef\xbb\xbf"])
def test_a_file_without_keys_is_an_error(key_file, content):
    with pytest.raises(ValueError, match="contains no key"):
        read_key_file(key_file(content))


def test_what_is_no_file_of_keys_is_refused_at_once(key_file, tmp_path):
    """A folder, a pipe without a writer, a missing file, and one of many megabytes."""
    os.mkfifo(tmp_path / "pipe")
    for path, reason in (
        (tmp_path, "folder"),
        (tmp_path / "pipe", "pipe"),
        (tmp_path / "missing", "cannot be read"),
        (key_file(b"#" * (MAX_FILE_BYTES + 1)), "1,000,000 bytes"),
    ):
        with pytest.raises(ValueError, match=reason) as error:
            read_key_file(path)
        assert str(path) in str(error.value)


@pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX")
def test_a_file_that_others_may_change_is_refused(key_file, caplog):
    """The message has the repair. A file that others may read is accepted, with a warning."""
    for mode in (0o620, 0o602, 0o666):
        with pytest.raises(ValueError, match="chmod go-w"):
            read_key_file(key_file(f"alice {DIGEST}", mode))
    load_api_keys(key_file(f"alice {DIGEST}", 0o640))
    assert "chmod" not in caplog.text
    load_api_keys(key_file(f"alice {DIGEST}", 0o644))
    assert "chmod o-r" in caplog.text


def test_a_mounted_secret_is_accepted(key_file, tmp_path):
    """Kubernetes mounts a link to a link; links have mode 777, their target has mode 644."""
    (tmp_path / "..2026").mkdir()
    key_file(f"alice {DIGEST}", 0o644).rename(tmp_path / "..2026" / "keys")
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "keys").symlink_to("..data/keys")
    assert [key.name for key in read_key_file(tmp_path / "keys")] == ["alice"]
