//! Tables as Relation messages describe them, and their names as SQL writes them.

use std::fmt;

/// A table as a Relation message describes it: how the rows after it are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// The table's OID; it survives a rename.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// The published columns, in the order in which rows carry them.
    pub columns: Vec<RelationColumn>,
}

/// One column of a [`Relation`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationColumn {
    /// The column's name.
    pub name: String,
    /// The OID of its type.
    pub type_oid: u32,
    /// The modifier of its type, such as a length; -1: none.
    pub type_modifier: i32,
    /// Whether it is part of the replica identity.
    pub key: bool,
}

impl Relation {
    /// The table's name with its schema.
    #[must_use]
    pub fn table(&self) -> TableName {
        TableName { schema: self.schema.clone(), name: self.name.clone() }
    }
}

/// The name of a table with its schema, exactly as the catalog holds it. `Display` quotes what SQL needs quoted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TableName {
    /// The schema.
    pub schema: String,
    /// The table.
    pub name: String,
}

/// A text that is not the name of a table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not the name of a table: {why}; write schema.table, with double quotes as in SQL around a name \
         that has other characters than a-z, 0-9 and _, such as public.outbox_events or \"My Schema\".events"
)]
pub struct TableNameError {
    text: String,
    why: &'static str,
}

impl TableName {
    /// Reads a name as SQL does: `table`, `schema.table`, with double quotes where they are needed; what has no
    /// quotes is folded to lower case. Without a schema it is `public`.
    ///
    /// # Errors
    /// [`TableNameError`], where it is not one or two identifiers.
    pub fn parse(text: &str) -> Result<Self, TableNameError> {
        let error = |why| TableNameError { text: text.escape_debug().take(100).collect(), why };
        let (first, rest) = identifier(text.trim()).map_err(error)?;
        let Some(rest) = rest else { return Ok(TableName { schema: "public".to_owned(), name: first }) };
        let (second, rest) = identifier(rest).map_err(error)?;
        if rest.is_some() {
            return Err(error("it has more than two parts"));
        }
        Ok(TableName { schema: first, name: second })
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", Identifier(&self.schema), Identifier(&self.name))
    }
}

/// An identifier; `Display` quotes it where SQL would otherwise read it differently.
pub struct Identifier<'a>(pub &'a str);

impl fmt::Display for Identifier<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |c: char| c.is_ascii_lowercase() || c == '_';
        if self.0.starts_with(plain) && self.0.chars().all(|c| plain(c) || c.is_ascii_digit()) {
            f.write_str(self.0)
        } else {
            write!(f, "\"{}\"", self.0.replace('"', "\"\""))
        }
    }
}

/// The identifier at the front, and what follows the dot after it, if there is one.
fn identifier(text: &str) -> Result<(String, Option<&str>), &'static str> {
    let (name, rest) = match text.strip_prefix('"') {
        Some(quoted) => quoted_identifier(quoted)?,
        None => {
            let (name, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
            if name.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '\'' | ';' | ',')) {
                return Err("a name without quotes has a character that needs them");
            }
            if name.starts_with(|c: char| c.is_ascii_digit()) {
                return Err("a name without quotes begins with a digit");
            }
            (name.to_ascii_lowercase(), rest)
        }
    };
    match (name.is_empty(), rest.strip_prefix('.')) {
        (true, _) => Err("a name is empty"),
        (false, Some(rest)) => Ok((name, Some(rest))),
        (false, None) if rest.is_empty() => Ok((name, None)),
        (false, None) => Err("something other than a dot follows a quoted name"),
    }
}

/// The rest of an identifier after its opening quote; two quotes stand for one.
fn quoted_identifier(text: &str) -> Result<(String, &str), &'static str> {
    let mut name = String::new();
    let mut rest = text;
    while let Some((part, after)) = rest.split_once('"') {
        name.push_str(part);
        match after.strip_prefix('"') {
            Some(after) => {
                name.push('"');
                rest = after;
            }
            None => return Ok((name, after)),
        }
    }
    Err("a quoted name is not closed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(schema: &str, name: &str) -> TableName {
        TableName { schema: schema.to_owned(), name: name.to_owned() }
    }

    #[test]
    fn names_are_read_as_sql_reads_them() {
        for (text, schema, name) in [
            ("outbox_events", "public", "outbox_events"),
            ("public.outbox_events", "public", "outbox_events"),
            (" app.Outbox ", "app", "outbox"),
            ("\"My Schema\".t", "My Schema", "t"),
            ("\"a.b\".\"c\"\"d\"", "a.b", "c\"d"),
            ("\"Outbox\"", "public", "Outbox"),
            ("größe.événements", "größe", "événements"),
        ] {
            assert_eq!(TableName::parse(text), Ok(table(schema, name)), "{text}");
        }
        for bad in ["", ".", "a.", ".a", "a.b.c", "\"a", "\"\"", "\"a\"b", "a b", "a\"b\"", "1a", "a;b", "a.\"b"] {
            assert!(TableName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_quoted_only_where_sql_needs_it() {
        for (schema, name, text) in [
            ("public", "outbox_events", "public.outbox_events"),
            ("My Schema", "t", "\"My Schema\".t"),
            ("a.b", "c\"d", "\"a.b\".\"c\"\"d\""),
            ("_x1", "1x", "_x1.\"1x\""),
        ] {
            assert_eq!(table(schema, name).to_string(), text);
            assert_eq!(TableName::parse(text), Ok(table(schema, name)));
        }
    }

    #[test]
    fn an_error_says_what_to_write() {
        insta::assert_snapshot!(TableName::parse("a.b.c").unwrap_err(), @r#"`a.b.c` is not the name of a table: it has more than two parts; write schema.table, with double quotes as in SQL around a name that has other characters than a-z, 0-9 and _, such as public.outbox_events or "My Schema".events"#);
        insta::assert_snapshot!(TableName::parse("My Schema.t").unwrap_err(), @r#"`My Schema.t` is not the name of a table: a name without quotes has a character that needs them; write schema.table, with double quotes as in SQL around a name that has other characters than a-z, 0-9 and _, such as public.outbox_events or "My Schema".events"#);
    }
}
