#!/usr/bin/env python3
"""A WSGI middleware (Flask: app.wsgi_app = ThroughCulvert(app.wsgi_app, …); Django: in wsgi.py) that takes requests with a
token of Culvert's connector alone, checked with PyJWT (and cryptography, for its keys). The relay serves the keys ([issuer]
in relay.toml); every tunnel is an issuer of its own, https://ITS-ISSUER/TUNNEL.

ISSUER=https://id.example.com/main AUDIENCE=reports-api python-jwt.py
Microsoft Entra ID and Google sign the same kind of token with keys of their own: README.md has their values.
"""

import os
import sys
from urllib.parse import quote
from wsgiref.simple_server import WSGIRequestHandler, make_server

import jwt


class ThroughCulvert:
    def __init__(self, app, issuer, audience, jwks_url=None, algorithms=None, bound=False, gateways=None):
        self.app, self.bound, self.gateways = app, bound, gateways
        # Fetched once, kept, and fetched again for a key that is not among them.
        self.keys = jwt.PyJWKClient(jwks_url or f"{issuer}/.well-known/jwks.json")
        self.checks = {
            "issuer": issuer,
            "audience": audience,
            # Never what the token itself asks for.
            "algorithms": algorithms or ["EdDSA", "ES256", "RS256"],
            # Seconds, for clocks that differ.
            "leeway": 60,
            "options": {"require": ["iss", "sub", "aud", "iat", "exp"]},
        }

    def __call__(self, environ, start_response):
        try:
            environ["culvert"] = self.claims(environ)
        except jwt.PyJWTError as error:
            print(error, file=sys.stderr)
            start_response("401 Unauthorized", [("Content-Length", "0")])
            return []
        return self.app(environ, start_response)

    def claims(self, environ):
        kind, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if kind != "Bearer":
            raise jwt.InvalidTokenError("no token")
        claims = jwt.decode(token, self.keys.get_signing_key_from_jwt(token).key, **self.checks)
        # Where the connector's configuration says bind = "request": a token is for one method and path alone.
        asked = (environ["REQUEST_METHOD"], path(environ))
        if self.bound and (claims.get("culvert_method"), claims.get("culvert_path")) != asked:
            raise jwt.InvalidTokenError("the token is for another request")
        # Where not every gateway of the relay may call.
        if self.gateways and claims.get("culvert_gateway") not in self.gateways:
            raise jwt.InvalidTokenError("the token is for another gateway")
        return claims


def path(environ):
    """Path and query as they came: servers tell them beside PATH_INFO, which is decoded (gunicorn, werkzeug, uWSGI)."""
    raw = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    query = environ.get("QUERY_STRING")
    return raw or quote(environ.get("PATH_INFO", "")) + (f"?{query}" if query else "")


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
        have["ISSUER"],
        have["AUDIENCE"],
        have.get("JWKS_URL"),
        algorithms=have["ALGORITHMS"].split(",") if "ALGORITHMS" in have else None,
        bound="BOUND" in have,
        gateways=have["GATEWAYS"].split(",") if "GATEWAYS" in have else None,
    )
    make_server(have.get("HOST", "127.0.0.1"), int(have.get("PORT", "3000")), guarded, handler_class=Handler).serve_forever()
