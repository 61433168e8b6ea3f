//! pgoutput, protocol version 1 with streaming off: from the body of an XLogData message to a [`Change`].
//!
//! Source: PostgreSQL's manual, "Logical Replication Message Formats". The decoder is total: any bytes give a change
//! or a [`DecodeError`], never a panic, and no length that stands in a message is allocated by before the bytes
//! behind it were seen. Nothing is copied: a tuple's columns are slices of the message.

mod cursor;
mod tuple;

#[cfg(test)]
pub(crate) mod encode;
#[cfg(test)]
mod tests;

pub use cursor::{DecodeError, Found};
pub use tuple::{Tuple, Value};

use bytes::Bytes;
use cursor::Cursor;
use walgate_sink::{Lsn, Timestamp};

use super::relation::{Relation, RelationColumn};

/// Microseconds from 1970-01-01 to 2000-01-01, PostgreSQL's epoch.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

/// One pgoutput message.
#[derive(Clone, Debug)]
pub enum Change {
    /// A transaction begins; everything up to its [`Change::Commit`] belongs to it.
    Begin {
        /// The start of its commit record, known before its rows.
        final_lsn: Lsn,
        /// When it committed, by the server's clock.
        committed_at: Timestamp,
        /// Its transaction id.
        xid: u32,
    },
    /// The transaction's end.
    Commit {
        /// The start of its commit record: [`Change::Begin`]'s `final_lsn`.
        commit_lsn: Lsn,
        /// The end of its commit record: the one LSN that may be confirmed for it, exactly as it is.
        end_lsn: Lsn,
        /// When it committed, by the server's clock.
        committed_at: Timestamp,
    },
    /// What a table looks like from here on; comes before the first row of a table and after a change of it.
    Relation(Relation),
    /// A row was inserted.
    Insert {
        /// The OID of its table.
        relation: u32,
        /// The row.
        tuple: Tuple,
    },
    /// A row was updated. Only its table is kept.
    Update {
        /// The OID of its table.
        relation: u32,
    },
    /// A row was deleted. Only its table is kept.
    Delete {
        /// The OID of its table.
        relation: u32,
    },
    /// Tables were truncated.
    Truncate {
        /// The OIDs of the tables.
        relations: Vec<u32>,
    },
    /// The transaction came to the server from another one.
    Origin {
        /// The commit's LSN on the origin.
        commit_lsn: Lsn,
        /// The origin's name.
        name: String,
    },
    /// The name of a type that is not built in. For a domain, PostgreSQL sends the name of the type beneath it.
    Type(TypeName),
    /// `pg_logical_emit_message`.
    Message(LogicalMessage),
}

/// What a Type message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeName {
    /// The type's OID, as columns of a [`Relation`] name it.
    pub oid: u32,
    /// The schema of the type, or of the type beneath a domain; `pg_catalog` for built-in ones.
    pub schema: String,
    /// The name of the type, or of the type beneath a domain.
    pub name: String,
}

/// A message written with `pg_logical_emit_message`.
#[derive(Clone)]
pub struct LogicalMessage {
    /// Whether it belongs to the transaction around it.
    pub transactional: bool,
    /// Where it stands in the WAL.
    pub lsn: Lsn,
    /// Its prefix, in the client's encoding.
    pub prefix: Bytes,
    /// Its content.
    pub content: Bytes,
}

impl std::fmt::Debug for LogicalMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The content is payload, and payload is never printed.
        f.debug_struct("LogicalMessage")
            .field("transactional", &self.transactional)
            .field("lsn", &self.lsn)
            .field("prefix", &self.prefix)
            .field("content_len", &self.content.len())
            .finish()
    }
}

/// Decodes one message, the body of an XLogData message.
///
/// # Errors
/// [`DecodeError`], with the message's name and the offset of what was wrong: an unknown message, one that is cut
/// short or has bytes left over, a value in binary form (it is never asked for), and an "unchanged TOAST" marker in
/// an inserted row, which PostgreSQL sends whole.
pub fn decode(body: &Bytes) -> Result<Change, DecodeError> {
    let mut cursor = Cursor::new(body);
    let change = match cursor.u8("a message type")? {
        b'B' => begin(cursor.of("Begin"))?,
        b'C' => commit(cursor.of("Commit"))?,
        b'R' => relation(cursor.of("Relation"))?,
        b'I' => insert(cursor.of("Insert"), body)?,
        b'U' => update(cursor.of("Update"))?,
        b'D' => delete(cursor.of("Delete"))?,
        b'T' => truncate(cursor.of("Truncate"))?,
        b'O' => {
            let cursor = cursor.of("Origin");
            Change::Origin { commit_lsn: cursor.lsn("the commit's LSN on the origin")?, name: cursor.name("a name")? }
        }
        b'Y' => {
            let cursor = cursor.of("Type");
            Change::Type(TypeName {
                oid: cursor.u32("the OID of a type")?,
                schema: cursor.schema()?,
                name: cursor.name("the name of a type")?,
            })
        }
        b'M' => message(cursor.of("Message"), body)?,
        other => {
            return Err(DecodeError {
                message: "(unknown)",
                offset: 0,
                wanted: "a message type of protocol version 1 (one of B, C, D, I, M, O, R, T, U, Y)",
                found: Found::Byte(other),
            });
        }
    };
    cursor.end()?;
    Ok(change)
}

fn begin(cursor: &mut Cursor<'_>) -> Result<Change, DecodeError> {
    Ok(Change::Begin {
        final_lsn: cursor.lsn("the LSN of the commit")?,
        committed_at: timestamp(cursor)?,
        xid: cursor.u32("a transaction id")?,
    })
}

fn commit(cursor: &mut Cursor<'_>) -> Result<Change, DecodeError> {
    // "Flags; currently unused": read over, so that a later minor use of it does not stop the stream.
    cursor.u8("the flags of the commit")?;
    Ok(Change::Commit {
        commit_lsn: cursor.lsn("the LSN of the commit")?,
        end_lsn: cursor.lsn("the end LSN of the transaction")?,
        committed_at: timestamp(cursor)?,
    })
}

fn relation(cursor: &mut Cursor<'_>) -> Result<Change, DecodeError> {
    let oid = cursor.u32("the OID of a table")?;
    let schema = cursor.schema()?;
    let name = cursor.name("the name of a table")?;
    cursor.u8("a replica identity")?;
    let count = cursor.u16("a number of columns")?;
    // No reservation by `count`: the vector grows with the columns that are really there.
    let mut columns = Vec::new();
    for _ in 0..count {
        let flags = cursor.u8("the flags of a column")?;
        columns.push(RelationColumn {
            key: flags & 1 != 0,
            name: cursor.name("the name of a column")?,
            type_oid: cursor.u32("the OID of a column's type")?,
            type_modifier: cursor.i32("the modifier of a column's type")?,
        });
    }
    Ok(Change::Relation(Relation { oid, schema, name, columns }))
}

fn insert(cursor: &mut Cursor<'_>, body: &Bytes) -> Result<Change, DecodeError> {
    let relation = cursor.u32("the OID of a table")?;
    cursor.expect(b'N', "`N`, a new row")?;
    Ok(Change::Insert { relation, tuple: tuple::read(cursor, body)? })
}

fn update(cursor: &mut Cursor<'_>) -> Result<Change, DecodeError> {
    let relation = cursor.u32("the OID of a table")?;
    let start = cursor.offset();
    match cursor.u8("`N`, `K` or `O` before a row")? {
        b'N' => {}
        b'K' | b'O' => {
            tuple::skip(cursor)?;
            cursor.expect(b'N', "`N`, the new row after the old one")?;
        }
        other => return Err(cursor.error_at(start, "`N`, `K` or `O` before a row", Found::Byte(other))),
    }
    tuple::skip(cursor)?;
    Ok(Change::Update { relation })
}

fn delete(cursor: &mut Cursor<'_>) -> Result<Change, DecodeError> {
    let relation = cursor.u32("the OID of a table")?;
    let start = cursor.offset();
    match cursor.u8("`K` or `O` before a row")? {
        b'K' | b'O' => {}
        other => return Err(cursor.error_at(start, "`K` or `O` before a row", Found::Byte(other))),
    }
    tuple::skip(cursor)?;
    Ok(Change::Delete { relation })
}

fn truncate(cursor: &mut Cursor<'_>) -> Result<Change, DecodeError> {
    let count = cursor.u32("a number of tables")?;
    cursor.u8("the options of the truncate")?;
    let mut relations = Vec::new();
    for _ in 0..count {
        relations.push(cursor.u32("the OID of a table")?);
    }
    Ok(Change::Truncate { relations })
}

fn message(cursor: &mut Cursor<'_>, body: &Bytes) -> Result<Change, DecodeError> {
    let flags = cursor.u8("the flags of the message")?;
    let lsn = cursor.lsn("the LSN of the message")?;
    let prefix = cursor.until_nul("a prefix")?;
    let prefix = body.slice_ref(prefix);
    let content = cursor.sized("the length of the content", "the content")?;
    let content = body.slice_ref(content);
    Ok(Change::Message(LogicalMessage { transactional: flags & 1 != 0, lsn, prefix, content }))
}

/// PostgreSQL's microseconds since 2000 as microseconds since 1970.
fn timestamp(cursor: &mut Cursor<'_>) -> Result<Timestamp, DecodeError> {
    let since_2000 = cursor.i64("the time of the commit")?;
    Ok(Timestamp(since_2000.saturating_add(POSTGRES_EPOCH)))
}
