//! The signature base of RFC 9421 §2.5: the one text that both ends of a request make of it.
//!
//! Must never cover what the origin sees otherwise, or a part that a request has not.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use culvert_hop::fault::{Fault, Side};
use culvert_hop::message::RequestParts;
use culvert_model::reason::Reason;
use http::{HeaderName, header};

/// A part of a request that a signature covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Component {
    /// `@method`
    Method,
    /// `@target-uri`
    TargetUri,
    /// `@authority`
    Authority,
    /// `@scheme`
    Scheme,
    /// `@request-target`
    RequestTarget,
    /// `@path`
    Path,
    /// `@query`
    Query,
    /// All lines of a field.
    Field(HeaderName),
}

/// The text is no component.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadComponent {
    /// A derived component that is not.
    #[error(
        "{0:?} is nothing that can be covered: @method, @target-uri, @authority, @scheme, @request-target, @path, @query or a field's name is expected"
    )]
    Unknown(String),
    /// A field that is not the same on both ends.
    #[error("{0} is about the connection or the signature itself and cannot be covered")]
    NotCoverable(HeaderName),
}

/// What is said of a signature (RFC 9421 §2.3).
#[derive(Debug, Clone, Default)]
pub(super) struct Params<'a> {
    pub(super) created: Option<u64>,
    pub(super) expires: Option<u64>,
    pub(super) keyid: Option<&'a str>,
    pub(super) alg: Option<&'a str>,
    pub(super) nonce: Option<&'a str>,
    pub(super) tag: Option<&'a str>,
}

/// A base, and what `Signature-Input` says of it.
pub(super) struct Base {
    /// What is signed.
    pub(super) text: Vec<u8>,
    /// The inner list of components with its parameters.
    pub(super) input: String,
}

impl Base {
    /// Of those of the components that the request has.
    ///
    /// # Errors
    /// `bad_request`: a covered field holds more than ASCII, of which two ends may make different texts.
    pub(super) fn of(
        parts: &RequestParts,
        components: &[Component],
        params: &Params<'_>,
        is_tls: bool,
    ) -> Result<Self, Fault> {
        let mut text = Vec::with_capacity(512);
        let mut input = String::with_capacity(160);
        input.push('(');
        for component in components {
            let start = text.len();
            let _ = write!(Text(&mut text), "\"{component}\": ");
            if !component.write(parts, is_tls, &mut text) {
                text.truncate(start);
                continue;
            }
            if !text.get(start..).is_some_and(<[u8]>::is_ascii) {
                let why = format!("{component} holds more than ASCII: it cannot be signed");
                return Err(Fault::new(Reason::BadRequest).side(Side::Caller).log(why));
            }
            text.push(b'\n');
            let mark = if input.len() > 1 { " " } else { "" };
            let _ = write!(input, "{mark}\"{component}\"");
        }
        input.push(')');
        for (name, number) in [("created", params.created), ("expires", params.expires)] {
            if let Some(number) = number {
                let _ = write!(input, ";{name}={number}");
            }
        }
        for (name, value) in
            [("keyid", params.keyid), ("alg", params.alg), ("nonce", params.nonce), ("tag", params.tag)]
        {
            if let Some(value) = value {
                let _ = write!(input, ";{name}={}", Quoted(value));
            }
        }
        let _ = write!(Text(&mut text), "\"@signature-params\": {input}");
        Ok(Self { text, input })
    }
}

impl Component {
    /// Writes its value; whether the request has it.
    fn write(&self, parts: &RequestParts, is_tls: bool, out: &mut Vec<u8>) -> bool {
        let scheme = if is_tls { "https" } else { "http" };
        let path = match parts.uri.path() {
            "" => "/",
            path => path,
        };
        let query = parts.uri.query();
        match self {
            Self::Method => out.extend_from_slice(parts.method.as_str().as_bytes()),
            Self::Scheme => out.extend_from_slice(scheme.as_bytes()),
            Self::Authority => return authority(parts, is_tls, out),
            Self::Path => out.extend_from_slice(path.as_bytes()),
            Self::Query => {
                out.push(b'?');
                out.extend_from_slice(query.unwrap_or_default().as_bytes());
            }
            Self::RequestTarget | Self::TargetUri => {
                if *self == Self::TargetUri {
                    out.extend_from_slice(scheme.as_bytes());
                    out.extend_from_slice(b"://");
                    if !authority(parts, is_tls, out) {
                        return false;
                    }
                }
                out.extend_from_slice(path.as_bytes());
                if let Some(query) = query {
                    out.push(b'?');
                    out.extend_from_slice(query.as_bytes());
                }
            }
            Self::Field(name) => {
                let mut is_there = false;
                for value in parts.headers.get_all(name) {
                    if is_there {
                        out.extend_from_slice(b", ");
                    }
                    out.extend_from_slice(value.as_bytes().trim_ascii());
                    is_there = true;
                }
                return is_there;
            }
        }
        true
    }
}

/// The host in small letters, without a port that goes without saying.
fn authority(parts: &RequestParts, is_tls: bool, out: &mut Vec<u8>) -> bool {
    let Some(host) = parts.headers.get(header::HOST) else { return false };
    let host = host.as_bytes().to_ascii_lowercase();
    let usual: &[u8] = if is_tls { b":443" } else { b":80" };
    out.extend_from_slice(host.strip_suffix(usual).unwrap_or(&host));
    true
}

impl FromStr for Component {
    type Err = BadComponent;

    fn from_str(text: &str) -> Result<Self, BadComponent> {
        Ok(match text {
            "@method" => Self::Method,
            "@target-uri" => Self::TargetUri,
            "@authority" => Self::Authority,
            "@scheme" => Self::Scheme,
            "@request-target" => Self::RequestTarget,
            "@path" => Self::Path,
            "@query" => Self::Query,
            field => {
                let name: HeaderName = field.parse().map_err(|_| BadComponent::Unknown(text.to_owned()))?;
                let not_coverable = [
                    "connection",
                    "expect",
                    "host",
                    "keep-alive",
                    "proxy-connection",
                    "signature",
                    "signature-input",
                    "te",
                    "trailer",
                    "transfer-encoding",
                    "upgrade",
                ];
                if not_coverable.contains(&name.as_str()) {
                    return Err(BadComponent::NotCoverable(name));
                }
                Self::Field(name)
            }
        })
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Method => "@method",
            Self::TargetUri => "@target-uri",
            Self::Authority => "@authority",
            Self::Scheme => "@scheme",
            Self::RequestTarget => "@request-target",
            Self::Path => "@path",
            Self::Query => "@query",
            Self::Field(name) => name.as_str(),
        })
    }
}

/// A string as structured fields write it (RFC 9651 §4.1.6). What is no visible ASCII was refused with the settings.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for letter in self.0.chars() {
            if matches!(letter, '"' | '\\') {
                f.write_char('\\')?;
            }
            f.write_char(letter)?;
        }
        f.write_char('"')
    }
}

struct Text<'a>(&'a mut Vec<u8>);

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use culvert_hop::message::Request;
    use http::HeaderValue;

    use super::*;

    fn parts(target: &str, fields: &[(&'static str, &'static str)]) -> RequestParts {
        let mut request = Request::new(());
        *request.uri_mut() = target.parse().unwrap();
        for (name, value) in fields {
            request
                .headers_mut()
                .append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        request.into_parts().0.into_inner()
    }

    fn value(component: &str, parts: &RequestParts, is_tls: bool) -> Option<String> {
        let mut out = Vec::new();
        let component: Component = component.parse().unwrap();
        component.write(parts, is_tls, &mut out).then(|| String::from_utf8(out).unwrap())
    }

    #[test]
    fn each_component_is_what_the_origin_sees() {
        let some = parts(
            "/a/../b?x=1&x=2",
            &[("host", "Orders.Example:443"), ("x-two", " 1 "), ("x-two", "2,3"), ("x-none", "")],
        );
        for (component, is_tls, expected) in [
            ("@method", true, Some("GET")),
            ("@scheme", true, Some("https")),
            ("@scheme", false, Some("http")),
            ("@authority", true, Some("orders.example")),
            ("@authority", false, Some("orders.example:443")),
            ("@path", true, Some("/a/../b")),
            ("@query", true, Some("?x=1&x=2")),
            ("@request-target", true, Some("/a/../b?x=1&x=2")),
            ("@target-uri", true, Some("https://orders.example/a/../b?x=1&x=2")),
            ("x-two", true, Some("1, 2,3")),
            ("X-None", true, Some("")),
            ("x-missing", true, None),
        ] {
            assert_eq!(value(component, &some, is_tls).as_deref(), expected, "{component}");
        }
        let bare = parts("/", &[("host", "a:80")]);
        assert_eq!(value("@query", &bare, false).as_deref(), Some("?"));
        assert_eq!(value("@target-uri", &bare, false).as_deref(), Some("http://a/"));
    }

    #[test]
    fn what_a_request_has_not_is_neither_in_the_base_nor_in_the_list() {
        let components: Vec<Component> = ["@method", "content-type", "x-b"].map(|text| text.parse().unwrap()).to_vec();
        let params = Params { created: Some(7), keyid: Some("a\"b\\c"), ..Params::default() };
        let base = Base::of(&parts("/", &[("x-b", "1")]), &components, &params, false).unwrap();
        assert_eq!(base.input, r#"("@method" "x-b");created=7;keyid="a\"b\\c""#);
        let expected = format!("\"@method\": GET\n\"x-b\": 1\n\"@signature-params\": {}", base.input);
        assert_eq!(String::from_utf8(base.text).unwrap(), expected);
    }

    #[test]
    fn a_covered_field_of_more_than_ascii_is_refused() {
        let components = ["x-b".parse().unwrap()];
        let fault = Base::of(&parts("/", &[("x-b", "\u{e9}")]), &components, &Params::default(), false).err().unwrap();
        assert_eq!(fault.reason, Reason::BadRequest);
    }

    #[test]
    fn what_cannot_be_covered_is_refused() {
        for text in ["@status", "@query-param", "", "a b", "connection", "Signature", "host"] {
            assert!(text.parse::<Component>().is_err(), "{text:?}");
        }
    }
}
