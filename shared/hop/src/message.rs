//! Requests and responses between hops: like those of the crate http, with [`Fields`] in place of its map.
//!
//! Must never know of a connection.

use bytes::Bytes;
use http::{Extensions, Method, StatusCode, Uri, Version};

use crate::body::Body;
use crate::fields::Fields;
use crate::interim::Interim;

/// A request.
#[derive(Debug)]
pub struct Request<B = Body> {
    parts: RequestParts,
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
    parts: ResponseParts,
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
        Self { parts, body }
    }

    /// From its halves.
    pub fn from_parts(parts: RequestParts, body: B) -> Self {
        Self { parts, body }
    }

    /// Its halves.
    pub fn into_parts(self) -> (RequestParts, B) {
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
        Self { parts, body }
    }

    /// From its halves.
    pub fn from_parts(parts: ResponseParts, body: B) -> Self {
        Self { parts, body }
    }

    /// Its halves.
    pub fn into_parts(self) -> (ResponseParts, B) {
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

impl RequestParts {
    /// As the crate http has it. Loses spelling, and the order of lines of mixed names.
    pub(crate) fn into_http(self) -> http::Request<()> {
        let mut request = http::Request::new(());
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers.into();
        *request.extensions_mut() = self.extensions;
        request
    }
}

impl ResponseParts {
    /// As the crate http has it. Loses spelling, and the order of lines of mixed names.
    pub(crate) fn into_http(self) -> http::Response<()> {
        let mut response = http::Response::new(());
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.into();
        *response.extensions_mut() = self.extensions;
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
        Self { parts, body }
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
        Self { parts, body }
    }
}
