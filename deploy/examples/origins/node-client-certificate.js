// A Node server (give `https.createServer` an Express app in the place of the function) that takes connections with the
// connector's certificate alone. make-certificates.sh makes the files.
//   CERTIFICATES=/etc/origin node node-client-certificate.js
'use strict';
const fs = require('node:fs');
const https = require('node:https');
const path = require('node:path');

const file = (name) => fs.readFileSync(path.join(process.env.CERTIFICATES ?? '.', name));
const options = {
  cert: file('origin.pem'),
  key: file('origin.key'),
  // The authority that signed the connector's certificate, and no other.
  ca: file('ca.pem'),
  requestCert: true,
  rejectUnauthorized: true,
  minVersion: 'TLSv1.3',
};

const server = https.createServer(options, (req, res) => {
  // The authority may have signed others too.
  const { subject } = req.socket.getPeerCertificate();
  if (subject?.CN !== 'connector') {
    res.writeHead(403).end();
    return;
  }
  res.end('in\n');
});
server.listen(Number(process.env.PORT ?? 3000), process.env.HOST ?? '127.0.0.1');
