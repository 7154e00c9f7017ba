//! What an X.509 certificate says beside its key: until when it holds, and whom it names.
//!
//! Reads as much of RFC 5280 §4.1 as that takes. Must never be what decides whether a certificate is trusted: that is
//! rustls's to do.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime};

const BOOLEAN: u8 = 0x01;
const OCTETS: u8 = 0x04;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// 2.5.29.17, subjectAltName.
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];

/// What is read of one.
#[derive(Debug, PartialEq, Eq)]
pub struct Facts {
    /// From when it holds.
    pub not_before: SystemTime,
    /// Until when it holds.
    pub not_after: SystemTime,
    /// DNS names, URIs, e-mail and IP addresses, in lower case. One cannot be taken for another: a DNS name holds none
    /// of `:/@`, an e-mail address holds an `@`, a URI a `:`.
    pub names: Vec<String>,
}

/// Reads a certificate in DER. None: it is none.
pub fn read(der: &[u8]) -> Option<Facts> {
    let mut certificate = Der(Der(der).expect(SEQUENCE)?);
    let mut fields = Der(certificate.expect(SEQUENCE)?);
    if fields.peek() == Some(VERSION) {
        fields.next()?;
    }
    // Serial number, signature algorithm, issuer.
    for _ in 0..3 {
        fields.next()?;
    }
    let mut validity = Der(fields.expect(SEQUENCE)?);
    let (not_before, not_after) = (time(validity.next()?)?, time(validity.next()?)?);
    // Subject and key; unique identifiers may follow.
    fields.next()?;
    fields.next()?;
    let mut names = Vec::new();
    while let Some((tag, content)) = fields.next() {
        if tag == EXTENSIONS {
            names = alternative_names(content)?;
        }
    }
    Some(Facts { not_before, not_after, names })
}

fn alternative_names(extensions: &[u8]) -> Option<Vec<String>> {
    let mut all = Der(Der(extensions).expect(SEQUENCE)?);
    let mut names = Vec::new();
    while let Some((_, extension)) = all.next() {
        let mut extension = Der(extension);
        let is_names = extension.expect(OID)? == ALTERNATIVE_NAMES;
        if extension.peek() == Some(BOOLEAN) {
            extension.next()?;
        }
        let value = extension.expect(OCTETS)?;
        if is_names {
            let mut list = Der(Der(value).expect(SEQUENCE)?);
            while let Some((tag, name)) = list.next() {
                names.extend(alternative_name(tag, name));
            }
        }
    }
    Some(names)
}

/// One `GeneralName` (RFC 5280 §4.2.1.6), if it is of a kind that a gateway is known by.
fn alternative_name(tag: u8, content: &[u8]) -> Option<String> {
    let text = || {
        let text = std::str::from_utf8(content).ok().filter(|text| !text.is_empty());
        text.filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic())).map(str::to_ascii_lowercase)
    };
    match tag {
        0x81 => text().filter(|text| text.contains('@')),
        0x82 => text().filter(|text| !text.contains([':', '/', '@'])),
        0x86 => text().filter(|text| text.contains(':')),
        0x87 => match content.len() {
            4 => <[u8; 4]>::try_from(content).ok().map(|octets| Ipv4Addr::from(octets).to_string()),
            16 => <[u8; 16]>::try_from(content).ok().map(|octets| Ipv6Addr::from(octets).to_string()),
            _ => None,
        },
        _ => None,
    }
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ` (RFC 5280 §4.1.2.5).
fn time((tag, content): (u8, &[u8])) -> Option<SystemTime> {
    let text = std::str::from_utf8(content).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            let year: i64 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    if rest.len() != 10 {
        return None;
    }
    let two = |at: usize| rest.get(at..at + 2).and_then(|digits| digits.parse::<i64>().ok());
    let (month, day, hour, minute, second) = (two(0)?, two(2)?, two(4)?, two(6)?, two(8)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
    match u64::try_from(seconds) {
        Ok(seconds) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)),
        Err(_) => SystemTime::UNIX_EPOCH.checked_sub(Duration::from_secs(seconds.unsigned_abs())),
    }
}

/// In the Gregorian calendar, counted from March so that the leap day is a year's last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month > 2 { year } else { year - 1 };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    // 719468 days lie between 1 March of the year 0 and 1970.
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - 719_468
}

/// A run of values, each with a tag and a definite length (X.690 §8.1).
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&short, rest) = rest.split_first()?;
        let (length, rest) = match short {
            0..=0x7f => (usize::from(short), rest),
            0x81..=0x83 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(short - 0x80))?;
                (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, content)| content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(at: SystemTime) -> i64 {
        match at.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_secs()).unwrap(),
            Err(before) => -i64::try_from(before.duration().as_secs()).unwrap(),
        }
    }

    #[test]
    fn times_are_read_as_the_calendar_has_them() {
        for (tag, text, expected) in [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "691231235959Z", Some(3_155_759_999 - 5_680_281_600 + 2_524_521_600)),
            (UTC_TIME, "000229120000Z", Some(951_825_600)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000)),
            (GENERALIZED_TIME, "99991231235959Z", Some(253_402_300_799)),
            (UTC_TIME, "7001010000Z", None),
            (UTC_TIME, "700101000000", None),
            (UTC_TIME, "701301000000Z", None),
            (UTC_TIME, "7001010000+1Z", None),
            (GENERALIZED_TIME, "700101000000Z", None),
            (OCTETS, "700101000000Z", None),
        ] {
            assert_eq!(time((tag, text.as_bytes())).map(seconds), expected, "{text}");
        }
    }

    #[test]
    fn a_certificate_tells_whom_it_names_and_until_when() {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2051, 12, 31);
        params.subject_alt_names = vec![
            rcgen::SanType::DnsName("Kong.Example.COM".try_into().unwrap()),
            rcgen::SanType::URI("spiffe://example.com/kong".try_into().unwrap()),
            rcgen::SanType::Rfc822Name("kong@example.com".try_into().unwrap()),
            rcgen::SanType::IpAddress("192.0.2.7".parse().unwrap()),
            rcgen::SanType::IpAddress("2001:db8::7".parse().unwrap()),
            // A URI that looks like a DNS name, and the other way round.
            rcgen::SanType::URI("kong.example.org".try_into().unwrap()),
            rcgen::SanType::DnsName("kong@example.org".try_into().unwrap()),
        ];
        let key = rcgen::KeyPair::generate().unwrap();
        let facts = read(params.self_signed(&key).unwrap().der()).unwrap();
        assert_eq!((seconds(facts.not_before), seconds(facts.not_after)), (1_577_836_800, 2_587_593_600));
        let names = ["kong.example.com", "spiffe://example.com/kong", "kong@example.com", "192.0.2.7", "2001:db8::7"];
        assert_eq!(facts.names, names);
    }

    #[test]
    fn what_is_cut_or_changed_is_read_as_nothing_and_never_panics() {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap().self_signed(&key).unwrap();
        let der = certificate.der().to_vec();
        for cut in 0..der.len() {
            assert_eq!(read(&der[..cut]), None);
        }
        for place in 0..der.len() {
            for value in [0, 0x30, 0x7f, 0x80, 0x83, 0xff] {
                let mut changed = der.clone();
                changed[place] = value;
                let _ = read(&changed);
            }
        }
    }
}
