//! From an inserted row to an [`Event`]: which column of the outbox table holds what.
//!
//! A table is the outbox by its schema and name; once it was met, its OID counts too, so that a rename in the middle
//! of the stream loses nothing. The newest Relation message of an OID decides how its rows are read.
//!
//! Two kinds of fault, kept apart. A [`MappingError`] concerns every row of the table (a column is missing): the
//! stream must stop, since guessing would lose data. [`Unusable`] concerns one row (no event type, headers that are
//! no object): that row cannot become an event as its writer meant it, and is the caller's to count and to treat as
//! unroutable. Headers that cannot be read make a row unusable as a whole: an event delivered without its tenant
//! or its trace would be a loss that nobody sees, and stopping the stream for it would make one row everybody's fault.

mod bytea;
mod headers;
mod mapping;
mod pointer;
#[cfg(test)]
mod tests;

pub use mapping::{MappingError, MissingColumn};
pub use pointer::NoKey;

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use bytestring::ByteString;
use walgate_sink::{Event, Headers, PayloadFormat, Position, Timestamp};

use self::mapping::{Mapping, Place};
use super::{
    pgoutput::{Tuple, TypeName, Value},
    relation::{Relation, TableName},
};
use crate::config::{self, KeySource};

/// Bytes that an event costs beside its row: the event itself, its deliveries, and their places in queues.
pub const ROW_OVERHEAD: u64 = 512;

/// Turns inserts into events. One per outbox; lives as long as the process, across reconnects.
#[derive(Debug)]
pub struct OutboxReader {
    outbox: config::Outbox,
    table: TableName,
    /// Columns that the router reads.
    columns: Vec<String>,
    /// Tables that are the outbox, the newest last: more than one only after a rename, a re-creation or with partitions.
    ours: Vec<Ours>,
    /// OIDs that belong to the outbox whatever their name.
    included: HashSet<u32>,
    /// Described tables that are not the outbox.
    others: HashSet<u32>,
    /// Types that are not built in and hold JSON or bytea underneath: domains.
    types: HashMap<u32, PayloadFormat>,
}

#[derive(Debug)]
struct Ours {
    oid: u32,
    table: TableName,
    mapping: Result<Mapping, MappingError>,
}

/// What an insert into the outbox is.
#[derive(Clone, Debug)]
pub enum Inserted {
    /// An event.
    Row(Row),
    /// A row that cannot become an event.
    Unusable(Unusable),
}

/// An inserted row as an event.
#[derive(Clone, Debug)]
pub struct Row {
    /// The event. Its text and payload share the memory of the message.
    pub event: Event,
    /// The columns that the router asked for, in its order; `None`: NULL.
    pub columns: Vec<Option<ByteString>>,
    /// Why it has no key, where the key is one of the payload.
    pub no_key: Option<NoKey>,
    /// What the byte window counts for it: the row's bytes and [`ROW_OVERHEAD`].
    pub bytes: u64,
}

/// A row that cannot become an event. It is never dropped in silence: the caller counts and reports it, and treats it
/// as an event that no route matches.
#[derive(Clone, Debug)]
pub struct Unusable {
    /// The bytes of the id column, whatever they are; empty where it is NULL.
    pub id: Bytes,
    /// The event type, where it can be read.
    pub event_type: Option<ByteString>,
    /// Where the row stands.
    pub position: Position,
    /// When its transaction committed.
    pub committed_at: Timestamp,
    /// What the byte window counts for it.
    pub bytes: u64,
    /// What is wrong with it.
    pub reason: UnusableReason,
}

/// What is wrong with one row. The texts hold names of columns and no data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnusableReason {
    /// A column that every event needs is NULL.
    #[error("column `{column}` is NULL, and an event needs {what}: write one in the transaction that inserts the row")]
    Null {
        /// The column.
        column: String,
        /// What it holds.
        what: &'static str,
    },
    /// A column that must be text is not UTF-8, as can happen in an SQL_ASCII database.
    #[error("column `{column}` is not valid UTF-8: an SQL_ASCII database stores any bytes, so encode it when writing")]
    NotUtf8 {
        /// The column.
        column: String,
    },
    /// The headers cannot be read.
    #[error(
        "column `{column}` cannot be read as headers: {why}; write a JSON object, such as {{\"tenant\": \"a\"}}, or NULL"
    )]
    Headers {
        /// The column.
        column: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A bytea payload in neither of PostgreSQL's two text forms.
    #[error(
        "column `{column}` is a bytea in neither the hex nor the escape form: nothing but a fault on the way explains it"
    )]
    Bytea {
        /// The column.
        column: String,
    },
}

impl UnusableReason {
    /// The class as a label of metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            UnusableReason::Null { .. } => "null_column",
            UnusableReason::NotUtf8 { .. } => "not_utf8",
            UnusableReason::Headers { .. } => "invalid_headers",
            UnusableReason::Bytea { .. } => "invalid_bytea",
        }
    }
}

impl OutboxReader {
    /// A reader of this outbox that also extracts `columns`, the ones that the router reads.
    ///
    /// # Errors
    /// [`MappingError::Table`], where the table's name cannot be read.
    pub fn new(outbox: config::Outbox, columns: &[String]) -> Result<Self, MappingError> {
        let table = TableName::parse(&outbox.table)?;
        Ok(OutboxReader {
            outbox,
            table,
            columns: columns.to_vec(),
            ours: Vec::new(),
            included: HashSet::new(),
            others: HashSet::new(),
            types: HashMap::new(),
        })
    }

    /// The table that the configuration names.
    #[must_use]
    pub fn table(&self) -> &TableName {
        &self.table
    }

    /// Counts a table among the outbox by its OID: a partition that is published under its own name. Call it before
    /// the table's Relation message is handed in.
    pub fn include(&mut self, oid: u32) {
        self.included.insert(oid);
    }

    /// Whether this OID was met as the outbox: what updates, deletes and truncates are counted by.
    #[must_use]
    pub fn is_outbox(&self, oid: u32) -> bool {
        self.find(oid).is_some()
    }

    /// Takes in a Type message: what a domain is underneath decides what a payload of it is.
    pub fn type_name(&mut self, name: &TypeName) {
        match mapping::format_of_name(name) {
            Some(format) => self.types.insert(name.oid, format),
            None => self.types.remove(&name.oid),
        };
    }

    /// Takes in a Relation message. It holds for the rows of its OID from here on.
    ///
    /// # Errors
    /// [`MappingError::Missing`], where it is the outbox and lacks a column that the configuration names; inserts into
    /// it then give the same error, until a Relation message with these columns comes.
    pub fn relation(&mut self, relation: Relation) -> Result<(), MappingError> {
        let table = relation.table();
        let known = self.ours.iter().position(|ours| ours.oid == relation.oid);
        if known.is_none() && table != self.table && !self.included.contains(&relation.oid) {
            self.others.insert(relation.oid);
            return Ok(());
        }
        let mapping = Mapping::new(&relation, &self.outbox, &self.columns, &self.types);
        let outcome = mapping.as_ref().map(|_| ()).map_err(Clone::clone);
        match known.and_then(|index| self.ours.get_mut(index)) {
            Some(ours) => {
                if ours.table != table {
                    tracing::warn!(
                        oid = relation.oid,
                        table = %table,
                        was = %ours.table,
                        configured = %self.table,
                        "the outbox table was renamed; its rows are still delivered: set outbox.table to the new name"
                    );
                    ours.table = table;
                }
                ours.mapping = mapping;
            }
            None => {
                tracing::info!(oid = relation.oid, table = %table, columns = relation.columns.len(), "found the outbox");
                self.others.remove(&relation.oid);
                self.ours.push(Ours { oid: relation.oid, table, mapping });
            }
        }
        outcome
    }

    /// Reads an inserted row. `None`: it belongs to another table.
    ///
    /// # Errors
    /// [`MappingError`], where no row of the table can be read: the stream must not go on past it.
    pub fn insert(
        &self,
        oid: u32,
        tuple: &Tuple,
        position: Position,
        committed_at: Timestamp,
    ) -> Result<Option<Inserted>, MappingError> {
        let Some(ours) = self.find(oid) else {
            return if self.others.contains(&oid) { Ok(None) } else { Err(MappingError::Undescribed { oid }) };
        };
        let mapping = ours.mapping.as_ref().map_err(Clone::clone)?;
        if tuple.len() != mapping.width() {
            return Err(MappingError::Width {
                table: ours.table.clone(),
                described: mapping.width(),
                row: tuple.len(),
            });
        }
        let bytes = tuple.size() as u64 + ROW_OVERHEAD;
        let inserted = match self.read(self.texts(mapping, tuple), mapping.format()) {
            Ok(mut row) => {
                row.event.position = position;
                row.event.committed_at = committed_at;
                Inserted::Row(Row { bytes, ..row })
            }
            Err(reason) => {
                let texts = self.texts(mapping, tuple);
                let event_type = texts.event_type.and_then(|text| ByteString::try_from(text).ok());
                let id = texts.id.unwrap_or_default();
                Inserted::Unusable(Unusable { id, event_type, position, committed_at, bytes, reason })
            }
        };
        Ok(Some(inserted))
    }

    fn find(&self, oid: u32) -> Option<&Ours> {
        self.ours.iter().rev().find(|ours| ours.oid == oid)
    }

    /// The columns that are wanted, found in one walk over the row.
    fn texts(&self, mapping: &Mapping, tuple: &Tuple) -> Texts {
        let mut texts = Texts::default();
        texts.headers_from.resize(self.outbox.header_columns.len(), None);
        texts.columns.resize(self.columns.len(), None);
        let (mut values, mut next, mut current) = (tuple.values(), 0, None);
        for &(index, place) in mapping.wanted() {
            // Sorted by index; the same column may be wanted for several places.
            if index >= next {
                current = values.nth(index - next);
                next = index + 1;
            }
            if let Some(Value::Text(text)) = current {
                texts.put(place, text.to_bytes());
            }
        }
        texts
    }

    /// The event that a row of these columns would be, without a table: what `walgate route` looks at. `value_of` gives
    /// the text of a column by its name, `None` for NULL; `format` is what the payload's type would say.
    ///
    /// # Errors
    /// Why such a row cannot become an event.
    pub fn imagine(
        &self,
        value_of: &dyn Fn(&str) -> Option<Bytes>,
        format: PayloadFormat,
    ) -> Result<Row, UnusableReason> {
        let names = &self.outbox.columns;
        let texts = Texts {
            id: value_of(&names.id),
            event_type: value_of(&names.event_type),
            payload: value_of(&names.payload),
            key: names.key.as_ref().and_then(|key| value_of(key.column()?)),
            headers: names.headers.as_ref().and_then(|column| value_of(column)),
            headers_from: self.outbox.header_columns.values().map(|column| value_of(column)).collect(),
            columns: self.columns.iter().map(|column| value_of(column)).collect(),
        };
        self.read(texts, format)
    }

    /// `bytes` is left to the caller.
    fn read(&self, texts: Texts, format: PayloadFormat) -> Result<Row, UnusableReason> {
        let names = &self.outbox.columns;
        let required = |text: Option<Bytes>, column: &str, what| match text {
            Some(text) => utf8(text, column),
            None => Err(UnusableReason::Null { column: column.to_owned(), what }),
        };
        let id = required(texts.id, &names.id, "an id")?;
        let event_type = required(texts.event_type, &names.event_type, "a type")?;
        let mut event = Event::new(id, event_type);
        event.format = format;
        event.payload = match (texts.payload, format) {
            (Some(text), PayloadFormat::Binary) => {
                let raw = bytea::decode(&text);
                Some(raw.ok_or_else(|| UnusableReason::Bytea { column: names.payload.clone() })?)
            }
            (payload, _) => payload,
        };
        let mut no_key = None;
        match (&names.key, texts.key) {
            (Some(KeySource::Column(column)), Some(key)) => event.key = Some(utf8(key, column)?),
            (Some(KeySource::Payload(pointer)), _) => {
                match event.payload.as_ref().map_or(Err(NoKey::Absent), |payload| pointer::key(payload, pointer)) {
                    Ok(key) => event.key = Some(key),
                    Err(why) => no_key = Some(why),
                }
            }
            _ => {}
        }
        if texts.headers.is_some() || !texts.headers_from.is_empty() {
            event.headers = self.headers(texts.headers, texts.headers_from)?;
        }
        let columns = texts.columns.into_iter().zip(&self.columns);
        let columns = columns.map(|(text, column)| text.map(|text| utf8(text, column)).transpose());
        Ok(Row { event, columns: columns.collect::<Result<_, _>>()?, no_key, bytes: 0 })
    }

    /// Headers from mapped columns, then those of the headers column. A mapped column wins over a member of the same
    /// name: what the operator configured is not overruled by data.
    fn headers(&self, object: Option<Bytes>, mapped: Vec<Option<Bytes>>) -> Result<Headers, UnusableReason> {
        let mut headers = Vec::with_capacity(mapped.len());
        for ((name, column), value) in self.outbox.header_columns.iter().zip(mapped) {
            if let Some(value) = value {
                headers.push((ByteString::from(name.as_str()), utf8(value, column)?));
            }
        }
        if let (Some(object), Some(column)) = (object, &self.outbox.columns.headers) {
            let object = utf8(object, column)?;
            headers::append(&object, &mut headers)
                .map_err(|why| UnusableReason::Headers { column: column.clone(), why })?;
        }
        Ok(headers.into_iter().collect())
    }
}

/// The wanted columns of one row; `None`: NULL, or not mapped. Nothing is allocated where nothing extra is wanted.
#[derive(Default)]
struct Texts {
    id: Option<Bytes>,
    event_type: Option<Bytes>,
    payload: Option<Bytes>,
    key: Option<Bytes>,
    headers: Option<Bytes>,
    headers_from: Vec<Option<Bytes>>,
    columns: Vec<Option<Bytes>>,
}

impl Texts {
    fn put(&mut self, place: Place, text: Bytes) {
        let slot = match place {
            Place::Id => &mut self.id,
            Place::EventType => &mut self.event_type,
            Place::Payload => &mut self.payload,
            Place::Key => &mut self.key,
            Place::Headers => &mut self.headers,
            Place::Header(index) => match self.headers_from.get_mut(index) {
                Some(slot) => slot,
                None => return,
            },
            Place::Column(index) => match self.columns.get_mut(index) {
                Some(slot) => slot,
                None => return,
            },
        };
        *slot = Some(text);
    }
}

fn utf8(text: Bytes, column: &str) -> Result<ByteString, UnusableReason> {
    ByteString::try_from(text).map_err(|_| UnusableReason::NotUtf8 { column: column.to_owned() })
}
