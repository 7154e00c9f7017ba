//! What every rule speaks to: a transaction that takes SQL which SQLite and PostgreSQL both understand.
//!
//! Must never know an engine. Placeholders are `$1`, `$2`, …, numbered in the order in which they first appear: SQLite
//! takes them for names and counts appearances, PostgreSQL takes the numbers.

use std::fmt::Display;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use super::failure::Failure;

/// One transaction, as the rules see it. It is as if nobody else wrote meanwhile.
pub(super) trait Transaction {
    /// The rows that a statement gives.
    ///
    /// # Errors
    /// [`Failure`], never a rule.
    fn query(&self, sql: &str, values: &[Value]) -> Result<Vec<Row>, Failure>;

    /// Changes rows, and returns how many. Other relays of the registry hear of it, if it was any.
    ///
    /// # Errors
    /// As [`Transaction::query`].
    fn execute(&self, sql: &str, values: &[Value]) -> Result<u64, Failure>;

    /// As [`Transaction::execute`], for what other relays need not hear of: the audit trail, what was noticed.
    ///
    /// # Errors
    /// As [`Transaction::query`].
    fn execute_quietly(&self, sql: &str, values: &[Value]) -> Result<u64, Failure>;
}

/// A value, on its way in or out. Booleans are 0 and 1, times milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Null,
    Integer(i64),
    Text(String),
    Bytes(Vec<u8>),
}

/// One row of an answer. A value that does not read as what its column holds is damage, not a panic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row(pub(super) Vec<Value>);

/// The values of a statement, in the order of their placeholders.
macro_rules! values {
    ($($value:expr),* $(,)?) => { [$($crate::registry::sql::Value::from($value)),*] };
}
pub(super) use values;

impl dyn Transaction + '_ {
    /// All rows of a query, read.
    pub(super) fn all<T>(
        &self,
        sql: &str,
        values: &[Value],
        read: impl FnMut(&Row) -> Result<T, Failure>,
    ) -> Result<Vec<T>, Failure> {
        self.query(sql, values)?.iter().map(read).collect()
    }

    /// The first row of a query, read.
    pub(super) fn first<T>(
        &self,
        sql: &str,
        values: &[Value],
        read: impl FnMut(&Row) -> Result<T, Failure>,
    ) -> Result<Option<T>, Failure> {
        self.query(sql, values)?.first().map(read).transpose()
    }
}

impl Row {
    /// Anything that is written as text: an id, a name, an address.
    pub(super) fn text<T: FromStr<Err: Display>>(&self, column: usize) -> Result<T, Failure> {
        self.optional_text(column)?.ok_or_else(|| unfit(column, "a text is missing"))
    }

    pub(super) fn optional_text<T: FromStr<Err: Display>>(&self, column: usize) -> Result<Option<T>, Failure> {
        match self.value(column)? {
            Value::Null => Ok(None),
            Value::Text(text) => text.parse().map(Some).map_err(|error| unfit(column, error)),
            Value::Integer(_) | Value::Bytes(_) => Err(unfit(column, "it is no text")),
        }
    }

    pub(super) fn bytes(&self, column: usize) -> Result<Vec<u8>, Failure> {
        self.optional_bytes(column)?.ok_or_else(|| unfit(column, "bytes are missing"))
    }

    pub(super) fn array<const N: usize>(&self, column: usize) -> Result<[u8; N], Failure> {
        self.optional_array(column)?.ok_or_else(|| unfit(column, "bytes are missing"))
    }

    pub(super) fn optional_array<const N: usize>(&self, column: usize) -> Result<Option<[u8; N]>, Failure> {
        let array = |bytes: Vec<u8>| bytes.try_into().map_err(|_| unfit(column, "another number of bytes is expected"));
        self.optional_bytes(column)?.map(array).transpose()
    }

    pub(super) fn number<T: TryFrom<i64>>(&self, column: usize) -> Result<T, Failure> {
        self.optional_number(column)?.ok_or_else(|| unfit(column, "a number is missing"))
    }

    pub(super) fn optional_number<T: TryFrom<i64>>(&self, column: usize) -> Result<Option<T>, Failure> {
        match self.value(column)? {
            Value::Null => Ok(None),
            Value::Integer(number) => {
                T::try_from(*number).map(Some).map_err(|_| unfit(column, "the number is out of range"))
            }
            Value::Text(_) | Value::Bytes(_) => Err(unfit(column, "it is no number")),
        }
    }

    pub(super) fn truth(&self, column: usize) -> Result<bool, Failure> {
        self.number::<i64>(column).map(|number| number != 0)
    }

    pub(super) fn time(&self, column: usize) -> Result<SystemTime, Failure> {
        self.number(column).map(from_milliseconds)
    }

    pub(super) fn optional_time(&self, column: usize) -> Result<Option<SystemTime>, Failure> {
        self.optional_number(column).map(|number| number.map(from_milliseconds))
    }

    pub(super) fn optional_bytes(&self, column: usize) -> Result<Option<Vec<u8>>, Failure> {
        match self.value(column)? {
            Value::Null => Ok(None),
            Value::Bytes(bytes) => Ok(Some(bytes.clone())),
            Value::Integer(_) | Value::Text(_) => Err(unfit(column, "it is no bytes")),
        }
    }

    fn value(&self, column: usize) -> Result<&Value, Failure> {
        self.0.get(column).ok_or_else(|| unfit(column, "there is no such column"))
    }
}

/// Milliseconds since 1970, as times are stored.
pub(super) fn milliseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A damaged far-away time must not overflow: it is taken for the year 10,000.
fn from_milliseconds(value: i64) -> SystemTime {
    const FAR: u64 = 253_402_300_800_000;
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(value).unwrap_or(0).min(FAR))
}

fn unfit(column: usize, what: impl Display) -> Failure {
    Failure::Damaged(format!("column {column} of an answer: {what}"))
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Integer(value.into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Integer(value.into())
    }
}

impl From<SystemTime> for Value {
    fn from(value: SystemTime) -> Self {
        Self::Integer(milliseconds(value))
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<&String> for Value {
    fn from(value: &String) -> Self {
        Self::Text(value.clone())
    }
}

impl From<&[u8]> for Value {
    fn from(value: &[u8]) -> Self {
        Self::Bytes(value.to_vec())
    }
}

impl<const N: usize> From<&[u8; N]> for Value {
    fn from(value: &[u8; N]) -> Self {
        Self::Bytes(value.to_vec())
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_its_column_is_damage() {
        let row = Row(vec![Value::Integer(-1), Value::Text("x".to_owned()), Value::Null, Value::Bytes(vec![1, 2])]);
        let damaged = |result: Result<(), Failure>| assert!(matches!(result, Err(Failure::Damaged(_))), "{result:?}");
        damaged(row.number::<u32>(0).map(drop));
        damaged(row.text::<u32>(1).map(drop));
        damaged(row.text::<String>(2).map(drop));
        damaged(row.array::<3>(3).map(drop));
        damaged(row.number::<i64>(4).map(drop));
        assert_eq!(row.optional_text::<String>(2).ok(), Some(None));
        assert_eq!(row.array::<2>(3).ok(), Some([1, 2]));
        assert_eq!(row.time(0).ok(), Some(SystemTime::UNIX_EPOCH), "before 1970 there was no relay");
        assert!(Row(vec![Value::Integer(i64::MAX)]).time(0).is_ok(), "no overflow");
    }
}
