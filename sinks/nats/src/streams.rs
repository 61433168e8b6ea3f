//! A look at the streams that take the sink's messages: whether there is one, and what of its settings is a risk.

use std::time::Duration;

use async_nats::jetstream::{context::RequestErrorKind, response::Response};
use serde::Deserialize;
use serde_json::json;
use walgate_sink::{Secret, SinkError, text};

use crate::{NoStream, generation::Generation, subject};

/// Streams that are looked at: a filter such as `>` may fit any number.
const MAX_STREAMS: usize = 16;
/// Time for one question.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// The longest pause between two attempts where the configuration does not say (`delivery.retry.max`).
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What is looked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look<'a> {
    /// The configured subject or template; `None` where only routes give one.
    pub(crate) subject: Option<&'a str>,
    pub(crate) server: &'a str,
    pub(crate) no_stream: NoStream,
    /// Time of an attempt.
    pub(crate) timeout: Duration,
    pub(crate) secrets: &'a [Secret],
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// What works and yet is a risk.
    pub(crate) warnings: Vec<String>,
    /// A question got no answer at all.
    pub(crate) silent: bool,
}

/// A page of `STREAM.NAMES`.
#[derive(Debug, Deserialize)]
struct Names {
    #[serde(default)]
    streams: Option<Vec<String>>,
}

/// An answer to `STREAM.INFO`.
#[derive(Debug, Deserialize)]
struct Info {
    config: Stream,
}

/// The settings that matter here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Stream {
    name: String,
    storage: String,
    num_replicas: u32,
    discard: String,
    retention: String,
    max_msgs: i64,
    max_bytes: i64,
    max_msgs_per_subject: i64,
    no_ack: bool,
    sealed: bool,
    /// Nanoseconds.
    duplicate_window: u64,
}

impl Look<'_> {
    /// Looks.
    ///
    /// # Errors
    /// No event could be stored: there is no stream, JetStream is off, or the stream acknowledges nothing.
    pub(crate) async fn at(&self, generation: &Generation) -> Result<Found, SinkError> {
        let mut found = Found::default();
        let filter = self.subject.map_or_else(|| ">".to_owned(), subject::filter);
        let names = match self.ask::<Names>(generation, "STREAM.NAMES".to_owned(), &json!({ "subject": filter })).await
        {
            Ok(names) => names.streams.unwrap_or_default(),
            Err(Unanswered::Off(error)) => return Err(error),
            Err(Unanswered::Unknown { warning, silent }) => return Ok(Found { warnings: vec![warning], silent }),
        };
        if names.is_empty() {
            found.warnings.push(self.none(&filter)?);
            return Ok(found);
        }
        for name in names.iter().take(MAX_STREAMS) {
            match self.ask::<Info>(generation, format!("STREAM.INFO.{name}"), &json!(null)).await {
                Ok(info) => {
                    if let Some(subject) = self.subject {
                        refuses(&info.config, subject, self.server)?;
                    }
                    found.warnings.extend(risks(&info.config, self.timeout));
                }
                Err(Unanswered::Off(error)) => return Err(error),
                Err(Unanswered::Unknown { warning, silent }) => {
                    found.warnings.push(warning);
                    found.silent |= silent;
                }
            }
        }
        Ok(found)
    }

    fn none(&self, filter: &str) -> Result<String, SinkError> {
        let message = match self.subject {
            Some(subject) => format!(
                "no stream on {} takes messages for subject `{filter}`: {}",
                self.server,
                advice(subject, !subject::is_template(subject))
            ),
            None => format!("there is no stream on {}: create one for the subjects of the routes", self.server),
        };
        // Without a subject of its own the sink does not know what it will be asked for.
        match self.no_stream {
            NoStream::Wait if self.subject.is_some() => Err(SinkError::retryable(message)),
            _ => Ok(message),
        }
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        generation: &Generation,
        question: String,
        body: &serde_json::Value,
    ) -> Result<T, Unanswered> {
        let server = self.server;
        let shown = question.clone();
        let unknown = |why: &str, silent: bool| {
            let warning = format!(
                "the streams on {server} could not be looked at, so their settings are unknown: {why} (the user needs \
                 the right to publish to `$JS.API.{shown}`)"
            );
            Unanswered::Unknown { warning, silent }
        };
        let context = &generation.context;
        let subject = format!("$JS.API.{question}");
        let mut notices = generation.notices();
        let since = notices.borrow_and_update().denied();
        // An empty body asks for what needs none.
        let asked = async {
            if body.is_null() {
                context.request::<_, _, Response<T>>(question, &()).await
            } else {
                context.request(question, body).await
            }
        };
        let asked = async {
            tokio::select! {
                biased;
                answer = asked => Some(answer),
                // A refusal is no answer; nothing more will come.
                _ = notices.wait_for(|said| said.denies(&subject, since) || said.broken.is_some()) => None,
            }
        };
        match tokio::time::timeout(ANSWER_TIME.min(self.timeout), asked).await {
            Ok(Some(Ok(Response::Ok(answer)))) => Ok(answer),
            Ok(Some(Ok(Response::Err { error }))) if matches!(error.error_code().0, 10039 | 10076) => Err(self.off()),
            Ok(Some(Ok(Response::Err { error }))) => {
                Err(unknown(&text::excerpt(error.to_string().as_bytes(), self.secrets), false))
            }
            Ok(Some(Err(error))) if error.kind() == RequestErrorKind::NoResponders => Err(self.off()),
            Ok(Some(Err(error))) => {
                Err(unknown(&text::cause(&error, self.secrets), error.kind() == RequestErrorKind::TimedOut))
            }
            Ok(None) => Err(unknown("the server does not let the user ask", false)),
            Err(_) => Err(unknown("there was no answer", true)),
        }
    }

    fn off(&self) -> Unanswered {
        Unanswered::Off(SinkError::fatal(format!(
            "JetStream does not answer on {}: switch it on for the server and this account (`jetstream {{}}` in its \
             configuration)",
            self.server
        )))
    }
}

/// Why a question got no answer that can be used.
enum Unanswered {
    /// JetStream is not there.
    Off(SinkError),
    /// Nothing is known. `silent`: not even that there is somebody.
    Unknown { warning: String, silent: bool },
}

/// What of a stream's settings keeps every event from being stored and known to be so.
fn refuses(stream: &Stream, subject: &str, server: &str) -> Result<(), SinkError> {
    let name = &stream.name;
    if stream.no_ack {
        return Err(SinkError::fatal(format!(
            "stream {name} on {server}, which takes `{subject}`, acknowledges nothing (`no_ack`), so no event would ever \
             count as delivered: `nats stream edit {name} --ack`"
        )));
    }
    if stream.sealed {
        return Err(SinkError::fatal(format!(
            "stream {name} on {server}, which takes `{subject}`, is sealed: it takes no message any more"
        )));
    }
    Ok(())
}

/// What of a stream's settings may lose what was acknowledged, or store it twice.
fn risks(stream: &Stream, timeout: Duration) -> Vec<String> {
    let name = &stream.name;
    let mut risks = Vec::new();
    if stream.storage == "memory" {
        risks.push(format!(
            "stream {name} keeps its messages in memory: acknowledged events are gone when its servers restart; use \
             file storage"
        ));
    }
    if stream.num_replicas == 1 {
        risks.push(format!(
            "stream {name} has one replica: acknowledged events are gone with that server's disk; use 3 in a cluster \
             (`nats stream edit {name} --replicas 3`)"
        ));
    }
    let limits = [
        ("max_msgs", stream.max_msgs),
        ("max_bytes", stream.max_bytes),
        ("max_msgs_per_subject", stream.max_msgs_per_subject),
    ];
    let set: Vec<&str> = limits.iter().filter(|(_, limit)| *limit > 0).map(|(limit, _)| *limit).collect();
    if stream.discard != "new" && !set.is_empty() {
        risks.push(format!(
            "stream {name} discards old messages at its limits ({}): acknowledged events may be gone before they are \
             read; `nats stream edit {name} --discard new` refuses new ones instead, and walgate waits",
            set.join(", ")
        ));
    }
    if stream.retention == "interest" {
        risks.push(format!(
            "stream {name} keeps messages only for consumers that exist (retention `interest`): what comes before a \
             consumer is acknowledged, and not kept"
        ));
    }
    let window = Duration::from_nanos(stream.duplicate_window);
    let needed = timeout + LONGEST_PAUSE;
    if window < needed {
        risks.push(format!(
            "stream {name} recognises duplicates for {window:?}, which is shorter than an attempt and the pause after it \
             ({needed:?}): an event that is sent again may be stored twice; `nats stream edit {name} --dupe-window 10m`"
        ));
    }
    risks
}

/// The command that creates a stream for a subject.
pub(crate) fn advice(subject: &str, fixed: bool) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._->{}".contains(c);
    // What came from an event must not reach a shell by way of an operator.
    if !subject.chars().all(plain) {
        return "create one with `nats stream add`".to_owned();
    }
    let filter = if fixed { subject.to_owned() } else { subject::filter(subject) };
    let first = filter.split('.').next().unwrap_or_default();
    let name: String =
        first.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
    let name = if first.is_empty() || first == ">" { "EVENTS".to_owned() } else { name };
    format!("create one: `nats stream add {name} --subjects '{filter}' --storage file --discard new --defaults`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(json: serde_json::Value) -> Stream {
        serde_json::from_value(json).unwrap()
    }

    /// What the server gives for a stream that was made with care.
    fn sound() -> serde_json::Value {
        json!({
            "name": "ORDERS", "subjects": ["orders.>"], "retention": "limits", "max_consumers": -1, "max_msgs": 1000,
            "max_bytes": -1, "max_age": 0, "max_msgs_per_subject": -1, "max_msg_size": -1, "discard": "new",
            "storage": "file", "num_replicas": 3, "duplicate_window": 600_000_000_000_u64, "allow_direct": false,
        })
    }

    fn changed(key: &str, value: serde_json::Value) -> Stream {
        let mut json = sound();
        json[key] = value;
        stream(json)
    }

    #[test]
    fn what_may_lose_or_repeat_is_told() {
        let told = |stream: &Stream| risks(stream, Duration::from_secs(15));
        assert_eq!(told(&stream(sound())), Vec::<String>::new());
        for (key, value, expected) in [
            ("storage", json!("memory"), "keeps its messages in memory"),
            ("num_replicas", json!(1), "has one replica"),
            ("discard", json!("old"), "discards old messages at its limits (max_msgs)"),
            ("retention", json!("interest"), "only for consumers that exist"),
            ("duplicate_window", json!(30_000_000_000_u64), "recognises duplicates for 30s"),
        ] {
            let told = told(&changed(key, value));
            assert!(told.len() == 1 && told[0].contains(expected) && told[0].contains("ORDERS"), "{told:?}");
        }
        let mut unlimited = changed("discard", json!("old"));
        unlimited.max_msgs = -1;
        assert_eq!(told(&unlimited), Vec::<String>::new(), "without limits nothing is discarded");
        assert!(told(&changed("duplicate_window", json!(120_000_000_000_u64))).is_empty(), "the server's default");
    }

    #[test]
    fn a_stream_that_never_acknowledges_is_an_error() {
        let refused = |stream: &Stream| refuses(stream, "orders.a", "127.0.0.1:4222");
        assert!(refused(&stream(sound())).is_ok());
        let error = refused(&changed("no_ack", json!(true))).unwrap_err();
        assert!(error.message.contains("`no_ack`") && error.message.contains("edit ORDERS --ack"), "{error}");
        assert!(refused(&changed("sealed", json!(true))).unwrap_err().message.contains("sealed"));
    }

    #[test]
    fn the_command_can_be_pasted() {
        for (subject, fixed, expected) in [
            ("orders.created", true, "add ORDERS --subjects 'orders.created' "),
            ("orders.{event_type}", false, "add ORDERS --subjects 'orders.>' "),
            ("order-events.{key}", false, "add ORDER_EVENTS --subjects 'order-events.>' "),
            ("{event_type}", false, "add EVENTS --subjects '>' "),
            ("orders.42", false, "add ORDERS --subjects 'orders.42' "),
            ("a';rm -rf ~;'", false, "create one with `nats stream add`"),
            ("a$(reboot)", true, "create one with `nats stream add`"),
        ] {
            assert!(advice(subject, fixed).contains(expected), "{}", advice(subject, fixed));
        }
    }
}
