//! HTTP/1.1 on a byte stream (RFC 9112): heads, the framing of bodies, and the buffers beneath, the same at both ends.
//!
//! Must never read what another parser may read differently, change the order or the spelling of a field, or keep a
//! connection whose next byte is in doubt.

mod framing;
mod head;
mod line;
mod trailers;

pub(crate) use framing::{Decoder, Encoder, Piece};
pub(crate) use head::{Asked, Flaw, Heard, Progress, read_request, read_response, write_request, write_response};
pub(crate) use line::Line;
