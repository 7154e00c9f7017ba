//! What both sides of HTTP/2 share: fields to and fro, bodies with flow control.
//!
//! Must never take a reset for an end.

use std::future::poll_fn;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::strict::Fields;

pub(crate) fn map(fields: &Fields) -> Result<HeaderMap> {
    let mut map = HeaderMap::new();
    for (name, value) in &fields.0 {
        map.append(HeaderName::from_bytes(name)?, HeaderValue::from_bytes(value)?);
    }
    Ok(map)
}

pub(crate) fn fields(map: &HeaderMap) -> Fields {
    Fields(map.iter().map(|(name, value)| (name.as_str().as_bytes().to_vec(), value.as_bytes().to_vec())).collect())
}

/// Sends all of `data`, as fast as the other side reads.
pub(crate) async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Result<()> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = match poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(room) => room.context("send")?,
            None => bail!("the stream ended while sending"),
        };
        let part = data.split_to(room.min(data.len()));
        stream.send_data(part, false).context("send")?;
    }
    Ok(())
}

pub(crate) fn finish(stream: &mut SendStream<Bytes>, trailers: &Fields) -> Result<()> {
    if trailers.0.is_empty() {
        stream.send_data(Bytes::new(), true).context("end")
    } else {
        stream.send_trailers(map(trailers)?).context("trailers")
    }
}

/// The next piece, or the trailers at a clean end.
pub(crate) async fn piece(stream: &mut RecvStream) -> Result<Result<Bytes, Fields>> {
    loop {
        match stream.data().await {
            Some(data) => {
                let data = data.context("body")?;
                stream.flow_control().release_capacity(data.len())?;
                if !data.is_empty() {
                    return Ok(Ok(data));
                }
            }
            None => {
                let trailers = stream.trailers().await.context("trailers")?;
                return Ok(Err(trailers.as_ref().map(fields).unwrap_or_default()));
            }
        }
    }
}

/// Completes when the other side resets the stream.
pub(crate) async fn reset(stream: &mut SendStream<Bytes>) {
    let _ = poll_fn(|cx| stream.poll_reset(cx)).await;
}
