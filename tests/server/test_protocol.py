"""What one connection may make the server hold, and what HTTP/1.1 lets a client do."""

import asyncio
import json
import logging
import socket
import ssl
import struct
import threading
import time
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
import trustme
import uvicorn
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyvec.server import protocol
from polyvec.server.api_keys import ApiKeys
from polyvec.server.errors import DEFAULT_ERROR_FORM
from polyvec.server.limits import Limits
from polyvec.server.metrics import Metrics
from polyvec.server.middleware import RequestMiddleware, ServerLoad
from polyvec.server.protocol import BoundedHttpProtocol
from tests.processes import wait_for

LIMITS = Limits(
    connections=8,
    body_bytes=1_000_000,
    inflight_bytes=2_000_000,
    read_seconds=1.0,
    send_seconds=1.0,
)
JSON = b"Content-Type: application/json\r\n"
CLOSE = b"Connection: close\r\n"


class Echo:
    """An application that says what it received, and does not need a model."""

    def __init__(self):
        self.seen = []
        self.num_running = self.num_cancelled = 0
        self.num_most = 0
        self.may_finish = threading.Event()

    async def __call__(self, scope, receive, send):
        body = (await receive())["body"]
        self.seen.append(scope["path"])
        self.num_running += 1
        self.num_most = max(self.num_most, self.num_running)
        try:
            content = await self.answer(scope, body)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_running -= 1
        headers = [(b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def answer(self, scope, body):
        _, name, *size = scope["path"].split("/")
        if name == "wait":
            while not self.may_finish.is_set():
                await asyncio.sleep(0.01)
        if name == "large":
            return b"a" * int(size[0])
        return json.dumps([scope["method"], scope["path"], body.decode("latin-1")]).encode()


class Running:
    """A server in a thread, and raw connections to it."""

    def __init__(self, app, load, server, trusting):
        self.app, self.load, self.server, self.trusting = app, load, server, trusting
        self.port = server.servers[0].sockets[0].getsockname()[1]

    @contextmanager
    def connect(self, *, receive_bytes=None):
        connection = socket.socket()
        if receive_bytes:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", self.port))
        if self.trusting:
            connection = self.trusting.wrap_socket(connection, server_hostname="127.0.0.1")
        with connection:
            yield connection

    def ask(self, *parts, half_close=False):
        """The statuses and the bodies of all answers until the server closes the connection."""
        with self.connect() as connection:
            for part in parts:
                connection.sendall(part)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            return read_answers(connection)

    @property
    def connections(self):
        return self.server.server_state.connections


def read_answers(connection):
    data = b""
    while part := connection.recv(1_000_000):
        data += part
    answers = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(fields.get(b"content-length", 0))
        answers.append((int(head.split()[1]), data[:length]))
        data = data[length:]
    return answers


def post(body=b"{}", extra=b"", path=b"/echo", *, chunk_bytes=None):
    """A request; its body is chunked if `chunk_bytes` is given."""
    framing = b"Content-Length: %d\r\n" % len(body)
    if chunk_bytes:
        framing = b"Transfer-Encoding: chunked\r\n"
        parts = [body[i : i + chunk_bytes] for i in range(0, len(body), chunk_bytes)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    return b"POST %b HTTP/1.1\r\nHost: a\r\n%b%b%b\r\n%b" % (path, JSON, framing, extra, body)


def get(path=b"/echo", extra=b""):
    return b"GET %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (path, extra)


def echoes(*answers):
    """The bodies that the application has received."""
    assert all(status == 200 for status, _ in answers)
    return [json.loads(body)[2].encode() for _, body in answers]


@contextmanager
def running(loop_factory, limits=LIMITS, tls=False):
    app, load, metrics = Echo(), ServerLoad(), Metrics()
    pem, trusting = None, None
    with ExitStack() as stack:
        if tls:
            authority = trustme.CA()
            certificate = authority.issue_cert("127.0.0.1")
            pem = stack.enter_context(certificate.private_key_and_cert_chain_pem.tempfile())
            trusting = ssl.create_default_context()
            authority.configure_trust(trusting)
        config = uvicorn.Config(
            RequestMiddleware(
                app,
                limits,
                ApiKeys(),
                metrics,
                load,
                find_error_form=lambda _path, _method: DEFAULT_ERROR_FORM,
                find_route=lambda path: path,
            ),
            port=0,
            http=partial(BoundedHttpProtocol, limits=limits, metrics=metrics),  # pyright: ignore
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
            ssl_certfile=pem,
        )
        server = uvicorn.Server(config)

        def run():
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                runner.run(server.serve())

        thread = threading.Thread(target=run)
        thread.start()
        try:
            wait_for(lambda: server.started or not thread.is_alive())
            yield Running(app, load, server, trusting)
        finally:
            app.may_finish.set()
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module", params=[uvloop.new_event_loop, asyncio.new_event_loop])
def echo(request):
    """One server for each event loop: the usual one, and that of platforms without it."""
    with running(request.param) as server:
        yield server


@pytest.fixture(scope="module")
def secure():
    with running(uvloop.new_event_loop, tls=True) as server:
        yield server


@pytest.fixture(autouse=True)
def at_rest(request):
    """Every test leaves the server as it was: without connections, and holding nothing."""
    yield
    for name in {"echo", "secure"} & set(request.fixturenames):
        server = request.getfixturevalue(name)
        server.app.may_finish.set()
        wait_for(lambda: not server.connections and not server.load.running)  # noqa: B023
        assert server.load.num_bytes == 0
        server.app.may_finish.clear()
        server.app.seen.clear()
        server.app.num_most = server.app.num_cancelled = 0


ENDLESS = [b"a" * 100_000] * 50

TOO_LARGE = {
    "URL": (414, b"GET /", ENDLESS),
    "header": (431, b"GET / HTTP/1.1\r\na: ", ENDLESS),
    "name of a header": (431, b"GET / HTTP/1.1\r\n", ENDLESS),
    "headers": (431, b"GET / HTTP/1.1\r\n", [b"a: b\r\n" * 10_000] * 50),
    "trailers": (431, post(chunk_bytes=1)[:-2], [b"a: b\r\n" * 10_000] * 50),
    "trailer": (431, post(chunk_bytes=1)[:-2] + b"a: ", ENDLESS),
    "chunk extension": (431, post(chunk_bytes=1)[:-5] + b"1;", ENDLESS),
    "bytes that are no request": (400, b"\0", ENDLESS),
    "body": (413, post().replace(b"h: 2", b"h: 99999999"), ENDLESS),
}


@pytest.mark.parametrize("what", TOO_LARGE)
def test_what_never_ends_is_refused_while_it_comes(echo, what):
    """The client reads only after it has sent 5 MB, and still gets its answer."""
    status, start, rest = TOO_LARGE[what]
    answers = echo.ask(start, *rest)
    assert [status for status, _ in answers] == [status]
    assert json.loads(answers[0][1])["code"].startswith("INPUT_")


def test_a_head_that_comes_byte_by_byte_is_read(echo):
    request = post(b'{"a": 1}', CLOSE)
    assert echoes(*echo.ask(*(request[i : i + 1] for i in range(len(request))))) == [b'{"a": 1}']


def test_pipelined_requests_are_answered_one_after_another(echo):
    """Two hundred requests in one write, of which one is in progress at any time."""
    requests = [get(b"/echo/%d" % number) for number in range(200)]
    answers = echo.ask(b"".join(requests), get(extra=CLOSE))
    paths = [json.loads(body)[1] for _, body in answers]
    assert paths == [*(f"/echo/{number}" for number in range(200)), "/echo"]
    assert echo.app.num_most == 1


def test_nothing_is_read_behind_a_request_in_progress(echo):
    """What may be held for a connection is what one call of the event loop reads."""
    with echo.connect() as connection:
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.sendall(get(b"/wait") + get() * 2_000_000)
        [held] = echo.connections
        assert 0 < len(held._waiting) < 600_000
        assert echo.app.seen == ["/wait"]


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_requests_are_the_same_however_they_are_cut(echo, data):
    """Any requests one after another, sent in any pieces."""
    bodies = data.draw(st.lists(st.text("ab\r\n", min_size=1, max_size=9).map(str.encode)))
    bodies.append(b"last")
    stream = b"".join(post(body) for body in bodies[:-1])
    stream += post(bodies[-1], CLOSE, chunk_bytes=data.draw(st.sampled_from([None, 1, 3])))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert echoes(*echo.ask(*pieces)) == bodies


OFFERS = [
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    b"connection: keep-alive, upgrade\r\nUPGRADE:websocket\r\nSec-WebSocket-Version: 13\r\n",
]


@pytest.mark.parametrize("offer", OFFERS)
def test_an_offer_to_upgrade_is_declined_and_the_request_answered(echo, offer):
    """With a body, a chunked body and no body; the connection stays open."""
    answers = echo.ask(
        post(b"one", offer), post(b"two", offer), get(extra=offer), post(b"three", CLOSE)
    )
    assert echoes(*answers) == [b"one", b"two", b"", b"three"]
    assert echoes(*echo.ask(post(b"four", offer + CLOSE, chunk_bytes=2))) == [b"four"]


@pytest.mark.parametrize("request_", [post(b"a"), post(b"a", chunk_bytes=1), post(b"a") * 3])
def test_a_client_that_closed_its_sending_side_gets_its_answers(echo, request_):
    bodies = echoes(*echo.ask(request_, half_close=True))
    assert bodies == [b"a"] * request_.count(b"POST")


@pytest.mark.parametrize("how", ["reset", "close", "close in the body"])
def test_the_work_of_a_client_that_is_gone_is_cancelled(echo, how, monkeypatch):
    monkeypatch.setattr(protocol, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(protocol, "PROBE_SECONDS", 0.1)
    with echo.connect() as connection:
        connection.sendall(post(path=b"/wait"))
        wait_for(lambda: echo.app.num_running)
        if how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_for(lambda: echo.app.num_cancelled)
    if how == "close in the body":
        with echo.connect() as connection:
            connection.sendall(post(b"abc")[:-1])
        wait_for(lambda: not echo.connections)


def test_a_client_that_waits_with_its_sending_side_closed_is_only_probed(echo, monkeypatch):
    """The interim response is one that every client skips; HTTP/1.0 gets none."""
    monkeypatch.setattr(protocol, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(protocol, "PROBE_SECONDS", 0.1)
    for version, statuses in ((b"1.1", [100, 200]), (b"1.0", [200])):
        with echo.connect() as connection:
            connection.sendall(get(b"/wait").replace(b"HTTP/1.1", b"HTTP/" + version))
            connection.shutdown(socket.SHUT_WR)
            time.sleep(0.4)
            echo.app.may_finish.set()
            assert [status for status, _ in read_answers(connection)] == statuses
        echo.app.may_finish.clear()


def leave_unread(server):
    """Ask for more than the client takes: one large answer, or many small ones."""
    with server.connect(receive_bytes=4_096) as idle:
        idle.sendall(get(b"/large/5000000"))
        wait_for(lambda: server.load.num_bytes == 5_000_000)
        wait_for(lambda: not server.connections)
    with server.connect(receive_bytes=4_096) as idle:
        idle.sendall(get(b"/large/60000") * 100)
        wait_for(lambda: len(server.app.seen) > 1)
        wait_for(lambda: not server.connections)


def read_slowly(server):
    """Read for longer than the time limit, which is for a part of the answer."""
    began = time.monotonic()
    with server.connect(receive_bytes=65_536) as slow:
        slow.sendall(get(b"/large/3000000", CLOSE))
        data = b""
        while part := slow.recv(16_384):
            data += part
            time.sleep(0.01)
    assert len(data.partition(b"\r\n\r\n")[2]) == 3_000_000
    assert time.monotonic() - began > LIMITS.send_seconds


def test_an_answer_that_nobody_reads_is_dropped(echo):
    """It counts as in flight as long as it is held."""
    leave_unread(echo)


def test_a_slow_reader_gets_its_whole_answer(echo):
    read_slowly(echo)


def test_answers_leave_under_tls_as_without_it(secure):
    leave_unread(secure)
    read_slowly(secure)


def test_bodies_count_as_they_arrive(echo):
    """Slow senders together hold no more than the limit; beyond it, one gets 429."""
    with ExitStack() as stack:
        senders = [stack.enter_context(echo.connect()) for _ in range(6)]
        request = post(b"a" * 900_000, CLOSE)
        for sender in senders:
            sender.sendall(request[:600_000])
        wait_for(lambda: echo.load.running == 6)
        for sender in senders:
            assert echo.load.num_bytes <= LIMITS.inflight_bytes
            sender.sendall(request[600_000:])
        statuses = sorted(read_answers(sender)[0][0] for sender in senders)
    assert set(statuses) == {200, 429}


def test_connections_are_limited(echo):
    with ExitStack() as stack:
        for _ in range(LIMITS.connections):
            stack.enter_context(echo.connect())
        wait_for(lambda: len(echo.connections) == LIMITS.connections)
        [(status, body)] = echo.ask()
        assert (status, json.loads(body)["code"]) == (503, "SERVICE_TOO_MANY_CONNECTIONS")
    wait_for(lambda: not echo.connections)
    assert echoes(*echo.ask(post(b"a", CLOSE))) == [b"a"]


def test_a_body_that_is_refused_is_not_received_for_long(echo):
    """Its type is refused at once; the rest is discarded, until it takes too long."""
    with echo.connect() as connection:
        connection.sendall(post(b"a" * 1_000).replace(b"/json", b"/text")[:-500])
        [(status, _)] = read_answers(connection)
    assert status == 415


def test_an_announced_body_that_is_too_large_is_not_asked_for(echo):
    """A client that waits for 100 (Continue) gets 413, or 100 and then its answer."""
    expect = b"Expect: 100-continue\r\n"
    head = post(b"a" * 1_000_001, expect)[:-1_000_001]
    assert [status for status, _ in echo.ask(head)] == [413]
    answers = echo.ask(post(b"abc", expect + CLOSE))
    assert [status for status, _ in answers] == [100, 200]
    # Whether the body follows a refusal is unknown, so the connection ends.
    answers = echo.ask(post(b"abc", expect).replace(b"/json", b"/text"))
    assert [status for status, _ in answers] == [415]


SMUGGLED = get(b"/smuggled")

AMBIGUOUS = {
    "length and chunks": post(SMUGGLED, b"Transfer-Encoding: chunked\r\n"),
    "two lengths": post(SMUGGLED, b"Content-Length: 1\r\n"),
    "a list of lengths": post(SMUGGLED).replace(b"th: ", b"th: 1, "),
    "a signed length": post(SMUGGLED).replace(b"th: ", b"th: +"),
    "another coding": post(SMUGGLED, chunk_bytes=9).replace(b"chunked", b"gzip, chunked"),
    "a coding twice": post(SMUGGLED, b"Transfer-Encoding: identity\r\n", chunk_bytes=9),
    "a folded header": get(extra=b"a: b\r\n Content-Length: 9\r\n") + SMUGGLED,
    "a space in a name": get(extra=b"Content-Length : 9\r\n") + SMUGGLED,
    "a bare line feed": get(extra=b"a: b\nContent-Length: 9\r\n") + SMUGGLED,
    "a bare carriage return": get(extra=b"a: b\rContent-Length: 9\r\n") + SMUGGLED,
    "a NUL": get(extra=b"a: \0\r\n") + SMUGGLED,
    "a URL without a path": get(b"http://a") + SMUGGLED,
    "a wrong chunk size": post(b"a", chunk_bytes=1).replace(b"1\r\na", b"1 \r\na") + SMUGGLED,
    "a bare line feed in a chunk": post(b"a", chunk_bytes=1).replace(b"\r\na", b"\na") + SMUGGLED,
}


@pytest.mark.parametrize("what", AMBIGUOUS)
def test_what_servers_might_read_differently_is_refused(echo, what, caplog):
    """A proxy and this server would otherwise disagree where the next request begins."""
    caplog.set_level(logging.INFO)
    [(status, body)] = echo.ask(AMBIGUOUS[what])
    assert status == 400
    [entry] = [json.loads(line) for line in caplog.messages if "refused" in line]
    assert entry["request_id"] == json.loads(body)["request_id"] and entry["status"] == 400
    assert "/smuggled" not in echo.app.seen


def test_a_request_behind_a_chunked_body_is_left_to_the_next_connection(echo):
    """The request itself is answered, and the connection closed."""
    assert echoes(*echo.ask(post(b"a", chunk_bytes=1) + SMUGGLED)) == [b"a"]
    assert echo.app.seen == ["/echo"]


def test_a_url_may_name_the_server(echo):
    [(_, body)] = echo.ask(get(b"http://a/echo/b?c", CLOSE))
    assert json.loads(body)[1] == "/echo/b"


def test_limits_hold_under_tls(secure, monkeypatch):
    """Only the end of the connection differs: a client that closes its sending side is gone."""
    monkeypatch.setattr(protocol, "LINGER_SECONDS", 0.2)
    for what in ("header", "trailers", "URL"):
        status, start, _ = TOO_LARGE[what]
        assert [status for status, _ in secure.ask(start, b"a" * 100_000)] == [status]
    assert echoes(*secure.ask(post(b"a", OFFERS[0] + CLOSE))) == [b"a"]
    with secure.connect() as connection:
        connection.sendall(post(path=b"/wait"))
        wait_for(lambda: secure.app.num_running)
    wait_for(lambda: secure.app.num_cancelled)
