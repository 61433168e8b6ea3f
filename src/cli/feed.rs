//! Rows of the outbox, read by SQL, as the deliveries that they would have been: by the configuration's own reader and
//! router, a few at a time, in the order of their insertion.

use bytes::Bytes;
use tokio_postgres::Client;
use walgate_sink::{Lsn, PayloadFormat, Position, Timestamp};

use super::setup::Routing;
use crate::{
    config::Loaded,
    control::{
        QueryError, TableName,
        parking::{HoldKey, Parcel},
        preflight::TableFacts,
        recovery::{Found, Selection, Which},
    },
    router::Routed,
    source::Row,
};

/// Reads them.
pub struct Feed {
    /// Which rows.
    pub selection: Selection,
    /// Rows that were read.
    pub rows: u64,
    /// Rows that no route matches.
    pub unrouted: u64,
    /// Rows that are no events.
    pub unusable: u64,
    routing: Routing,
    format: PayloadFormat,
    labels: Vec<String>,
    position: Position,
    routed: Vec<Routed>,
}

/// Whether the table has this column.
pub fn has(table: &TableFacts, name: &str) -> bool {
    table.columns.iter().any(|column| column.name == name)
}

impl Feed {
    /// Over these rows; `age`: the column in whose order they come.
    pub fn new(
        loaded: &Loaded,
        routing: Routing,
        table: &TableFacts,
        which: Which,
        age: Option<String>,
    ) -> Result<Self, String> {
        let config = &loaded.config;
        let names = &config.outbox.columns;
        let mut columns = vec![names.id.clone(), names.event_type.clone(), names.payload.clone()];
        columns.extend(names.key.as_ref().and_then(|key| key.column()).cloned());
        columns.extend(names.headers.clone());
        columns.extend(config.outbox.header_columns.values().cloned());
        columns.extend(routing.router.columns().iter().cloned());
        columns.sort();
        columns.dedup();
        if let Some(missing) = columns.iter().chain(&age).find(|column| !has(table, column)) {
            return Err(format!("the outbox has no column `{missing}`"));
        }
        let payload = table.columns.iter().find(|column| column.name == names.payload);
        let format = match payload.map(|column| column.base_type.as_str()) {
            Some("json" | "jsonb") => PayloadFormat::Json,
            Some("bytea") => PayloadFormat::Binary,
            _ => PayloadFormat::Text,
        };
        let name = routing.reader.table();
        let table = TableName::new(&name.schema, &name.name);
        Ok(Feed {
            selection: Selection { table, columns, age, unpublished: None, which, filters: Vec::new() },
            rows: 0,
            unrouted: 0,
            unusable: 0,
            routing,
            format,
            labels: config.routes.iter().map(|route| route.event_type.0.join(",")).collect(),
            position: Position::default(),
            routed: Vec::new(),
        })
    }

    /// Begins to read, in the transaction that the connection is in. The events' positions are this one, with numbers.
    pub async fn open(&mut self, client: &Client, position: Lsn) -> Result<(), QueryError> {
        self.position = Position { commit_lsn: position, ordinal: 0 };
        self.selection.open(client).await
    }

    /// The next few, each with the place of its sink; none: that was all.
    pub async fn next(&mut self, client: &Client) -> Result<Option<Vec<(usize, Parcel)>>, QueryError> {
        let rows = self.selection.fetch(client).await?;
        if rows.is_empty() {
            return Ok(None);
        }
        let mut parcels = Vec::with_capacity(rows.len());
        for found in rows {
            self.rows += 1;
            let position = self.position;
            // More rows than that are in no table that anybody recovers.
            self.position.ordinal = self.position.ordinal.saturating_add(1);
            let Some(mut row) = self.read(&found) else {
                self.unusable += 1;
                continue;
            };
            row.event.position = position;
            row.event.committed_at = found.inserted_at.map_or_else(Timestamp::now, Timestamp);
            self.routing.router.route(&row.event, &row.columns, &mut self.routed);
            self.unrouted += u64::from(self.routed.is_empty());
            for Routed { sink, route, delivery, invalid } in self.routed.drain(..) {
                let label = self.labels.get(usize::from(route)).map(String::as_str).unwrap_or_default();
                let parcel = Parcel {
                    delivery,
                    route: label.into(),
                    hold: None::<HoldKey>,
                    reason: invalid.as_ref().map(|rejection| rejection.reason.as_str().into()),
                    message: invalid.map(|rejection| rejection.message),
                    errors: Vec::new(),
                    contents: true,
                };
                parcels.push((sink, parcel));
            }
        }
        Ok(Some(parcels))
    }

    fn read(&self, found: &Found) -> Option<Row> {
        let value = |name: &str| {
            let index = self.selection.columns.iter().position(|column| column == name)?;
            found.columns.get(index)?.as_ref().map(|text| Bytes::from(text.clone()))
        };
        match self.routing.reader.imagine(&value, self.format) {
            Ok(row) => Some(row),
            Err(reason) => {
                tracing::warn!(%reason, "a row of the outbox is no event: it is left out");
                None
            }
        }
    }
}
