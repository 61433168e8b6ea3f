//! Deliveries as columns on the way in, and rows as deliveries on the way out.

use std::{borrow::Cow, error::Error};

use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use postgres_protocol::types::{timestamp_from_sql, timestamp_to_sql};
use tokio_postgres::{
    Row,
    types::{FromSql, IsNull, PgLsn, ToSql, Type, accepts, to_sql_checked},
};
use walgate_sink::{Event, Lsn, PayloadFormat, Position, Timestamp};

use super::{
    Page, Parcel, Place,
    failure::Failure,
    text::{fit, push_json, timestamp},
};
use crate::control::parking::{Attempted, OMITTED, Stored, parcel::KEPT_ERRORS};

/// A point in time as PostgreSQL sends it: it counts from 2000.
#[derive(Debug)]
pub(super) struct When(pub Timestamp);

/// 2000-01-01 in microseconds since 1970.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

impl ToSql for When {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        timestamp_to_sql(self.0.0.saturating_sub(POSTGRES_EPOCH), out);
        Ok(IsNull::No)
    }

    accepts!(TIMESTAMPTZ);
    to_sql_checked!();
}

impl<'a> FromSql<'a> for When {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(When(Timestamp(timestamp_from_sql(raw)?.saturating_add(POSTGRES_EPOCH))))
    }

    accepts!(TIMESTAMPTZ);
}

/// Parcels by column.
pub(super) struct Columns<'a> {
    commit_lsn: Vec<PgLsn>,
    ordinal: Vec<i64>,
    delivery: Vec<i64>,
    hold_key: Vec<Option<&'a str>>,
    event_id: Vec<&'a str>,
    event_type: Vec<&'a str>,
    event_key: Vec<Option<&'a str>>,
    ordering_key: Vec<Option<&'a str>>,
    dedup_id: Vec<&'a str>,
    route: Vec<Cow<'a, str>>,
    target: Vec<String>,
    headers: Vec<Option<String>>,
    payload: Vec<Option<&'a [u8]>>,
    payload_format: Vec<&'static str>,
    committed_at: Vec<When>,
    bytes: Vec<i64>,
    attempts: Vec<i64>,
    reason: Vec<Option<Cow<'a, str>>>,
    message: Vec<Option<Cow<'a, str>>>,
    errors: Vec<Option<String>>,
}

impl<'a> Columns<'a> {
    /// The columns of these parcels, for a database in UTF8 or another encoding.
    pub fn of(parcels: &[&'a Parcel], utf8: bool) -> Self {
        fn each<'a, T>(parcels: &[&'a Parcel], value: impl FnMut(&'a Parcel) -> T) -> Vec<T> {
            parcels.iter().copied().map(value).collect()
        }
        let places: Vec<Place> = each(parcels, |parcel| Place::of(&parcel.delivery));
        Columns {
            commit_lsn: places.iter().map(|place| PgLsn::from(place.position.commit_lsn.0)).collect(),
            ordinal: places.iter().map(|place| i64::from(place.position.ordinal)).collect(),
            delivery: places.iter().map(|place| place.delivery).collect(),
            hold_key: each(parcels, |parcel| parcel.hold.as_ref().map(|key| key.as_str())),
            event_id: each(parcels, |parcel| &*parcel.delivery.event.id),
            event_type: each(parcels, |parcel| &*parcel.delivery.event.event_type),
            event_key: each(parcels, |parcel| parcel.delivery.event.key.as_deref()),
            ordering_key: each(parcels, |parcel| parcel.delivery.ordering_key.as_deref()),
            dedup_id: each(parcels, |parcel| &*parcel.delivery.dedup_id),
            route: each(parcels, |parcel| fit(&parcel.route, utf8)),
            target: each(parcels, |parcel| target(parcel, utf8)),
            headers: each(parcels, |parcel| headers(&parcel.delivery.event, utf8)),
            payload: each(parcels, |parcel| parcel.delivery.event.payload.as_deref()),
            payload_format: each(parcels, |parcel| match parcel.contents {
                true => format_name(parcel.delivery.event.format),
                false => OMITTED,
            }),
            committed_at: each(parcels, |parcel| When(parcel.delivery.event.committed_at)),
            bytes: each(parcels, |parcel| size(parcel.delivery.event.size())),
            attempts: each(parcels, |parcel| i64::from(parcel.delivery.attempt)),
            reason: each(parcels, |parcel| parcel.reason.as_ref().map(|reason| fit(reason, utf8))),
            message: each(parcels, |parcel| parcel.message.as_ref().map(|message| fit(message, utf8))),
            errors: each(parcels, |parcel| errors(&parcel.errors, utf8)),
        }
    }

    /// In the order in which the statements take them.
    pub fn parameters(&self) -> [&(dyn ToSql + Sync); 20] {
        [
            &self.commit_lsn,
            &self.ordinal,
            &self.delivery,
            &self.hold_key,
            &self.event_id,
            &self.event_type,
            &self.event_key,
            &self.ordering_key,
            &self.dedup_id,
            &self.route,
            &self.target,
            &self.headers,
            &self.payload,
            &self.payload_format,
            &self.committed_at,
            &self.bytes,
            &self.attempts,
            &self.reason,
            &self.message,
            &self.errors,
        ]
    }
}

/// A number of rows or bytes for SQL, to which one more may be added.
pub(super) fn size(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX).min(i64::MAX - 1)
}

/// An object of the fields that are set.
fn target(parcel: &Parcel, utf8: bool) -> String {
    let mut json = String::from("{");
    for (name, value) in parcel.delivery.target.iter() {
        if json.len() > 1 {
            json.push(',');
        }
        push_json(&mut json, name, utf8);
        json.push(':');
        push_json(&mut json, value, utf8);
    }
    json.push('}');
    json
}

/// Pairs in order: a name may come twice.
fn headers(event: &Event, utf8: bool) -> Option<String> {
    if event.headers.is_empty() {
        return None;
    }
    let mut json = String::from("[");
    for (name, value) in event.headers.iter() {
        json.push_str(if json.len() > 1 { ",[" } else { "[" });
        push_json(&mut json, name, utf8);
        json.push(',');
        push_json(&mut json, value, utf8);
        json.push(']');
    }
    json.push(']');
    Some(json)
}

/// The newest, oldest first.
fn errors(errors: &[Attempted], utf8: bool) -> Option<String> {
    let kept = errors.get(errors.len().saturating_sub(KEPT_ERRORS)..).filter(|kept| !kept.is_empty())?;
    let mut json = String::from("[");
    for Attempted { at, kind, error } in kept {
        json.push_str(if json.len() > 1 { ",{\"at\":\"" } else { "{\"at\":\"" });
        json.push_str(&at.to_string());
        json.push('"');
        for (name, text) in [("kind", &**kind), ("error", error)] {
            if !text.is_empty() {
                json.push_str(",\"");
                json.push_str(name);
                json.push_str("\":");
                push_json(&mut json, &fit(text, true), utf8);
            }
        }
        json.push('}');
    }
    json.push(']');
    Some(json)
}

fn format_name(format: PayloadFormat) -> &'static str {
    match format {
        PayloadFormat::Json => "json",
        PayloadFormat::Text => "text",
        // Bytes that nobody looks into, whatever they are.
        _ => "binary",
    }
}

/// The rows of a page.
pub(super) fn page(rows: &[Row]) -> Result<Page, Failure> {
    let stored = |row: &Row| {
        let id: i64 = row.try_get(0)?;
        stored(row, id).map_err(|error| {
            Failure::Row(format!("row {id} does not have the form that walgate writes: {error}; mend it, or delete it"))
        })
    };
    let end = rows.last().map_or(Ok(true), |row| row.try_get(19))?;
    Ok(Page { rows: rows.iter().map(stored).collect::<Result<_, _>>()?, end })
}

fn stored(row: &Row, id: i64) -> Result<Stored, Box<dyn Error + Sync + Send>> {
    let text = |column: usize| row.try_get::<_, &str>(column).map(ByteString::from);
    let some_text = |column: usize| row.try_get::<_, Option<&str>>(column).map(|text| text.map(ByteString::from));
    let ordinal = u32::try_from(row.try_get::<_, i64>(2)?).map_err(|_| "`ordinal` is out of range")?;
    let position = Position { commit_lsn: Lsn(row.try_get::<_, PgLsn>(1)?.into()), ordinal };
    let mut event = Event::new(text(4)?, text(5)?);
    event.key = some_text(6)?;
    if let Some(headers) = row.try_get::<_, Option<&str>>(11)? {
        let headers: Vec<(String, String)> =
            serde_json::from_str(headers).map_err(|_| "`headers` is no list of pairs of strings")?;
        event.headers = headers.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    }
    event.payload = row.try_get::<_, Option<&[u8]>>(12)?.map(Bytes::copy_from_slice);
    event.format = match row.try_get(13)? {
        "json" => PayloadFormat::Json,
        "text" => PayloadFormat::Text,
        "binary" => PayloadFormat::Binary,
        OMITTED => {
            return Err("it was kept without its payload (`dead_letters.payload: omit`), and cannot be sent".into());
        }
        _ => return Err("`payload_format` is none of json, text, binary".into()),
    };
    event.position = position;
    event.committed_at = row.try_get::<_, When>(14)?.0;
    let rejected = match some_text(16)? {
        None => None,
        Some(reason) => Some((reason, row.try_get::<_, Option<String>>(17)?.unwrap_or_default())),
    };
    Ok(Stored {
        id,
        place: Place { position, delivery: row.try_get(3)? },
        event,
        target: fields(row.try_get(10)?).ok_or("`target` is no object of strings")?,
        ordering_key: some_text(7)?,
        dedup_id: text(8)?,
        route: text(9)?,
        attempts: u32::try_from(row.try_get::<_, i64>(15)?.max(0)).unwrap_or(u32::MAX),
        rejected,
        errors: row.try_get::<_, Option<&str>>(18)?.map_or_else(Vec::new, attempts),
    })
}

fn fields(json: &str) -> Option<Vec<(String, ByteString)>> {
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(json).ok()?;
    let string = |(name, value)| match value {
        serde_json::Value::String(value) => Some((name, value.into())),
        _ => None,
    };
    object.into_iter().map(string).collect()
}

/// What is said of attempts is for people: what cannot be read is left out.
fn attempts(json: &str) -> Vec<Attempted> {
    #[derive(serde::Deserialize)]
    struct Entry {
        at: String,
        #[serde(default)]
        kind: String,
        #[serde(default)]
        error: String,
    }
    let entries: Vec<serde_json::Value> = serde_json::from_str(json).unwrap_or_default();
    let read = |entry| {
        let Entry { at, kind, error } = serde_json::from_value(entry).ok()?;
        Some(Attempted { at: timestamp(&at)?, kind: kind.into(), error })
    };
    entries.into_iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use walgate_sink::{Delivery, Escape, Target, TargetField};

    const FIELDS: &[TargetField] = &[
        TargetField { name: "topic", required: true, ordering_key: false, escape: Escape::None },
        TargetField { name: "key", required: false, ordering_key: true, escape: Escape::None },
    ];

    fn parcel() -> Parcel {
        let mut event = Event::new("1", "order.created");
        event.headers =
            [("a", "1"), ("a", "\u{e9}")].map(|(name, value)| (name.into(), value.into())).into_iter().collect();
        let target = Target::new(FIELDS, [Some("orders".into()), Some("\"k\"".into())]);
        let delivery = Delivery { event, target, ordering_key: None, dedup_id: "1".into(), attempt: 2 };
        let attempted = |n: i64| Attempted { at: Timestamp(n), kind: "timeout".into(), error: format!("no {n}\0") };
        let errors = (0..12).map(attempted).collect();
        Parcel { delivery, route: "r".into(), hold: None, reason: None, message: None, errors, contents: true }
    }

    #[test]
    fn json_columns_hold_what_they_should() {
        let parcel = parcel();
        assert_eq!(target(&parcel, true), r#"{"topic":"orders","key":"\"k\""}"#);
        assert_eq!(fields(&target(&parcel, true)).unwrap()[1], ("key".to_owned(), "\"k\"".into()));
        assert_eq!(headers(&parcel.delivery.event, true).unwrap(), "[[\"a\",\"1\"],[\"a\",\"\u{e9}\"]]");
        assert_eq!(headers(&parcel.delivery.event, false).unwrap(), r#"[["a","1"],["a","\u00e9"]]"#);
        assert_eq!(headers(&Event::new("1", "t"), true), None);
        let kept = attempts(&errors(&parcel.errors, false).unwrap());
        assert_eq!((kept.len(), kept[0].at, &*kept[9].error), (10, Timestamp(2), "no 11"));
        assert_eq!(errors(&[], true), None);
    }

    #[test]
    fn what_is_omitted_leaves_the_classes() {
        let mut parcel = parcel();
        parcel.errors.truncate(1);
        parcel.message = Some("it says: canary".into());
        parcel.delivery.event.payload = Some("canary".into());
        parcel.omit_contents();
        assert_eq!(errors(&parcel.errors, true).unwrap(), r#"[{"at":"1970-01-01T00:00:00.000000Z","kind":"timeout"}]"#);
        assert_eq!(headers(&parcel.delivery.event, true), None);
        let parcels = [&parcel];
        let columns = Columns::of(&parcels, true);
        assert_eq!((columns.payload[0], columns.payload_format[0], &columns.message[0]), (None, OMITTED, &None));
        assert_eq!((columns.event_id[0], &*columns.target[0]), ("1", r#"{"topic":"orders","key":"\"k\""}"#));
    }

    #[test]
    fn what_others_wrote_is_read_as_far_as_it_can_be() {
        assert_eq!(
            attempts("[1, {\"at\": \"1970-01-01T00:00:00.000001Z\", \"error\": \"x\", \"more\": 1}, {}]").len(),
            1
        );
        assert_eq!(attempts("{}"), []);
        assert_eq!(fields("{\"a\": 1}"), None);
        assert_eq!(fields("{}"), Some(Vec::new()));
    }
}
