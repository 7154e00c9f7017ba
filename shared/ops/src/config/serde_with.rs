//! How a program's own type reads durations and sizes: `#[serde(with = "culvert_ops::config::duration")]`.

use std::time::Duration;

use serde::Deserializer;

/// A duration that was given, by `deserialize_with` and `default`: absent otherwise.
///
/// # Errors
/// When the text is no duration.
pub fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    duration::deserialize(deserializer).map(Some)
}

/// A `Duration` from `25s`.
pub mod duration {
    use std::time::Duration;

    use culvert_model::units::{format_duration, parse_duration};
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    /// Reads it.
    ///
    /// # Errors
    /// When the text is no duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        parse_duration(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }

    /// Writes it.
    ///
    /// # Errors
    /// When the serializer fails.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_duration(*duration))
    }
}

/// An `Option<Duration>` from `25s`, `never` or `off`. Add `#[serde(default)]` where the setting has no default.
pub mod optional_duration {
    use std::time::Duration;

    use culvert_model::units::{format_duration, parse_optional_duration};
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    /// Reads it.
    ///
    /// # Errors
    /// When the text is no duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        parse_optional_duration(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }

    /// Writes it.
    ///
    /// # Errors
    /// When the serializer fails.
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&duration.map_or_else(|| "off".to_owned(), format_duration))
    }
}

/// An `Option<u64>` of bytes from a number or `off`. Add `#[serde(default)]` where the setting has no default.
pub mod optional_size {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Size {
        Bytes(u64),
        Word(String),
    }

    /// Reads it.
    ///
    /// # Errors
    /// When it is neither.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        match Size::deserialize(deserializer)? {
            Size::Bytes(bytes) => Ok(Some(bytes)),
            Size::Word(word) if word == "off" => Ok(None),
            Size::Word(word) => Err(D::Error::custom(format_args!("{word:?} is neither bytes nor \"off\""))),
        }
    }

    /// Writes it.
    ///
    /// # Errors
    /// When the serializer fails.
    pub fn serialize<S: Serializer>(size: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        match size {
            Some(bytes) => serializer.serialize_u64(*bytes),
            None => serializer.serialize_str("off"),
        }
    }
}
