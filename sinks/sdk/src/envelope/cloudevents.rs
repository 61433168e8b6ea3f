//! Events as CloudEvents 1.0.2: <https://github.com/cloudevents/spec>, documents `spec.md` and `json-format.md`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use bytestring::ByteString;

use super::{CloudEvents, ContentMode, Enveloped, grammar, invalid, others, trace_context};
use crate::{Event, PayloadFormat, Rejection, document};

/// The content type of one event with its attributes around the payload.
pub const STRUCTURED_CONTENT_TYPE: &str = "application/cloudevents+json";
/// The content type of a JSON array of such events.
pub const BATCH_CONTENT_TYPE: &str = "application/cloudevents-batch+json";

/// Attributes that the specification defines, and members of the JSON format.
const RESERVED: [&str; 8] = ["id", "source", "specversion", "type", "subject", "time", "datacontenttype", "data"];
/// Length of a time whose year has four digits, as RFC 3339 wants it.
const TIME_LENGTH: usize = "2026-03-01T12:00:00.000000Z".len();

type Attributes = Vec<(ByteString, ByteString)>;

impl CloudEvents {
    pub(super) fn wrap(&self, event: &Event) -> Result<Enveloped, Rejection> {
        match self.mode.unwrap_or(ContentMode::Binary) {
            ContentMode::Binary => Ok(Enveloped {
                body: event.payload.clone(),
                content_type: event.payload.as_ref().map(|_| event.format.content_type()),
                attributes: self.attributes(event)?,
                headers: Vec::new(),
                is_cloudevent: true,
            }),
            ContentMode::Structured => {
                let mut document = Vec::with_capacity(event.size() + 256);
                self.append_document(event, &mut document)?;
                Ok(Enveloped {
                    body: Some(Bytes::from(document)),
                    content_type: Some(STRUCTURED_CONTENT_TYPE),
                    attributes: Vec::new(),
                    headers: Vec::new(),
                    is_cloudevent: true,
                })
            }
        }
    }

    /// Whether the event can be a CloudEvent at all.
    ///
    /// # Errors
    /// As [`super::Envelope::wrap`].
    pub fn check(&self, event: &Event) -> Result<(), Rejection> {
        self.attributes(event).map(|_| ())
    }

    /// Appends the event in the JSON format: also an element of a batch. Nothing is appended where it is rejected.
    ///
    /// # Errors
    /// As [`super::Envelope::wrap`].
    pub fn append_document(&self, event: &Event, out: &mut Vec<u8>) -> Result<(), Rejection> {
        let attributes = self.attributes(event)?;
        let mut separator = b'{';
        for (name, value) in &attributes {
            out.push(separator);
            separator = b',';
            document::string(name, out);
            out.push(b':');
            document::string(value, out);
        }
        content(event, out);
        out.push(b'}');
        Ok(())
    }

    /// Every attribute but the content type, which the protocol or the JSON document has a place of its own for.
    fn attributes(&self, event: &Event) -> Result<Attributes, Rejection> {
        let mut attributes: Attributes = Vec::with_capacity(8);
        let mut add = |name: &'static str, value: ByteString| attributes.push((ByteString::from_static(name), value));
        add("specversion", ByteString::from_static("1.0"));
        for (name, value) in [("id", &event.id), ("type", &event.event_type)] {
            if value.is_empty() {
                return Err(invalid(format!("the event's {name} is empty, and a CloudEvent must have one")));
            }
            add(name, value.clone());
        }
        add("source", self.source.as_str().into());
        let time = event.committed_at.to_string();
        if time.len() == TIME_LENGTH && !time.starts_with('-') {
            add("time", time.into());
        }
        if let Some(key) = event.key.as_ref().filter(|key| !key.is_empty()) {
            add("subject", key.clone());
        }
        for (name, value) in trace_context(event) {
            add(name, value.clone());
        }
        for (name, value) in others(event) {
            let name = extension_name(name, value)?;
            if attributes.iter().any(|(known, _)| *known == name) {
                return Err(invalid(format!(
                    "two headers of the event are named `{name}`: a CloudEvent has one of a name"
                )));
            }
            attributes.push((name, value.clone()));
        }
        for (name, value) in &attributes {
            grammar::text(value).map_err(|c| {
                let code = c.escape_unicode();
                invalid(format!("`{name}` holds the character {code}, which no attribute of a CloudEvent may hold"))
            })?;
        }
        Ok(attributes)
    }
}

/// The name of the extension attribute that a header of the event becomes.
fn extension_name(name: &ByteString, value: &str) -> Result<ByteString, Rejection> {
    let lower = if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        name.to_ascii_lowercase().into()
    } else {
        name.clone()
    };
    if RESERVED.contains(&&*lower) {
        return Err(invalid(format!(
            "the event's header `{lower}` has the name of an attribute that every CloudEvent has"
        )));
    }
    if !grammar::is_name(&lower) {
        let shown: String = name.chars().take(60).collect();
        return Err(invalid(format!(
            "the event's header `{}` cannot be an attribute of a CloudEvent: names are ASCII letters and digits; rename \
             it, or use another envelope",
            shown.escape_default()
        )));
    }
    if &*lower == "dataschema" {
        grammar::uri_reference(value)
            .map_err(|why| invalid(format!("the event's header `dataschema` is no URI: {why}")))?;
    }
    Ok(lower)
}

/// `datacontenttype`, and `data` or `data_base64` (JSON format, section 3.1); nothing where the payload is NULL.
fn content(event: &Event, out: &mut Vec<u8>) {
    let Some(bytes) = &event.payload else { return };
    out.extend_from_slice(b",\"datacontenttype\":");
    document::string(event.format.content_type(), out);
    // Text that is not UTF-8 cannot come from PostgreSQL; should it come, it must not spoil the document.
    let text = match event.format {
        PayloadFormat::Binary => None,
        _ => std::str::from_utf8(bytes).ok(),
    };
    match (text, event.format) {
        (Some(json), PayloadFormat::Json) if !json.trim_ascii().is_empty() => {
            out.extend_from_slice(b",\"data\":");
            out.extend_from_slice(json.as_bytes());
        }
        (Some(text), PayloadFormat::Text) => {
            out.extend_from_slice(b",\"data\":");
            document::string(text, out);
        }
        _ => {
            out.extend_from_slice(b",\"data_base64\":\"");
            let start = out.len();
            out.resize(start + bytes.len().div_ceil(3) * 4, 0);
            let written = STANDARD.encode_slice(bytes, &mut out[start..]).unwrap_or(0);
            out.truncate(start + written);
            out.push(b'"');
        }
    }
}
