// An Express app that takes requests which Culvert's connector signed (HTTP Message Signatures, RFC 9421) alone: with a secret
// that both know (hmac-sha256), or with a key whose public half this origin has (ed25519).
//   KEYS='["the secret", "the one before, while it changes"]' node express-http-signature.js    secrets, or public keys in PEM
// Where the connector's configuration says encoding = "base64", decode the secret here too.
'use strict';
const crypto = require('node:crypto');

// One signature, as the connector writes it: it removes whatever a caller signed. (components);created=…;keyid="…"
const INPUT = /^([a-z*][a-z0-9_.*-]*)=(\(((?:"[^"\\]+" ?)*)\)((?:;[a-z*][a-z0-9_.*-]*=(?:"[^"\\]*"|[0-9]+))*))$/;
const PARAM = /;([a-z*][a-z0-9_.*-]*)=(?:"([^"\\]*)"|([0-9]+))/g;
// What has to be signed, or else a signature that was seen once would be good for another request.
const COVERED = ['@method', '@authority', '@path', '@query'];
// Seconds that a signature is good for, and that clocks may differ.
const [LIFETIME, LEEWAY] = [300, 60];

// Components and parameters of a signature that is right. valueOf gives a component's value, or undefined.
function verified(signatureInput, signature, valueOf, keys) {
  const [, label, covered, list, rest] = INPUT.exec(signatureInput ?? '') ?? [];
  const prefix = `${label}=:`;
  if (!label || !signature?.startsWith(prefix) || !/^[A-Za-z0-9+/=]+:$/.test(signature.slice(prefix.length))) {
    throw new Error('no signature, or several');
  }
  const components = [...list.matchAll(/"([^"]+)"/g)].map((match) => match[1]);
  const params = Object.fromEntries([...rest.matchAll(PARAM)].map(([, name, text, number]) => [name, text ?? number]));
  const values = components.map(valueOf);
  if (values.includes(undefined) || new Set(components).size !== components.length) {
    throw new Error('what is signed is not there, or there twice');
  }
  const lines = components.map((name, at) => `"${name}": ${values[at]}\n`);
  const base = Buffer.from(`${lines.join('')}"@signature-params": ${covered}`, 'latin1');
  const given = Buffer.from(signature.slice(prefix.length, -1), 'base64');
  if (!keys.map((key) => isRight(key, base, given)).includes(true)) {
    throw new Error('the signature is wrong, or of an unknown key');
  }
  return { components, params };
}

function isRight(key, base, signature) {
  // The key says what it is for, never the signature.
  if (key.toString().startsWith('-----BEGIN PUBLIC KEY')) return crypto.verify(null, base, key, signature);
  const own = crypto.createHmac('sha256', key).update(base).digest();
  return own.length === signature.length && crypto.timingSafeEqual(own, signature);
}

// After express.raw(), which leaves the body's bytes in req.body.
function check(req, keys, now = Date.now() / 1000) {
  const [, path, query] = /^([^?]*)\??(.*)$/s.exec(req.originalUrl);
  const port = req.secure ? /:443$/ : /:80$/;
  const derived = {
    '@method': req.method,
    '@authority': (req.headers.host ?? '').toLowerCase().replace(port, ''),
    '@path': path,
    '@query': `?${query}`,
  };
  const valueOf = (name) => (name.startsWith('@') ? derived[name] : req.headers[name]);
  const { components, params } = verified(req.headers['signature-input'], req.headers.signature, valueOf, keys);
  const created = Number(params.created ?? 0);
  const end = Math.min(created + LIFETIME, Number(params.expires ?? Infinity)) + LEEWAY;
  if (!(created - LEEWAY <= now && now < end)) throw new Error('the signature is not valid now');
  if (!COVERED.every((name) => components.includes(name))) throw new Error('the signature leaves out what was asked for');
  if (req.body?.length > 0) {
    const digest = `sha-256=:${crypto.createHash('sha256').update(req.body).digest('base64')}:`;
    if (!components.includes('content-digest') || req.headers['content-digest'] !== digest) {
      throw new Error('the body is not what was signed');
    }
  }
  // Where a request must not be sent twice, remember params.nonce for as long as a signature is valid.
}

module.exports = { verified };

if (require.main === module) {
  const express = require('express');
  const keys = JSON.parse(process.env.KEYS);
  const app = express();
  // As it came: no encoding is taken off, and any type is read.
  app.use(express.raw({ type: () => true, limit: '1mb', inflate: false }));
  app.use((req, res, next) => {
    try {
      check(req, keys);
    } catch (error) {
      console.error(String(error));
      return res.status(401).end();
    }
    next();
  });
  app.use((req, res) => res.send('in\n'));
  app.listen(Number(process.env.PORT ?? 3000), process.env.HOST ?? '127.0.0.1');
}
