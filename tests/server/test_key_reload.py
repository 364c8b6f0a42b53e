"""API keys change while the server runs, without a restart."""

import hashlib
import os
import signal
from contextlib import contextmanager

import pytest

from polyvec.server import key_reload
from polyvec.server.api_keys import ApiKeys
from polyvec.server.key_file import load_api_keys
from polyvec.server.key_reload import reload_on_hangup
from tests.processes import wait_for
from tests.server.conftest import serving


@contextmanager
def writing(path):
    """Write a key file in one step, as careful programs do."""
    new = path.with_name("new")
    new.touch(0o600)
    with new.open("w") as file:
        yield file
    new.replace(path)


def line(key, quotas=""):
    return f"{key} {hashlib.sha256(f'secret-{key}'.encode()).hexdigest()} {quotas}\n"


@pytest.fixture
def running(tmp_path, monkeypatch):
    """A server with a key file of two keys; its path; and a function that asks with a key."""
    monkeypatch.setattr(key_reload, "POLL_SECONDS", 0.02)
    monkeypatch.delenv("POLYVEC_API_KEYS", raising=False)
    path = tmp_path / "keys.txt"
    with writing(path) as file:
        file.write(line("alice", "requests=100") + line("bob"))
    with serving(api_keys=load_api_keys(path)) as server:

        def ask(key):
            headers = {"authorization": f"Bearer secret-{key}"}
            return server.http.get("/v1/models", headers=headers)

        yield path, ask, server


def test_a_changed_file_changes_the_keys(running):
    """Replaced, written in place, and replaced by a link; the quota of a key that stays holds."""
    path, ask, server = running
    assert [ask(key).status_code for key in ("alice", "bob", "carol")] == [200, 200, 401]
    with writing(path) as file:
        file.write(line("alice", "requests=100") + line("carol"))
    wait_for(lambda: ask("bob").status_code == 401)
    assert ask("carol").status_code == 200
    left = int(ask("alice").headers["x-ratelimit-remaining-requests"])
    assert left <= 98
    assert server.service.api_keys.find("alice").num_requests >= 2
    path.write_text(line("bob"))
    wait_for(lambda: ask("bob").status_code == 200)
    assert [ask(key).status_code for key in ("alice", "carol")] == [401, 401]
    target = path.with_name("target")
    with writing(target) as file:
        file.write(line("dora"))
    link = path.with_name("link")
    link.symlink_to(target)
    link.replace(path)
    wait_for(lambda: ask("dora").status_code == 200)
    assert ask("bob").status_code == 401


@pytest.mark.parametrize("damage", ["empty", "line", "mode", "missing"])
def test_an_invalid_file_changes_nothing(running, damage, caplog):
    """The log has the reason, once; the next valid file is read."""
    path, ask, _ = running
    if damage == "missing":
        path.unlink()
    elif damage == "mode":
        path.chmod(0o666)
    else:
        with writing(path) as file:
            file.write("" if damage == "empty" else "bob secret-bob\n")
    wait_for(lambda: "API keys kept" in caplog.text)
    assert [ask(key).status_code for key in ("alice", "bob", "carol")] == [200, 200, 401]
    assert "secret" not in caplog.text and caplog.text.count("API keys kept") == 1
    with writing(path) as file:
        file.write(line("carol"))
    wait_for(lambda: ask("carol").status_code == 200)
    assert ask("alice").status_code == 401


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="the system has no SIGHUP")
def test_sighup_asks_for_the_keys_again_and_ends_nothing():
    keys = ApiKeys()
    before = signal.getsignal(signal.SIGHUP)
    try:
        reload_on_hangup(keys)
        os.kill(os.getpid(), signal.SIGHUP)
        wait_for(lambda: keys.reload_requested)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_request_for_the_keys_is_answered_without_a_change(running, caplog):
    _, ask, server = running
    with caplog.at_level("INFO", logger="polyvec.server"):
        server.service.api_keys.reload_requested = True
        wait_for(lambda: "API keys replaced" in caplog.text)
    assert ask("alice").status_code == 200


def test_a_server_without_a_key_file_goes_on(caplog):
    with serving() as server:
        server.service.api_keys.reload_requested = True
        wait_for(lambda: not server.service.api_keys.reload_requested)
        assert server.http.get("/v1/models").status_code == 200
        wait_for(lambda: "no --key-file" in caplog.text)
