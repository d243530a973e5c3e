"""The CNI plugin: hand environment and standard input to the agent, print its answer, exit by its status.

It knows nothing of networks. What it answers by itself: VERSION; a broken environment; an agent that does not answer
(CNI error 11 "try again later", 50 for STATUS, and success for a DEL that finds no agent: the runtime removes the
namespace, the veth goes with it, and the agent learns that from the kernel). An agent that closes the connection
without an answer is asked again.

A container's start waits for every module imported here, and bare Python is most of the run time already. Hence only
modules that are part of the interpreter (`posix`, `_signal`, `_socket`): their public faces `os`, `signal` and `socket`
cost milliseconds, as do `json`, `typing`, `dataclasses` and even `__future__`.
"""

import _signal  # type: ignore[import-not-found]  # part of the interpreter, but unknown to typeshed
import _socket
import posix

SUPPORTED_VERSIONS = (b"0.3.1", b"0.4.0", b"1.0.0", b"1.1.0")
COMMANDS = (b"ADD", b"DEL", b"CHECK", b"STATUS", b"GC")

DEFAULT_SOCKET = b"/run/enoki/agent.sock"
CONNECT_TIMEOUT_S = 1.0
"""The kernel connects at once, unless the agent has not accepted anybody for thousands of connections."""
DEFAULT_TIMEOUT_S = 30.0
"""For the whole run. Above the time the agent lets an ADD wait for an address, so that its named cause gets out; below
the two minutes that kubelet gives the runtime."""
ASK_AGAIN_AFTER_S = (0.01, 0.04, 0.16, 0.32)
"""Pauses after connections that were closed without an answer. An agent that leaves takes its socket away meanwhile."""
MAX_STDIN_BYTES = 1_000_000
"""The agent takes 1 MiB for the whole request."""

FAILURE_LOG_SUFFIX = b".shim-log"
MAX_FAILURE_LOG_BYTES = 65536
"""The agent cannot log what does not reach it: a failure leaves a line beside its socket, which it reads later.
Bounded, because a runtime may try for ever."""

INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
UNDECODABLE = 6
TRY_AGAIN_LATER = 11
NOT_AVAILABLE = 50
INTERNAL = 999

_ESCAPES = {code: f"\\u{code:04x}" for code in range(32)} | {34: '\\"', 92: "\\\\"}


class Failure(Exception):
    """A CNI error this program reports by itself."""

    def __init__(self, code: int, msg: str) -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg


def run() -> None:
    """Do what CNI_COMMAND says and leave the process: status 0, or 1 with an error object on standard output."""
    stdin = b""

    def give_up(_number: int, _frame: object) -> None:
        # Leaves from wherever the alarm rings: raising could hit a handler of another exception.
        _fail(TRY_AGAIN_LATER, "the node agent did not answer in time", stdin)

    try:
        # With standard output closed the agent's socket would get its number, and the answer would go to the agent.
        posix.fstat(1)
        environ = posix.environ
        command = environ.get(b"CNI_COMMAND", b"")
        if command not in COMMANDS and command != b"VERSION":
            raise Failure(INVALID_ENVIRONMENT, "CNI_COMMAND must be ADD, DEL, CHECK, STATUS, GC or VERSION")
        timeout_s = _timeout_s(environ)
        _signal.signal(_signal.SIGALRM, give_up)
        _signal.setitimer(_signal.ITIMER_REAL, timeout_s)
        stdin = _read_stdin()
        if command == b"VERSION":
            _leave(0, version_object(stdin))
        request = build_request(command, environ, stdin, posix.urandom(6).hex().encode())
        status, body = _ask(environ.get(b"ENOKI_SOCKET") or DEFAULT_SOCKET, command, request)
        _leave(0 if 200 <= status < 300 else 1, body)
    except Failure as failure:
        _fail(failure.code, failure.msg, stdin)
    except Exception as bug:  # noqa: BLE001 - the runtime must read an error object, not a traceback
        _fail(INTERNAL, f"the plugin failed: {bug!r}", stdin)


def build_request(command: bytes, environ: dict[bytes, bytes], stdin: bytes, request_id: bytes) -> bytes:
    """The HTTP request. Standard input goes in untouched and last; the agent refuses whatever else it tries to be.

    Raises: Failure 4 when a variable is not UTF-8.
    """
    body = b'{"container_id":"%s","netns":"%s","ifname":"%s","args":"%s","config":%s}' % (
        _escaped(environ, b"CNI_CONTAINERID"),
        _escaped(environ, b"CNI_NETNS"),
        _escaped(environ, b"CNI_IFNAME"),
        _escaped(environ, b"CNI_ARGS"),
        stdin,
    )
    return (
        b"POST /v1/cni/%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
        b"X-Request-Id: %s\r\nContent-Length: %d\r\n\r\n%s" % (command.lower(), request_id, len(body), body)
    )


def parse_reply(reply: bytes) -> tuple[int, bytes] | None:
    """(HTTP status, body) of a whole reply, or None while some of it is missing.

    Raises: Failure 11 when it is not a reply of the agent.
    """
    head, separator, body = reply.partition(b"\r\n\r\n")
    if not (reply.startswith(b"HTTP/1.") or b"HTTP/1.".startswith(reply)):
        raise Failure(TRY_AGAIN_LATER, "whoever listens on the agent's socket does not speak HTTP")
    if not separator:
        return None
    status_line, *headers = head.split(b"\r\n")
    status = status_line[9:12]
    length_bytes = 0 if status == b"204" else None
    for header in headers:
        name, _, value = header.partition(b":")
        if name.lower() == b"content-length" and value.strip().isdigit():
            length_bytes = int(value)
    if length_bytes is None or len(status) != 3 or not status.isdigit() or len(body) > length_bytes:
        raise Failure(TRY_AGAIN_LATER, "the node agent's answer is malformed")
    if len(body) < length_bytes:
        return None
    if not status.startswith(b"2") and not body.startswith(b"{"):
        raise Failure(TRY_AGAIN_LATER, f"the node agent answered with HTTP status {status.decode()} and no CNI error")
    return int(status), body


def version_object(stdin: bytes) -> bytes:
    """The answer to VERSION, in the cniVersion that the runtime asked in (CNI spec 1.1, section 2)."""
    supported = b",".join(b'"%s"' % version for version in SUPPORTED_VERSIONS)
    return b'{"cniVersion":"%s","supportedVersions":[%s]}\n' % (cni_version(stdin), supported)


def error_object(code: int, msg: str, stdin: bytes) -> bytes:
    """An error object (CNI spec 1.1, section "Error")."""
    text = msg.translate(_ESCAPES).encode("utf-8", "replace")
    return b'{"cniVersion":"%s","code":%d,"msg":"%s"}\n' % (cni_version(stdin), code, text)


def cni_version(stdin: bytes) -> bytes:
    """The configuration's cniVersion when we speak it, otherwise our newest.

    Looks for the first `"cniVersion": "..."`, the configuration's own as libcni writes it (sorted members): good enough
    for an error object, and a JSON parser would cost more than the rest of this program.
    """
    rest = stdin.partition(b'"cniVersion"')[2][:64].lstrip()
    value = rest[1:].lstrip()
    if rest.startswith(b":"):
        for version in SUPPORTED_VERSIONS:
            if value.startswith(b'"%s"' % version):
                return version
    return SUPPORTED_VERSIONS[-1]


def _ask(path: bytes, command: bytes, request: bytes) -> tuple[int, bytes]:
    """(HTTP status, body) of the agent's answer.

    Asks again when the agent closes the connection without a byte of an answer: it was leaving, and another may be
    there already. Every command may be repeated (CNI spec 1.1: DEL, CHECK, STATUS and GC by themselves; ADD because the
    agent answers a second one with the first one's addresses). Bounded, because an agent may crash at every request.
    """
    for pause_s in ASK_AGAIN_AFTER_S:
        answer = _ask_once(path, command, request)
        if answer is not None:
            return answer
        # To wait for no signal, for so long: `time` is not part of the static executable (deploy/shim/enoki.c).
        _signal.sigtimedwait((), pause_s)
    raise Failure(TRY_AGAIN_LATER, "the node agent went away before it had answered")


def _ask_once(path: bytes, command: bytes, request: bytes) -> tuple[int, bytes] | None:
    """The answer; None when the connection was closed before any of it."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    # An alarm and not a socket timeout: that makes the socket non-blocking, and a non-blocking connect to a Unix socket
    # with a full queue fails at once.
    left_s = _signal.getitimer(_signal.ITIMER_REAL)[0]
    limit_s = min(CONNECT_TIMEOUT_S, left_s)
    _signal.setitimer(_signal.ITIMER_REAL, limit_s)
    try:
        sock.connect(path)
    except OSError as error:
        if command == b"DEL" and isinstance(error, FileNotFoundError | ConnectionRefusedError):
            return 204, b""
        code = NOT_AVAILABLE if command == b"STATUS" else TRY_AGAIN_LATER
        words = f"the node agent is not there: {path.decode('utf-8', 'replace')}: {error.strerror or error}"
        raise Failure(code, words) from error
    left_s -= limit_s - _signal.getitimer(_signal.ITIMER_REAL)[0]
    _signal.setitimer(_signal.ITIMER_REAL, max(left_s, 0.001))  # 0 would disarm it
    try:  # noqa: SIM105 - contextlib would cost half a millisecond
        sock.sendall(request)
    except OSError:
        # It may have answered before it had read everything; the answer, or its absence, tells.
        pass
    try:
        return _receive(sock)
    finally:
        sock.close()


def _receive(sock: _socket.socket) -> tuple[int, bytes] | None:
    reply = b""
    while True:
        try:
            chunk = sock.recv(65536)
        except OSError:
            chunk = b""
        reply += chunk
        parsed = parse_reply(reply)
        if parsed is not None:
            return parsed
        if not chunk:
            if not reply:
                return None
            raise Failure(TRY_AGAIN_LATER, "the node agent went away before it had answered")


def _read_stdin() -> bytes:
    data = b""
    while True:
        try:
            chunk = posix.read(0, 65536)
        except OSError as error:
            raise Failure(IO_FAILURE, f"cannot read standard input: {error.strerror}") from error
        if not chunk:
            return data
        data += chunk
        if len(data) > MAX_STDIN_BYTES:
            raise Failure(UNDECODABLE, f"the network configuration is larger than {MAX_STDIN_BYTES} bytes")


def _timeout_s(environ: dict[bytes, bytes]) -> float:
    text = environ.get(b"ENOKI_TIMEOUT_S")
    try:
        timeout_s = float(text) if text else DEFAULT_TIMEOUT_S
    except ValueError:
        timeout_s = 0.0
    if not 0.0 < timeout_s <= 3600.0:
        raise Failure(INVALID_ENVIRONMENT, "ENOKI_TIMEOUT_S must be a number of seconds, above 0 and at most 3600")
    return timeout_s


def _escaped(environ: dict[bytes, bytes], name: bytes) -> bytes:
    value = environ.get(name, b"")
    try:
        return value.decode("utf-8").translate(_ESCAPES).encode()
    except UnicodeDecodeError as error:
        raise Failure(INVALID_ENVIRONMENT, f"{name.decode()} is not UTF-8") from error


def failure_line(code: int, msg: str, environ: dict[bytes, bytes]) -> bytes:
    """What the agent is told later: one JSON object and a line feed. Of bounded length: 512 bytes of each text."""

    def said(text: bytes) -> bytes:
        return text[:512].decode("utf-8", "replace").translate(_ESCAPES).encode()

    return b'{"command":"%s","container_id":"%s","ifname":"%s","args":"%s","code":"%d","message":"%s"}\n' % (
        said(environ.get(b"CNI_COMMAND", b"")),
        said(environ.get(b"CNI_CONTAINERID", b"")),
        said(environ.get(b"CNI_IFNAME", b"")),
        said(environ.get(b"CNI_ARGS", b"")),
        code,
        said(msg.encode("utf-8", "replace")),
    )


def _fail(code: int, msg: str, stdin: bytes) -> None:
    environ = posix.environ
    if environ.get(b"CNI_COMMAND") == b"STATUS":
        # The runtime asks every few seconds, and reads the answer itself.
        _leave(1, error_object(code, msg, stdin))
    path = (environ.get(b"ENOKI_SOCKET") or DEFAULT_SOCKET) + FAILURE_LOG_SUFFIX
    try:
        # O_NOFOLLOW: the directory is root's, but a setting may point anywhere. One write of one line is atomic enough.
        file = posix.open(
            path, posix.O_WRONLY | posix.O_APPEND | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC, 0o600
        )
        if posix.fstat(file).st_size < MAX_FAILURE_LOG_BYTES:
            posix.write(file, failure_line(code, msg, environ))
    except (OSError, ValueError):
        # No directory, no room: the runtime is told all the same.
        pass
    _leave(1, error_object(code, msg, stdin))


def _leave(status: int, output: bytes) -> None:
    _signal.setitimer(_signal.ITIMER_REAL, 0)
    try:
        while output:
            output = output[posix.write(1, output) :]
    except OSError:
        # The runtime has closed the pipe: nobody must take this for a success.
        status = 1
    # Without the interpreter's clean-up, a sixth of the run time; there is nothing to clean up.
    posix._exit(status)  # noqa: SLF001 - its public name is in os
