//! A short-lived token (RFC 7519) by which an origin knows that a request came through this connector, and which gateway's.
//!
//! Must never let a request pass without one, or one live longer than was asked for.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use culvert_hop::fault::Fault;
use culvert_hop::message::RequestParts;
use culvert_model::proof::Algorithm;
use http::{HeaderName, HeaderValue};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{About, Proofs, cannot, jws};

/// Claims that are ours to make.
pub const OWN_CLAIMS: [&str; 10] =
    ["iss", "sub", "aud", "iat", "nbf", "exp", "jti", "culvert_method", "culvert_path", "culvert_gateway"];

/// What `[service.auth]` of type `jwt` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtSettings {
    /// What it is signed with.
    pub algorithm: Algorithm,
    /// `aud`.
    pub audience: String,
    /// `iss`; none: as the relay told.
    pub issuer: Option<String>,
    /// `sub`; none: the tunnel's name, a slash, and the service's.
    pub subject: Option<String>,
    /// From `iat` to `exp`.
    pub lifetime: Duration,
    /// The field that it goes in.
    pub header: HeaderName,
    /// What stands before it there.
    pub prefix: String,
    /// Whether each request gets its own, for its method and path alone.
    pub is_bound: bool,
    /// More claims.
    pub claims: Map<String, Value>,
}

/// Gateways whose tokens are kept: past so many all are made anew.
const KEPT: usize = 256;

/// Makes tokens for one service.
pub struct Jwt {
    settings: JwtSettings,
    /// By gateway; nobody's is under the empty name.
    cached: Mutex<BTreeMap<Box<str>, Cached>>,
}

struct Cached {
    value: HeaderValue,
    /// [`Proofs::version`]
    version: u64,
    made: SystemTime,
}

impl Jwt {
    /// With nothing made yet.
    pub const fn new(settings: JwtSettings) -> Self {
        Self { settings, cached: Mutex::new(BTreeMap::new()) }
    }

    /// What it signs with.
    pub const fn algorithm(&self) -> Algorithm {
        self.settings.algorithm
    }

    /// The field that tokens go in.
    pub const fn header(&self) -> &HeaderName {
        &self.settings.header
    }

    /// Puts a token into the request. The policy of the service has taken out whatever was there.
    ///
    /// # Errors
    /// A [`Fault`] `origin_auth`.
    pub fn prove(
        &self,
        parts: &mut RequestParts,
        about: About<'_>,
        proofs: &Proofs,
        now: SystemTime,
    ) -> Result<(), Fault> {
        let value = match self.settings.is_bound {
            true => field(&self.mint(Some(parts), about, proofs, now)?)?,
            false => self.cached(about, proofs, now)?,
        };
        parts.headers.append(self.settings.header.clone(), value);
        Ok(())
    }

    /// A token by itself, for whoever gives something else for it.
    ///
    /// # Errors
    /// A [`Fault`] `origin_auth`.
    pub fn token(&self, about: About<'_>, proofs: &Proofs, now: SystemTime) -> Result<Zeroizing<String>, Fault> {
        self.mint(None, about, proofs, now)
    }

    /// Whether it names an issuer of its own.
    pub const fn names_issuer(&self) -> bool {
        self.settings.issuer.is_some()
    }

    fn cached(&self, about: About<'_>, proofs: &Proofs, now: SystemTime) -> Result<HeaderValue, Fault> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let version = proofs.version();
        let caller = about.caller.unwrap_or_default();
        if let Some(Cached { value, version: of, made }) = cached.get(caller)
            && *of == version
            // Half of its life is left for the way and for clocks; a clock that went back makes another.
            && now.duration_since(*made).is_ok_and(|age| age < self.settings.lifetime / 2)
        {
            return Ok(value.clone());
        }
        let value = field(&self.mint(None, about, proofs, now)?)?;
        if cached.len() >= KEPT {
            cached.clear();
        }
        cached.insert(caller.into(), Cached { value: value.clone(), version, made: now });
        Ok(value)
    }

    fn mint(
        &self,
        parts: Option<&RequestParts>,
        About { service, caller, .. }: About<'_>,
        proofs: &Proofs,
        now: SystemTime,
    ) -> Result<Zeroizing<String>, Fault> {
        let settings = &self.settings;
        let issuer = settings.issuer.as_deref().map(Into::into).or_else(|| proofs.issuer());
        let issuer = issuer.ok_or_else(|| {
            cannot("no issuer: the relay has none ([issuer] url), and issuer in [service.auth] names none")
        })?;
        let subject = match &settings.subject {
            Some(subject) => subject.clone(),
            None => match proofs.tunnel() {
                Some(tunnel) => format!("{tunnel}/{service}"),
                None => service.as_str().to_owned(),
            },
        };
        let key = proofs.signing(settings.algorithm, now).ok_or_else(|| cannot("no signing key could be made"))?;
        let seconds =
            now.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| cannot("the clock is before 1970"))?.as_secs();
        let mut claims = settings.claims.clone();
        let mut claim = |name: &str, value: Value| claims.insert(name.to_owned(), value);
        claim("iss", (*issuer).into());
        claim("sub", subject.into());
        claim("aud", settings.audience.as_str().into());
        claim("iat", seconds.into());
        claim("nbf", seconds.into());
        claim("exp", (seconds + settings.lifetime.as_secs()).into());
        claim("jti", jws::unique().into());
        if let Some(caller) = caller {
            claim("culvert_gateway", caller.into());
        }
        if let Some(parts) = parts {
            claim("culvert_method", parts.method.as_str().into());
            claim("culvert_path", parts.uri.path_and_query().map_or("/", |path| path.as_str()).into());
        }
        let head = format!(r#"{{"alg":"{}","kid":"{}","typ":"JWT"}}"#, settings.algorithm.name(), key.kid);
        jws::compact(&settings.prefix, &head, &Value::Object(claims), |text| key.sign(text))
            .ok_or_else(|| cannot("the token could not be signed"))
    }
}

fn field(token: &str) -> Result<HeaderValue, Fault> {
    let value = HeaderValue::from_str(token);
    let mut value = value.map_err(|_| cannot("the prefix holds what no field may hold"))?;
    value.set_sensitive(true);
    Ok(value)
}

impl PartialEq for Jwt {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

impl fmt::Debug for Jwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwt").field("settings", &self.settings).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use culvert_hop::message::Request;
    use culvert_model::reason::Reason;
    use ring::signature::{
        ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
        VerificationAlgorithm,
    };

    use super::*;

    fn settings(algorithm: Algorithm, is_bound: bool) -> JwtSettings {
        JwtSettings {
            algorithm,
            audience: "orders-api".to_owned(),
            issuer: None,
            subject: None,
            lifetime: Duration::from_secs(300),
            header: http::header::AUTHORIZATION,
            prefix: "Bearer ".to_owned(),
            is_bound,
            claims: Map::from_iter([("team".to_owned(), "shop".into())]),
        }
    }

    fn proofs() -> Proofs {
        let proofs = Proofs::default();
        proofs.need(&BTreeSet::from(Algorithm::ALL), at(0)).unwrap();
        proofs
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs((1 << 30) + seconds)
    }

    fn token(jwt: &Jwt, proofs: &Proofs, path: &str, now: SystemTime) -> Result<String, Reason> {
        token_for(None, jwt, proofs, path, now)
    }

    fn token_for(
        caller: Option<&str>,
        jwt: &Jwt,
        proofs: &Proofs,
        path: &str,
        now: SystemTime,
    ) -> Result<String, Reason> {
        let service = "orders".parse().unwrap();
        let mut request = http::Request::new(());
        *request.uri_mut() = path.parse().unwrap();
        let (mut parts, ()) = Request::from(request).into_parts();
        let about = About { service: &service, caller, is_tls: false };
        jwt.prove(&mut parts, about, proofs, now).map_err(|fault| fault.reason)?;
        let value = parts.headers.get("authorization").unwrap().to_str().unwrap();
        Ok(value.strip_prefix("Bearer ").unwrap().to_owned())
    }

    fn claims(token: &str) -> Value {
        let middle = token.split('.').nth(1).unwrap();
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(middle).unwrap()).unwrap()
    }

    #[test]
    fn a_token_says_who_for_whom_and_how_long_and_is_signed_by_the_published_key() {
        for (algorithm, verify) in [
            (Algorithm::EdDsa, Some(&ED25519 as &dyn VerificationAlgorithm)),
            (Algorithm::Es256, Some(&ECDSA_P256_SHA256_FIXED)),
            (Algorithm::Rs256, None),
        ] {
            let (proofs, jwt) = (proofs(), Jwt::new(settings(algorithm, true)));
            proofs.told("https://id.example/shop", "shop");
            let token = token(&jwt, &proofs, "/a?b=c", at(0)).unwrap();
            let said = claims(&token);
            let seconds = (1 << 30) as u64;
            for (name, value) in [
                ("iss", Value::from("https://id.example/shop")),
                ("sub", "shop/orders".into()),
                ("aud", "orders-api".into()),
                ("iat", seconds.into()),
                ("nbf", seconds.into()),
                ("exp", (seconds + 300).into()),
                ("culvert_method", "GET".into()),
                ("culvert_path", "/a?b=c".into()),
                ("team", "shop".into()),
            ] {
                assert_eq!(said[name], value, "{name}");
            }
            let key = proofs.published().into_iter().find(|key| key.alg == algorithm).unwrap();
            let (signed, signature) = token.rsplit_once('.').unwrap();
            let number = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
            let public = match &key.y {
                None => number(&key.x),
                Some(y) => [vec![4], number(&key.x), number(y)].concat(),
            };
            let (signed, signature) = (signed.as_bytes(), number(signature));
            match verify {
                Some(verify) => UnparsedPublicKey::new(verify, public).verify(signed, &signature).unwrap(),
                None => RsaPublicKeyComponents { n: public, e: vec![1, 0, 1] }
                    .verify(&RSA_PKCS1_2048_8192_SHA256, signed, &signature)
                    .unwrap(),
            }
            let head: Value = serde_json::from_slice(&number(token.split('.').next().unwrap())).unwrap();
            assert_eq!((head["alg"].as_str(), head["kid"].as_str()), (Some(algorithm.name()), Some(&*key.kid())));
        }
    }

    #[test]
    fn a_token_that_is_not_bound_serves_for_half_its_life_and_no_other_issuer() {
        let (proofs, jwt) = (proofs(), Jwt::new(settings(Algorithm::EdDsa, false)));
        proofs.told("https://id.example/shop", "shop");
        let first = token(&jwt, &proofs, "/a", at(0)).unwrap();
        assert_eq!(token(&jwt, &proofs, "/b", at(149)).unwrap(), first);
        assert_ne!(token(&jwt, &proofs, "/b", at(150)).unwrap(), first);
        assert_ne!(token(&jwt, &proofs, "/b", at(149)).unwrap(), first, "a clock that went back");
        let before = token(&jwt, &proofs, "/b", at(160)).unwrap();
        proofs.told("https://other.example/shop", "shop");
        let after = token(&jwt, &proofs, "/b", at(160)).unwrap();
        assert!(before != after && claims(&after)["iss"] == "https://other.example/shop");
    }

    #[test]
    fn a_token_names_the_gateway_that_called_and_is_no_other_gateways() {
        let (proofs, jwt) = (proofs(), Jwt::new(settings(Algorithm::EdDsa, false)));
        proofs.told("https://id.example/shop", "shop");
        for caller in [Some("kong"), None, Some("nginx"), Some("kong")] {
            let token = token_for(caller, &jwt, &proofs, "/", at(0)).unwrap();
            assert_eq!(claims(&token)["culvert_gateway"].as_str(), caller);
        }
        for number in 0..2 * KEPT {
            token_for(Some(&number.to_string()), &jwt, &proofs, "/", at(0)).unwrap();
            assert!(jwt.cached.lock().unwrap().len() <= KEPT);
        }
    }

    #[test]
    fn a_token_that_cannot_be_made_is_a_failure_and_not_a_request_without_one() {
        let jwt = Jwt::new(settings(Algorithm::EdDsa, false));
        assert_eq!(token(&jwt, &proofs(), "/", at(0)), Err(Reason::OriginAuth), "nobody told of an issuer");
        let keyless = Proofs::default();
        keyless.told("https://id.example/shop", "shop");
        assert_eq!(token(&jwt, &keyless, "/", at(0)), Err(Reason::OriginAuth));
    }
}
