//! A token of somebody else's, carried in a field of each request.

use std::fmt;

use culvert_hop::fault::Fault;
use culvert_hop::message::RequestParts;
use http::{HeaderName, HeaderValue};

use super::{About, Holder, Proofs, Source};

/// The field, and what holds the token. Equal when the field and the source are.
pub struct Carried<S: Source<Item = HeaderValue>> {
    header: HeaderName,
    holder: Holder<S>,
}

impl<S: Source<Item = HeaderValue>> Carried<S> {
    /// With nothing held yet.
    pub fn new(header: HeaderName, source: S) -> Self {
        Self { header, holder: Holder::new(source) }
    }

    /// The field that it goes in.
    pub const fn header(&self) -> &HeaderName {
        &self.header
    }

    /// What holds it.
    pub const fn holder(&self) -> &Holder<S> {
        &self.holder
    }

    /// Puts a token into the request. The policy of the service has taken out whatever was there.
    ///
    /// # Errors
    /// A [`Fault`] `origin_auth`.
    pub async fn prove(&self, parts: &mut RequestParts, about: About<'_>, proofs: &Proofs) -> Result<(), Fault> {
        let value = match self.holder.at_hand(about.service, proofs) {
            Some(value) => value,
            None => Box::pin(self.holder.get(about.service, proofs)).await?,
        };
        parts.headers.append(self.header.clone(), value);
        Ok(())
    }
}

/// A token behind its prefix; none if it holds what no field may hold.
pub(super) fn field(prefix: &str, token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("{prefix}{token}")).ok().filter(|_| !token.is_empty())?;
    value.set_sensitive(true);
    Some(value)
}

impl<S: Source<Item = HeaderValue> + PartialEq> PartialEq for Carried<S> {
    fn eq(&self, other: &Self) -> bool {
        self.header == other.header && self.holder.source() == other.holder.source()
    }
}

impl<S: Source<Item = HeaderValue> + fmt::Debug> fmt::Debug for Carried<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carried").field("header", &self.header).field("source", self.holder.source()).finish()
    }
}
