// An Express app that takes requests with the connector's secret alone. Culvert's connector sets the header on each request,
// after it removed whatever the caller sent under that name; nobody else on the network knows it.
//   ORIGIN_KEYS=NEW-SECRET,OLD-SECRET node express-shared-secret.js
'use strict';
const crypto = require('node:crypto');
const express = require('express');

// One secret; two while it changes, the new one and the one before. Hashed, because timingSafeEqual wants equal lengths.
const hash = (text) => crypto.createHash('sha256').update(text).digest();
const accepted = (process.env.ORIGIN_KEYS ?? '').split(',').filter(Boolean).map((key) => hash(`Bearer ${key}`));
if (accepted.length === 0) throw new Error('ORIGIN_KEYS is empty');

function throughCulvert(req, res, next) {
  const given = hash(req.get('authorization') ?? '');
  // All are compared, so that time tells nobody which one it was.
  const known = accepted.map((key) => crypto.timingSafeEqual(key, given)).includes(true);
  if (!known) return res.status(401).end();
  next();
}

const app = express();
app.use(throughCulvert);
app.use((req, res) => res.send('in\n'));
app.listen(Number(process.env.PORT ?? 3000), process.env.HOST ?? '127.0.0.1');
