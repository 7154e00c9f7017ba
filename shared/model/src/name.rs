//! Names of services and tunnels, and the globs that grant them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// Not a DNS label.
    #[error("{0:?} is not a name: 1 to 63 of a-z, 0-9 and -, not - at either end")]
    NotALabel(String),
    /// Reserved.
    #[error("\"localhost\" cannot be a service's name")]
    Localhost,
    /// A glob with something else than label characters and `*`.
    #[error("{0:?} is not a grant: a name, or a pattern of a-z, 0-9, - and *")]
    NotAGlob(String),
}

/// A service's name: a DNS label in lower case, never `localhost`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(String);

/// A tunnel's, gateway's or connector's name: a DNS label in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(String);

/// What a tunnel may serve or a gateway may call: an exact service name, or a pattern in which `*` is any run of
/// characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Grant(String);

impl ServiceName {
    /// The name, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Label {
    /// The name, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Grant {
    /// The pattern, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The one name it grants, when it holds no `*`.
    pub fn exact(&self) -> Option<ServiceName> {
        self.0.parse().ok()
    }

    /// Whether `name` falls under it.
    pub fn matches(&self, name: &ServiceName) -> bool {
        glob(self.0.as_bytes(), name.0.as_bytes())
    }

    /// Whether some name falls under both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (own, other) = (self.0.as_bytes(), other.0.as_bytes());
        // From the ends: whether own[at..] and other[place..] have a text in common, for every `place`.
        let mut below = vec![false; other.len() + 1];
        for at in (0..=own.len()).rev() {
            let mut here = vec![false; other.len() + 1];
            for place in (0..=other.len()).rev() {
                here[place] = match (own.get(at), other.get(place)) {
                    (None, None) => true,
                    (Some(b'*'), _) if below[place] => true,
                    (_, Some(b'*')) if here[place + 1] => true,
                    (Some(b'*'), Some(_)) => here[place + 1],
                    (Some(_), Some(b'*')) => below[place],
                    (Some(a), Some(b)) => a == b && below[place + 1],
                    (None, Some(_)) | (Some(_), None) => false,
                };
            }
            below = here;
        }
        below[0]
    }
}

impl FromStr for ServiceName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let label = text.parse::<Label>()?;
        if label.0 == "localhost" { Err(BadName::Localhost) } else { Ok(Self(label.0)) }
    }
}

impl FromStr for Label {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let lower = text.to_ascii_lowercase();
        let bytes = lower.as_bytes();
        let fits = (1..=63).contains(&bytes.len())
            && bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && bytes.first() != Some(&b'-')
            && bytes.last() != Some(&b'-');
        if fits { Ok(Self(lower)) } else { Err(BadName::NotALabel(text.to_owned())) }
    }
}

impl FromStr for Grant {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let lower = text.to_ascii_lowercase();
        if !lower.contains('*') {
            return lower.parse::<ServiceName>().map(|name| Self(name.0));
        }
        let fits = lower.len() <= 63 && lower.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'*'));
        if fits { Ok(Self(lower)) } else { Err(BadName::NotAGlob(text.to_owned())) }
    }
}

macro_rules! text {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = BadName;

            fn try_from(text: String) -> Result<Self, BadName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

text!(ServiceName, Label, Grant);

/// Matches without backtracking over more than the last `*`: linear in practice, quadratic at worst over 63 bytes.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == text.get(t) {
            p += 1;
            t += 1;
        } else if let Some((star_p, star_t)) = star {
            p = star_p + 1;
            t = star_t + 1;
            star = Some((star_p, star_t + 1));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_grants_overlap_when_a_name_can_fall_under_both() {
        for (one, other, expected) in [
            ("orders", "orders", true),
            ("orders", "users", false),
            ("orders", "ord*", true),
            ("orders", "*ers", true),
            ("orders", "order", false),
            ("*", "orders", true),
            ("*", "a-*", true),
            ("a-*", "*-b", true),
            ("a-*", "b-*", false),
            ("*-a", "*-b", false),
            ("a*c", "ab*", true),
            ("a*c*e", "ab*de", true),
            ("a*x*e", "ab*d", false),
        ] {
            let (a, b): (Grant, Grant) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!((a.overlaps(&b), b.overlaps(&a)), (expected, expected), "{one} {other}");
        }
    }

    #[test]
    fn names_are_dns_labels_in_lower_case() {
        assert_eq!("Orders".parse::<ServiceName>().unwrap().as_str(), "orders");
        for bad in ["", "-a", "a-", "a.b", "a_b", "ä", "*", &"a".repeat(64)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad:?}");
        }
        assert_eq!("LocalHost".parse::<ServiceName>(), Err(BadName::Localhost));
    }

    #[test]
    fn a_star_is_any_run_of_characters() {
        let matches = |grant: &str, name: &str| grant.parse::<Grant>().unwrap().matches(&name.parse().unwrap());
        for (grant, name, expected) in [
            ("orders", "orders", true),
            ("orders", "orders2", false),
            ("billing-*", "billing-eu", true),
            ("billing-*", "billing", false),
            ("*", "anything", true),
            ("*-eu", "orders-eu", true),
            ("*-eu", "orders-us", false),
            ("a*b*c", "aXbYbZc".to_ascii_lowercase().as_str(), true),
            ("a*b*c", "acb", false),
        ] {
            assert_eq!(matches(grant, name), expected, "{grant} {name}");
        }
    }
}
