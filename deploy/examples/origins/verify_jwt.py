#!/usr/bin/env python3
"""Checks Culvert's token with PyJWT (with cryptography, for its keys).

verify() is all that an origin needs. Run by itself it checks a token from standard input:
verify_jwt.py ISSUER AUDIENCE
"""

import json
import sys
import urllib.request

import jwt


def key_client(issuer):
    """Finds the keys as OpenID discovery says. Keep it: it keeps the keys, and fetches them again for a new one."""
    with urllib.request.urlopen(f"{issuer}/.well-known/openid-configuration", timeout=5) as answer:
        document = json.load(answer)
    if document["issuer"] != issuer:
        raise ValueError("the discovery document is another issuer's")
    return jwt.PyJWKClient(document["jwks_uri"])


def verify(token, keys, issuer, audience, method=None, path=None):
    """The claims. Raises jwt.InvalidTokenError for whatever did not come through the connector of this tunnel."""
    key = keys.get_signing_key_from_jwt(token).key
    claims = jwt.decode(
        token,
        key,
        # Never what the token itself asks for.
        algorithms=["EdDSA", "ES256", "RS256"],
        issuer=issuer,
        audience=audience,
        options={"require": ["iss", "sub", "aud", "iat", "nbf", "exp", "jti"]},
    )
    # With bind = "request" a token is for one method and path alone.
    for name, value in (("culvert_method", method), ("culvert_path", path)):
        if value is not None and claims.get(name) != value:
            raise jwt.InvalidTokenError(f"{name} is another")
    return claims


if __name__ == "__main__":
    ISSUER, AUDIENCE = sys.argv[1:3]
    print(json.dumps(verify(sys.stdin.read().strip(), key_client(ISSUER), ISSUER, AUDIENCE)))
