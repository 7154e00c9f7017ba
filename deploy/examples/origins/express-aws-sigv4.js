// An Express app that takes requests which Culvert's connector signed as AWS does (Signature Version 4) alone: for an origin that
// stands in for one of AWS, or that was written for its signatures. AWS's own services check them themselves.
//   AWS_ACCESS_KEY_ID=AKID… AWS_SECRET_ACCESS_KEY=… REGION=eu-central-1 SERVICE=execute-api node express-aws-sigv4.js
'use strict';
const crypto = require('node:crypto');

const AUTHORIZATION =
  /^AWS4-HMAC-SHA256 Credential=([^/,]+)\/([^,]+), ?SignedHeaders=([a-z0-9;._-]+), ?Signature=([0-9a-f]{64})$/;
const CLOCKS_DIFFER = 300;
const UNSIGNED = 'UNSIGNED-PAYLOAD';
const sha256 = (data) => crypto.createHash('sha256').update(data).digest('hex');
const hmac = (key, text) => crypto.createHmac('sha256', key).update(text).digest();
// As RFC 3986 says; encodeURIComponent leaves five more out.
const encode = (text) => encodeURIComponent(text).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);

const encodedAgain = (text) => encode(decodeURIComponent(text));

function canonicalPath(path, service) {
  // S3 takes paths as they are; elsewhere segments are encoded once more than they came, and steps in place are taken out.
  if (service === 's3') return path.split('/').map(encodedAgain).join('/');
  const kept = [];
  for (const segment of path.split('/')) {
    if (segment === '..') kept.pop();
    else if (segment !== '' && segment !== '.') kept.push(encode(segment));
  }
  return `/${kept.join('/')}${kept.length > 0 && path.endsWith('/') ? '/' : ''}`;
}

function canonicalQuery(query) {
  const pairs = query.split('&').filter(Boolean).map((pair) => {
    const [name, value = ''] = pair.replaceAll('+', ' ').split(/=(.*)/s);
    return [encodedAgain(name), encodedAgain(value)];
  });
  pairs.sort(([a, x], [b, y]) => (a < b || (a === b && x < y) ? -1 : 1));
  return pairs.map((pair) => pair.join('=')).join('&');
}

// Throws for whatever was not signed by these credentials for this service. After express.raw(): the bytes are in req.body.
function check(req, { id, secret, region, service, acceptsUnsigned }, now = Date.now() / 1000) {
  const [, by, scope, signed, signature] = AUTHORIZATION.exec(req.headers.authorization ?? '') ?? [];
  const stamp = req.headers['x-amz-date'] ?? '';
  const [, ...parts] = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/.exec(stamp) ?? [];
  const day = stamp.slice(0, 8);
  if (!signature || by !== id || scope !== `${day}/${region}/${service}/aws4_request`) {
    throw new Error('no signature, or of another key, for another place or another day');
  }
  const [year, month, ...rest] = parts.map(Number);
  const at = Date.UTC(year, month - 1, ...rest) / 1000;
  if (!(Math.abs(now - at) <= CLOCKS_DIFFER)) throw new Error('the signature is not valid now');
  const names = signed.split(';');
  if (!names.includes('host') || !names.includes('x-amz-date')) throw new Error('the signature leaves out what was asked for');
  const hash = sha256(Buffer.isBuffer(req.body) ? req.body : '');
  const hashed = req.headers['x-amz-content-sha256'] ?? hash;
  if (hashed !== hash && !(hashed === UNSIGNED && acceptsUnsigned)) throw new Error('the body is not what was signed');
  const [, path, query] = /^([^?]*)\??(.*)$/s.exec(req.originalUrl);
  const fields = names.map((name) => `${name}:${(req.headers[name] ?? '').trim().replace(/ +/g, ' ')}\n`).join('');
  const canonical = [req.method, canonicalPath(path, service), canonicalQuery(query), fields, signed, hashed].join('\n');
  const key = [day, region, service, 'aws4_request'].reduce(hmac, `AWS4${secret}`);
  const own = hmac(key, ['AWS4-HMAC-SHA256', stamp, scope, sha256(canonical)].join('\n'));
  if (!crypto.timingSafeEqual(own, Buffer.from(signature, 'hex'))) throw new Error('the signature is wrong');
}

module.exports = { check };

if (require.main === module) {
  const express = require('express');
  const { AWS_ACCESS_KEY_ID: id, AWS_SECRET_ACCESS_KEY: secret, REGION: region, SERVICE: service } = process.env;
  const acceptsUnsigned = 'ACCEPTS_UNSIGNED' in process.env;
  const app = express();
  // As it came: no encoding is taken off, and any type is read.
  app.use(express.raw({ type: () => true, limit: '1mb', inflate: false }));
  app.use((req, res, next) => {
    try {
      check(req, { id, secret, region, service, acceptsUnsigned });
    } catch (error) {
      console.error(String(error));
      return res.status(403).end();
    }
    next();
  });
  app.use((req, res) => res.send('in\n'));
  app.listen(Number(process.env.PORT ?? 3000), process.env.HOST ?? '127.0.0.1');
}
