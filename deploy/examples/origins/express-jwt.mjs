// An Express app that takes requests with a token of Culvert's connector alone, checked with jose. The relay serves the keys
// ([issuer] in relay.toml); every tunnel is an issuer of its own, https://ITS-ISSUER/TUNNEL.
//   ISSUER=https://id.example.com/main AUDIENCE=reports-api node express-jwt.mjs
// Microsoft Entra ID and Google sign the same kind of token with keys of their own: README.md has their values.
import express from 'express';
import { createRemoteJWKSet, jwtVerify } from 'jose';

const { ISSUER, AUDIENCE, JWKS_URL, BOUND, GATEWAYS } = process.env;
// Without these two jose would check neither.
if (!ISSUER || !AUDIENCE) throw new Error('ISSUER and AUDIENCE are needed');
// Fetched once, kept, and fetched again for a key that is not among them.
const keys = createRemoteJWKSet(new URL(JWKS_URL ?? `${ISSUER}/.well-known/jwks.json`));
const checks = {
  issuer: ISSUER,
  audience: AUDIENCE,
  // Never what the token itself asks for.
  algorithms: (process.env.ALGORITHMS ?? 'EdDSA,ES256,RS256').split(','),
  requiredClaims: ['exp', 'iat', 'sub'],
  // Seconds, for clocks that differ.
  clockTolerance: 60,
};

async function throughCulvert(req, res, next) {
  try {
    const [, token] = /^Bearer (\S+)$/.exec(req.get('authorization') ?? '') ?? [];
    const { payload } = await jwtVerify(token ?? '', keys, checks);
    // BOUND=yes where the connector's configuration says bind = "request": a token is for one method and path alone.
    if (BOUND && (payload.culvert_method !== req.method || payload.culvert_path !== req.originalUrl)) {
      throw new Error('the token is for another request');
    }
    // GATEWAYS=kong,nginx where not every gateway of the relay may call.
    if (GATEWAYS && !GATEWAYS.split(',').includes(payload.culvert_gateway)) {
      throw new Error('the token is for another gateway');
    }
    req.culvert = payload;
  } catch (error) {
    console.error(String(error));
    return res.status(401).end();
  }
  next();
}

const app = express();
app.use(throughCulvert);
app.use((req, res) => res.send('in\n'));
app.listen(Number(process.env.PORT ?? 3000), process.env.HOST ?? '127.0.0.1');
