//! One event as one JSON object on one line, for sinks whose protocol has no place for metadata beside the payload.

use std::io::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{Event, PayloadFormat};

/// Appends the event as a JSON object without line breaks: `id`, `event_type`, `key` (or null), `headers` (an object),
/// `position`, `committed_at`, `payload`. A JSON payload is spliced in as it is, never parsed; text is a string; bytes
/// are base64, with `"payload_encoding":"base64"` before them; NULL is null.
pub fn append_document(event: &Event, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"id\":");
    string(&event.id, out);
    out.extend_from_slice(b",\"event_type\":");
    string(&event.event_type, out);
    out.extend_from_slice(b",\"key\":");
    match &event.key {
        Some(key) => string(key, out),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"headers\":{");
    for (index, (name, value)) in event.headers.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        string(name, out);
        out.push(b':');
        string(value, out);
    }
    // Writing into a `Vec` cannot fail.
    let _ = write!(out, "}},\"position\":\"{}\",\"committed_at\":\"{}\"", event.position, event.committed_at);
    payload(event, out);
    out.push(b'}');
}

fn payload(event: &Event, out: &mut Vec<u8>) {
    let Some(bytes) = &event.payload else {
        out.extend_from_slice(b",\"payload\":null");
        return;
    };
    // Text that is not UTF-8 cannot come from PostgreSQL; should it come, it must not spoil the line.
    let text = match event.format {
        PayloadFormat::Binary => None,
        _ => std::str::from_utf8(bytes).ok(),
    };
    match (text, event.format) {
        (Some(json), PayloadFormat::Json) if !json.trim_ascii().is_empty() => {
            out.extend_from_slice(b",\"payload\":");
            let start = out.len();
            out.extend_from_slice(json.as_bytes());
            // The type `json` keeps its text, line breaks included. In valid JSON they stand only between tokens.
            for byte in &mut out[start..] {
                if matches!(*byte, b'\n' | b'\r') {
                    *byte = b' ';
                }
            }
        }
        (Some(text), _) => {
            out.extend_from_slice(b",\"payload\":");
            string(text, out);
        }
        (None, _) => {
            out.extend_from_slice(b",\"payload_encoding\":\"base64\",\"payload\":\"");
            let start = out.len();
            out.resize(start + bytes.len().div_ceil(3) * 4, 0);
            let written = STANDARD.encode_slice(bytes, &mut out[start..]).unwrap_or(0);
            out.truncate(start + written);
            out.push(b'"');
        }
    }
}

/// A JSON string.
pub(crate) fn string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let mut rest = text;
    while let Some(at) = rest.bytes().position(|byte| byte < 0x20 || matches!(byte, b'"' | b'\\' | 0x7f)) {
        let (plain, tail) = rest.split_at(at);
        out.extend_from_slice(plain.as_bytes());
        let byte = tail.as_bytes().first().copied().unwrap_or_default();
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                let _ = write!(out, "\\u{byte:04x}");
            }
        }
        rest = tail.get(1..).unwrap_or_default();
    }
    out.extend_from_slice(rest.as_bytes());
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{Bytes, Lsn, Position, Timestamp};

    fn line(event: &Event) -> (String, Value) {
        let mut out = Vec::new();
        append_document(event, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(!text.contains(['\n', '\r']), "{text}");
        let value = serde_json::from_str(&text).unwrap();
        (text, value)
    }

    fn event(format: PayloadFormat, payload: Option<&[u8]>) -> Event {
        let mut event = Event::new("7", "order.created");
        event.format = format;
        event.payload = payload.map(Bytes::copy_from_slice);
        event
    }

    #[test]
    fn every_member_is_there() {
        let mut event = event(PayloadFormat::Json, Some(br#"{"b": 1, "a": 1.00}"#));
        event.key = Some("k-1".into());
        event.headers = [("tenant".into(), "a\"b".into()), ("line\n".into(), "\u{1}é".into())].into_iter().collect();
        event.position = Position { commit_lsn: Lsn(0x16_B374_D848), ordinal: 3 };
        event.committed_at = Timestamp(1_709_251_199_123_456);
        let (text, value) = line(&event);
        assert_eq!(
            value,
            json!({
                "id": "7", "event_type": "order.created", "key": "k-1",
                "headers": { "tenant": "a\"b", "line\n": "\u{1}é" },
                "position": "16/B374D848#3", "committed_at": "2024-02-29T23:59:59.123456Z",
                "payload": { "b": 1, "a": 1.0 },
            })
        );
        assert!(text.contains(r#""payload":{"b": 1, "a": 1.00}}"#), "the payload's own bytes: {text}");
    }

    #[test]
    fn payloads_by_format() {
        let payload = |format, bytes: Option<&[u8]>| {
            let (_, value) = line(&event(format, bytes));
            (value["payload"].clone(), value.get("payload_encoding").cloned())
        };
        let base64 = Some(json!("base64"));
        assert_eq!(payload(PayloadFormat::Json, None), (Value::Null, None));
        assert_eq!(payload(PayloadFormat::Binary, None), (Value::Null, None));
        assert_eq!(
            payload(PayloadFormat::Json, Some(b"{\r\n \"a\":\n[1,\n\"x\\n\"]}")),
            (json!({"a": [1, "x\n"]}), None)
        );
        assert_eq!(payload(PayloadFormat::Json, Some(b"null")), (Value::Null, None));
        assert_eq!(payload(PayloadFormat::Json, Some(b"")), (json!(""), None));
        assert_eq!(payload(PayloadFormat::Text, Some("a \"line\"\n\tand \\ \u{7f}\u{2028}é".as_bytes())).1, None);
        assert_eq!(payload(PayloadFormat::Text, Some("é\n".as_bytes())), (json!("é\n"), None));
        assert_eq!(payload(PayloadFormat::Binary, Some(b"")), (json!(""), base64.clone()));
        assert_eq!(payload(PayloadFormat::Binary, Some(&[0, 255, 10])), (json!("AP8K"), base64.clone()));
        assert_eq!(payload(PayloadFormat::Json, Some(&[0xff, 0xfe])), (json!("//4="), base64.clone()));
        assert_eq!(payload(PayloadFormat::Text, Some(&[0xc3])), (json!("ww=="), base64));
    }

    #[test]
    fn strings_are_those_of_serde_json() {
        for text in ["", "plain", "\"", "\\", "\u{0}\u{1f}\u{7f}", "tab\tline\nreturn\r", "é😀\u{2028}", "a\"b\\c"] {
            let mut out = Vec::new();
            string(text, &mut out);
            let back: String = serde_json::from_slice(&out).unwrap();
            assert_eq!(back, text);
        }
    }
}
