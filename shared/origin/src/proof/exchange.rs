//! One question to an endpoint that hands out tokens, and its answer.
//!
//! Must never follow a redirect, speak in clear text to anything but this host and its link, or repeat in words for the log
//! what it sends or is given.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use culvert_hop::body::Body;
use culvert_hop::exchange::{Answer as Answered, Deadlines};
use culvert_hop::fault::{Fault, Side};
use culvert_hop::message::Request;
use culvert_hop::pool::{Lost, Opener, Pool, PoolSettings};
use culvert_model::reason::Reason;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::trouble::{Trouble, words_of};
use crate::connect::{Admission, Way, connect};
use crate::names::Names;
use crate::network::{Network, Sockets};
use crate::origin::{Host, Origin};
use crate::origin_io::OriginIo;
use crate::tls::{ClientTls, Offer};
use culvert_ops::runtime::now;

/// The largest answer. Tokens have a few KiB.
const MOST: usize = 64 * 1024;
/// Until it accepted, TLS included.
const CONNECT: Duration = Duration::from_secs(5);
/// The whole of it.
const WHOLE: Duration = Duration::from_secs(10);
/// The one name that is asked in clear text beside this host's own: it leads to the link of a machine in that cloud.
const GOOGLE_METADATA: &str = "metadata.google.internal";
/// What a form leaves as it is (RFC 3986 §2.3).
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Where tokens come from: equal when reached alike.
#[derive(Clone, PartialEq)]
pub struct Endpoint {
    origin: Origin,
    authority: HeaderValue,
    target: PathAndQuery,
    tls: Option<ClientTls>,
    url: Box<str>,
}

/// Why a text is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadEndpoint {
    /// No URL.
    #[error("{0:?} is not an endpoint: https://HOST/PATH is expected")]
    Shape(String),
    /// In clear text to somewhere else.
    #[error("tokens are asked for over https:// only, or over http:// on this host and its link (169.254.0.0/16)")]
    Clear,
}

/// What is asked.
pub struct Question {
    method: Method,
    fields: Vec<(HeaderName, HeaderValue)>,
    body: Zeroizing<Vec<u8>>,
}

/// What came back.
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// When it was asked for: what lives for so long lives from here.
    pub asked: Instant,
    /// By how much the other side's clock is ahead (`Date`), in seconds.
    pub ahead: Option<i64>,
    /// How long it wants to be left alone (`Retry-After`).
    pub rest: Option<Duration>,
    /// Its content.
    pub body: Zeroizing<Vec<u8>>,
    /// Who gave it.
    by: Box<str>,
}

impl Endpoint {
    /// Reads a URL; `tls` is how an https one is verified.
    ///
    /// # Errors
    /// [`BadEndpoint`]
    pub fn new(url: &str, tls: impl FnOnce() -> Option<ClientTls>) -> Result<Self, BadEndpoint> {
        let shape = || BadEndpoint::Shape(url.to_owned());
        let parsed: http::Uri = url.parse().map_err(|_| shape())?;
        let (Some(scheme), Some(authority)) = (parsed.scheme_str(), parsed.authority()) else { return Err(shape()) };
        if !matches!(scheme, "http" | "https") {
            return Err(shape());
        }
        let origin: Origin = format!("{scheme}://{authority}").parse().map_err(|_| shape())?;
        if scheme == "http" && !is_near(&origin) {
            return Err(BadEndpoint::Clear);
        }
        let target = parsed.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let tls = if origin.is_tls() { tls() } else { None };
        Ok(Self { authority: origin.authority(), origin, target, tls, url: url.into() })
    }

    /// As it was written.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The same place with more behind its path.
    ///
    /// # Errors
    /// The text cannot stand in a URL.
    pub fn below(&self, more: &str) -> Result<Self, BadEndpoint> {
        let url = format!("{}{more}", self.url.trim_end_matches('/'));
        Self::new(&url, || self.tls.clone())
    }

    /// Asks once.
    ///
    /// # Errors
    /// [`Trouble::Away`]: there is no answer.
    pub async fn ask(&self, question: Question, names: &Names) -> Result<Answer, Trouble> {
        let away = |fault: &Fault| Trouble::Away {
            by: self.url.clone(),
            // Its hints are for origins.
            why: fault.to_string().replace("[service.tls]", "[service.auth]").replace("the origin", "the endpoint"),
        };
        let mut request = Request::new(Body::full(Bytes::copy_from_slice(&question.body)));
        *request.method_mut() = question.method;
        *request.uri_mut() = http::Uri::from(self.target.clone());
        let fields = request.headers_mut();
        fields.insert(header::HOST, self.authority.clone());
        fields.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
        for (name, value) in question.fields {
            fields.insert(name, value);
        }
        let deadlines = Deadlines { first_byte: WHOLE, idle: WHOLE, request: Some(WHOLE) };
        let door = Door {
            origin: self.origin.clone(),
            tls: self.tls.clone(),
            network: Network { names: names.clone(), sockets: Sockets::Host },
        };
        let asked = now();
        // Asked once an hour: no connection is kept for that.
        let answered = Pool::new(door, PoolSettings { max_idle: 0, ..PoolSettings::default() })
            .send(request, &deadlines)
            .await
            .map_err(|error| away(&error.fault))?;
        let Answered::Response(response) = answered else {
            return Err(away(&Fault::new(Reason::OriginProtocol).log("it changed the protocol")));
        };
        let (parts, body) = response.into_parts();
        let text = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let ahead = text(header::DATE).and_then(|date| seconds_ahead(date, SystemTime::now()));
        let rest = text(header::RETRY_AFTER).and_then(|text| text.parse().ok()).map(Duration::from_secs);
        let body = body.read(MOST).await.map_err(|fault| away(&fault))?;
        let body = Zeroizing::new(body.to_vec());
        Ok(Answer { status: parts.status, asked, ahead, rest, body, by: self.url.clone() })
    }
}

/// Whether nobody else can be on the way.
fn is_near(origin: &Origin) -> bool {
    match origin {
        Origin::Net { host: Host::Address(IpAddr::V4(address)), .. } => {
            address.is_loopback() || address.is_link_local()
        }
        Origin::Net { host: Host::Address(IpAddr::V6(address)), .. } => {
            // Also the address of EC2's metadata service, which is unique local (fd00:ec2::254).
            address.is_loopback() || address.is_unicast_link_local() || address.segments()[..2] == [0xfd00, 0xec2]
        }
        Origin::Net { host: Host::Name(name), .. } => name == "localhost" || name == GOOGLE_METADATA,
        Origin::Unix(_) => false,
    }
}

fn seconds_ahead(date: &str, now: SystemTime) -> Option<i64> {
    let theirs = httpdate::parse_http_date(date).ok()?;
    let signed = |span: Duration| i64::try_from(span.as_secs()).ok();
    match theirs.duration_since(now) {
        Ok(ahead) => signed(ahead),
        Err(behind) => signed(behind.duration()).map(|seconds| -seconds),
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Endpoint").field(&self.url).finish()
    }
}

impl Question {
    /// Wants to see.
    pub fn get() -> Self {
        Self { method: Method::GET, fields: Vec::new(), body: Zeroizing::default() }
    }

    /// Sends a form's fields.
    pub fn form<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut body = Zeroizing::new(String::new());
        for (name, value) in fields {
            if !body.is_empty() {
                body.push('&');
            }
            body.extend(utf8_percent_encode(name, FORM));
            body.push('=');
            body.extend(utf8_percent_encode(value, FORM));
        }
        Self::post("application/x-www-form-urlencoded", body)
    }

    /// Sends JSON.
    pub fn json(value: &serde_json::Value) -> Self {
        Self::post("application/json", Zeroizing::new(value.to_string()))
    }

    fn post(kind: &'static str, body: Zeroizing<String>) -> Self {
        let fields = vec![(header::CONTENT_TYPE, HeaderValue::from_static(kind))];
        Self { method: Method::POST, fields, body: Zeroizing::new(body.as_bytes().to_vec()) }
    }

    /// By another method.
    #[must_use]
    pub fn by(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    /// With one more field.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.fields.push((name, value));
        self
    }
}

impl Answer {
    /// What a good answer says.
    ///
    /// # Errors
    /// [`Trouble`]: it was refused, or is something else.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Trouble> {
        serde_json::from_slice(self.whole()?).map_err(|_| self.nonsense("it is not the JSON that was to be expected"))
    }

    /// A good answer's content.
    ///
    /// # Errors
    /// [`Trouble::Refused`], or [`Trouble::Nonsense`] for a status that says neither.
    pub fn whole(&self) -> Result<&[u8], Trouble> {
        let Self { status, by, rest, .. } = self;
        if *status == StatusCode::OK {
            return Ok(&self.body);
        }
        if status.is_client_error() || status.is_server_error() {
            return Err(Trouble::Refused {
                by: by.clone(),
                status: status.as_u16(),
                words: words_of(&self.body),
                rest: *rest,
            });
        }
        Err(self.nonsense(&format!("its status is {}", status.as_u16())))
    }

    /// It is not what was to be expected.
    pub fn nonsense(&self, what: &str) -> Trouble {
        Trouble::Nonsense { by: self.by.clone(), what: what.to_owned() }
    }
}

/// How the endpoint is reached.
struct Door {
    origin: Origin,
    tls: Option<ClientTls>,
    network: Network,
}

impl Opener for Door {
    type Io = OriginIo;

    async fn open(&self) -> Result<OriginIo, Fault> {
        let (admission, network) = (&Admission::Declared, &self.network);
        connect(Way { origin: &self.origin, tls: self.tls.as_ref(), offer: Offer::Http1, admission, network }, CONNECT)
            .await
    }

    fn is_http2(io: &OriginIo) -> Option<bool> {
        io.is_http2()
    }

    fn lost(&self, lost: Lost<'_>) -> Fault {
        let (reason, why) = match lost {
            Lost::Io(error) => (Reason::OriginClosed, error.to_string()),
            Lost::Ended => (Reason::OriginClosed, "it closed the connection without an answer".to_owned()),
            Lost::Silent => (Reason::OriginTimeout, "it did not answer in time".to_owned()),
            Lost::Malformed | Lost::Refused | Lost::Reset(_) => {
                (Reason::OriginProtocol, "what it answered is not HTTP".to_owned())
            }
        };
        Fault::new(reason).side(Side::Origin).log(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(url: &str) -> Result<Endpoint, BadEndpoint> {
        Endpoint::new(url, || None)
    }

    #[test]
    fn an_endpoint_is_https_or_as_near_as_a_metadata_service() {
        for url in [
            "https://login.microsoftonline.com/t/oauth2/v2.0/token",
            "http://127.0.0.1:8080/token",
            "http://localhost/token",
            "http://169.254.169.254/latest",
            "http://[fd00:ec2::254]/latest",
            "http://metadata.google.internal/computeMetadata/v1",
        ] {
            assert_eq!(endpoint(url).unwrap().url(), url);
        }
        for url in ["http://login.example/token", "http://10.0.0.1/", "http://metadata.google.internal.example/"] {
            assert_eq!(endpoint(url), Err(BadEndpoint::Clear), "{url}");
        }
        for url in ["", "token", "/token", "ftp://x/", "https://", "unix:/x", "https://u:p@x/"] {
            assert!(matches!(endpoint(url), Err(BadEndpoint::Shape(_))), "{url}");
        }
        let below = endpoint("https://x/v1/").unwrap().below("/a:b?c=d").unwrap();
        assert_eq!((below.url(), below.target.as_str()), ("https://x/v1/a:b?c=d", "/v1/a:b?c=d"));
    }

    #[test]
    fn a_form_holds_any_value() {
        let question = Question::form([("scope", "api://x/.default offline"), ("secret", "a&b=c+d%é~")]);
        let text = String::from_utf8(question.body.to_vec()).unwrap();
        assert_eq!(text, "scope=api%3A%2F%2Fx%2F.default%20offline&secret=a%26b%3Dc%2Bd%25%C3%A9~");
    }

    #[test]
    fn another_clock_is_read_off_its_date() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(seconds_ahead("Sun, 06 Nov 1994 08:54:37 GMT", at), Some(300));
        assert_eq!(seconds_ahead("Sun, 06 Nov 1994 08:44:37 GMT", at), Some(-300));
        assert_eq!(seconds_ahead("soon", at), None);
    }
}
