"""Checks Culvert's signature of a request (RFC 9421) with http-message-signatures (PyPI).

verify() is all that an origin needs.
"""

import datetime
from types import SimpleNamespace

from http_message_signatures import HTTPMessageVerifier, HTTPSignatureKeyResolver, InvalidSignature

# What must be covered whatever the signature itself says; the body is checked beside.
COVERED = ("@method", "@authority", "@path", "@query")


class _OneKey(HTTPSignatureKeyResolver):
    def __init__(self, key):
        self.key = key

    def resolve_public_key(self, key_id):
        return self.key


def verify(request, body, keys, algorithm):
    """What was signed. Raises InvalidSignature for whatever did not come through the connector.

    request has method, url (as the connector calls this server) and headers; keys are those that are good now: two while a
    secret is rotated. algorithm is HMAC_SHA256, ED25519 or ECDSA_P256_SHA256 of http_message_signatures.algorithms. Each
    signature has a nonce: keep those of the last five minutes if no request may ever come twice.
    """
    message = SimpleNamespace(method=request.method, url=request.url, headers=request.headers)
    failure = InvalidSignature("no key")
    for key in keys:
        verifier = HTTPMessageVerifier(signature_algorithm=algorithm, key_resolver=_OneKey(key))
        try:
            [result] = verifier.verify(
                message, max_age=datetime.timedelta(minutes=5), require_components=COVERED, body=body
            )
            return result
        except InvalidSignature as why:
            failure = why
    raise failure
