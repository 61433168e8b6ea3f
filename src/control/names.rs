//! SQL names and literals: quoting, and a table's name with its schema.

use std::fmt;

use serde::Serialize;

/// Longest name that PostgreSQL keeps, in bytes; it cuts a longer one short without an error.
pub const MAX_NAME_BYTES: usize = 63;

/// Every keyword of PostgreSQL 18 that cannot stand everywhere as a name without quotes, sorted.
const KEYWORDS: &str = "all analyse analyze and any array as asc asymmetric authorization between bigint binary bit \
    boolean both case cast char character check coalesce collate collation column concurrently constraint create cross \
    current_catalog current_date current_role current_schema current_time current_timestamp current_user dec decimal \
    default deferrable desc distinct do else end except exists extract false fetch float for foreign freeze from full \
    grant greatest group grouping having ilike in initially inner inout int integer intersect interval into is isnull \
    join json json_array json_arrayagg json_exists json_object json_objectagg json_query json_scalar json_serialize \
    json_table json_value lateral leading least left like limit localtime localtimestamp merge_action national natural \
    nchar none normalize not notnull null nullif numeric offset on only or order out outer overlaps overlay placing \
    position precision primary real references returning right row select session_user setof similar smallint some \
    substring symmetric system_user table tablesample then time timestamp to trailing treat trim true union unique user \
    using values varchar variadic verbose when where window with xmlattributes xmlconcat xmlelement xmlexists xmlforest \
    xmlnamespaces xmlparse xmlpi xmlroot xmlserialize xmltable";

/// A name as it stands in SQL: as it is where PostgreSQL would read it unchanged, else in double quotes.
#[must_use]
pub fn quote_ident(name: &str) -> String {
    let mut bytes = name.bytes();
    let plain = bytes.next().is_some_and(|first| first.is_ascii_lowercase() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        && !KEYWORDS.split_ascii_whitespace().any(|keyword| keyword == name);
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// A string literal, right under every setting of `standard_conforming_strings`.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if text.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// The name is one that PostgreSQL cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, or a part of `schema.table` that is nothing.
    #[error("`{0}` is not a name: a part of it is empty")]
    Empty(String),
    /// PostgreSQL would cut it short without an error.
    #[error("`{0}` is too long: PostgreSQL keeps {MAX_NAME_BYTES} bytes of a name")]
    TooLong(String),
    /// A NUL byte or a control character.
    #[error("`{0}` holds a control character")]
    Control(String),
    /// A character that needs double quotes without them, quotes that do not match, or a third part.
    #[error(
        "`{0}` is not a table's name: expected table or schema.table, each part in double quotes where SQL needs them"
    )]
    Quotes(String),
    /// Slots have a smaller alphabet than other names.
    #[error("`{0}` is not a slot's name: only a to z, 0 to 9 and _ are allowed, {MAX_NAME_BYTES} at the most")]
    Slot(String),
}

/// A wrong name for an error text: escaped, and not longer than a line.
fn shown(text: &str) -> String {
    text.escape_debug().take(80).collect()
}

/// Whether PostgreSQL can hold a publication, role, schema, table or column of this name.
///
/// # Errors
/// Says what is wrong with it; control characters in it are escaped.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        Err(NameError::Empty(shown(name)))
    } else if name.chars().any(char::is_control) {
        Err(NameError::Control(shown(name)))
    } else if name.len() > MAX_NAME_BYTES {
        Err(NameError::TooLong(shown(name)))
    } else {
        Ok(())
    }
}

/// Whether PostgreSQL can hold a replication slot of this name.
///
/// # Errors
/// Says which characters a slot's name may hold.
pub fn check_slot_name(name: &str) -> Result<(), NameError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(allowed) {
        return Err(NameError::Slot(shown(name)));
    }
    Ok(())
}

/// A table by schema and name, both exactly as the catalog has them. Its `Display` is what SQL and the configuration
/// take: `schema.table`, each part in quotes where it needs them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct TableName {
    /// The schema.
    pub schema: String,
    /// The table within it.
    pub name: String,
}

impl TableName {
    /// A table by its two names, taken as they are.
    #[must_use]
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        TableName { schema: schema.into(), name: name.into() }
    }

    /// Reads a name as SQL does: `table` (in `public`) or `schema.table`, with double quotes where they are needed; what
    /// has no quotes is folded to lower case.
    ///
    /// # Errors
    /// A part is empty, too long, or its quotes do not match.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let (first, rest) = part(text, text)?;
        let table = match rest.strip_prefix('.') {
            None if rest.is_empty() => TableName::new("public", first),
            None => return Err(NameError::Quotes(shown(text))),
            Some(rest) => match part(text, rest)? {
                (second, "") => TableName::new(first, second),
                _ => return Err(NameError::Quotes(shown(text))),
            },
        };
        check_name(&table.schema)?;
        check_name(&table.name)?;
        Ok(table)
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", quote_ident(&self.schema), quote_ident(&self.name))
    }
}

/// One part of a table's name, and what stands after it.
fn part<'a>(whole: &str, text: &'a str) -> Result<(String, &'a str), NameError> {
    let Some(mut rest) = text.strip_prefix('"') else {
        let end = text.find('.').unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        if name.is_empty() {
            return Err(NameError::Empty(shown(whole)));
        }
        let plain = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        if name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(plain) {
            return Err(NameError::Quotes(shown(whole)));
        }
        return Ok((name.to_ascii_lowercase(), rest));
    };
    let mut name = String::new();
    loop {
        let (before, after) = rest.split_once('"').ok_or_else(|| NameError::Quotes(shown(whole)))?;
        name.push_str(before);
        match after.strip_prefix('"') {
            Some(doubled) => {
                name.push('"');
                rest = doubled;
            }
            None => return Ok((name, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_only_where_they_need_it() {
        for (name, quoted) in [
            ("outbox_events", "outbox_events"),
            ("_a1", "_a1"),
            ("Outbox", "\"Outbox\""),
            ("1st", "\"1st\""),
            ("order", "\"order\""),
            ("user", "\"user\""),
            ("a b", "\"a b\""),
            ("a\"b; DROP TABLE x; --", "\"a\"\"b; DROP TABLE x; --\""),
            ("été", "\"été\""),
            ("a$b", "\"a$b\""),
            ("", "\"\""),
        ] {
            assert_eq!(quote_ident(name), quoted);
        }
    }

    #[test]
    fn literals_cannot_be_broken_out_of() {
        for (text, quoted) in [
            ("walgate", "'walgate'"),
            ("it's", "'it''s'"),
            (r"back\slash'", r"E'back\\slash'''"),
            ("", "''"),
            ("'; DROP TABLE x; --", "'''; DROP TABLE x; --'"),
        ] {
            assert_eq!(quote_literal(text), quoted);
        }
    }

    #[test]
    fn tables_are_read_with_and_without_schema_and_quotes() {
        for (text, schema, name) in [
            ("outbox_events", "public", "outbox_events"),
            ("app.outbox", "app", "outbox"),
            ("App.Outbox", "app", "outbox"),
            (r#""App".Outbox_1"#, "App", "outbox_1"),
            (r#""a.b"."c""d""#, "a.b", "c\"d"),
            (r#"app."Out box""#, "app", "Out box"),
        ] {
            assert_eq!(TableName::parse(text), Ok(TableName::new(schema, name)), "{text}");
        }
        let long = "x".repeat(64);
        for bad in [
            "",
            ".",
            "a.",
            ".b",
            "a.b.c",
            "\"a",
            "\"a\"b",
            "a\"b",
            "\"\".a",
            "a\nb",
            "1a",
            "a b",
            "a-b",
            "a;b",
            long.as_str(),
        ] {
            assert!(TableName::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(TableName::new("My", "order").to_string(), "\"My\".\"order\"");
    }

    #[test]
    fn a_slot_has_a_small_alphabet() {
        assert_eq!(check_slot_name("walgate_1"), Ok(()));
        for bad in ["", "Walgate", "wal-gate", "wal gate", &"x".repeat(64)] {
            assert!(check_slot_name(bad).is_err(), "{bad}");
        }
    }
}
