//! Why a token cannot be had, in words for the log of whoever runs the connector.
//!
//! Must never repeat a secret: of what an endpoint says only what its refusal is called and explained by, without anything
//! that looks like a token.

use std::time::Duration;

use serde_json::Value;

/// The longest explanation that is repeated.
const WORDS: usize = 300;
/// A run of characters without a space that is longer than an identifier.
const RUN: usize = 48;

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// Nobody answers.
    #[error("{by} gave no answer: {why}")]
    Away {
        /// The endpoint.
        by: Box<str>,
        /// What went wrong.
        why: String,
    },
    /// It says no.
    #[error("{by} refused ({status}): {words}")]
    Refused {
        /// The endpoint.
        by: Box<str>,
        /// Its status.
        status: u16,
        /// Its explanation.
        words: String,
        /// How long it wants to be left alone.
        rest: Option<Duration>,
    },
    /// It says something else.
    #[error("{by} answered something else than a token: {what}")]
    Nonsense {
        /// The endpoint.
        by: Box<str>,
        /// What is wrong with it.
        what: String,
    },
    /// Nothing could be asked.
    #[error("{0}")]
    Here(String),
}

impl Trouble {
    /// How long the endpoint wants to be left alone.
    pub fn rest(&self) -> Option<Duration> {
        match self {
            Self::Refused { rest, .. } => *rest,
            Self::Away { .. } | Self::Nonsense { .. } | Self::Here(_) => None,
        }
    }

    /// Whether it is the same again: explanations often hold a time or a number of their own.
    pub fn is_like(&self, other: &Self) -> bool {
        let first = |words: &str| words.split(' ').next().unwrap_or_default().to_owned();
        match (self, other) {
            (Self::Away { by, .. }, Self::Away { by: other, .. }) => by == other,
            (Self::Refused { by, status, words, .. }, Self::Refused { by: other, status: of, words: than, .. }) => {
                (by, status, first(words)) == (other, of, first(than))
            }
            (one, other) => one == other,
        }
    }

    /// Whether it was about who asks or what with, and not about the endpoint itself.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { status: 400..=499, .. })
    }
}

/// What a refusal says: `error` and `error_description` (RFC 6749 §5.2), Google's `error.status` and `error.message`, or
/// `message` of others.
pub(super) fn words_of(body: &[u8]) -> String {
    let Ok(said) = serde_json::from_slice::<Value>(body) else { return "no reason given".to_owned() };
    let error = &said["error"];
    let parts = [error, &error["status"], &said["error_description"], &error["message"], &said["message"]];
    let words: Vec<&str> = parts.into_iter().filter_map(Value::as_str).filter(|text| !text.is_empty()).collect();
    if words.is_empty() { "no reason given".to_owned() } else { harmless(&words.join(": ")) }
}

fn harmless(text: &str) -> String {
    let is_plain = |c: char| !c.is_control() && !matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut shown = String::new();
    for word in text.split_whitespace() {
        let word: String = word.chars().filter(|c| is_plain(*c)).collect();
        let longest = word.split(|c: char| !(c.is_ascii_alphanumeric() || "-_+/=~.".contains(c))).map(str::len).max();
        if !shown.is_empty() {
            shown.push(' ');
        }
        shown.push_str(if longest.unwrap_or(0) > RUN { "…" } else { &word });
        if shown.len() > WORDS {
            shown = shown.chars().take(WORDS).collect();
            shown.push('…');
            break;
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_the_endpoints_words_and_without_anything_like_a_token() {
        let token = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJ4In0.c2lnbmF0dXJlc2lnbmF0dXJlc2ln";
        for (body, words) in [
            (
                r#"{"error":"invalid_client","error_description":"AADSTS7000215: Invalid\r\n client secret."}"#
                    .to_owned(),
                "invalid_client: AADSTS7000215: Invalid client secret.",
            ),
            (
                r#"{"error":{"code":403,"message":"Permission denied","status":"PERMISSION_DENIED"}}"#.to_owned(),
                "PERMISSION_DENIED: Permission denied",
            ),
            (
                format!(r#"{{"error":"invalid_grant","error_description":"bad assertion={token} x"}}"#),
                "invalid_grant: bad … x",
            ),
            ("<html>oops</html>".to_owned(), "no reason given"),
            ("{}".to_owned(), "no reason given"),
        ] {
            assert_eq!(words_of(body.as_bytes()), words);
        }
        let long = format!(r#"{{"error":"{}"}}"#, "word ".repeat(1000));
        assert!(words_of(long.as_bytes()).len() < WORDS + 20);
    }
}
