//! Requests and responses between hops: like those of the crate http, with [`Fields`] in place of its map.
//!
//! Must never know of a connection.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use bytes::Bytes;
use http::{Extensions, Method, StatusCode, Uri, Version};

use crate::body::Body;
use crate::fields::Fields;
use crate::interim::Interim;

/// A head on its way: one word to hand on, and shared at no cost with whoever may have to send it once more. Changing it
/// while it is shared copies it.
#[derive(Debug, Clone)]
pub struct Handle<P>(Arc<P>);

/// A request.
#[derive(Debug)]
pub struct Request<B = Body> {
    parts: Handle<RequestParts>,
    body: B,
}

/// A request without its body.
#[derive(Debug, Clone)]
pub struct RequestParts {
    /// Its method.
    pub method: Method,
    /// Its target.
    pub uri: Uri,
    /// The version that the caller speaks.
    pub version: Version,
    /// Its fields.
    pub headers: Fields,
    /// What else goes with it.
    pub extensions: Extensions,
    /// The way back of what comes before the answer.
    pub(crate) interim: Option<Interim>,
}

/// A response.
#[derive(Debug)]
pub struct Response<B = Body> {
    parts: Handle<ResponseParts>,
    body: B,
}

/// A response without its body.
#[derive(Debug, Clone)]
pub struct ResponseParts {
    /// Its status.
    pub status: StatusCode,
    /// The version that it came by.
    pub version: Version,
    /// Its fields.
    pub headers: Fields,
    /// What else goes with it.
    pub extensions: Extensions,
    /// What stands behind the status in HTTP/1.1; none for the status's own words.
    pub(crate) phrase: Option<Bytes>,
}

impl<P: Clone> Handle<P> {
    /// The head itself.
    pub fn into_inner(self) -> P {
        Arc::unwrap_or_clone(self.0)
    }
}

impl<P> From<P> for Handle<P> {
    fn from(parts: P) -> Self {
        Self(Arc::new(parts))
    }
}

impl<P> Deref for Handle<P> {
    type Target = P;

    fn deref(&self) -> &P {
        &self.0
    }
}

impl<P: Clone> DerefMut for Handle<P> {
    fn deref_mut(&mut self) -> &mut P {
        Arc::make_mut(&mut self.0)
    }
}

impl<B> Request<B> {
    /// GET /, without fields.
    pub fn new(body: B) -> Self {
        let parts = RequestParts {
            method: Method::GET,
            uri: Uri::default(),
            version: Version::HTTP_11,
            headers: Fields::new(),
            extensions: Extensions::new(),
            interim: None,
        };
        Self::from_parts(parts, body)
    }

    /// From its halves.
    pub fn from_parts(parts: impl Into<Handle<RequestParts>>, body: B) -> Self {
        Self { parts: parts.into(), body }
    }

    /// Its halves.
    pub fn into_parts(self) -> (Handle<RequestParts>, B) {
        (self.parts, self.body)
    }

    /// Its method.
    pub fn method(&self) -> &Method {
        &self.parts.method
    }

    /// Its method.
    pub fn method_mut(&mut self) -> &mut Method {
        &mut self.parts.method
    }

    /// Its target.
    pub fn uri(&self) -> &Uri {
        &self.parts.uri
    }

    /// Its target.
    pub fn uri_mut(&mut self) -> &mut Uri {
        &mut self.parts.uri
    }

    /// The version that the caller speaks.
    pub fn version(&self) -> Version {
        self.parts.version
    }

    /// Its fields.
    pub fn headers(&self) -> &Fields {
        &self.parts.headers
    }

    /// Its fields.
    pub fn headers_mut(&mut self) -> &mut Fields {
        &mut self.parts.headers
    }

    /// What else goes with it.
    pub fn extensions(&self) -> &Extensions {
        &self.parts.extensions
    }

    /// All but its body.
    pub(crate) fn parts(&self) -> &RequestParts {
        &self.parts
    }

    /// Its body.
    pub fn body(&self) -> &B {
        &self.body
    }

    /// Its body.
    pub fn body_mut(&mut self) -> &mut B {
        &mut self.body
    }

    /// Its body alone.
    pub fn into_body(self) -> B {
        self.body
    }

    /// With another body.
    pub fn map<C>(self, make: impl FnOnce(B) -> C) -> Request<C> {
        Request { parts: self.parts, body: make(self.body) }
    }
}

impl<B> Response<B> {
    /// 200 OK, without fields.
    pub fn new(body: B) -> Self {
        let parts = ResponseParts {
            status: StatusCode::OK,
            version: Version::HTTP_11,
            headers: Fields::new(),
            extensions: Extensions::new(),
            phrase: None,
        };
        Self::from_parts(parts, body)
    }

    /// From its halves.
    pub fn from_parts(parts: impl Into<Handle<ResponseParts>>, body: B) -> Self {
        Self { parts: parts.into(), body }
    }

    /// Its halves.
    pub fn into_parts(self) -> (Handle<ResponseParts>, B) {
        (self.parts, self.body)
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.parts.status
    }

    /// Its status.
    pub fn status_mut(&mut self) -> &mut StatusCode {
        &mut self.parts.status
    }

    /// The version that it came by.
    pub fn version(&self) -> Version {
        self.parts.version
    }

    /// Its fields.
    pub fn headers(&self) -> &Fields {
        &self.parts.headers
    }

    /// Its fields.
    pub fn headers_mut(&mut self) -> &mut Fields {
        &mut self.parts.headers
    }

    /// Its body.
    pub fn body(&self) -> &B {
        &self.body
    }

    /// Its body.
    pub fn body_mut(&mut self) -> &mut B {
        &mut self.body
    }

    /// Its body alone.
    pub fn into_body(self) -> B {
        self.body
    }

    /// With another body.
    pub fn map<C>(self, make: impl FnOnce(B) -> C) -> Response<C> {
        Response { parts: self.parts, body: make(self.body) }
    }
}

impl Handle<RequestParts> {
    /// As the crate http has it. Loses spelling, and the order of lines of mixed names.
    pub(crate) fn into_http(self) -> http::Request<()> {
        let parts = self.into_inner();
        let mut request = http::Request::new(());
        *request.method_mut() = parts.method;
        *request.uri_mut() = parts.uri;
        *request.version_mut() = parts.version;
        *request.headers_mut() = parts.headers.into();
        *request.extensions_mut() = parts.extensions;
        request
    }
}

impl Handle<ResponseParts> {
    /// As the crate http has it. Loses spelling, and the order of lines of mixed names.
    pub(crate) fn into_http(self) -> http::Response<()> {
        let parts = self.into_inner();
        let mut response = http::Response::new(());
        *response.status_mut() = parts.status;
        *response.headers_mut() = parts.headers.into();
        *response.extensions_mut() = parts.extensions;
        response
    }
}

impl<B> From<http::Request<B>> for Request<B> {
    fn from(request: http::Request<B>) -> Self {
        let (parts, body) = request.into_parts();
        let parts = RequestParts {
            method: parts.method,
            uri: parts.uri,
            version: parts.version,
            headers: parts.headers.into(),
            extensions: parts.extensions,
            interim: None,
        };
        Self::from_parts(parts, body)
    }
}

impl<B> From<http::Response<B>> for Response<B> {
    fn from(response: http::Response<B>) -> Self {
        let (parts, body) = response.into_parts();
        let parts = ResponseParts {
            status: parts.status,
            version: parts.version,
            headers: parts.headers.into(),
            extensions: parts.extensions,
            phrase: None,
        };
        Self::from_parts(parts, body)
    }
}

#[cfg(test)]
mod tests {
    use http::header::HOST;
    use http::{HeaderValue, Method};

    use super::*;

    #[test]
    fn a_shared_head_is_copied_by_whoever_changes_it_and_by_nobody_else() {
        let mut request = Request::new(());
        request.headers_mut().insert(HOST, HeaderValue::from_static("one"));
        let (mut sent, ()) = request.into_parts();
        let kept = sent.clone();
        assert!(std::ptr::eq(&raw const *sent, &raw const *kept));
        sent.headers.insert(HOST, HeaderValue::from_static("other"));
        sent.method = Method::PUT;
        assert_eq!((&kept.method, kept.headers.get(HOST).unwrap().as_bytes()), (&Method::GET, &b"one"[..]));
        // Alone again, it is changed in place.
        let place = &raw const *sent;
        sent.headers.insert(HOST, HeaderValue::from_static("third"));
        assert!(std::ptr::eq(place, &raw const *sent));
    }
}
