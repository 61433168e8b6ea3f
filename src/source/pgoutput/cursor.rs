//! Reading a message from its front to its end, with every length checked.

use walgate_sink::Lsn;

/// A message that is not what the protocol says. It names no data but a single byte.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed pgoutput message {message}: wanted {wanted} at byte {offset}, found {found}")]
pub struct DecodeError {
    /// The message's name in PostgreSQL's manual.
    pub message: &'static str,
    /// Bytes from the start of the message to what is wrong.
    pub offset: usize,
    /// What should have stood there.
    pub wanted: &'static str,
    /// What stood there.
    pub found: Found,
}

/// What stood where something else should have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Only so many bytes up to the end of the message.
    Left(usize),
    /// Another byte.
    Byte(u8),
    /// A length below zero.
    Length(i32),
    /// The marker of a TOASTed value that did not change: meaningless in a new row.
    Unchanged,
    /// A value in binary form, which is never asked for.
    Binary,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Found::Left(0) => f.write_str("the end of the message"),
            Found::Left(1) => f.write_str("1 byte"),
            Found::Left(left) => write!(f, "{left} bytes"),
            Found::Byte(byte) if byte.is_ascii_graphic() => write!(f, "`{}`", char::from(*byte)),
            Found::Byte(byte) => write!(f, "byte 0x{byte:02x}"),
            Found::Length(length) => write!(f, "length {length}"),
            Found::Unchanged => f.write_str("the marker of an unchanged TOASTed value"),
            Found::Binary => f.write_str("a value in binary form"),
        }
    }
}

/// The bytes of one message that are not read yet.
pub(super) struct Cursor<'a> {
    message: &'static str,
    whole: &'a [u8],
    offset: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(whole: &'a [u8]) -> Self {
        Cursor { message: "(empty)", whole, offset: 0 }
    }

    /// Names the message, for errors.
    pub(super) fn of(&mut self, message: &'static str) -> &mut Self {
        self.message = message;
        self
    }

    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    pub(super) fn error_at(&self, offset: usize, wanted: &'static str, found: Found) -> DecodeError {
        DecodeError { message: self.message, offset, wanted, found }
    }

    fn left(&self) -> &'a [u8] {
        self.whole.get(self.offset..).unwrap_or_default()
    }

    pub(super) fn take(&mut self, length: usize, wanted: &'static str) -> Result<&'a [u8], DecodeError> {
        let left = self.left();
        let Some(bytes) = left.get(..length) else {
            return Err(self.error_at(self.offset, wanted, Found::Left(left.len())));
        };
        self.offset += length;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, wanted: &'static str) -> Result<[u8; N], DecodeError> {
        let Some(bytes) = self.left().first_chunk::<N>() else {
            return Err(self.error_at(self.offset, wanted, Found::Left(self.left().len())));
        };
        self.offset += N;
        Ok(*bytes)
    }

    pub(super) fn u8(&mut self, wanted: &'static str) -> Result<u8, DecodeError> {
        Ok(u8::from_be_bytes(self.array(wanted)?))
    }

    pub(super) fn u16(&mut self, wanted: &'static str) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.array(wanted)?))
    }

    pub(super) fn u32(&mut self, wanted: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array(wanted)?))
    }

    pub(super) fn i32(&mut self, wanted: &'static str) -> Result<i32, DecodeError> {
        Ok(i32::from_be_bytes(self.array(wanted)?))
    }

    pub(super) fn i64(&mut self, wanted: &'static str) -> Result<i64, DecodeError> {
        Ok(i64::from_be_bytes(self.array(wanted)?))
    }

    pub(super) fn lsn(&mut self, wanted: &'static str) -> Result<Lsn, DecodeError> {
        Ok(Lsn(u64::from_be_bytes(self.array(wanted)?)))
    }

    pub(super) fn expect(&mut self, byte: u8, wanted: &'static str) -> Result<(), DecodeError> {
        let start = self.offset;
        let found = self.u8(wanted)?;
        if found == byte { Ok(()) } else { Err(self.error_at(start, wanted, Found::Byte(found))) }
    }

    /// A length and as many bytes.
    pub(super) fn sized(&mut self, length: &'static str, wanted: &'static str) -> Result<&'a [u8], DecodeError> {
        let start = self.offset;
        let bytes = self.i32(length)?;
        match usize::try_from(bytes) {
            Ok(bytes) => self.take(bytes, wanted),
            Err(_) => Err(self.error_at(start, length, Found::Length(bytes))),
        }
    }

    /// The bytes before the next NUL, which is read over.
    pub(super) fn until_nul(&mut self, wanted: &'static str) -> Result<&'a [u8], DecodeError> {
        let left = self.left();
        let Some(length) = left.iter().position(|byte| *byte == 0) else {
            return Err(self.error_at(self.offset, wanted, Found::Left(left.len())));
        };
        self.offset += length + 1;
        Ok(left.get(..length).unwrap_or_default())
    }

    /// A name. Bytes that are not UTF-8 (an SQL_ASCII database) are replaced: such a name matches nothing in the
    /// configuration, and must not stop the stream for the tables that do.
    pub(super) fn name(&mut self, wanted: &'static str) -> Result<String, DecodeError> {
        Ok(String::from_utf8_lossy(self.until_nul(wanted)?).into_owned())
    }

    /// The name of a schema; an empty one stands for `pg_catalog`.
    pub(super) fn schema(&mut self) -> Result<String, DecodeError> {
        let name = self.name("the name of a schema")?;
        Ok(if name.is_empty() { "pg_catalog".to_owned() } else { name })
    }

    pub(super) fn end(&self) -> Result<(), DecodeError> {
        match self.left().len() {
            0 => Ok(()),
            more => Err(self.error_at(self.offset, "the end of the message", Found::Left(more))),
        }
    }
}
