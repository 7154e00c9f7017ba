//! Where origins, and clouds that trust this relay's connectors, find the keys of what the connectors sign: an issuer for
//! each tunnel, with an OpenID discovery document and a JSON Web Key Set.
//!
//! An issuer of its own for each, so that no tunnel's connector can sign for another's. Must never answer anything but
//! public keys, nor know a private one: connectors hold those.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use culvert_hop::body::Body;
use culvert_hop::message::{Request, Response};
use culvert_hop::server::{self, Http2, ServerSettings};
use culvert_model::proof::{Algorithm, ProofKey};
use culvert_ops::task::Owner;
use http::{HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::debug;

use crate::config::ArrivalBounds;
use crate::door::IssuerDoor;
use crate::front::{Arrivals, Manners, Socket};
use crate::sessions::{Sessions, issuer_of};

const DISCOVERY: &str = "/.well-known/openid-configuration";
const KEYS: &str = "/.well-known/jwks.json";
/// Keys are published a day before they sign: what is kept for so long is never too old.
const CACHE: HeaderValue = HeaderValue::from_static("public, max-age=300");
/// Connections at once.
const CONNECTIONS: usize = 256;
/// How long one may take to ask, and to ask again.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is answered as whom.
#[derive(Clone)]
pub(crate) struct Told {
    /// The listener's own.
    pub(crate) door: Arc<IssuerDoor>,
    /// `[issuer] url`, without a slash at its end.
    pub(crate) base: Arc<str>,
}

/// Answers whoever verifies, until it is dropped.
pub(crate) async fn serve(listener: TcpListener, told: Told, sessions: Sessions) {
    let settings = |http2| {
        Arc::new(ServerSettings { http2, head_timeout: PATIENCE, keep_alive: PATIENCE, ..ServerSettings::front() })
    };
    let (http1, http2) = (settings(Http2::Never), settings(Http2::Always));
    let arrivals = Arc::new(Arrivals::new(ArrivalBounds { within: PATIENCE, at_once: CONNECTIONS }));
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = Owner::new();
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                debug!(%error, "a verifier's connection was not taken");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (http1, http2) = (Arc::clone(&http1), Arc::clone(&http2));
        let (arrivals, told, sessions) = (Arc::clone(&arrivals), told.clone(), sessions.clone());
        connections.spawn("relay.verifier", async move {
            let tls = told.door.shown.tls().map(|tls| tls.config());
            let manners = Manners { proxy_protocol: false, tls };
            let arrived = match arrivals.arrive(Socket::Tcp(stream), None, None, manners).await {
                Ok(arrived) => arrived,
                Err(why) => {
                    debug!(%why, "a verifier was turned away");
                    return;
                }
            };
            let settings = if arrived.tls.is_some_and(|settled| settled.http2) { http2 } else { http1 };
            let service = |request: Request<Body>| {
                let (parts, _) = request.into_parts();
                let answer = answer(&parts.method, parts.uri.path(), &told.base, |tunnel| jwks(&sessions, tunnel));
                async move { Ok::<_, Infallible>(answer) }
            };
            server::serve(arrived.io, &settings, service, std::future::pending()).await;
            drop(permit);
        });
    }
}

fn jwks(sessions: &Sessions, tunnel: &str) -> Option<Value> {
    let keys = sessions.proof_keys(tunnel)?;
    Some(json!({ "keys": keys.iter().map(ProofKey::jwk).collect::<Vec<_>>() }))
}

fn answer(method: &Method, path: &str, base: &str, keys: impl Fn(&str) -> Option<Value>) -> Response<Body> {
    if method != Method::GET && method != Method::HEAD {
        return plain(StatusCode::METHOD_NOT_ALLOWED);
    }
    match document(path, base, keys) {
        Some(document) => {
            let mut response = Response::new(Body::full(document.to_string()));
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(header::CACHE_CONTROL, CACHE);
            response
        }
        None => plain(StatusCode::NOT_FOUND),
    }
}

fn document(path: &str, base: &str, keys: impl Fn(&str) -> Option<Value>) -> Option<Value> {
    // Whoever stands before this listener may pass the issuer's own path on, or take it away.
    let own = base.split_once("://").and_then(|(_, rest)| rest.find('/').and_then(|at| rest.get(at..))).unwrap_or("");
    let path = path.strip_prefix(own).unwrap_or(path).strip_prefix('/')?;
    let tunnel = path.strip_suffix(DISCOVERY).or_else(|| path.strip_suffix(KEYS))?;
    let keys = keys(tunnel)?;
    if path.ends_with(KEYS) {
        return Some(keys);
    }
    let issuer = issuer_of(base, tunnel);
    Some(json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}{KEYS}"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": Algorithm::ALL,
        "claims_supported": ["iss", "sub", "aud", "iat", "nbf", "exp", "jti"],
    }))
}

fn plain(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_shop(tunnel: &str) -> Option<Value> {
        (tunnel == "shop").then(|| json!({ "keys": [] }))
    }

    #[test]
    fn each_tunnel_is_an_issuer_of_its_own() {
        for base in ["https://id.example", "https://id.example/culvert"] {
            for path in ["/shop/.well-known/openid-configuration", "/culvert/shop/.well-known/openid-configuration"] {
                let found = document(path, base, of_shop);
                if path.starts_with("/culvert") && !base.ends_with("/culvert") {
                    assert_eq!(found, None);
                    continue;
                }
                let found = found.unwrap();
                assert_eq!(found["issuer"], format!("{base}/shop"));
                assert_eq!(found["jwks_uri"], format!("{base}/shop/.well-known/jwks.json"));
            }
            assert_eq!(document("/shop/.well-known/jwks.json", base, of_shop), Some(json!({ "keys": [] })));
            for path in
                ["/", "/shop", "/other/.well-known/jwks.json", "/.well-known/jwks.json", "//shop/.well-known/jwks.json"]
            {
                assert_eq!(document(path, base, of_shop), None, "{path}");
            }
        }
    }

    #[test]
    fn nothing_is_changed_here() {
        let asked = |method| answer(&method, "/shop/.well-known/jwks.json", "https://id.example", of_shop).status();
        assert_eq!((asked(Method::GET), asked(Method::POST)), (StatusCode::OK, StatusCode::METHOD_NOT_ALLOWED));
    }
}
