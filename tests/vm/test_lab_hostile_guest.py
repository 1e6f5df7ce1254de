"""A guest that lies to the host's end of the channel: clear errors, bounded memory, no escape."""

import base64
import contextlib
import json
import socket
import threading

import pytest

from lab import agent as host_end
from lab.agent import GuestAgent
from lab.errors import AgentError, ChannelClosedError, GuestTimeoutError


@pytest.fixture
def guest():
    """Return a function that makes an agent whose guest answers with the given lines."""
    ends, servers = [], []

    def answering(*lines):
        host, inside = socket.socketpair()
        ends.append(host)

        def serve():
            # The host may hang up on a liar in mid-line.
            with inside, inside.makefile("rb") as requests, contextlib.suppress(OSError):
                for line in lines:
                    if requests.readline():
                        inside.sendall(line)

        servers.append(threading.Thread(target=serve))
        servers[-1].start()
        return GuestAgent(host)

    yield answering
    for end in ends:
        end.close()
    for server in servers:
        server.join()


def result(number, value):
    return json.dumps({"id": number, "result": value}).encode() + b"\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"nonsense\n", "not JSON"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (b"[1]\n", "not an object"),
        (result(1, {"a": "many"}), "wrong form"),
        (result(1, 7), "wrong form"),
    ],
)
def test_answer_of_the_wrong_form_is_an_agent_error(guest, line, said):
    with pytest.raises(AgentError, match=said):
        guest(line).counters()


def test_endless_line_is_cut_off(guest, monkeypatch):
    monkeypatch.setattr(host_end, "LINE_LIMIT_BYTES", 100_000)
    with pytest.raises(AgentError, match="longer than 100000 bytes"):
        guest(b"x" * 150_000).counters()


def test_answers_to_other_requests_do_not_put_the_deadline_off(guest):
    agent = guest(result(99, {}) * 50, b"")
    agent.timeout_s = 0.2
    with pytest.raises(GuestTimeoutError):
        agent.counters()


def test_guest_that_does_not_answer_is_told_of_with_its_console():
    host, inside = socket.socketpair()
    with host, inside:
        agent = GuestAgent(host, lambda: ["INFO: task python3:1 blocked."])
        agent.timeout_s = 0.2
        with pytest.raises(GuestTimeoutError) as failed:
            agent.counters()
    assert "task python3:1 blocked" in failed.value.reason


def test_closed_channel_is_named():
    host, inside = socket.socketpair()
    inside.close()
    with host, pytest.raises(ChannelClosedError):
        GuestAgent(host).counters()


@pytest.mark.parametrize("name", ["../escaped", "/etc/escaped", "in/../../escaped"])
def test_file_name_cannot_leave_the_target(guest, tmp_path, name):
    agent = guest(result(1, {name: 4}), result(2, base64.b64encode(b"evil").decode()))
    with pytest.raises(AgentError, match="outside its directory"):
        agent.copy_out("/tmp/d", tmp_path / "out")
    assert [p.name for p in tmp_path.rglob("*")] == ["out"]


def test_file_that_grows_past_the_limit_is_refused(guest, tmp_path):
    part = base64.b64encode(b"x" * host_end.READ_LIMIT_BYTES).decode()
    agent = guest(result(1, {"small": 1}), result(2, part), result(3, part))
    with pytest.raises(AgentError, match="longer than"):
        agent.copy_out("/tmp/d", tmp_path / "out", limit_bytes=host_end.READ_LIMIT_BYTES)


def test_file_part_that_is_not_base64_is_refused(guest, tmp_path):
    agent = guest(result(1, {"a": 1}), result(2, "!!"))
    with pytest.raises(AgentError, match="not base64"):
        agent.copy_out("/tmp/d", tmp_path / "out")
