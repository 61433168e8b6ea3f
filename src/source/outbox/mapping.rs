//! Which column of a row holds what, worked out once for each Relation message.

use std::{collections::HashMap, fmt};

use walgate_sink::PayloadFormat;

use crate::{
    config,
    source::{
        pgoutput::TypeName,
        relation::{Relation, TableName, TableNameError},
    },
};

/// The OIDs of `json`, `jsonb` and `bytea` (pg_type.dat; built-in types never change theirs).
const JSON: u32 = 114;
const JSONB: u32 = 3802;
const BYTEA: u32 = 17;

/// Names of columns that an error lists at the most.
const LISTED: usize = 30;

/// Why no row of a table can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MappingError {
    /// `outbox.table` is not a table's name.
    #[error("outbox.table: {0}")]
    Table(#[from] TableNameError),
    /// The outbox lacks columns that the configuration names.
    #[error("{}", Sentences { table, missing, columns })]
    Missing {
        /// The table.
        table: TableName,
        /// What it lacks.
        missing: Vec<MissingColumn>,
        /// What it has, as far as it is published.
        columns: Vec<String>,
    },
    /// A row has another number of columns than its table was said to have.
    #[error(
        "a row of {table} has {row} columns where its Relation message has {described}: the stream is damaged, and \
         nothing after it can be trusted; the connection is opened again. Report it if that does not help"
    )]
    Width {
        /// The table.
        table: TableName,
        /// Columns of the Relation message.
        described: usize,
        /// Columns of the row.
        row: usize,
    },
    /// A row came before the Relation message of its table.
    #[error(
        "a row of a table with OID {oid} came before its Relation message, so whether it is the outbox is unknown; \
         the connection is opened again. Report it if that does not help"
    )]
    Undescribed {
        /// The table's OID.
        oid: u32,
    },
}

/// A column that the configuration names and the table does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingColumn {
    /// The column.
    pub column: String,
    /// Where the configuration names it.
    pub named_by: String,
    /// A column of the table whose name is much like it.
    pub near_miss: Option<String>,
}

struct Sentences<'a> {
    table: &'a TableName,
    missing: &'a [MissingColumn],
    columns: &'a [String],
}

impl fmt::Display for Sentences<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the outbox table {} has no column", self.table)?;
        for (index, missing) in self.missing.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", nor" };
            write!(f, "{comma} `{}`, which {} names", missing.column, missing.named_by)?;
            if let Some(near_miss) = &missing.near_miss {
                write!(f, " (did you mean `{near_miss}`?)")?;
            }
        }
        f.write_str(": its published columns are ")?;
        if self.columns.is_empty() {
            f.write_str("none")?;
        }
        for (index, column) in self.columns.iter().take(LISTED).enumerate() {
            write!(f, "{}{column}", if index == 0 { "" } else { ", " })?;
        }
        if self.columns.len() > LISTED {
            write!(f, " and {} more", self.columns.len() - LISTED)?;
        }
        f.write_str(
            "; correct the configuration, or add the column to the table and to the publication's column list if it \
             has one",
        )
    }
}

/// What a wanted column is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Id,
    EventType,
    Payload,
    Key,
    Headers,
    /// The header of `outbox.header_columns` with this index.
    Header(usize),
    /// The column with this index among those that the router reads.
    Column(usize),
}

/// How the rows of one table are read.
#[derive(Debug)]
pub(super) struct Mapping {
    width: usize,
    /// Columns by index, ascending.
    wanted: Box<[(usize, Place)]>,
    format: PayloadFormat,
}

impl Mapping {
    /// Finds every column that the outbox and the router name.
    pub(super) fn new(
        relation: &Relation,
        outbox: &config::Outbox,
        columns: &[String],
        types: &HashMap<u32, PayloadFormat>,
    ) -> Result<Self, MappingError> {
        let names = &outbox.columns;
        let fixed = [
            (Some(&names.id), "id", Place::Id),
            (Some(&names.event_type), "event_type", Place::EventType),
            (Some(&names.payload), "payload", Place::Payload),
            (names.key.as_ref().and_then(config::KeySource::column), "key", Place::Key),
            (names.headers.as_ref(), "headers", Place::Headers),
        ];
        let fixed = fixed
            .into_iter()
            .filter_map(|(column, setting, place)| Some((column?, format!("`outbox.columns.{setting}`"), place)));
        let headers = outbox.header_columns.iter().enumerate();
        let headers = headers.map(|(index, (header, column))| {
            (column, format!("`outbox.header_columns.{header}`"), Place::Header(index))
        });
        let routes = columns.iter().enumerate();
        let routes =
            routes.map(|(index, column)| (column, format!("a route with `column.{column}`"), Place::Column(index)));

        let (mut wanted, mut missing) = (Vec::new(), Vec::new());
        for (column, named_by, place) in fixed.chain(headers).chain(routes) {
            match relation.columns.iter().position(|published| published.name == *column) {
                Some(index) => wanted.push((index, place)),
                None => {
                    let names = relation.columns.iter().map(|column| &*column.name);
                    let near_miss = closest(column, names).map(str::to_owned);
                    missing.push(MissingColumn { column: column.clone(), named_by, near_miss });
                }
            }
        }
        if !missing.is_empty() {
            let columns = relation.columns.iter().map(|column| column.name.clone()).collect();
            return Err(MappingError::Missing { table: relation.table(), missing, columns });
        }
        let payload = relation.columns.iter().find(|column| column.name == names.payload);
        let format = payload.map_or(PayloadFormat::Text, |column| match column.type_oid {
            JSON | JSONB => PayloadFormat::Json,
            BYTEA => PayloadFormat::Binary,
            other => types.get(&other).copied().unwrap_or(PayloadFormat::Text),
        });
        wanted.sort_by_key(|(index, _)| *index);
        Ok(Mapping { width: relation.columns.len(), wanted: wanted.into(), format })
    }

    /// How many columns a row has.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// The wanted columns by index, ascending.
    pub(super) fn wanted(&self) -> &[(usize, Place)] {
        &self.wanted
    }

    /// What the payload's bytes are.
    pub(super) fn format(&self) -> PayloadFormat {
        self.format
    }
}

/// The format of a payload whose type, or the type beneath its domain, has this name. `None`: text.
pub(super) fn format_of_name(name: &TypeName) -> Option<PayloadFormat> {
    match (&*name.schema, &*name.name) {
        ("pg_catalog", "json" | "jsonb") => Some(PayloadFormat::Json),
        ("pg_catalog", "bytea") => Some(PayloadFormat::Binary),
        _ => None,
    }
}

/// The candidate that is most like `word`, if any is like it enough to be meant: an edit or two away, case aside.
fn closest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let length = word.chars().count();
    if !(1..=64).contains(&length) {
        return None;
    }
    let distance = |candidate: &str| strsim::osa_distance(&word.to_lowercase(), &candidate.to_lowercase());
    let near = candidates.map(|candidate| (distance(candidate), candidate));
    near.filter(|(distance, _)| *distance <= 1 + length / 4).min_by_key(|(distance, _)| *distance).map(|(_, near)| near)
}
