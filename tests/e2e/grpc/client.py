"""A gRPC caller: `client.py TARGET AUTHORITY SCENARIO...`, one `ok SCENARIO` line each, or a traceback and status 1.

`GRPC_TRUSTS` names a certificate: then it speaks TLS and believes that one alone."""

import ast
import os
import queue
import sys
import threading
import time
import uuid

import grpc

TARGET, AUTHORITY = sys.argv[1:3]
# What a call may take before it counts as lost; no scenario is about speed.
PATIENCE = 30

OPTIONS = [
    ("grpc.default_authority", AUTHORITY),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
]
if "GRPC_TRUSTS" in os.environ:
    with open(os.environ["GRPC_TRUSTS"], "rb") as trusted:
        trust = grpc.ssl_channel_credentials(trusted.read())
    channel = grpc.secure_channel(TARGET, trust, OPTIONS + [("grpc.ssl_target_name_override", AUTHORITY)])
else:
    channel = grpc.insecure_channel(TARGET, OPTIONS)


def path(method):
    return f"/culvert.test.Orders/{method}"


def error_of(call):
    """The error that a call ends with."""
    try:
        result = call()
        if hasattr(result, "__next__"):
            result = list(result)
    except grpc.RpcError as error:
        return error
    raise AssertionError(f"no error, but {result!r}")


def expect(seen, wanted):
    assert seen == wanted, f"{seen!r} is not {wanted!r}"


def until_state(key, wanted):
    ask = channel.unary_unary(path("State"))
    end = time.monotonic() + PATIENCE
    seen = None
    while time.monotonic() < end:
        seen = ask(key.encode(), timeout=PATIENCE)
        if seen == wanted:
            return
        time.sleep(0.02)
    raise AssertionError(f"the server says {seen!r} of {key}, not {wanted!r}")


def unary():
    answer, call = channel.unary_unary(path("Unary")).with_call(b"hello", timeout=PATIENCE)
    expect(answer, b"hello")
    expect(call.code(), grpc.StatusCode.OK)
    expect(dict(call.trailing_metadata())["x-trailing"], "after")
    expect(channel.unary_unary(path("Unary"))(b"", timeout=PATIENCE), b"")
    packed = channel.unary_unary(path("Unary"))(b"z" * 10000, timeout=PATIENCE, compression=grpc.Compression.Gzip)
    expect(packed, b"z" * 10000)


def client_streaming():
    messages = (b"x" * size for size in range(500))
    expect(channel.stream_unary(path("Gather"))(messages, timeout=PATIENCE), b"500 124750")
    expect(channel.stream_unary(path("Gather"))(iter(()), timeout=PATIENCE), b"0 0")


def server_streaming():
    answers = list(channel.unary_stream(path("Spread"))(b"500 300", timeout=PATIENCE))
    expect(len(answers), 500)
    for number, answer in enumerate(answers):
        expect(answer, str(number).encode().ljust(300, b"."))
    expect(list(channel.unary_stream(path("Spread"))(b"0 0", timeout=PATIENCE)), [])


def bidirectional():
    """In lockstep: the next message is sent only when the last one came back, so nothing may wait for anything."""
    to_send = queue.Queue()
    answers = channel.stream_stream(path("Echo"))(iter(to_send.get, None), timeout=PATIENCE)
    for number in range(100):
        message = f"{number}".encode() * (number + 1)
        to_send.put(message)
        expect(next(answers), message)
    to_send.put(None)
    expect(list(answers), [])
    expect(answers.code(), grpc.StatusCode.OK)


def metadata():
    sent = (("x-one", "1"), ("x-one", "2"), ("x-raw-bin", b"\x00\x01\xff"))
    answer, call = channel.unary_unary(path("Metadata")).with_call(b"", timeout=PATIENCE, metadata=sent)
    seen = [pair for pair in ast.literal_eval(answer.decode()) if pair[0] in ("x-one", "x-raw-bin")]
    expect(seen, list(sent))
    expect(dict(call.initial_metadata())["x-initial"], "before")
    expect(dict(call.initial_metadata())["x-bytes-bin"], b"\x00\xff\x80")
    expect(dict(call.trailing_metadata())["x-bytes-bin"], b"\xfe\x00")


def error_in_trailers():
    error = error_of(lambda: channel.unary_unary(path("Fail"))(b"", timeout=PATIENCE))
    expect(error.code(), grpc.StatusCode.FAILED_PRECONDITION)
    expect(error.details(), "no order 42: 100 % sûr")
    trailing = dict(error.trailing_metadata())
    expect(trailing["grpc-status-details-bin"], b"\x08\x09\x12\x03why")
    expect(trailing["x-order"], "42")
    missing = error_of(lambda: channel.unary_unary(path("Missing"))(b"", timeout=PATIENCE))
    expect(missing.code(), grpc.StatusCode.UNIMPLEMENTED)


def error_after_messages():
    answers = channel.unary_stream(path("FailLater"))(b"", timeout=PATIENCE)
    expect([next(answers), next(answers)], [b"one", b"two"])
    error = error_of(lambda: next(answers))
    expect(error.code(), grpc.StatusCode.DATA_LOSS)
    expect(error.details(), "lost after two")
    expect(dict(error.trailing_metadata())["x-order"], "43")


def large_message():
    message = bytes(range(256)) * (16 << 12)
    expect(channel.unary_unary(path("Unary"))(message, timeout=PATIENCE), message)


def many_at_once():
    pending = [channel.unary_unary(path("Unary")).future(f"{n}".encode(), timeout=PATIENCE) for n in range(200)]
    for number, call in enumerate(pending):
        expect(call.result(), f"{number}".encode())


def deadline():
    key = uuid.uuid4().hex
    error = error_of(lambda: channel.unary_unary(path("Wait"))(key.encode(), timeout=1))
    expect(error.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
    until_state(key, b"ended")


def cancelled_unary():
    key = uuid.uuid4().hex
    call = channel.unary_unary(path("Wait")).future(key.encode())
    until_state(key, b"running")
    call.cancel()
    until_state(key, b"ended")


def cancelled_streaming():
    key = uuid.uuid4().hex
    answers = channel.unary_stream(path("WaitStreaming"))(key.encode())
    expect(next(answers), b"first")
    answers.cancel()
    until_state(key, b"ended")


def cancelled_talking():
    key = uuid.uuid4().hex
    never = threading.Event()

    def talk():
        yield key.encode()
        never.wait(PATIENCE)

    answers = channel.stream_stream(path("WaitTalking"))(talk())
    expect(next(answers), b"first")
    answers.cancel()
    until_state(key, b"ended")
    never.set()


def slow_reader_beside_others():
    """Answers that nobody reads hold up nobody else on the same connection."""
    unread = channel.unary_stream(path("Spread"))(b"400 100000")
    next(unread)
    for _ in range(20):
        unary()
    unread.cancel()


def unavailable():
    error = error_of(lambda: channel.unary_unary(path("Unary"))(b"", timeout=PATIENCE))
    expect(error.code(), grpc.StatusCode.UNAVAILABLE)
    error = error_of(lambda: channel.stream_stream(path("Echo"))(iter((b"a", b"b")), timeout=PATIENCE))
    expect(error.code(), grpc.StatusCode.UNAVAILABLE)


def unauthenticated():
    error = error_of(lambda: channel.unary_unary(path("Unary"))(b"", timeout=PATIENCE))
    expect(error.code(), grpc.StatusCode.UNAUTHENTICATED)


def no_such_service():
    error = error_of(lambda: channel.unary_unary(path("Unary"))(b"", timeout=PATIENCE))
    expect(error.code(), grpc.StatusCode.UNIMPLEMENTED)


for name in sys.argv[3:]:
    globals()[name]()
    print(f"ok {name}", flush=True)
channel.close()
