#!/usr/bin/env node
// Checks Culvert's token with nothing but Node itself; in Express: app.use((req, res, next) => verify(...).then(...)).
// Run by itself it checks a token from standard input: verify-jwt.js ISSUER AUDIENCE
'use strict';
const crypto = require('node:crypto');

const HASH = { EdDSA: null, ES256: 'sha256', RS256: 'sha256' };

async function keysOf(issuer) {
  const document = await (await fetch(`${issuer}/.well-known/openid-configuration`)).json();
  if (document.issuer !== issuer) throw new Error("the discovery document is another issuer's");
  // Keep them, and fetch them again for a kid that is not among them.
  return (await (await fetch(document.jwks_uri)).json()).keys;
}

function verify(token, keys, issuer, audience, now = Date.now() / 1000) {
  const [head, claims, signature] = token.split('.');
  const { alg, kid } = JSON.parse(Buffer.from(head, 'base64url'));
  const jwk = keys.find((key) => key.kid === kid);
  // The key says what it is for, never the token.
  if (!jwk || jwk.alg !== alg || !(alg in HASH)) throw new Error('no such key');
  const key = { key: crypto.createPublicKey({ key: jwk, format: 'jwk' }), dsaEncoding: 'ieee-p1363' };
  if (!crypto.verify(HASH[alg], Buffer.from(`${head}.${claims}`), key, Buffer.from(signature, 'base64url'))) {
    throw new Error('the signature is wrong');
  }
  const said = JSON.parse(Buffer.from(claims, 'base64url'));
  if (said.iss !== issuer || said.aud !== audience) throw new Error('for somebody else, or by somebody else');
  // 60 s for clocks that differ.
  if (!(said.nbf <= now + 60 && now < said.exp + 60)) throw new Error('not valid now');
  return said;
}

module.exports = { keysOf, verify };

if (require.main === module) {
  const [issuer, audience] = process.argv.slice(2);
  const token = require('node:fs').readFileSync(0, 'utf8').trim();
  keysOf(issuer).then((keys) => console.log(JSON.stringify(verify(token, keys, issuer, audience)))).catch((error) => {
    console.error(String(error));
    process.exit(1);
  });
}
