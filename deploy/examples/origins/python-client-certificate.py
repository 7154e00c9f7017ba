#!/usr/bin/env python3
"""A Python server that takes connections with the connector's certificate alone. make-certificates.sh makes the files. A server
before an application takes the same as options: gunicorn --ca-certs ca.pem --cert-reqs 2, uvicorn --ssl-ca-certs ca.pem
--ssl-cert-reqs 2.

CERTIFICATES=/etc/origin python-client-certificate.py
"""

import os
import ssl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def context(directory):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(f"{directory}/origin.pem", f"{directory}/origin.key")
    # The authority that signed the connector's certificate, and no other.
    context.load_verify_locations(f"{directory}/ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


class Origin(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # A connection that says nothing does not stay.
    timeout = 60

    def do_GET(self):
        # The authority may have signed others too.
        names = self.connection.getpeercert().get("subjectAltName", ())
        is_known = ("DNS", "connector") in names
        body = b"in\n" if is_known else b""
        self.send_response(200 if is_known else 403)
        # Python ends TLS without a word: only a length tells that an answer is whole.
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    server = ThreadingHTTPServer((os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "3000"))), Origin)
    # The handshake is each connection's own thread's: one that stalls holds up no other.
    tls = context(os.environ.get("CERTIFICATES", "."))
    server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()
