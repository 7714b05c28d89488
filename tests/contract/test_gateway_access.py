"""Who may do what at the gateway: every role at every method, at every call anew."""

import contextlib
import socket
import ssl
import threading
import time
from datetime import timedelta

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from fedfactory.contracts.errors import (
    EnvironmentFailedError,
    FedfactoryError,
    IdentityError,
    IntegrityError,
    ProtocolError,
    RefusedError,
    UnknownNameError,
    UsageError,
)
from fedfactory.contracts.plans import Signature
from fedfactory.contracts.questions import (
    Answer,
    LogsRequest,
    Preflight,
    Query,
    SignedLogsRequest,
    SignedQuery,
)
from fedfactory.contracts.versions import check_versions, own_version
from fedfactory.coordinator.gateway.doorbells import MAX_QUESTIONS_PER_SITE
from fedfactory.coordinator.membership.registrar import issued
from fedfactory.identity.roles import Peer, Role
from fedfactory.wire.membership import (
    EnrolRequest,
    InviteRequest,
    MembersRequest,
    RenewRequest,
    RevokeRequest,
)
from fedfactory.wire.operations import (
    LogsOfSite,
    ModelRequest,
    ResumeRequest,
    RunsRequest,
    StopRequest,
    WatchRequest,
)
from fedfactory.wire.rpc import gateway_pb2 as pb
from fedfactory.wire.rpc.methods import METHODS
from fedfactory.wire.rpc.service import (
    CLOCK,
    VERSION,
    EnrolmentCalls,
    GatewayCalls,
    OperationsCalls,
)
from fedfactory.wire.tls import channel_credentials, open_channel
from tests.contract.gateway_rig import MIB, open_rig
from tests.patience import HANG_S, prompt, stretched, until

WHO = {Role.SITE: "cesga", Role.OPERATOR: "ana", Role.VIEWER: "eva", Role.INVITED: "newcomer"}
CESGA = Peer(role=Role.SITE, name="cesga")
ANA = Peer(role=Role.OPERATOR, name="ana")


@pytest.fixture
def rig(tmp_path):
    with open_rig(tmp_path) as rig:
        yield rig


@pytest.fixture
def ana(rig):
    with open_channel(rig.address, rig.enrol(Role.OPERATOR, "ana")) as channel:
        yield OperationsCalls(channel)


def raw(channel, method, message=b"", *, version=None):
    """One call of a method with raw bytes; return its status."""
    said = ((VERSION, own_version() if version is None else version),)
    call = channel.stream_stream(method.path)(iter([message]), metadata=said, timeout=HANG_S)
    try:
        for _ in call:
            call.cancel()
            return grpc.StatusCode.OK, ""
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def refused(call, *arguments):
    with pytest.raises(grpc.RpcError) as error:
        list(found) if hasattr(found := call(*arguments, timeout=HANG_S), "__next__") else None
    return error.value


# ---- roles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("role", WHO)
@pytest.mark.rule("36")
def test_every_method_asks_for_its_roles(rig, role):
    rig.admit("cesga")
    run = rig.run("cesga")
    run.order("cesga")
    with open_channel(rig.address, rig.enrol(role, WHO[role])) as channel:
        for method in METHODS:
            code, details = raw(channel, method)
            if role in method.roles:
                assert "may not make" not in details, method.path
            else:
                assert code is grpc.StatusCode.PERMISSION_DENIED, method.path
                assert details == f"a {role} may not make this call"
    assert rig.desk.asked == []
    assert run.server.waits("cesga") is (role is not Role.SITE)


def test_the_table_gives_each_role_what_it_needs_and_no_more():
    may = {role: {m.name for m in METHODS if role in m.roles} for role in Role}
    assert may[Role.INVITED] == {"Enrol"}
    assert may[Role.COORDINATOR] == set()
    assert may[Role.VIEWER] == {
        *("Download", "Renew", "ListRuns", "Watch", "FindModel", "ListMembers", "Check"),
    }
    assert not may[Role.SITE] & {"Submit", "Stop", "Revoke", "Invite", "ListMembers", "ListRuns"}
    assert not may[Role.OPERATOR] & {"FetchOrder", "SendReply", "Listen", "Answer", "Enrol"}


def test_every_method_of_the_contract_is_in_the_table():
    declared = {
        f"/{service.full_name}/{method.name}"
        for service in pb.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert declared == {m.path for m in METHODS if not m.path.startswith("/grpc.health")}


SIGNED = Signature(public_key="k", value="v")
WISHES = {
    "list_runs": RunsRequest(limit=3),
    "stop": StopRequest(run_id="r", mode="now"),
    "resume": ResumeRequest(run_id="r"),
    "logs": LogsOfSite(
        signed=SignedLogsRequest(
            request=LogsRequest(coordinator="c", run_id="r", site="s", nonce="n", not_after=1.0),
            signature=SIGNED,
        )
    ),
    "find_model": ModelRequest(run_id="r", round=None),
    "list_members": MembersRequest(),
    "revoke": RevokeRequest(role="site", name="s", reason="why", signed=None),
}


@pytest.mark.parametrize("name", WISHES)
def test_values_arrive_as_they_were_sent_with_who_sent_them(rig, ana, name):
    getattr(ana, name)(WISHES[name], timeout=HANG_S)
    assert rig.desk.asked == [(ANA, WISHES[name])]


def test_an_enrolment_comes_with_the_certificate_that_it_is_bound_to(rig):
    identity = rig.enrol(Role.INVITED, "newcomer")
    wanted = EnrolRequest(csr="csr")
    with open_channel(rig.address, identity) as channel:
        EnrolmentCalls(channel).enrol(wanted, timeout=HANG_S)
    ((peer, facts, value, version),) = rig.registrar.asked
    assert (peer.role, peer.name, value, version) == (
        Role.INVITED,
        "newcomer",
        wanted,
        own_version(),
    )
    assert facts == issued(identity.certificate_pem, rig.issuer).facts


def test_a_member_renews_by_its_own_certificate(rig):
    client = rig.admit("cesga")
    client.renew("csr")
    assert rig.registrar.asked[0][0] == CESGA
    assert rig.registrar.asked[0][2] == RenewRequest(csr="csr")


# ---- standing --------------------------------------------------------------------------------


def test_a_revoked_member_is_refused_at_its_next_call_by_name_of_the_reason(rig, ana):
    rig.enrol(Role.OPERATOR, "bob")
    ana.list_runs(RunsRequest(limit=1), timeout=HANG_S)
    rig.registry.revoke(ANA, by="bob", reason="left the project")
    error = refused(ana.list_runs, RunsRequest(limit=1))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert len(rig.desk.asked) == 1


def test_open_streams_of_a_revoked_member_end_at_once(rig, tmp_path):
    client, other = rig.admit("cesga"), rig.admit("lumi")
    bell, theirs = client.listen(), other.listen()
    next(bell), next(theirs)
    ref = rig.offer("cesga", bytes(32 * MIB))
    with open_channel(rig.address, rig.enrol(Role.SITE, "cesga")) as channel:
        download = GatewayCalls(channel).download(pb.DownloadRequest(digest=ref.digest))
        next(download)
        rig.registry.revoke(CESGA, by="ana", reason="lost its key")
        with prompt(2.0):
            rig.gateway.cut(CESGA)
            with pytest.raises(IdentityError, match="cut this member off"):
                list(bell)
            with pytest.raises(grpc.RpcError) as cut:
                list(download)
        assert cut.value.code() is grpc.StatusCode.CANCELLED
    with pytest.raises(IdentityError):
        next(client.listen())
    assert rig.gateway.connected() == ["lumi"]
    rig.gateway.ring("lumi")
    next(theirs)


def test_who_is_revoked_while_its_call_is_judged_is_cut_too(rig):
    """Heard by the registry, and cut off before the stream is open: it must not stay open."""
    rig.admit("cesga")
    door, stands = rig.gateway._door, rig.registry.standing

    def stands_for_the_last_time(peer, facts):
        stands(peer, facts)
        rig.registry.revoke(CESGA, by="ana", reason="lost its key")
        rig.gateway.cut(CESGA)

    door._standing = stands_for_the_last_time
    with open_channel(rig.address, rig.enrol(Role.SITE, "cesga")) as channel:
        bell = GatewayCalls(channel).listen(pb.ListenRequest(), timeout=HANG_S)
        with pytest.raises(grpc.RpcError) as cut:
            list(bell)
    assert cut.value.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.PERMISSION_DENIED)
    until(lambda: door.calls.count(CESGA) == 0)


def test_who_is_refused_has_no_call_open(rig, ana):
    rig.enrol(Role.OPERATOR, "bob")
    rig.registry.revoke(ANA, by="bob", reason="left the project")
    refused(ana.list_runs, RunsRequest(limit=1))
    until(lambda: rig.gateway._door.calls.count(ANA) == 0)


def test_a_watch_of_a_revoked_operator_ends(rig, ana):
    stream = ana.watch(WatchRequest(run_id="r", after=0, follow=True))
    next(stream)
    rig.gateway.cut(ANA)
    with pytest.raises(grpc.RpcError) as cut:
        list(stream)
    assert cut.value.code() is grpc.StatusCode.CANCELLED
    until(lambda: rig.gateway._door.calls.count(ANA) == 0)


def test_a_doorbell_ends_when_the_certificate_does(rig):
    identity = rig.enrol(Role.SITE, "cesga", lifetime=timedelta(seconds=stretched(4)))
    bell = rig.client(identity).listen()
    next(bell)
    with prompt(8.0), pytest.raises(IdentityError, match="expired"):
        list(bell)
    assert rig.gateway.connected() == []
    # TLS itself lets no new connection in; the one that is open is refused
    with pytest.raises(FedfactoryError):
        next(rig.client(identity).listen())


def test_a_certificate_that_the_registry_does_not_know_is_refused(rig):
    identity = rig.enrol(Role.SITE, "ghost", issuer=rig.issuer)
    with pytest.raises(IdentityError, match="registry"):
        next(rig.client(identity).listen())


def test_the_gateway_shows_a_renewed_certificate_without_a_restart(rig):
    before = rig.identity.certificate_pem
    assert shown(rig) in before.decode()
    rig.identity = rig.enrol(
        Role.COORDINATOR, "lead", hosts=("127.0.0.1", "localhost"), issuer=rig.issuer
    )
    assert shown(rig) in rig.identity.certificate_pem.decode()
    assert shown(rig) not in before.decode()
    next(rig.admit("cesga").listen())


def test_an_identity_that_cannot_be_read_leaves_the_one_before(rig):
    rig.gateway.stop()
    real = rig.identity
    failing = threading.Event()

    class Unreadable:
        def __get__(self, owner, kind):
            if failing.is_set():
                raise IdentityError("half written")
            return real

    kind = type("Half", (type(rig),), {"identity": Unreadable()})
    del rig.identity
    rig.__class__ = kind
    rig.start()
    failing.set()
    next(rig.admit("cesga").listen())


def shown(rig):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", rig.port)) as plain,
        context.wrap_socket(plain) as secure,
    ):
        return ssl.DER_cert_to_PEM_cert(secure.getpeercert(binary_form=True)).strip()


# ---- versions --------------------------------------------------------------------------------

MAJOR, MINOR = (int(part) for part in own_version().split(".")[:2])
SKEWED = ["", "1", "x.y", f"{MAJOR + 1}.{MINOR}.0", f"{MAJOR}.{MINOR + 2}.0", "9" * 500]


@pytest.mark.parametrize("version", SKEWED)
def test_a_version_too_far_apart_is_refused_with_a_sentence(rig, version):
    rig.admit("cesga")
    with open_channel(rig.address, rig.enrol(Role.SITE, "cesga")) as channel:
        for method in METHODS:
            if Role.SITE in method.roles and method.kind != "health":
                code, details = raw(channel, method, version=version)
                assert code is grpc.StatusCode.FAILED_PRECONDITION
                assert "version" in details


@pytest.mark.parametrize(
    "version", [f"{MAJOR}.{MINOR + 1}.0", f"{MAJOR}.{MINOR}.9rc1", f"{MAJOR}.{MINOR}+local.1"]
)
def test_a_neighbouring_version_is_heard(rig, version):
    rig.admit("cesga")
    listen = next(m for m in METHODS if m.name == "Listen")
    with open_channel(rig.address, rig.enrol(Role.SITE, "cesga")) as channel:
        assert raw(channel, listen, version=version) == (grpc.StatusCode.OK, "")


def test_a_site_refused_for_its_version_is_noted_until_it_fits(rig):
    rig.admit("cesga")
    listen = next(m for m in METHODS if m.name == "Listen")
    runs = next(m for m in METHODS if m.name == "ListRuns")
    with open_channel(rig.address, rig.enrol(Role.OPERATOR, "ana")) as channel:
        raw(channel, runs, version=f"{MAJOR}.{MINOR + 2}.0")
    with open_channel(rig.address, rig.enrol(Role.SITE, "cesga")) as channel:
        for version in (f"{MAJOR}.{MINOR + 2}.0", "9" * 500):
            raw(channel, listen, version=version)
            (site, noted) = next(iter(rig.gateway.skewed().items()))
            assert (site, noted.version) == ("cesga", version[:32])
            assert time.time() - noted.at < 30
        assert len(rig.gateway.skewed()) == 1
        raw(channel, listen)
        assert rig.gateway.skewed() == {}


def test_the_sentence_says_whose_turn_it_is():
    with pytest.raises(ProtocolError, match="bring yours up"):
        check_versions("0.3.1", "0.5.0")
    with pytest.raises(ProtocolError, match="bring the coordinator up"):
        check_versions("0.7.0", "0.5.0")
    check_versions("0.4.0", "0.5.0")
    check_versions("0.6.2.dev1", "0.5.0")


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_is_a_version_or_refused(theirs, ours):
    with contextlib.suppress(ProtocolError):
        check_versions(theirs, ours)


def test_the_gateway_tells_its_clock_and_version_also_when_it_refuses(rig):
    with open_channel(rig.address, rig.enrol(Role.VIEWER, "eva")) as channel:
        error = refused(OperationsCalls(channel).stop, WISHES["stop"])
    told = dict(error.trailing_metadata())
    assert told[VERSION] == own_version()
    assert abs(float(told[CLOCK]) - time.time()) < 5


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnknownNameError("run", "x", ["y"]), "NOT_FOUND"),
        (RefusedError("not now"), "FAILED_PRECONDITION"),
        (IdentityError("not yours"), "PERMISSION_DENIED"),
        (UsageError("not so"), "INVALID_ARGUMENT"),
        (ProtocolError("not of the form"), "INVALID_ARGUMENT"),
        (IntegrityError("other bytes"), "DATA_LOSS"),
        (EnvironmentFailedError("not there"), "UNAVAILABLE"),
    ],
)
def test_each_error_has_its_status_and_its_sentence(rig, ana, error, code):
    rig.desk.fails_with = error
    for call, wanted in (
        (ana.stop, WISHES["stop"]),
        (ana.watch, WatchRequest(run_id="r", after=0, follow=True)),
    ):
        told = refused(call, wanted)
        assert (told.code().name, told.details()) == (code, error.public_message)


def test_a_fault_of_ours_tells_nothing_of_it(rig, ana):
    told = refused(ana.invite, InviteRequest(role="site", name="x", lifetime_s=1.0))
    assert told.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in told.details()


def test_without_its_registry_the_gateway_lets_nobody_in_and_says_no_more(rig, ana):
    rig.registry.close()
    told = refused(ana.list_runs, RunsRequest(limit=1))
    assert told.code() is grpc.StatusCode.UNAVAILABLE
    assert "the consortium's registry" in told.details()
    assert ".sqlite" not in told.details()  # nor where it lies
    assert rig.desk.asked == []


# ---- limits ----------------------------------------------------------------------------------


def test_enrolment_is_tried_a_few_times_only(rig):
    wanted = EnrolRequest(csr="guess")
    with open_channel(rig.address, rig.enrol(Role.INVITED, "newcomer")) as channel:
        calls = EnrolmentCalls(channel)
        for _ in range(5):
            calls.enrol(wanted, timeout=HANG_S)
        assert refused(calls.enrol, wanted).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(rig.registrar.asked) == 5


def test_a_peer_that_hammers_is_held_back_and_nobody_else(rig, ana):
    with open_channel(rig.address, rig.enrol(Role.OPERATOR, "bob")) as channel:
        hammering = OperationsCalls(channel)
        codes = set()
        for _ in range(300):
            try:
                hammering.list_runs(RunsRequest(limit=1), timeout=HANG_S)
            except grpc.RpcError as error:
                codes.add(error.code())
    assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    ana.list_runs(RunsRequest(limit=1), timeout=HANG_S)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.path)
def test_a_message_beyond_its_methods_size_is_refused(rig, method):
    rig.admit("cesga")
    role = min(method.roles)
    with open_channel(rig.address, rig.enrol(role, WHO[role])) as channel:
        code, _ = raw(channel, method, bytes(method.max_bytes + 1))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


# ---- questions -------------------------------------------------------------------------------

QUESTION = SignedQuery(
    query=Query(site="cesga", signed=None, receipt=None, logs=WISHES["logs"].signed),
    signature=SIGNED,
)
FIT = Answer(preflight=Preflight(code="", version="1"), logs=None)


def in_thread(call):
    found = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    return thread, found


def test_a_question_rides_on_the_doorbell_and_its_answer_comes_back(rig):
    client = rig.admit("cesga")
    bell = client.listen()
    next(bell)
    thread, found = in_thread(lambda: rig.gateway.ask("cesga", QUESTION, 10))
    rung = next(bell)
    assert '"nonce":"n"' in rung.question
    client.answer(rung.question_id, FIT)
    thread.join(HANG_S)
    assert found == [FIT]
    client.answer(rung.question_id, FIT)  # late: nobody waits, nothing happens


def test_no_site_answers_for_another(rig):
    client, other = rig.admit("cesga"), rig.admit("lumi")
    bell = client.listen()
    next(bell)
    thread, found = in_thread(lambda: rig.gateway.ask("cesga", QUESTION, 10))
    rung = next(bell)
    other.answer(
        rung.question_id, Answer(preflight=Preflight(code="paused", version="1"), logs=None)
    )
    client.answer(rung.question_id, FIT)
    thread.join(HANG_S)
    assert found == [FIT]


def test_who_is_not_there_or_goes_or_is_silent_gives_no_answer(rig):
    client = rig.admit("cesga")
    assert rig.gateway.ask("cesga", QUESTION, 10) is None
    bell = client.listen()
    next(bell)
    with prompt(5):
        assert rig.gateway.ask("cesga", QUESTION, 0.1) is None
    thread, found = in_thread(lambda: rig.gateway.ask("cesga", QUESTION, 60))
    while not next(bell).question:
        pass
    client.close()
    thread.join(HANG_S)
    assert found == [None]
    assert rig.gateway._questions._pending == {}


def test_an_unreadable_answer_is_none_and_said_to_be_one(rig):
    client = rig.admit("cesga")
    bell = client.listen()
    next(bell)
    thread, found = in_thread(lambda: rig.gateway.ask("cesga", QUESTION, 10))
    rung = next(bell)
    with open_channel(rig.address, rig.enrol(Role.SITE, "cesga")) as channel:
        error = refused(
            GatewayCalls(channel).answer, pb.SiteAnswer(question_id=rung.question_id, answer=b"{}")
        )
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    thread.join(HANG_S)
    assert found == [None]


def test_questions_to_a_site_do_not_pile_up(rig):
    bell = rig.admit("cesga").listen()
    next(bell)
    asked = [
        in_thread(lambda: rig.gateway.ask("cesga", QUESTION, 2))
        for _ in range(MAX_QUESTIONS_PER_SITE)
    ]
    until(lambda: len(rig.gateway._questions._pending) == MAX_QUESTIONS_PER_SITE)
    with pytest.raises(EnvironmentFailedError, match="ask later"):
        rig.gateway.ask("cesga", QUESTION, 2)
    for thread, _ in asked:
        thread.join(HANG_S)


# ---- health ----------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [Role.SITE, Role.OPERATOR, Role.VIEWER])
def test_the_standard_health_service_is_open_to_every_member(rig, role):
    """By the stubs of grpcio-health-checking, which know nothing of us and say no version."""
    identity = rig.enrol(role, WHO[role])
    serving = health_pb2.HealthCheckResponse.SERVING
    with grpc.secure_channel(rig.address, channel_credentials(identity)) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "fedfactory.v1.Gateway", "fedfactory.v1.Operations"):
            request = health_pb2.HealthCheckRequest(service=service)
            assert stub.Check(request, timeout=HANG_S).status == serving
        error = refused(stub.Check, health_pb2.HealthCheckRequest(service="nothing"))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == serving
        rig.gateway.stop()
        assert [answer.status for answer in watch] == [health_pb2.HealthCheckResponse.NOT_SERVING]


def test_a_watcher_that_goes_is_let_go(rig):
    with grpc.secure_channel(
        rig.address, channel_credentials(rig.enrol(Role.VIEWER, "eva"))
    ) as channel:
        next(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()))
        eva = Peer(role=Role.VIEWER, name="eva")
        assert rig.gateway._door.calls.count(eva) == 1
    until(lambda: rig.gateway._door.calls.count(eva) == 0)
