//! What becomes of a request's fields: some are set, some taken out, some given another name.
//!
//! Must never leave a line of the caller's under a name that is set, however it is spelled: to programs that read fields
//! as variables (RFC 3875 §4.1.18) `X-Key`, `x_key` and, to some, `x.key` are one.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use culvert_hop::body::Body;
use culvert_hop::fault::Fault;
use culvert_hop::fields::Fields;
use culvert_hop::message::RequestParts;
use http::{HeaderName, HeaderValue, Version, header};
use http_body::{Body as HttpBody, Frame, SizeHint};

/// What is done to the fields of every request of a service. Clones share it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldPolicy {
    set: Vec<SetHeader>,
    renamed: Vec<(Alike, HeaderName)>,
    /// What no line of the caller's may be called: the names above, and those that are only taken out.
    gone: Vec<Alike>,
}

/// A field and its value. Its `Debug` shows the name alone: values are secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct SetHeader {
    /// Its name.
    pub name: HeaderName,
    /// Its value; marked sensitive.
    pub value: HeaderValue,
}

/// A name in the one spelling that stands for all: small letters, digits, and `-` for everything else.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Alike(Box<[u8]>);

/// Fields that belong to the connection, to routing or to Culvert.
const NOT_SETTABLE: [HeaderName; 10] = [
    header::HOST,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::EXPECT,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Reads the name of a field that a service may set, remove or rename.
///
/// # Errors
/// Why it may not.
pub fn settable(text: &str) -> Result<HeaderName, &'static str> {
    let name: HeaderName = text.parse().map_err(|_| "is no header field's name")?;
    if name == header::HOST {
        return Err("is set by `host = \"...\"`");
    }
    if NOT_SETTABLE.contains(&name) || name.as_str().starts_with("culvert-") {
        return Err("cannot be set: it belongs to the connection");
    }
    Ok(name)
}

/// A name that two rules are about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is set, removed or renamed elsewhere too, in this spelling or another")]
pub struct Twice(HeaderName);

impl FieldPolicy {
    /// Whether requests pass as they are.
    pub fn is_empty(&self) -> bool {
        self.gone.is_empty()
    }

    /// Sets a field in place of whatever the caller sent under its name.
    ///
    /// # Errors
    /// `Twice`
    pub fn set(&mut self, name: HeaderName, mut value: HeaderValue) -> Result<(), Twice> {
        self.remove(&name)?;
        value.set_sensitive(true);
        self.set.push(SetHeader { name, value });
        Ok(())
    }

    /// Takes a field out.
    ///
    /// # Errors
    /// `Twice`
    pub fn remove(&mut self, name: &HeaderName) -> Result<(), Twice> {
        let alike = Alike::to(name);
        if self.gone.contains(&alike) {
            return Err(Twice(name.clone()));
        }
        self.gone.push(alike);
        Ok(())
    }

    /// Gives the caller's field another name, in place of whatever the caller sent under that one.
    ///
    /// # Errors
    /// `Twice`
    pub fn rename(&mut self, from: &HeaderName, to: HeaderName) -> Result<(), Twice> {
        self.remove(from)?;
        self.remove(&to)?;
        self.renamed.push((Alike::to(from), to));
        Ok(())
    }

    /// The fields that are set.
    pub fn set_fields(&self) -> &[SetHeader] {
        &self.set
    }

    /// Does all of it.
    pub fn apply(&self, fields: &mut Fields) {
        if self.is_empty() {
            return;
        }
        let mut renamed = Vec::new();
        fields.retain(|name, value| {
            let Some(gone) = self.gone.iter().find(|gone| gone.is(name.as_bytes())) else { return true };
            if let Some((_, to)) = self.renamed.iter().find(|(from, _)| from == gone) {
                renamed.push((to.clone(), value.clone()));
            }
            false
        });
        for (name, value) in renamed {
            fields.append(name, value);
        }
        for SetHeader { name, value } in &self.set {
            fields.append(name.clone(), value.clone());
        }
    }

    fn is_gone(&self, name: &HeaderName) -> bool {
        self.gone.iter().any(|gone| gone.is(name.as_str().as_bytes()))
    }
}

impl Alike {
    fn to(name: &HeaderName) -> Self {
        Self(name.as_str().bytes().map(plain).collect())
    }

    /// Most names differ in their length.
    #[inline]
    fn is(&self, name: &[u8]) -> bool {
        self.0.len() == name.len() && self.0.iter().zip(name).all(|(own, other)| *own == plain(*other))
    }
}

fn plain(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' }
}

impl fmt::Debug for SetHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetHeader").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Whether fields may follow this request's body.
pub fn may_have_trailers(parts: &RequestParts, body: &Body) -> bool {
    !body.is_end_stream() && (parts.version >= Version::HTTP_2 || !parts.headers.contains_key(header::CONTENT_LENGTH))
}

/// A body whose trailers hold no name that a policy is about: some servers take them for fields of the head.
pub struct Untrailed {
    body: Body,
    policy: FieldPolicy,
}

impl Untrailed {
    /// Wraps the body of a request that the policy was applied to.
    pub fn of(body: Body, policy: &FieldPolicy) -> Body {
        Body::boxed(Self { body, policy: policy.clone() })
    }
}

impl HttpBody for Untrailed {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let this = self.get_mut();
        let frame = match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            other => return other,
        };
        Poll::Ready(Some(Ok(match frame.into_trailers() {
            Ok(mut trailers) => {
                let gone: Vec<HeaderName> = trailers.keys().filter(|name| this.policy.is_gone(name)).cloned().collect();
                for name in gone {
                    trailers.remove(name);
                }
                Frame::trailers(trailers)
            }
            Err(frame) => frame,
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};
    use proptest::prelude::*;

    use super::*;

    fn named(name: &str) -> HeaderName {
        name.parse().unwrap()
    }

    fn value(text: &str) -> HeaderValue {
        text.parse().unwrap()
    }

    fn lines(fields: &Fields) -> Vec<String> {
        fields.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
    }

    fn policy() -> FieldPolicy {
        let mut policy = FieldPolicy::default();
        policy.set(named("x-key"), value("ours")).unwrap();
        policy.remove(&named("x-internal")).unwrap();
        policy.rename(&named("authorization"), named("x-callers-authorization")).unwrap();
        policy
    }

    #[test]
    fn fields_are_set_removed_and_renamed_and_the_others_stay() {
        let mut fields = Fields::new();
        for (name, text) in [
            ("accept", "*/*"),
            ("x-internal", "1"),
            ("authorization", "Bearer theirs"),
            ("x-callers-authorization", "forged"),
            ("x-key", "forged"),
            ("x-keys", "stays"),
        ] {
            fields.append(named(name), value(text));
        }
        policy().apply(&mut fields);
        assert_eq!(
            lines(&fields),
            ["accept: */*", "x-keys: stays", "x-callers-authorization: Bearer theirs", "x-key: ours"]
        );
    }

    #[test]
    fn nothing_is_about_a_name_twice() {
        let mut policy = policy();
        assert!(policy.set(named("X_Key"), value("b")).is_err());
        assert!(policy.remove(&named("authorization")).is_err());
        assert!(policy.rename(&named("x-other"), named("x_internal")).is_err());
    }

    #[tokio::test]
    async fn what_follows_a_body_is_held_to_the_same_names() {
        let mut late = http::HeaderMap::new();
        for (name, text) in [("x-key", "forged"), ("x_key", "forged"), ("x-internal", "1"), ("x-checksum", "7")] {
            late.append(named(name), value(text));
        }
        let body = Full::new(Bytes::from_static(b"data")).with_trailers(std::future::ready(Some(Ok(late))));
        let whole = Untrailed::of(Body::boxed(body), &policy()).collect().await.unwrap();
        let left = whole.trailers().unwrap();
        assert_eq!((left.len(), &left["x-checksum"]), (1, &value("7")));
        assert_eq!(whole.to_bytes(), "data");
    }

    #[test]
    fn a_body_of_a_known_length_on_http_1_has_nothing_behind_it() {
        let asks = |version: Version, length: bool, body: Body| {
            let mut request = http::Request::new(body);
            *request.version_mut() = version;
            if length {
                request.headers_mut().insert(header::CONTENT_LENGTH, value("4"));
            }
            let (parts, body) = culvert_hop::message::Request::from(request).into_parts();
            may_have_trailers(&parts, &body)
        };
        assert!(asks(Version::HTTP_11, false, Body::full("data")) && asks(Version::HTTP_2, true, Body::full("data")));
        assert!(!asks(Version::HTTP_11, true, Body::full("data")) && !asks(Version::HTTP_2, false, Body::empty()));
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert!(!format!("{:?}", policy()).contains("ours"));
    }

    /// What is set or removed, by a policy or for a proof.
    const OWNED: [&str; 8] = [
        "x-key",
        "authorization",
        "signature",
        "signature-input",
        "content-digest",
        "x-amz-date",
        "x-amz-content-sha256",
        "x-amz-security-token",
    ];

    proptest! {
        #[test]
        fn no_spelling_of_a_callers_name_is_left_beside_ours(
            owned in proptest::sample::select(OWNED.to_vec()),
            marks in proptest::collection::vec((any::<bool>(), proptest::sample::select(b"-_.~!*".to_vec())), 20),
            before in 0..3_usize,
        ) {
            let spelled: String = owned.bytes().zip(&marks).map(|(byte, (upper, mark))| match byte {
                b'-' => char::from(*mark),
                letter if *upper => char::from(letter.to_ascii_uppercase()),
                letter => char::from(letter),
            }).collect();
            prop_assert!(Alike::to(&named(owned)).is(spelled.as_bytes()));
            let mut fields = Fields::new();
            let others = std::iter::repeat_n(("accept", "a"), before);
            for (name, text) in others.chain([(spelled.as_str(), "forged"), (spelled.as_str(), "again")]) {
                fields.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value(text));
            }
            let mut policy = FieldPolicy::default();
            policy.set(named(owned), value("ours")).unwrap();
            policy.apply(&mut fields);
            let left = lines(&fields);
            prop_assert!(!left.iter().any(|line| line.contains("forged") || line.contains("again")), "{left:?}");
            prop_assert_eq!(left.last().unwrap(), &format!("{owned}: ours"));
        }
    }
}
