#!/usr/bin/env python3
"""A WSGI middleware (Flask: app.wsgi_app = ThroughCulvert(app.wsgi_app, keys); Django: in wsgi.py) that takes requests with
the connector's secret alone. Culvert's connector sets the header on each request, after it removed whatever the caller sent
under that name, in every spelling that WSGI would take for the same one.

ORIGIN_KEYS=NEW-SECRET,OLD-SECRET python-shared-secret.py
"""

import hmac
import os
from wsgiref.simple_server import make_server


class ThroughCulvert:
    def __init__(self, app, keys):
        # One secret; two while it changes, the new one and the one before.
        self.app, self.accepted = app, [f"Bearer {key}".encode() for key in keys if key]
        if not self.accepted:
            raise ValueError("no key is accepted")

    def __call__(self, environ, start_response):
        given = environ.get("HTTP_AUTHORIZATION", "").encode("latin-1")
        # All are compared, so that time tells nobody which one it was.
        if not any([hmac.compare_digest(key, given) for key in self.accepted]):
            start_response("401 Unauthorized", [("Content-Length", "0")])
            return []
        return self.app(environ, start_response)


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"in\n"]


if __name__ == "__main__":
    guarded = ThroughCulvert(app, os.environ.get("ORIGIN_KEYS", "").split(","))
    make_server(os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "3000")), guarded).serve_forever()
