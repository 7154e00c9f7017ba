//! Values as `check` shows them: secrets hidden, each with its source.

use serde::Serialize;
use toml::Value;

use super::{Kind, Problem, Setting, Source};

/// One value as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// The key, as `http.listener[0].listen`.
    pub key: String,
    /// The value as TOML, a secret as `(hidden)`.
    pub value: String,
    /// `default`, a flag, a variable, or `FILE:LINE`.
    pub source: String,
}

impl Shown {
    pub(super) fn new(key: &str, setting: &Setting, value: &Value, source: &Source) -> Self {
        let value = if setting.secret && setting.kind != Kind::Secret {
            HIDDEN.to_owned()
        } else {
            show(setting.kind, value).to_string()
        };
        Self { key: key.to_owned(), value: value.replace(&format!("\"{HIDDEN}\""), HIDDEN), source: source.to_string() }
    }
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} = {}  # {}", self.key, self.value, self.source)
    }
}

const HIDDEN: &str = "(hidden)";

/// All problems, a line each.
pub(super) fn lines(problems: &[Problem]) -> String {
    let line = |problem: &Problem| match &problem.source {
        Source::Default => problem.message.clone(),
        source => format!("{source}: {}", problem.message),
    };
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn show(kind: Kind, value: &Value) -> Value {
    match (kind, value) {
        (Kind::Secret, Value::String(_)) => Value::String(HIDDEN.to_owned()),
        (Kind::Secret, Value::Table(table)) => {
            let entry = |(key, value): (&String, &Value)| {
                let shown = match value {
                    Value::Array(items) => Value::Array(items.iter().map(|item| show(kind, item)).collect()),
                    other => other.clone(),
                };
                (key.clone(), shown)
            };
            Value::Table(table.iter().map(entry).collect())
        }
        (Kind::Url, Value::String(text)) => Value::String(without_password(text)),
        (Kind::List(item), Value::Array(items)) => Value::Array(items.iter().map(|value| show(*item, value)).collect()),
        _ => value.clone(),
    }
}

/// A URL with its password replaced.
fn without_password(url: &str) -> String {
    let hidden = || {
        let (scheme, rest) = url.split_once("://")?;
        let authority = rest.split(['/', '?', '#']).next()?;
        let (user, _) = authority.rsplit_once('@')?;
        let (name, _) = user.split_once(':')?;
        Some(format!("{scheme}://{name}:{HIDDEN}{}", rest.get(user.len()..)?))
    };
    hidden().unwrap_or_else(|| url.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_urls_are_hidden_and_nothing_else_is() {
        for (url, shown) in [
            ("postgres://user:pa:ss@db/x", "postgres://user:(hidden)@db/x"),
            ("postgres://user:p@ss@db/x", "postgres://user:(hidden)@db/x"),
            ("postgres://user@db/x?a=b:c@d", "postgres://user@db/x?a=b:c@d"),
            ("sqlite:registry.db", "sqlite:registry.db"),
            ("http://[::1]:80/@", "http://[::1]:80/@"),
        ] {
            assert_eq!(without_password(url), shown);
        }
    }
}
