//! pgoutput messages as PostgreSQL writes them, for tests.

use bytes::{BufMut, Bytes, BytesMut};
use walgate_sink::Lsn;

/// One column of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    Null,
    Unchanged,
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

/// A column as text.
pub(crate) fn text(text: &str) -> Cell {
    Cell::Text(text.as_bytes().to_vec())
}

/// A message in the making.
pub(crate) struct Encoder(BytesMut);

impl Encoder {
    pub(crate) fn new(kind: u8) -> Self {
        let mut bytes = BytesMut::new();
        bytes.put_u8(kind);
        Encoder(bytes)
    }

    pub(crate) fn u8(mut self, value: u8) -> Self {
        self.0.put_u8(value);
        self
    }

    pub(crate) fn u16(mut self, value: u16) -> Self {
        self.0.put_u16(value);
        self
    }

    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.put_u32(value);
        self
    }

    pub(crate) fn i64(mut self, value: i64) -> Self {
        self.0.put_i64(value);
        self
    }

    pub(crate) fn lsn(mut self, lsn: Lsn) -> Self {
        self.0.put_u64(lsn.0);
        self
    }

    pub(crate) fn string(mut self, text: &str) -> Self {
        self.0.put_slice(text.as_bytes());
        self.0.put_u8(0);
        self
    }

    pub(crate) fn sized(mut self, bytes: &[u8]) -> Self {
        self.0.put_u32(u32::try_from(bytes.len()).unwrap());
        self.0.put_slice(bytes);
        self
    }

    pub(crate) fn tuple(mut self, cells: &[Cell]) -> Self {
        self = self.u16(u16::try_from(cells.len()).unwrap());
        for cell in cells {
            self = match cell {
                Cell::Null => self.u8(b'n'),
                Cell::Unchanged => self.u8(b'u'),
                Cell::Text(bytes) => self.u8(b't').sized(bytes),
                Cell::Binary(bytes) => self.u8(b'b').sized(bytes),
            };
        }
        self
    }

    pub(crate) fn done(self) -> Bytes {
        self.0.freeze()
    }
}

pub(crate) fn begin(final_lsn: Lsn, time: i64, xid: u32) -> Bytes {
    Encoder::new(b'B').lsn(final_lsn).i64(time).u32(xid).done()
}

pub(crate) fn commit(commit_lsn: Lsn, end_lsn: Lsn, time: i64) -> Bytes {
    Encoder::new(b'C').u8(0).lsn(commit_lsn).lsn(end_lsn).i64(time).done()
}

/// A Relation message; columns are names and OIDs of types.
pub(crate) fn relation(oid: u32, schema: &str, name: &str, columns: &[(&str, u32)]) -> Bytes {
    let mut encoder = Encoder::new(b'R').u32(oid).string(schema).string(name).u8(b'd');
    encoder = encoder.u16(u16::try_from(columns.len()).unwrap());
    for (name, type_oid) in columns {
        encoder = encoder.u8(0).string(name).u32(*type_oid).u32(u32::MAX);
    }
    encoder.done()
}

pub(crate) fn insert(oid: u32, cells: &[Cell]) -> Bytes {
    Encoder::new(b'I').u32(oid).u8(b'N').tuple(cells).done()
}

/// An update, with the old row (`K` or `O`) where there is one.
pub(crate) fn update(oid: u32, old: Option<(u8, &[Cell])>, new: &[Cell]) -> Bytes {
    let mut encoder = Encoder::new(b'U').u32(oid);
    if let Some((kind, old)) = old {
        encoder = encoder.u8(kind).tuple(old);
    }
    encoder.u8(b'N').tuple(new).done()
}

pub(crate) fn delete(oid: u32, kind: u8, old: &[Cell]) -> Bytes {
    Encoder::new(b'D').u32(oid).u8(kind).tuple(old).done()
}

pub(crate) fn truncate(options: u8, oids: &[u32]) -> Bytes {
    let encoder = Encoder::new(b'T').u32(u32::try_from(oids.len()).unwrap()).u8(options);
    oids.iter().fold(encoder, |encoder, oid| encoder.u32(*oid)).done()
}

pub(crate) fn origin(lsn: Lsn, name: &str) -> Bytes {
    Encoder::new(b'O').lsn(lsn).string(name).done()
}

pub(crate) fn type_name(oid: u32, schema: &str, name: &str) -> Bytes {
    Encoder::new(b'Y').u32(oid).string(schema).string(name).done()
}

pub(crate) fn message(transactional: bool, lsn: Lsn, prefix: &str, content: &[u8]) -> Bytes {
    Encoder::new(b'M').u8(u8::from(transactional)).lsn(lsn).string(prefix).sized(content).done()
}
