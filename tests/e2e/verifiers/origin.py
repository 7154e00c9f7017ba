"""An origin that lets in what another implementation finds to be signed, and nothing else.

origin.py http-signature ALGORITHM SCHEME KEYFILE...
origin.py sigv4 SERVICE REGION CREDENTIALSFILE

It says where it listens, and answers 200 with what came as JSON, or 403 with why. Key files are read at every request: PEM
of public keys, or base64 of secrets. The credentials file has an id, a secret and perhaps tokens that are good now, each on a line.
"""

import base64
import datetime
import hashlib
import hmac
import json
import pathlib
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

KIND, *ARGS = sys.argv[1:]


class Refused(Exception):
    pass


def http_signature(request, body):
    import http_message_signatures.algorithms as algorithms

    sys.path.insert(0, str(pathlib.Path(__file__).parents[3] / "deploy/examples/origins"))
    import verify_http_signature

    algorithm, scheme, *files = ARGS
    texts = [pathlib.Path(file).read_text() for file in files]
    keys = [text.encode() if "BEGIN" in text else base64.b64decode(text) for text in texts]
    request.url = f"{scheme}://{request.headers['host']}{request.target}"
    for name in ("signature", "signature-input", "content-digest"):
        if len(request.headers.get_all(name, [])) > 1:
            raise Refused(f"{name} more than once")
    result = verify_http_signature.verify(request, body, keys, getattr(algorithms, algorithm))
    return {"covered": result.covered_components, "parameters": result.parameters}


def sigv4(request, body):
    from botocore.auth import S3SigV4Auth, SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    service, region, file = ARGS
    own, secret, *tokens = pathlib.Path(file).read_text().split()
    said = request.headers.get_all("authorization", [])
    if len(said) != 1 or not said[0].startswith("AWS4-HMAC-SHA256 "):
        raise Refused(f"authorization: {said}")
    parts = dict(part.strip().split("=", 1) for part in said[0].split(" ", 1)[1].split(","))
    covered = parts["SignedHeaders"].split(";")
    names = {name.lower() for name in request.headers}
    needed = {name for name in names if name.startswith("x-amz-") or name in ("host", "content-type")} | {"x-amz-date"}
    if missing := needed - set(covered):
        raise Refused(f"not signed: {missing}")
    shown = request.headers.get_all("x-amz-security-token", [])
    if shown not in ([[token] for token in tokens] or [[]]):
        raise Refused("another session's token")
    stamp = request.headers["x-amz-date"]
    then = datetime.datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.timezone.utc)
    if abs(datetime.datetime.now(datetime.timezone.utc) - then) > datetime.timedelta(minutes=5):
        raise Refused(f"signed at {stamp}")
    signed = AWSRequest(method=request.method, url=f"https://{request.headers['host']}{request.target}", data=body)
    for name, value in request.headers.items():
        if name.lower() in covered:
            signed.headers.add_header(name, value)
    signed.context["timestamp"] = stamp
    auth = (S3SigV4Auth if service == "s3" else SigV4Auth)(Credentials(own, secret, *shown), service, region)
    if parts["Credential"] != auth.scope(signed):
        raise Refused(f"Credential={parts['Credential']} is not {auth.scope(signed)}")
    canonical = auth.canonical_request(signed)
    expected = auth.signature(auth.string_to_sign(signed, canonical), signed)
    if not hmac.compare_digest(parts["Signature"], expected):
        raise Refused(f"the signature is of another text than {canonical}")
    payload = request.headers["x-amz-content-sha256"]
    if payload == "STREAMING-AWS4-HMAC-SHA256-PAYLOAD":
        body = unchunked(request, body, auth, signed, expected)
    elif payload != "UNSIGNED-PAYLOAD" and payload != hashlib.sha256(body).hexdigest():
        raise Refused(f"the payload is not {payload}")
    return {"payload": payload, "covered": covered, "session": shown, "sha256": hashlib.sha256(body).hexdigest(), "length": len(body)}


def unchunked(request, body, auth, signed, before):
    """The body of a payload that is signed piece by piece, each checked."""
    key = f"AWS4{auth.credentials.secret_key}".encode()
    for part in auth.credential_scope(signed).split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    if not request.headers["content-encoding"].startswith("aws-chunked"):
        raise Refused("content-encoding")
    whole = b""
    while True:
        head, body = body.split(b"\r\n", 1)
        length, said = head.decode().split(";chunk-signature=")
        data, body = body[: int(length, 16)], body[int(length, 16) :]
        if body[:2] != b"\r\n":
            raise Refused("a piece of another length")
        text = "\n".join(
            [
                "AWS4-HMAC-SHA256-PAYLOAD",
                signed.context["timestamp"],
                auth.credential_scope(signed),
                before,
                hashlib.sha256(b"").hexdigest(),
                hashlib.sha256(data).hexdigest(),
            ]
        )
        before = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        if said != before:
            raise Refused("a piece's signature")
        body, whole = body[2:], whole + data
        if not data:
            break
    if body or len(whole) != int(request.headers["x-amz-decoded-content-length"]):
        raise Refused("x-amz-decoded-content-length")
    return whole


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.body()
        try:
            request = SimpleNamespace(method=self.command, target=self.path, headers=self.headers)
            said = {"http-signature": http_signature, "sigv4": sigv4}[KIND](request, body)
            said["fields"] = self.headers.items()
            status, text = 200, json.dumps(said)
        except Exception as why:
            status, text = 403, f"{type(why).__name__}: {why}"
        data = text.encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = answer

    def body(self):
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while length := int(self.rfile.readline(), 16):
            body += self.rfile.read(length)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(f"listening {server.server_address[1]}", flush=True)
server.serve_forever()
