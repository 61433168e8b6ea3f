//! What stands under `envelope:`.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};

use super::grammar;
use crate::{ConfigIssue, PathSegment};

/// `envelope:` in a sink's configuration: a name (`envelope: cloudevents`), or a name with its settings
/// (`envelope: { cloudevents: { source: /shop } }`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Envelope {
    /// The payload as it is, metadata beside it.
    #[default]
    Raw,
    /// A CloudEvent 1.0.
    CloudEvents(CloudEvents),
    /// As Debezium's outbox event router names things.
    Debezium,
}

/// What stands under `cloudevents:`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct CloudEvents {
    /// Whether attributes stand beside the payload or around it. `None`: what suits the protocol.
    pub mode: Option<ContentMode>,
    /// The context in which events happened: a URI-reference. Together with the id it identifies an event, so each
    /// outbox should have its own.
    pub source: String,
}

/// `mode:` of CloudEvents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContentMode {
    /// The body is the payload, and attributes stand beside it.
    Binary,
    /// The body is a JSON document with attributes and payload.
    Structured,
}

impl Default for CloudEvents {
    fn default() -> Self {
        CloudEvents { mode: None, source: "/walgate".to_owned() }
    }
}

const NAMES: &[&str] = &["raw", "cloudevents", "debezium"];

impl Envelope {
    /// All that is wrong with the settings, each at its place under `envelope`.
    #[must_use]
    pub fn issues(&self) -> Vec<ConfigIssue> {
        match self {
            Envelope::CloudEvents(settings) => {
                let why = grammar::uri_reference(&settings.source).err();
                why.map(|why| issue(&["cloudevents", "source"], format!("{why}: write one such as /shop"))).into_iter()
            }
            _ => None.into_iter(),
        }
        .collect()
    }

    /// The content mode of CloudEvents, where the configuration gives one.
    #[must_use]
    pub fn content_mode(&self) -> Option<ContentMode> {
        match self {
            Envelope::CloudEvents(settings) => settings.mode,
            _ => None,
        }
    }

    /// Whether a header of this name, given in the configuration for every message, would meet one that the envelope
    /// sets. `prefix` is that of the protocol's CloudEvents binding; names are compared without their case.
    #[must_use]
    pub fn reserves(&self, header: &str, prefix: &str) -> bool {
        let is = |name: &str| header.eq_ignore_ascii_case(name);
        match self {
            Envelope::Raw => false,
            Envelope::CloudEvents(settings) => {
                header.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
                    || (is("content-type") && settings.mode == Some(ContentMode::Structured))
            }
            Envelope::Debezium => ["id", "eventType", super::DEBEZIUM_KEY].into_iter().any(is),
        }
    }

    /// The same envelope with a content mode, where it is one of CloudEvents and the configuration gives none: for
    /// protocols that have no place for attributes.
    #[must_use]
    pub fn or_mode(mut self, mode: ContentMode) -> Self {
        if let Envelope::CloudEvents(settings) = &mut self {
            settings.mode.get_or_insert(mode);
        }
        self
    }
}

/// An issue below `envelope`.
fn issue(path: &[&str], message: String) -> ConfigIssue {
    let path = ["envelope"].iter().chain(path).map(|key| PathSegment::Key((*key).to_owned())).collect();
    ConfigIssue { path, message }
}

impl<'de> Deserialize<'de> for Envelope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NameOrSettings)
    }
}

struct NameOrSettings;

impl<'de> Visitor<'de> for NameOrSettings {
    type Value = Envelope;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("raw, cloudevents, debezium, or a mapping such as { cloudevents: { source: /shop } }")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Envelope, E> {
        match name {
            "raw" => Ok(Envelope::Raw),
            "cloudevents" => Ok(Envelope::CloudEvents(CloudEvents::default())),
            "debezium" => Ok(Envelope::Debezium),
            unknown => Err(E::unknown_variant(unknown, NAMES)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Envelope, A::Error> {
        let one = || A::Error::custom("it must name one of raw, cloudevents and debezium");
        let name = map.next_key::<String>()?.ok_or_else(one)?;
        let envelope = match &*name {
            "raw" => map.next_value::<Nothing>().map(|_| Envelope::Raw),
            "cloudevents" => map
                .next_value::<Option<CloudEvents>>()
                .map(|settings| Envelope::CloudEvents(settings.unwrap_or_default())),
            "debezium" => map.next_value::<Nothing>().map(|_| Envelope::Debezium),
            unknown => Err(A::Error::unknown_field(unknown, NAMES)),
        }?;
        if map.next_key::<String>()?.is_some() {
            return Err(one());
        }
        Ok(envelope)
    }
}

/// A mapping without keys, or null.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

type Nothing = Option<Empty>;
