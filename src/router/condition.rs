//! What a route's `when` asks of an event: a field, and the texts that it may be. Compared byte for byte.

use std::fmt;

use super::{Field, template::Values};

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    /// [`Field::Key`], [`Field::Header`] or [`Field::Column`].
    pub(super) field: Field,
    /// It holds where the field is one of these.
    pub(super) any_of: Box<[Box<str>]>,
}

impl Condition {
    /// Whether it holds. A field that is NULL or absent is none of the texts, not even the empty one.
    pub(super) fn holds(&self, values: Values<'_>) -> bool {
        self.field.text(values).is_some_and(|text| self.any_of.iter().any(|wanted| **wanted == *text))
    }

    /// Whether it holds wherever `other` does.
    fn follows_from(&self, other: &Condition) -> bool {
        self.field == other.field && other.any_of.iter().all(|text| self.any_of.contains(text))
    }

    /// Its key in the configuration.
    pub(super) fn key(&self) -> String {
        match &self.field {
            Field::Header(name) => format!("header.{name}"),
            Field::Column { name, .. } => format!("column.{name}"),
            _ => "key".to_owned(),
        }
    }
}

/// Whether all of `wide` hold wherever all of `narrow` do, as far as their texts tell.
pub(super) fn follow_from(wide: &[Condition], narrow: &[Condition]) -> bool {
    wide.iter().all(|wide| narrow.iter().any(|narrow| wide.follows_from(narrow)))
}

/// `header.tenant=acme`, `column.region=eu|us`.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key(), self.any_of.join("|"))
    }
}
