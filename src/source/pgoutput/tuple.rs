//! TupleData: the columns of one row.

use bytes::Bytes;

use super::cursor::{Cursor, DecodeError, Found};

/// The columns of an inserted row, checked and not yet taken apart: no allocation, one shared slice of the message.
#[derive(Clone)]
pub struct Tuple {
    columns: u16,
    /// Whole columns, one after the other: checked by [`read`].
    data: Bytes,
}

/// One column of a row, as text.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    /// NULL.
    Null,
    /// The text form of its type.
    Text(Text<'a>),
}

/// The text of a column: a slice of its message.
#[derive(Clone, Copy)]
pub struct Text<'a> {
    tuple: &'a Bytes,
    text: &'a [u8],
}

impl Text<'_> {
    /// The text, sharing the message's memory.
    #[must_use]
    pub fn to_bytes(self) -> Bytes {
        self.tuple.slice_ref(self.text)
    }
}

impl std::fmt::Debug for Tuple {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never a row's data.
        f.debug_struct("Tuple").field("columns", &self.columns).field("size", &self.size()).finish()
    }
}

impl Tuple {
    /// How many columns the row has.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.columns)
    }

    /// Whether the row has no columns.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// Bytes of the row in the message.
    #[must_use]
    pub fn size(&self) -> usize {
        self.data.len()
    }

    /// The columns in order.
    #[must_use]
    pub fn values(&self) -> Values<'_> {
        Values { tuple: &self.data, left: &self.data }
    }
}

/// The columns of a [`Tuple`] in order.
#[derive(Clone)]
pub struct Values<'a> {
    tuple: &'a Bytes,
    left: &'a [u8],
}

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        let (kind, rest) = self.left.split_first()?;
        if *kind != b't' {
            self.left = rest;
            return Some(Value::Null);
        }
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (text, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        self.left = rest;
        Some(Value::Text(Text { tuple: self.tuple, text }))
    }
}

/// Reads a new row: every column is there, as text or NULL.
pub(super) fn read(cursor: &mut Cursor<'_>, body: &Bytes) -> Result<Tuple, DecodeError> {
    let columns = cursor.u16("a number of columns")?;
    let start = cursor.offset();
    for _ in 0..columns {
        column(cursor, false)?;
    }
    Ok(Tuple { columns, data: body.slice(start..cursor.offset()) })
}

/// Reads over a row of an update or a delete.
pub(super) fn skip(cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
    for _ in 0..cursor.u16("a number of columns")? {
        column(cursor, true)?;
    }
    Ok(())
}

fn column(cursor: &mut Cursor<'_>, unchanged: bool) -> Result<(), DecodeError> {
    const WANTED: &str = "a column as text or NULL";
    let start = cursor.offset();
    match cursor.u8(WANTED)? {
        b't' => cursor.sized("the length of a column", "the text of a column").map(|_| ()),
        b'n' => Ok(()),
        b'u' if unchanged => Ok(()),
        b'u' => Err(cursor.error_at(start, WANTED, Found::Unchanged)),
        b'b' => Err(cursor.error_at(start, WANTED, Found::Binary)),
        other => Err(cursor.error_at(start, WANTED, Found::Byte(other))),
    }
}
