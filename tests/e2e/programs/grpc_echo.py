"""A server of gRPC without generated code: messages are bytes as they are.

    grpc_echo.py ADDRESS

with `server.pem` and `server.key` in the current directory. Writes `up` on standard output,
and ends when standard input does. What a client may do is told by the variable VALUE.
"""

import concurrent.futures
import os
import sys

import grpc

VALUE = os.environ["VALUE"]


def who(_, context):
    """Whether the client may do what it wants to, once at the end as well."""
    metadata = dict(context.invocation_metadata())
    may = metadata.get("authorization") == "Bearer " + VALUE
    context.set_trailing_metadata([("granted", str(may)), ("bytes-bin", b"\0\xff")])
    return b"bearer" if may else b"nothing"


def wrong(message, context):
    context.set_trailing_metadata([("why-bin", b"\0because")])
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not " + message.decode())


def count(message, context):
    for number in range(int(message)):
        yield b"%d" % number
    context.set_trailing_metadata([("sent", message.decode())])


def total(messages, _):
    return b"%d" % sum(map(len, messages))


def echo(messages, _):
    yield from messages


METHODS = {
    "Who": grpc.unary_unary_rpc_method_handler(who),
    "Denied": grpc.unary_unary_rpc_method_handler(who),
    "Wrong": grpc.unary_unary_rpc_method_handler(wrong),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Total": grpc.stream_unary_rpc_method_handler(total),
    "Echo": grpc.stream_stream_rpc_method_handler(echo),
}


def main():
    with open("server.key", "rb") as key, open("server.pem", "rb") as certificate:
        pair = key.read(), certificate.read()
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
    handlers = grpc.method_handlers_generic_handler("test.Echo", METHODS)
    server.add_generic_rpc_handlers([handlers])
    server.add_secure_port(sys.argv[1], grpc.ssl_server_credentials([pair]))
    server.start()
    print("up", flush=True)
    sys.stdin.read()
    server.stop(None)


main()
