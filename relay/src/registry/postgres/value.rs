//! Values in PostgreSQL's binary form. A number fits any column of whole numbers, a truth is 0 or 1.

use std::error::Error;

use bytes::BytesMut;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type};

use super::super::failure::Failure;
use super::super::sql::{Row, Value};

type Boxed = Box<dyn Error + Sync + Send>;

/// As tokio-postgres takes them.
pub(super) fn parameters(values: &[Value]) -> Vec<&(dyn ToSql + Sync)> {
    values.iter().map(|value| value as &(dyn ToSql + Sync)).collect()
}

/// One row of an answer.
///
/// # Errors
/// [`Failure::Damaged`]: a column holds what no rule asks for.
pub(super) fn row(row: &tokio_postgres::Row) -> Result<Row, Failure> {
    let value = |column| row.try_get(column).map_err(|error| Failure::Damaged(super::url::told(&error)));
    (0..row.len()).map(value).collect::<Result<_, _>>().map(Row)
}

impl ToSql for Value {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Boxed> {
        match self {
            Self::Null => Ok(IsNull::Yes),
            Self::Integer(number) => match *ty {
                Type::INT2 => i16::try_from(*number)?.to_sql(ty, out),
                Type::INT4 => i32::try_from(*number)?.to_sql(ty, out),
                _ => number.to_sql(ty, out),
            },
            Self::Text(text) => text.to_sql(ty, out),
            Self::Bytes(bytes) => bytes.to_sql(ty, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn to_sql_checked(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Boxed> {
        let fits = match self {
            Self::Null => true,
            Self::Integer(_) => matches!(*ty, Type::INT2 | Type::INT4 | Type::INT8),
            Self::Text(_) => <String as ToSql>::accepts(ty),
            Self::Bytes(_) => *ty == Type::BYTEA,
        };
        if fits { self.to_sql(ty, out) } else { Err(format!("a value of another type than {ty}").into()) }
    }
}

impl<'a> FromSql<'a> for Value {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Boxed> {
        match *ty {
            Type::INT2 => i16::from_sql(ty, raw).map(|number| Self::Integer(number.into())),
            Type::INT4 => i32::from_sql(ty, raw).map(|number| Self::Integer(number.into())),
            Type::INT8 => i64::from_sql(ty, raw).map(Self::Integer),
            Type::BOOL => bool::from_sql(ty, raw).map(|truth| Self::Integer(truth.into())),
            Type::BYTEA => Ok(Self::Bytes(raw.to_vec())),
            _ => String::from_sql(ty, raw).map(Self::Text),
        }
    }

    fn from_sql_null(_: &Type) -> Result<Self, Boxed> {
        Ok(Self::Null)
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::INT2 | Type::INT4 | Type::INT8 | Type::BOOL | Type::BYTEA)
            || <String as FromSql<'_>>::accepts(ty)
    }
}
