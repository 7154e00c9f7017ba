"""A gRPC origin: echoes, streams, fails on purpose, and remembers which calls ended before they were answered.

Messages are plain bytes, so that nothing has to be generated. Listens at its argument, or at a free port of 127.0.0.1;
writes `listening PORT` once.
"""

import sys
import threading
from concurrent import futures

import grpc

ANY_SIZE = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

running = set()
ended_early = {}
lock = threading.Lock()


def unary(request, context):
    context.set_trailing_metadata((("x-trailing", "after"),))
    return request


def gather(requests, context):
    sizes = [len(request) for request in requests]
    return f"{len(sizes)} {sum(sizes)}".encode()


def spread(request, context):
    count, size = map(int, request.split())
    for number in range(count):
        yield str(number).encode().ljust(size, b".")


def echo(requests, context):
    for request in requests:
        yield request


def metadata(request, context):
    sent = [(key, value) for key, value in context.invocation_metadata() if key.startswith("x-")]
    context.send_initial_metadata((("x-initial", "before"), ("x-bytes-bin", b"\x00\xff\x80")))
    context.set_trailing_metadata((("x-trailing", "after"), ("x-bytes-bin", b"\xfe\x00")))
    return repr(sent).encode()


def fail(request, context):
    context.set_trailing_metadata((("grpc-status-details-bin", b"\x08\x09\x12\x03why"), ("x-order", "42")))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no order 42: 100 % sûr")


def fail_later(request, context):
    yield b"one"
    yield b"two"
    context.set_trailing_metadata((("x-order", "43"),))
    context.abort(grpc.StatusCode.DATA_LOSS, "lost after two")


def begin(key, context):
    """Notes a call that waits for its own end."""
    done = threading.Event()
    with lock:
        running.add(key)

    def end():
        with lock:
            running.discard(key)
            ended_early[key] = True
        done.set()

    context.add_callback(end)
    return done


def wait(request, context):
    begin(request.decode(), context).wait(60)
    return b"waited in vain"


def wait_streaming(request, context):
    done = begin(request.decode(), context)
    yield b"first"
    done.wait(60)


def wait_talking(requests, context):
    done = begin(next(requests).decode(), context)
    yield b"first"
    done.wait(60)


def state(request, context):
    key = request.decode()
    with lock:
        return b"running" if key in running else b"ended" if key in ended_early else b"unknown"


METHODS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Gather": grpc.stream_unary_rpc_method_handler(gather),
    "Spread": grpc.unary_stream_rpc_method_handler(spread),
    "Echo": grpc.stream_stream_rpc_method_handler(echo),
    "Metadata": grpc.unary_unary_rpc_method_handler(metadata),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "FailLater": grpc.unary_stream_rpc_method_handler(fail_later),
    "Wait": grpc.unary_unary_rpc_method_handler(wait),
    "WaitStreaming": grpc.unary_stream_rpc_method_handler(wait_streaming),
    "WaitTalking": grpc.stream_stream_rpc_method_handler(wait_talking),
    "State": grpc.unary_unary_rpc_method_handler(state),
}

if __name__ == "__main__":
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=64), options=ANY_SIZE)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("culvert.test.Orders", METHODS),))
    port = server.add_insecure_port(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:0")
    server.start()
    print(f"listening {port}", flush=True)
    sys.stdin.read()
    server.stop(0)
