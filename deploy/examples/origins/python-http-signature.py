#!/usr/bin/env python3
"""A WSGI middleware that takes requests which Culvert's connector signed (HTTP Message Signatures, RFC 9421) alone: with a secret
that both know (hmac-sha256), or with a key whose public half this origin has (ed25519; needs the package cryptography).

KEYS='["the secret", "the one before, while it changes"]' python-http-signature.py     secrets, or public keys in PEM

Where the connector's configuration says encoding = "base64", decode the secret here too.
"""

import base64
import hashlib
import hmac
import io
import json
import os
import re
import sys
import time
from urllib.parse import quote
from wsgiref.simple_server import WSGIRequestHandler, make_server

# One signature, as the connector writes it: it removes whatever a caller signed. (components);created=…;keyid="…"
INPUT = re.compile(r'([a-z*][a-z0-9_.*-]*)=(\(((?:"[^"\\]+" ?)*)\)((?:;[a-z*][a-z0-9_.*-]*=(?:"[^"\\]*"|[0-9]+))*))')
PARAM = re.compile(r';([a-z*][a-z0-9_.*-]*)=(?:"([^"\\]*)"|([0-9]+))')
# What has to be signed, or else a signature that was seen once would be good for another request.
COVERED = {"@method", "@authority", "@path", "@query"}
# Seconds that a signature is good for, and that clocks may differ.
LIFETIME, LEEWAY = 300, 60
BODY_AT_MOST = 1 << 20


class Refused(Exception):
    pass


def verified(signature_input, signature, value_of, keys):
    """Components and parameters of a signature that is right. value_of gives a component's value, or None."""
    match = INPUT.fullmatch(signature_input)
    given = match and re.fullmatch(re.escape(match[1]) + r"=:([A-Za-z0-9+/=]+):", signature)
    if not given:
        raise Refused("no signature, or several")
    components = re.findall(r'"([^"]+)"', match[3])
    params = {name: text or number for name, text, number in PARAM.findall(match[4])}
    values = [value_of(name) for name in components]
    if None in values or len(set(components)) != len(components):
        raise Refused("what is signed is not there, or there twice")
    lines = [f'"{name}": {value}' for name, value in zip(components, values)]
    base = "\n".join([*lines, f'"@signature-params": {match[2]}']).encode("latin-1")
    if not any([is_right(key, base, base64.b64decode(given[1])) for key in keys]):
        raise Refused("the signature is wrong, or of an unknown key")
    return components, params


def is_right(key, base, signature):
    # The key says what it is for, never the signature.
    if not key.startswith(b"-----BEGIN PUBLIC KEY"):
        return hmac.compare_digest(hmac.new(key, base, hashlib.sha256).digest(), signature)
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        load_pem_public_key(key).verify(signature, base)
    except InvalidSignature:
        return False
    return True


class ThroughCulvert:
    def __init__(self, app, keys):
        self.app, self.keys = app, [key.encode() for key in keys]

    def __call__(self, environ, start_response):
        try:
            self.check(environ)
        except Refused as error:
            print(error, file=sys.stderr)
            start_response("401 Unauthorized", [("Content-Length", "0")])
            return []
        return self.app(environ, start_response)

    def check(self, environ):
        fields = (environ.get("HTTP_SIGNATURE_INPUT", ""), environ.get("HTTP_SIGNATURE", ""))
        components, params = verified(*fields, lambda name: value_of(environ, name), self.keys)
        now, created = time.time(), int(params.get("created") or 0)
        if not (created - LEEWAY <= now < min(created + LIFETIME, int(params.get("expires") or 1 << 60)) + LEEWAY):
            raise Refused("the signature is not valid now")
        if not COVERED.issubset(components):
            raise Refused("the signature leaves out what was asked for")
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if length > BODY_AT_MOST or "HTTP_TRANSFER_ENCODING" in environ:
            raise Refused("the body is too long to be checked, or says no length")
        if length:
            body = environ["wsgi.input"].read(length)
            environ["wsgi.input"] = io.BytesIO(body)
            digest = f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"
            if "content-digest" not in components or environ.get("HTTP_CONTENT_DIGEST") != digest:
                raise Refused("the body is not what was signed")
        # Where a request must not be sent twice, remember params["nonce"] for as long as a signature is valid.


def value_of(environ, name):
    # Path and query as they came: PATH_INFO is decoded, servers tell them beside it (gunicorn, werkzeug, uWSGI).
    raw = environ.get("RAW_URI") or environ.get("REQUEST_URI") or quote(environ.get("PATH_INFO", ""))
    path, _, query = raw.partition("?")
    port = ":443" if environ["wsgi.url_scheme"] == "https" else ":80"
    derived = {
        "@method": environ["REQUEST_METHOD"],
        "@authority": environ.get("HTTP_HOST", "").lower().removesuffix(port),
        "@path": path,
        "@query": f"?{query or environ.get('QUERY_STRING', '')}",
    }
    if name.startswith("@"):
        return derived.get(name)
    upper = name.upper().replace("-", "_")
    return environ.get(upper if upper in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{upper}")


class Handler(WSGIRequestHandler):
    def get_environ(self):
        return {**super().get_environ(), "RAW_URI": self.path}


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"in\n"]


if __name__ == "__main__":
    guarded = ThroughCulvert(app, json.loads(os.environ["KEYS"]))
    host, port = os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "3000"))
    make_server(host, port, guarded, handler_class=Handler).serve_forever()
