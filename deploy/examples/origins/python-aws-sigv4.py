#!/usr/bin/env python3
"""A WSGI middleware that takes requests which Culvert's connector signed as AWS does (Signature Version 4) alone: for an origin
that stands in for one of AWS, or that was written for its signatures. AWS's own services check them themselves.

AWS_ACCESS_KEY_ID=AKID… AWS_SECRET_ACCESS_KEY=… REGION=eu-central-1 SERVICE=execute-api python-aws-sigv4.py
"""

import hashlib
import hmac
import io
import os
import re
import sys
from datetime import datetime, timedelta, timezone
from functools import reduce
from urllib.parse import quote, unquote_to_bytes
from wsgiref.simple_server import WSGIRequestHandler, make_server

AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/,]+)/([^,]+), ?SignedHeaders=([a-z0-9;._-]+), ?Signature=([0-9a-f]{64})"
)
CLOCKS_DIFFER = timedelta(minutes=5)
BODY_AT_MOST = 1 << 20
UNSIGNED = "UNSIGNED-PAYLOAD"


class Refused(Exception):
    pass


class ThroughCulvert:
    """accepts_unsigned: whether bodies may be others than those that were signed, where the connector leaves them out."""

    def __init__(self, app, key_id, secret, region, service, accepts_unsigned=False):
        self.app, self.id, self.secret, self.accepts_unsigned = app, key_id, secret, accepts_unsigned
        self.region, self.service = region, service

    def __call__(self, environ, start_response):
        try:
            self.check(environ, datetime.now(timezone.utc))
        except Refused as error:
            print(error, file=sys.stderr)
            start_response("403 Forbidden", [("Content-Length", "0")])
            return []
        return self.app(environ, start_response)

    def check(self, environ, now):
        given = AUTHORIZATION.fullmatch(environ.get("HTTP_AUTHORIZATION", ""))
        stamp = environ.get("HTTP_X_AMZ_DATE", "")
        day = stamp[:8]
        scope = f"{day}/{self.region}/{self.service}/aws4_request"
        if not given or given[1] != self.id or given[2] != scope:
            raise Refused("no signature, or of another key, for another place or another day")
        try:
            at = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
        except ValueError:
            raise Refused("no date") from None
        if abs(now - at) > CLOCKS_DIFFER:
            raise Refused("the signature is not valid now")
        names = given[3].split(";")
        if not {"host", "x-amz-date"}.issubset(names):
            raise Refused("the signature leaves out what was asked for")
        hashed = self.hash_of_body(environ)
        path, query = target(environ)
        fields = "".join(f"{name}:{field(environ, name)}\n" for name in names)
        path, query = canonical_path(path, self.service), canonical_query(query)
        canonical = "\n".join([environ["REQUEST_METHOD"], path, query, fields, given[3], hashed])
        text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode("latin-1")).hexdigest()])
        key = reduce(keyed, [day, self.region, self.service, "aws4_request"], b"AWS4" + self.secret.encode())
        if not hmac.compare_digest(keyed(key, text).hex(), given[4]):
            raise Refused("the signature is wrong")

    def hash_of_body(self, environ):
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if length > BODY_AT_MOST or "HTTP_TRANSFER_ENCODING" in environ:
            raise Refused("the body is too long to be checked, or says no length")
        body = environ["wsgi.input"].read(length)
        environ["wsgi.input"] = io.BytesIO(body)
        own = hashlib.sha256(body).hexdigest()
        said = environ.get("HTTP_X_AMZ_CONTENT_SHA256", own)
        if said != own and not (said == UNSIGNED and self.accepts_unsigned):
            raise Refused("the body is not what was signed")
        return said


def keyed(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def encoded(text):
    return quote(unquote_to_bytes(text), safe="-_.~")


def canonical_path(path, service):
    # S3 takes paths as they are; elsewhere segments are encoded once more than they came, and steps in place are taken out.
    if service == "s3":
        return "/".join(encoded(segment) for segment in path.split("/"))
    kept = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(quote(segment, safe="-_.~"))
    return "/" + "/".join(kept) + ("/" if kept and path.endswith("/") else "")


def canonical_query(query):
    pairs = [pair.replace("+", " ").partition("=") for pair in query.split("&") if pair]
    encoded_pairs = sorted((encoded(name), encoded(value)) for name, _, value in pairs)
    return "&".join(f"{name}={value}" for name, value in encoded_pairs)


def field(environ, name):
    upper = name.upper().replace("-", "_")
    value = environ.get(upper if upper in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{upper}", "")
    return re.sub(" +", " ", value.strip())


def target(environ):
    # Path and query as they came: PATH_INFO is decoded, servers tell them beside it (gunicorn, werkzeug, uWSGI).
    raw = environ.get("RAW_URI") or environ.get("REQUEST_URI") or quote(environ.get("PATH_INFO", ""))
    path, _, query = raw.partition("?")
    return path, query or environ.get("QUERY_STRING", "")


class Handler(WSGIRequestHandler):
    def get_environ(self):
        return {**super().get_environ(), "RAW_URI": self.path}


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"in\n"]


if __name__ == "__main__":
    have = os.environ
    guarded = ThroughCulvert(
        app,
        have["AWS_ACCESS_KEY_ID"],
        have["AWS_SECRET_ACCESS_KEY"],
        have["REGION"],
        have["SERVICE"],
        accepts_unsigned="ACCEPTS_UNSIGNED" in have,
    )
    make_server(have.get("HOST", "127.0.0.1"), int(have.get("PORT", "3000")), guarded, handler_class=Handler).serve_forever()
