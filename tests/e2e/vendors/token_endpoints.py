"""Plays the token endpoints of Microsoft Entra ID and Google Cloud, and refuses whatever is not as they document it.

Signatures are checked by PyJWT and cryptography; our own tokens by the keys that the relay serves. What differs between a
vendor and this is what it costs. Usage: token_endpoints.py SETTINGS.json, where `listen` is the address; /play takes how it
is to behave from now on, /seen tells what was given out.
"""

import base64
import hashlib
import json
import sys
import threading
import time
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

SETTINGS = json.load(open(sys.argv[1]))
GOOGLE = rsa.generate_private_key(public_exponent=65537, key_size=2048)
LOCK = threading.Lock()
PLAY = {"status": 200, "delay": 0, "life": 3600, "secrets": ["first-secret"]}
SEEN = []
USED = set()


class Wrong(Exception):
    """What is not as documented."""


def demand(holds, what):
    if not holds:
        raise Wrong(what)


def exact(form, **expected):
    """Every field is there once and as documented, and there is no other; None: any value."""
    demand(set(form) == set(expected), f"fields {sorted(form)} and not {sorted(expected)}")
    for name, value in expected.items():
        demand(len(form[name]) == 1, f"{name} several times")
        demand(value is None or form[name][0] == value, f"{name} is {form[name][0]}")
    return {name: values[0] for name, values in form.items()}


def fresh(claims, longest):
    """A token that is valid now, not for long, and never seen before."""
    now = time.time()
    demand(claims["iat"] <= now + 5 and now < claims["exp"], "not valid now")
    demand(claims["exp"] - claims["iat"] <= longest, "valid for too long")


def once(claims):
    with LOCK:
        demand(claims["jti"] not in USED, "seen before")
        USED.add(claims["jti"])


def ours(token, audience):
    """A token of the connector's own, by the issuer's discovery document."""
    issuer = SETTINGS["issuer"]
    with urllib.request.urlopen(f"{issuer}/.well-known/openid-configuration", timeout=5) as answer:
        document = json.load(answer)
    demand(document["issuer"] == issuer, "another issuer's document")
    demand("RS256" in document["id_token_signing_alg_values_supported"], "Azure wants RS256")
    key = jwt.PyJWKClient(document["jwks_uri"]).get_signing_key_from_jwt(token).key
    need = {"require": ["iss", "sub", "aud", "iat", "nbf", "exp", "jti"]}
    claims = jwt.decode(token, key, algorithms=["RS256"], issuer=issuer, audience=audience, options=need)
    demand(claims["sub"] in SETTINGS["subjects"], f"sub is {claims['sub']}")
    fresh(claims, 600)
    once(claims)
    return claims["sub"]


def entra(form, url):
    common = {"grant_type": "client_credentials", "client_id": "app-1", "scope": "api://orders/.default"}
    if "client_secret" in form:
        said = exact(form, client_secret=None, **common)
        if said["client_secret"] not in PLAY["secrets"]:
            return 401, {"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided."}
        return bearer("secret:" + said["client_secret"])
    kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    token = exact(form, client_assertion=None, client_assertion_type=kind, **common)["client_assertion"]
    head = jwt.get_unverified_header(token)
    if "x5t#S256" not in head:
        return bearer("federated:" + ours(token, "api://AzureADTokenExchange"))
    certificate = x509.load_pem_x509_certificate(open(SETTINGS["certificate"], "rb").read())
    der = certificate.public_bytes(serialization.Encoding.DER)
    print_of = base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()
    demand(head == {"alg": "PS256", "typ": "JWT", "x5t#S256": print_of}, f"head {head}")
    claims = jwt.decode(token, certificate.public_key(), algorithms=["PS256"], audience=url, issuer="app-1")
    demand(set(claims) == {"aud", "iss", "sub", "jti", "iat", "nbf", "exp"}, f"claims {sorted(claims)}")
    demand(claims["sub"] == "app-1" and claims["nbf"] == claims["iat"], "sub or nbf")
    fresh(claims, 600)
    once(claims)
    return bearer("certificate")


def bearer(by):
    with LOCK:
        token = f"entra-{len(SEEN)}-{by.replace(':', '-').replace('/', '-')}"
    note(by, token)
    return 200, {"token_type": "Bearer", "expires_in": PLAY["life"], "ext_expires_in": PLAY["life"], "access_token": token}


def note(by, token):
    with LOCK:
        SEEN.append({"by": by, "token": token})


def id_token(audience, by):
    now = int(time.time())
    claims = {"iss": "https://accounts.google.com", "aud": audience, "sub": "1", "iat": now, "exp": now + PLAY["life"]}
    token = jwt.encode(claims, GOOGLE, algorithm="RS256", headers={"kid": "g1"})
    note(by, token)
    return token


def google_key(form, url):
    said = exact(form, grant_type="urn:ietf:params:oauth:grant-type:jwt-bearer", assertion=None)
    demand(jwt.get_unverified_header(said["assertion"]) == {"alg": "RS256", "kid": "k1", "typ": "JWT"}, "head")
    key = open(SETTINGS["google_public"], "rb").read()
    claims = jwt.decode(said["assertion"], key, algorithms=["RS256"], audience=url, issuer=SETTINGS["account"])
    demand(set(claims) == {"iss", "sub", "aud", "iat", "exp", "target_audience"}, f"claims {sorted(claims)}")
    demand(claims["sub"] == SETTINGS["account"], "sub")
    fresh(claims, 3600)
    return 200, {"id_token": id_token(claims["target_audience"], "key")}


def google_sts(form):
    token = exact(
        form,
        grant_type="urn:ietf:params:oauth:grant-type:token-exchange",
        audience="//iam.googleapis.com/" + SETTINGS["provider"],
        scope="https://www.googleapis.com/auth/cloud-platform",
        requested_token_type="urn:ietf:params:oauth:token-type:access_token",
        subject_token_type="urn:ietf:params:oauth:token-type:jwt",
        subject_token=None,
    )["subject_token"]
    ours(token, "https://iam.googleapis.com/" + SETTINGS["provider"])
    kind = "urn:ietf:params:oauth:token-type:access_token"
    return 200, {"access_token": "ya29.federal", "issued_token_type": kind, "token_type": "Bearer", "expires_in": 3600}


class Vendor(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body, kind="application/json"):
        text = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def play(self, asked):
        time.sleep(PLAY["delay"])
        if PLAY["status"] != 200:
            return self.answer(PLAY["status"], "<html>hidden-detail</html>", "text/html")
        try:
            self.answer(*asked())
        except (Wrong, KeyError, jwt.InvalidTokenError) as wrong:
            print(f"refused {self.path}: {wrong!r}", flush=True)
            self.answer(400, {"error": "invalid_request", "error_description": f"{wrong!r}"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        url = f"http://{SETTINGS['listen']}{self.path}"
        if self.path == "/play":
            PLAY.update(json.loads(body))
            return self.answer(200, {})
        if self.path == f"/v1/projects/-/serviceAccounts/{SETTINGS['account']}:generateIdToken":
            return self.play(lambda: self.generate(json.loads(body)))

        def asked():
            demand(self.headers["content-type"] == "application/x-www-form-urlencoded", "content-type")
            demand("authorization" not in self.headers, "Authorization")
            form = urllib.parse.parse_qs(body, keep_blank_values=True, strict_parsing=True)
            kinds = {
                "/tenant-1/oauth2/v2.0/token": lambda: entra(form, url),
                "/token": lambda: google_key(form, url),
                "/v1/token": lambda: google_sts(form),
            }
            demand(self.path in kinds, f"nothing at {self.path}")
            return kinds[self.path]()

        self.play(asked)

    def generate(self, said):
        demand(self.headers["authorization"] == "Bearer ya29.federal", "Authorization")
        demand(self.headers["content-type"] == "application/json", "content-type")
        demand(set(said) == {"audience", "includeEmail"} and said["includeEmail"] is True, f"{said}")
        return 200, {"token": id_token(said["audience"], "federation")}

    def do_GET(self):
        if self.path == "/seen":
            return self.answer(200, SEEN)

        def asked():
            parts = urllib.parse.urlsplit(self.path)
            demand(parts.path == "/computeMetadata/v1/instance/service-accounts/default/identity", parts.path)
            demand(self.headers["metadata-flavor"] == "Google", "Metadata-Flavor")
            said = exact(urllib.parse.parse_qs(parts.query, strict_parsing=True), audience=None, format="full")
            return 200, id_token(said["audience"], "metadata"), "text/html"

        self.play(asked)

    def log_message(self, *_):
        pass


HOST, PORT = SETTINGS["listen"].rsplit(":", 1)
SERVER = ThreadingHTTPServer((HOST, int(PORT)), Vendor)
print("vendor listens", flush=True)
SERVER.serve_forever()
