//! The examples of CloudEvents 1.0.2 (<https://github.com/cloudevents/spec>, version 1.0.2), as they stand there: of an
//! event with the same attributes walgate makes the same document, and the same attributes beside the same payload.
//!
//! Four things an outbox says in another way, and [`expressible`] puts them so: the content type is that of the payload's
//! column, times have microseconds, extensions are texts, and what is not set is left out. Placeholders for data have
//! data in their place.

use std::collections::BTreeMap;

use super::*;

/// `spec.md`, "Example".
const SPEC: &str = r#"{
    "specversion" : "1.0",
    "type" : "com.github.pull_request.opened",
    "source" : "https://github.com/cloudevents/spec/pull",
    "subject" : "123",
    "id" : "A234-1234-1234",
    "time" : "2018-04-05T17:31:00Z",
    "comexampleextension1" : "value",
    "comexampleothervalue" : 5,
    "datacontenttype" : "text/xml",
    "data" : "<much wow=\"xml\"/>"
}"#;

/// `json-format.md`, 3.2: each as JSON and "re-encoded using HTTP Binary Content Mode".
const JSON_FORMAT: [(&str, &str); 4] = [
    (
        r#"{
    "specversion" : "1.0",
    "type" : "com.example.someevent",
    "source" : "/mycontext",
    "id" : "A234-1234-1234",
    "time" : "2018-04-05T17:31:00Z",
    "comexampleextension1" : "value",
    "comexampleothervalue" : 5,
    "datacontenttype" : "application/vnd.apache.thrift.binary",
    "data_base64" : "... base64 encoded string ..."
}"#,
        "ce-specversion: 1.0
ce-type: com.example.someevent
ce-source: /mycontext
ce-id: A234-1234-1234
ce-time: 2018-04-05T17:31:00Z
ce-comexampleextension1: value
ce-comexampleothervalue: 5
content-type: application/vnd.apache.thrift.binary

...raw binary bytes...",
    ),
    (
        r#"{
    "specversion" : "1.0",
    "type" : "com.example.someevent",
    "source" : "/mycontext",
    "id" : "B234-1234-1234",
    "time" : "2018-04-05T17:31:00Z",
    "comexampleextension1" : "value",
    "comexampleothervalue" : 5,
    "unsetextension": null,
    "datacontenttype" : "application/xml",
    "data" : "<much wow=\"xml\"/>"
}"#,
        r#"ce-specversion: 1.0
ce-type: com.example.someevent
ce-source: /mycontext
ce-id: B234-1234-1234
ce-time: 2018-04-05T17:31:00Z
ce-comexampleextension1: value
ce-comexampleothervalue: 5
content-type: application/xml

<much wow="xml"/>"#,
    ),
    (
        r#"{
    "specversion" : "1.0",
    "type" : "com.example.someevent",
    "source" : "/mycontext",
    "subject": null,
    "id" : "C234-1234-1234",
    "time" : "2018-04-05T17:31:00Z",
    "comexampleextension1" : "value",
    "comexampleothervalue" : 5,
    "datacontenttype" : "application/json",
    "data" : {
        "appinfoA" : "abc",
        "appinfoB" : 123,
        "appinfoC" : true
    }
}"#,
        r#"ce-specversion: 1.0
ce-type: com.example.someevent
ce-source: /mycontext
ce-id: C234-1234-1234
ce-time: 2018-04-05T17:31:00Z
ce-comexampleextension1: value
ce-comexampleothervalue: 5
content-type: application/json

{
  "appinfoA" : "abc",
  "appinfoB" : 123,
  "appinfoC" : true
}"#,
    ),
    (
        r#"{
    "specversion" : "1.0",
    "type" : "com.example.someevent",
    "source" : "/mycontext",
    "subject": null,
    "id" : "D234-1234-1234",
    "time" : "2018-04-05T17:31:00Z",
    "comexampleextension1" : "value",
    "comexampleothervalue" : 5,
    "data" : "I'm just a string"
}"#,
        r#"ce-specversion: 1.0
ce-type: com.example.someevent
ce-source: /mycontext
ce-id: D234-1234-1234
ce-time: 2018-04-05T17:31:00Z
ce-comexampleextension1: value
ce-comexampleothervalue: 5
content-type: application/json

"I'm just a string""#,
    ),
];

/// `json-format.md`, 4.3.
const BATCH: &str = r#"[
  {
      "specversion" : "1.0",
      "type" : "com.example.someevent",
      "source" : "/mycontext/4",
      "id" : "B234-1234-1234",
      "time" : "2018-04-05T17:31:00Z",
      "comexampleextension1" : "value",
      "comexampleothervalue" : 5,
      "datacontenttype" : "application/vnd.apache.thrift.binary",
      "data_base64" : "... base64 encoded string ..."
  },
  {
      "specversion" : "1.0",
      "type" : "com.example.someotherevent",
      "source" : "/mycontext/9",
      "id" : "C234-1234-1234",
      "time" : "2018-04-05T17:31:05Z",
      "comexampleextension1" : "value",
      "comexampleothervalue" : 5,
      "datacontenttype" : "application/json",
      "data" : {
          "appinfoA" : "abc",
          "appinfoB" : 123,
          "appinfoC" : true
      }
  }
]"#;

/// The prefix of each protocol binding, and its example of the binary mode: `http-protocol-binding.md`, 3.1.4;
/// `kafka-protocol-binding.md`, 3.2.5; `amqp-protocol-binding.md`, 3.1.4. (`nats-protocol-binding.md` has no binary mode.)
const BINDINGS: [(&str, &str); 3] = [
    (
        "ce-",
        "ce-specversion: 1.0
ce-type: com.example.someevent
ce-time: 2018-04-05T03:56:24Z
ce-id: 1234-1234-1234
ce-source: /mycontext/subcontext
Content-Type: application/json; charset=utf-8",
    ),
    (
        "ce_",
        r#"ce_specversion: "1.0"
ce_type: "com.example.someevent"
ce_source: "/mycontext/subcontext"
ce_id: "1234-1234-1234"
ce_time: "2018-04-05T03:56:24Z"
content-type: application/avro"#,
    ),
    // Written there with the other of the two separators that the binding allows.
    (
        "cloudEvents:",
        "content-type: application/json; charset=utf-8
cloudEvents:specversion: 1.0
cloudEvents:type: com.example.someevent
cloudEvents:time: 2018-04-05T03:56:24Z
cloudEvents:id: 1234-1234-1234
cloudEvents:source: /mycontext/subcontext",
    ),
];

/// What stands for the placeholders.
const BYTES: &[u8] = &[0, 159, 255];
const BASE64: &str = "AJ//";

fn document(text: &str) -> Value {
    serde_json::from_str(&text.replace("... base64 encoded string ...", BASE64)).unwrap()
}

fn micros(time: &str) -> i64 {
    match time {
        "2018-04-05T17:31:00Z" => 1_522_949_460_000_000,
        "2018-04-05T17:31:05Z" => 1_522_949_465_000_000,
        "2018-04-05T03:56:24Z" => 1_522_900_584_000_000,
        other => panic!("{other}"),
    }
}

/// The event that an example is of, as an outbox has it.
fn event_of(example: &Value) -> Event {
    let text = |name: &str| example[name].as_str().unwrap();
    let mut event = Event::new(text("id"), text("type"));
    event.committed_at = Timestamp(micros(text("time")));
    event.key = example["subject"].as_str().map(Into::into);
    (event.format, event.payload) = match (&example["datacontenttype"], example.get("data")) {
        (_, None) => (PayloadFormat::Binary, Some(Bytes::from_static(BYTES))),
        (Value::String(xml), Some(Value::String(data))) if xml.ends_with("xml") => {
            (PayloadFormat::Text, Some(data.clone().into()))
        }
        (_, Some(data)) => (PayloadFormat::Json, Some(data.to_string().into())),
    };
    let extensions = example.as_object().unwrap().iter().filter(|(name, _)| name.starts_with("comexample"));
    event.headers = extensions.map(|(name, value)| (name.as_str().into(), of_text(value).into())).collect();
    event
}

fn of_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The example in the words that an outbox has; see the module.
fn expressible(example: &Value) -> Value {
    let mut members = example.as_object().unwrap().clone();
    members.retain(|_, value| !value.is_null());
    for (name, value) in &mut members {
        if name != "data" {
            *value = in_our_words(name, &of_text(value)).into();
        }
    }
    members.entry("datacontenttype").or_insert_with(|| "application/json".into());
    members.into()
}

fn in_our_words(name: &str, value: &str) -> String {
    match (name, value) {
        ("time", time) => time.replace('Z', ".000000Z"),
        ("datacontenttype" | "content-type", "application/json; charset=utf-8") => "application/json".to_owned(),
        ("datacontenttype" | "content-type", xml) if xml.ends_with("xml") => "text/plain; charset=utf-8".to_owned(),
        ("datacontenttype" | "content-type", other) if other != "application/json" => {
            "application/octet-stream".to_owned()
        }
        (_, other) => other.to_owned(),
    }
}

fn settings(example: &Value, mode: ContentMode) -> CloudEvents {
    CloudEvents { mode: Some(mode), source: example["source"].as_str().unwrap().to_owned() }
}

fn wrapped(example: &Value, mode: ContentMode) -> Enveloped {
    Envelope::CloudEvents(settings(example, mode)).wrap(&event_of(example)).unwrap()
}

/// Names and values of header lines.
fn headers(lines: &str, prefix: &str) -> BTreeMap<String, String> {
    let header = |line: &str| {
        let (name, value) = line.split_once(": ").unwrap();
        let name = if name == "Content-Type" { "content-type" } else { name };
        let plain = name.strip_prefix(prefix).unwrap_or(name);
        (name.to_owned(), in_our_words(plain, value.trim_matches('"')))
    };
    lines.lines().map(header).collect()
}

fn sent(enveloped: &Enveloped, prefix: &str) -> BTreeMap<String, String> {
    let content_type = enveloped.content_type.map(|value| ("content-type".to_owned(), value.to_owned()));
    attributes(enveloped, prefix).into_iter().chain(content_type).collect()
}

#[test]
fn documents_are_those_of_the_specification() {
    for text in JSON_FORMAT.iter().map(|(json, _)| *json).chain([SPEC]) {
        let example = document(text);
        let made = wrapped(&example, ContentMode::Structured);
        let made: Value = serde_json::from_slice(&made.body.unwrap()).unwrap();
        assert_eq!(made, expressible(&example));
    }
}

#[test]
fn batches_are_those_of_the_specification() {
    let examples = document(BATCH);
    let mut array = b"[".to_vec();
    for (index, example) in examples.as_array().unwrap().iter().enumerate() {
        if index > 0 {
            array.push(b',');
        }
        settings(example, ContentMode::Structured).append_document(&event_of(example), &mut array).unwrap();
    }
    array.push(b']');
    let made: Value = serde_json::from_slice(&array).unwrap();
    let wanted: Vec<Value> = examples.as_array().unwrap().iter().map(expressible).collect();
    assert_eq!(made, Value::Array(wanted));
}

#[test]
fn binary_messages_are_those_of_the_specification() {
    for (json, message) in JSON_FORMAT {
        let made = wrapped(&document(json), ContentMode::Binary);
        let (lines, body) = message.split_once("\n\n").unwrap();
        assert_eq!(sent(&made, "ce-"), headers(lines, "ce-"));
        let data = made.body.unwrap();
        match (body, made.content_type) {
            ("...raw binary bytes...", _) => assert_eq!(&data[..], BYTES),
            (json, Some("application/json")) => {
                let [wanted, made] = [json.as_bytes(), &data[..]].map(serde_json::from_slice::<Value>);
                assert_eq!(made.unwrap(), wanted.unwrap());
            }
            (text, _) => assert_eq!(&data[..], text.as_bytes()),
        }
    }
}

#[test]
fn attributes_have_the_names_of_each_protocol_binding() {
    for (prefix, lines) in BINDINGS {
        let wanted = headers(lines, prefix);
        // The examples are of one event, but for its payload.
        let mut example = json!({
            "source": "/mycontext/subcontext", "id": "1234-1234-1234", "type": "com.example.someevent",
            "time": "2018-04-05T03:56:24Z",
        });
        if wanted["content-type"] == "application/json" {
            example["data"] = json!({});
        }
        assert_eq!(sent(&wrapped(&example, ContentMode::Binary), prefix), wanted, "{prefix}");
    }
}
