//! What a setting may hold, as TOML writes it and as a flag or variable writes it.

use std::path::{Path, PathBuf};

use culvert_model::units::{parse_duration, parse_optional_duration};
use toml::{Table, Value};

/// What a setting holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number within these bounds.
    Integer {
        /// The smallest.
        min: i64,
        /// The largest.
        max: i64,
    },
    /// A duration, as `25s`; read it with [`super::duration`].
    Duration,
    /// A duration, `never` or `off`; read it with [`super::optional_duration`].
    OptionalDuration,
    /// Bytes, as `65536` or `64KiB`; becomes a whole number.
    Size,
    /// Bytes or `off`; read it with [`super::optional_size`].
    OptionalSize,
    /// Any text.
    Text,
    /// A URL; a password in it is not shown.
    Url,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A path; a relative one in a file is relative to that file.
    Path,
    /// One of these words, or else a path.
    WordOrPath(&'static [&'static str]),
    /// `HOST:PORT` or `unix:PATH`; a relative path in a file is relative to that file.
    Address,
    /// A secret's source for [`crate::secret::SecretSource`]: `{ env | file | credential }` or the secret itself.
    Secret,
    /// A list of these. A variable separates them by spaces.
    List(&'static Kind),
    /// An array of tables that a flag or variable adds to by `NAME=VALUE`: the names of the two keys.
    Entries {
        /// The key of the part before the first `=`, by which an entry is found.
        name: &'static str,
        /// The key of the part after it.
        value: &'static str,
    },
}

impl Kind {
    /// Reads the text of a flag, variable or default. Entries are not read here.
    pub(super) fn read(self, text: &str) -> Result<Value, String> {
        let value = match self {
            Self::Bool => match text {
                "true" | "1" | "yes" | "on" => Value::Boolean(true),
                "false" | "0" | "no" | "off" => Value::Boolean(false),
                _ => return Err(self.expected()),
            },
            Self::Integer { .. } => Value::Integer(text.trim().parse().map_err(|_| self.expected())?),
            Self::List(item) => {
                Value::Array(text.split_whitespace().map(|part| item.read(part)).collect::<Result<_, _>>()?)
            }
            Self::Secret if text.is_empty() => return Err("is empty".to_owned()),
            Self::Duration
            | Self::OptionalDuration
            | Self::Size
            | Self::OptionalSize
            | Self::Text
            | Self::Url
            | Self::Choice(_)
            | Self::Path
            | Self::WordOrPath(_)
            | Self::Address
            | Self::Secret
            | Self::Entries { .. } => Value::String(text.to_owned()),
        };
        self.check(value, None)
    }

    /// Checks a TOML value, resolves its relative paths against `base`, and gives its one normal form.
    pub(super) fn check(self, value: Value, base: Option<&Path>) -> Result<Value, String> {
        let expected = || self.expected();
        let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(expected);
        match self {
            Self::Bool => value.as_bool().map(Value::Boolean).ok_or_else(expected),
            Self::Integer { min, max } => {
                let number = value.as_integer().filter(|number| (min..=max).contains(number));
                number.map(Value::Integer).ok_or_else(expected)
            }
            Self::Duration => {
                let text = text(&value)?;
                parse_duration(&text).map_err(|error| error.to_string())?;
                Ok(Value::String(text))
            }
            Self::OptionalDuration => {
                let text = text(&value)?;
                parse_optional_duration(&text).map_err(|error| error.to_string())?;
                Ok(Value::String(text))
            }
            Self::Size | Self::OptionalSize => match &value {
                Value::Integer(bytes) if *bytes >= 0 => Ok(value),
                Value::String(text) if text == "off" && self == Self::OptionalSize => Ok(value),
                Value::String(text) => size(text).map(Value::Integer).ok_or_else(expected),
                _ => Err(expected()),
            },
            Self::Text | Self::Url => text(&value).map(Value::String),
            Self::Choice(words) => {
                let text = text(&value)?;
                if words.contains(&text.as_str()) { Ok(Value::String(text)) } else { Err(expected()) }
            }
            Self::Path => {
                let text = text(&value)?;
                if text.is_empty() { Err(expected()) } else { Ok(Value::String(resolve(&text, base))) }
            }
            Self::WordOrPath(words) => {
                let text = text(&value)?;
                let word = words.contains(&text.as_str());
                if text.is_empty() {
                    Err(expected())
                } else {
                    Ok(Value::String(if word { text } else { resolve(&text, base) }))
                }
            }
            Self::Address => {
                let text = text(&value)?;
                match text.strip_prefix("unix:") {
                    Some("") => Err(expected()),
                    Some(path) => Ok(Value::String(format!("unix:{}", resolve(path, base)))),
                    None if text.contains(':') => Ok(Value::String(text)),
                    None => Err(expected()),
                }
            }
            Self::Secret => secret(value, base, true),
            Self::List(item) => {
                // One item without brackets is what it looks like.
                let items = if let Value::Array(items) = value { items } else { vec![value] };
                items.into_iter().map(|value| item.check(value, base)).collect::<Result<_, _>>().map(Value::Array)
            }
            Self::Entries { .. } => Err(expected()),
        }
    }

    /// The path of a secret that a variable `…_FILE` names.
    pub(super) fn secret_file(path: &str) -> Value {
        Value::Table(Table::from_iter([("file".to_owned(), Value::String(path.to_owned()))]))
    }

    fn expected(self) -> String {
        match self {
            Self::Bool => "true or false is expected".to_owned(),
            Self::Integer { min, max: i64::MAX } => format!("a whole number from {min} is expected"),
            Self::Integer { min, max } => format!("a whole number from {min} to {max} is expected"),
            Self::Duration => "a duration is expected, as \"25s\"".to_owned(),
            Self::OptionalDuration => "a duration or \"off\" is expected, as \"25s\"".to_owned(),
            Self::Size => "a number of bytes is expected, as 65536 or \"64KiB\"".to_owned(),
            Self::OptionalSize => "a number of bytes or \"off\" is expected, as 65536 or \"64KiB\"".to_owned(),
            Self::Text => "a text is expected".to_owned(),
            Self::Url => "a URL is expected".to_owned(),
            Self::Choice(words) => format!("one of {} is expected", quoted(words)),
            Self::Path => "a path is expected".to_owned(),
            Self::WordOrPath(words) => format!("{} or a path is expected", quoted(words)),
            Self::Address => "HOST:PORT or unix:PATH is expected".to_owned(),
            Self::Secret => {
                "{ env = \"NAME\" }, { file = \"PATH\" }, { credential = \"NAME\" } or a text is expected".to_owned()
            }
            Self::List(item) => format!("in a list, {}", item.expected()),
            Self::Entries { name, value } => format!("tables with {name:?} and {value:?} are expected"),
        }
    }
}

/// Checks a secret's source: exactly one of `env`, `file`, `credential`, or `values` of such, and a `prefix`.
fn secret(value: Value, base: Option<&Path>, outermost: bool) -> Result<Value, String> {
    let expected = || Kind::Secret.expected();
    let mut table = match value {
        Value::String(text) if text.is_empty() => return Err("a secret cannot be empty".to_owned()),
        Value::String(_) => return Ok(value),
        Value::Table(table) => table,
        _ => return Err(expected()),
    };
    let mut sources = 0;
    for (key, value) in &mut table {
        match (key.as_str(), &mut *value) {
            ("env" | "file" | "credential", Value::String(text)) if !text.is_empty() => {
                sources += 1;
                if key == "file" {
                    *text = resolve(text, base);
                }
            }
            ("prefix", Value::String(_)) if outermost => {}
            ("values", Value::Array(items)) if outermost && !items.is_empty() => {
                sources += 1;
                let given = std::mem::take(items);
                *items = given.into_iter().map(|item| secret(item, base, false)).collect::<Result<_, _>>()?;
            }
            _ => return Err(expected()),
        }
    }
    if sources == 1 { Ok(Value::Table(table)) } else { Err(expected()) }
}

fn resolve(path: &str, base: Option<&Path>) -> String {
    match base {
        Some(base) if Path::new(path).is_relative() => {
            let joined: PathBuf = base.join(path);
            joined.to_string_lossy().into_owned()
        }
        Some(_) | None => path.to_owned(),
    }
}

fn size(text: &str) -> Option<i64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit: i64 = match unit.trim_start() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(unit)
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_takes_its_texts_and_refuses_others() {
        const LIST: Kind = Kind::List(&Kind::Address);
        for (kind, text, value) in [
            (Kind::Bool, "true", Some("true")),
            (Kind::Bool, "maybe", None),
            (Kind::Integer { min: 1, max: 9 }, "9", Some("9")),
            (Kind::Integer { min: 1, max: 9 }, "10", None),
            (Kind::Integer { min: 1, max: 9 }, "nine", None),
            (Kind::Duration, "25s", Some("\"25s\"")),
            (Kind::Duration, "25", None),
            (Kind::Duration, "off", None),
            (Kind::OptionalDuration, "off", Some("\"off\"")),
            (Kind::Size, "64KiB", Some("65536")),
            (Kind::Size, "7", Some("7")),
            (Kind::Size, "off", None),
            (Kind::Size, "9999999999GiB", None),
            (Kind::OptionalSize, "off", Some("\"off\"")),
            (Kind::Choice(&["host", "header"]), "host", Some("\"host\"")),
            (Kind::Choice(&["host", "header"]), "path", None),
            (Kind::Address, "127.0.0.1:80", Some("\"127.0.0.1:80\"")),
            (Kind::Address, "unix:", None),
            (Kind::Address, "80", None),
            (LIST, "a:1  b:2", Some("[\"a:1\", \"b:2\"]")),
            (LIST, "a:1 b", None),
            (Kind::Path, "", None),
            (Kind::Secret, "", None),
        ] {
            let read = kind.read(text);
            assert_eq!(read.as_ref().ok().map(ToString::to_string).as_deref(), value, "{kind:?} {text:?} {read:?}");
        }
    }

    #[test]
    fn relative_paths_in_a_file_are_relative_to_it() {
        let base = Some(Path::new("/etc/culvert"));
        let check = |kind: Kind, text: &str| kind.check(Value::String(text.to_owned()), base).unwrap().to_string();
        assert_eq!(check(Kind::Path, "ca.pem"), "\"/etc/culvert/ca.pem\"");
        assert_eq!(check(Kind::Path, "/ca.pem"), "\"/ca.pem\"");
        assert_eq!(check(Kind::WordOrPath(&["stdout"]), "stdout"), "\"stdout\"");
        assert_eq!(check(Kind::WordOrPath(&["stdout"]), "log"), "\"/etc/culvert/log\"");
        assert_eq!(check(Kind::Address, "unix:s.sock"), "\"unix:/etc/culvert/s.sock\"");
        let secret: Value = "x = { file = \"key\" }".parse::<Table>().unwrap()["x"].clone();
        assert_eq!(Kind::Secret.check(secret, base).unwrap()["file"].as_str(), Some("/etc/culvert/key"));
    }

    #[test]
    fn a_secret_has_exactly_one_source() {
        let check = |text: &str| {
            let table: Table = format!("x = {text}").parse().unwrap();
            Kind::Secret.check(table["x"].clone(), None)
        };
        for good in [
            "\"literal\"",
            "{ env = \"A\" }",
            "{ env = \"A\", prefix = \"Bearer \" }",
            "{ values = [\"a\", { file = \"/b\" }] }",
        ] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in [
            "\"\"",
            "1",
            "{}",
            "{ env = \"A\", file = \"/b\" }",
            "{ envv = \"A\" }",
            "{ prefix = \"x\" }",
            "{ env = \"\" }",
            "{ values = [] }",
            "{ values = [{ values = [\"a\"] }] }",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
