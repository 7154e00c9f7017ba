//! Header fields that are for one hop only, and how to drop fields without changing the order of the others.
//!
//! Must never reorder what stays.

use http::header::{CONNECTION, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// `Keep-Alive`.
pub(crate) const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// `Proxy-Connection`.
pub(crate) const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// `HTTP2-Settings`: belongs to an h2c upgrade, which ends here.
pub(crate) const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// The most fields that are taken out and put back.
const MAX_TAIL: usize = 4;
/// Every field whose name starts so, and goes on with `-` or `_`, speaks for Culvert: to programs that read fields as
/// variables (RFC 3875 §4.1.18) both are one.
const CULVERT: &str = "culvert";

/// Whether the field ends at this hop although `Connection` does not name it (RFC 9110 §7.6.1).
pub(crate) fn is_hop_by_hop(name: &HeaderName) -> bool {
    *name == CONNECTION
        || *name == TE
        || *name == TRANSFER_ENCODING
        || *name == UPGRADE
        || *name == KEEP_ALIVE
        || *name == PROXY_CONNECTION
        || *name == HTTP2_SETTINGS
}

/// Whether the field speaks for Culvert.
pub(crate) fn is_culvert(name: &HeaderName) -> bool {
    let rest = name.as_str().strip_prefix(CULVERT);
    rest.is_some_and(|rest| matches!(rest.as_bytes().first(), Some(b'-' | b'_')))
}

/// Whether the next hop relies on the field, so that `Connection` may not take it away.
pub(crate) fn is_protected(name: &HeaderName) -> bool {
    const PROTECTED: [HeaderName; 14] = [
        header::HOST,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::AUTHORIZATION,
        header::COOKIE,
        header::SET_COOKIE,
        header::EXPECT,
        header::FORWARDED,
        header::VIA,
        header::RANGE,
        header::CACHE_CONTROL,
        header::TRAILER,
    ];
    PROTECTED.contains(name)
        || is_culvert(name)
        || ["x-forwarded-", "x-real-ip", "x-request-id", "traceparent", "tracestate", "proxy-status"]
            .iter()
            .any(|prefix| name.as_str().starts_with(prefix))
}

/// The tokens of all lines of a list field; the empty ones left out.
pub(crate) fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

/// Drops the fields that `is_unwanted` names; the rest keeps its order.
///
/// `HeaderMap::remove` moves the last field into the gap, so fields are taken from the end up to the first unwanted one,
/// and those that stay are put back. A map with repeated fields, or with many to take, is built anew.
pub(crate) fn drop_fields(headers: &mut HeaderMap, is_unwanted: impl Fn(&HeaderName) -> bool) {
    let Some(first) = headers.keys().position(&is_unwanted) else { return };
    let mut tail: [Option<HeaderName>; MAX_TAIL] = [const { None }; MAX_TAIL];
    if headers.keys_len() == headers.len() && headers.len() - first <= MAX_TAIL {
        for (slot, name) in tail.iter_mut().zip(headers.keys().skip(first)) {
            *slot = Some(name.clone());
        }
        let mut kept: [Option<HeaderValue>; MAX_TAIL] = [const { None }; MAX_TAIL];
        for (name, value) in tail.iter().zip(&mut kept).rev() {
            if let Some(name) = name {
                *value = headers.remove(name).filter(|_| !is_unwanted(name));
            }
        }
        for (name, value) in tail.into_iter().zip(kept) {
            if let (Some(name), Some(value)) = (name, value) {
                headers.insert(name, value);
            }
        }
    } else {
        let mut kept = HeaderMap::with_capacity(headers.len());
        let mut last = None;
        for (name, value) in headers.drain() {
            last = name.or(last);
            if let Some(name) = &last
                && !is_unwanted(name)
            {
                kept.append(name, value);
            }
        }
        *headers = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    fn names(headers: &HeaderMap) -> Vec<String> {
        headers.iter().map(|(name, value)| format!("{name}:{}", value.to_str().unwrap())).collect()
    }

    #[test]
    fn what_stays_keeps_its_order_where_no_field_repeats() {
        for unwanted in [&[][..], &["a"], &["b"], &["d"], &["e"], &["c", "e"], &["a", "e"], &["a", "b", "c", "d", "e"]]
        {
            let mut headers = map(&[("a", "1"), ("b", "1"), ("c", "1"), ("d", "1"), ("e", "1")]);
            let all = names(&headers);
            let expected: Vec<_> =
                all.into_iter().filter(|line| !unwanted.iter().any(|name| line.starts_with(name))).collect();
            drop_fields(&mut headers, |name| unwanted.contains(&name.as_str()));
            assert_eq!(names(&headers), expected, "without {unwanted:?}");
        }
    }

    #[test]
    fn what_stays_keeps_its_order() {
        for unwanted in [&[][..], &["a"], &["b"], &["e"], &["d", "e"], &["a", "e"], &["a", "b", "c", "d", "e"]] {
            let mut headers =
                map(&[("a", "1"), ("b", "1"), ("b", "2"), ("c", "1"), ("d", "1"), ("e", "1"), ("e", "2")]);
            let expected: Vec<_> = names(&headers)
                .into_iter()
                .filter(|line| !unwanted.iter().any(|name| line.starts_with(name)))
                .collect();
            drop_fields(&mut headers, |name| unwanted.contains(&name.as_str()));
            assert_eq!(names(&headers), expected, "without {unwanted:?}");
        }
    }
}
