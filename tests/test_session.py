"""What client, guards, settlement and heartbeats share."""

from __future__ import annotations

import subprocess
import sys

import pytest
from peers import FakeTransport, allowed, client_of, create_request, replied

from cycles_lite import CyclesConfig, Subject, TransportError, ValidationError
from cycles_lite.protocol import wire
from cycles_lite.session import Session, response_in
from cycles_lite.settlement.settler import settler_of


def session_of(*answers, **changes):
    config = CyclesConfig(base_url="http://fake.invalid", api_key="key", **{"tenant": "acme", **changes})
    return Session(config, FakeTransport(*answers))


def test_an_error_is_a_value_until_somebody_wants_the_response():
    told = session_of(TransportError("down")).send(wire.GET_RESERVATION, id="rsv_1", retries=False)
    assert isinstance(told, TransportError)
    assert told.__traceback__ is None
    with pytest.raises(TransportError, match="down"):
        response_in(told)


@pytest.mark.parametrize("id", [None, "", "a\nb", ".", "..", "x" * 129, 7])
def test_an_id_that_no_path_can_carry_is_an_error_and_nothing_is_sent(id):
    session = session_of()
    assert isinstance(session.send(wire.GET_RESERVATION, id=id), ValidationError)
    assert session.transport.calls == []


@pytest.mark.parametrize("id", ["rsv_1", "a.b", "a b", "ä/?", "x" * 128])
def test_any_other_id_is_sent_as_it_is(id):
    session = session_of(TransportError("down"))
    session.send(wire.GET_RESERVATION, id=id, retries=False)
    assert [call.id for call in session.transport.calls] == [id]


def test_a_body_names_the_subject_with_what_the_configuration_fills_in():
    request = create_request(subject=Subject(agent="bot", tenant="other"))
    assert session_of(app="chat").body_of(request)["subject"] == {"tenant": "other", "app": "chat", "agent": "bot"}


def test_clients_that_share_connections_settle_for_themselves():
    transport = FakeTransport(replied(allowed()))
    with client_of("http://fake.invalid", transport=transport) as client:
        other = client.with_options(workflow="another")
        assert other._session.transport is client._session.transport
        assert settler_of(other._session) is settler_of(other._session) is not settler_of(client._session)


PLAIN = """
import sys
from cycles_lite import Action, Amount, CommitRequest, CyclesClient, CyclesConfig, ReservationCreateRequest
from cycles_lite.local import Authority

with Authority(sys.argv[1]) as authority:
    authority.set_budget("tenant:acme", Amount.tokens(100))
with CyclesClient(CyclesConfig(base_url=sys.argv[1], tenant="acme")) as client:
    request = ReservationCreateRequest(action=Action("a", "b"), estimate=Amount.tokens(10))
    client.commit_reservation(client.create_reservation(request).reservation_id, CommitRequest(Amount.tokens(7)))
    assert client._session.settler is None
print(*sorted(name for name in sys.modules if name.startswith("cycles_lite.")))
"""


def test_a_client_without_guards_loads_nothing_of_theirs(tmp_path):
    """Their modules would be a third of what its first commit costs."""
    command = [sys.executable, "-c", PLAIN, "sqlite:///" + str(tmp_path / "budgets.db").lstrip("/")]
    loaded = subprocess.check_output(command, timeout=60, universal_newlines=True).split()
    parts = {name.split(".")[1] for name in loaded}
    assert "session" in parts
    assert not parts & {"guard", "guards", "settlement", "background"}
