//! The acknowledgements of one batch: an inbox of its own, which every message of the batch names as its reply subject.
//!
//! The client library's own futures would do the same at the price of a channel, a timer, a map entry and two
//! allocations for each message. JetStream answers a message with a reply subject either way.

use async_nats::{Client, Message, StatusCode, Subject, SubscribeError, Subscriber};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{FutureExt as _, StreamExt as _};
use serde::Deserialize;

/// What came back for one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A stream has it.
    Stored {
        /// It had it already.
        duplicate: bool,
    },
    /// JetStream does not take it.
    Refused(ApiError),
    /// 503: no stream listens to the subject.
    NoResponders,
    /// Something that is neither.
    Nonsense(Bytes),
}

/// An error that JetStream has answered.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct ApiError {
    /// As in HTTP.
    pub(crate) code: u32,
    /// Which error it is: `server/errors.json` of nats-server.
    #[serde(default)]
    pub(crate) err_code: u64,
    #[serde(default)]
    pub(crate) description: String,
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (code {}, error code {})", self.description, self.code, self.err_code)
    }
}

/// `io.nats.jetstream.api.v1.pub_ack_response`, as far as it decides.
#[derive(Deserialize)]
struct PubAck<'a> {
    error: Option<ApiError>,
    #[serde(default, borrow)]
    stream: std::borrow::Cow<'a, str>,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
}

impl Answer {
    fn of(message: &Message) -> Self {
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            return Answer::NoResponders;
        }
        match serde_json::from_slice::<PubAck<'_>>(&message.payload) {
            Ok(PubAck { error: Some(error), .. }) => Answer::Refused(error),
            Ok(ack) if !ack.stream.is_empty() && ack.seq > 0 => Answer::Stored { duplicate: ack.duplicate },
            _ => Answer::Nonsense(message.payload.clone()),
        }
    }
}

/// An inbox. It may serve one batch after another, as long as each has all its answers before the next begins.
pub(crate) struct Replies {
    subscriber: Subscriber,
    inbox: String,
    batch: u64,
    /// What all reply subjects of this batch begin with.
    prefix: String,
    subjects: BytesMut,
}

impl Replies {
    /// Opens an inbox. What is published afterwards over the same client is answered into it.
    pub(crate) async fn open(client: &Client) -> Result<Self, SubscribeError> {
        let inbox = client.new_inbox();
        let subscriber = client.subscribe(format!("{inbox}.>")).await?;
        Ok(Replies { subscriber, inbox, batch: 0, prefix: String::new(), subjects: BytesMut::new() })
    }

    /// Begins a batch of so many messages. Answers to earlier ones are not heard any more.
    pub(crate) fn begin(&mut self, messages: usize) {
        self.batch += 1;
        self.prefix = format!("{}.{}.", self.inbox, self.batch);
        // The longest index has 20 digits; those of a batch have three.
        self.subjects.reserve(messages.saturating_mul(self.prefix.len() + 4));
    }

    /// The reply subject of a message of this batch.
    pub(crate) fn subject(&mut self, index: usize) -> Subject {
        self.subjects.put_slice(self.prefix.as_bytes());
        self.subjects.put_slice(itoa(index, &mut [0; 20]));
        let subject = self.subjects.split().freeze();
        // It is ASCII.
        Subject::from_utf8(subject).unwrap_or_else(|_| Subject::from_static("_INBOX.none"))
    }

    /// The next answer to this batch: the message's index, and what it says. `None`: the connection has gone.
    pub(crate) async fn next(&mut self) -> Option<(usize, Answer)> {
        loop {
            let message = self.subscriber.next().await?;
            if let Some(answered) = self.read(&message) {
                return Some(answered);
            }
        }
    }

    /// The next answer, if one has come.
    pub(crate) fn ready(&mut self) -> Option<(usize, Answer)> {
        self.next().now_or_never().flatten()
    }

    fn read(&self, message: &Message) -> Option<(usize, Answer)> {
        let index = message.subject.strip_prefix(&*self.prefix)?.parse().ok()?;
        Some((index, Answer::of(message)))
    }
}

fn itoa(mut number: usize, digits: &mut [u8; 20]) -> &[u8] {
    let mut start = digits.len();
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        start -= 1;
        if number == 0 {
            break;
        }
    }
    digits.get(start..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(payload: &str, status: Option<u16>) -> Answer {
        Answer::of(&Message {
            subject: "_INBOX.a.1.0".into(),
            reply: None,
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            headers: None,
            status: status.map(|status| StatusCode::from_u16(status).unwrap()),
            description: None,
            length: payload.len(),
        })
    }

    #[test]
    fn only_a_streams_own_word_is_an_acknowledgement() {
        assert_eq!(answer(r#"{"stream":"S","seq":1}"#, None), Answer::Stored { duplicate: false });
        assert_eq!(
            answer(r#"{"type":"x","stream":"S","domain":"d","seq":7,"duplicate":true}"#, None),
            Answer::Stored { duplicate: true }
        );
        assert_eq!(answer("", Some(503)), Answer::NoResponders);
        let error = answer(
            r#"{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"},"stream":"S","seq":0}"#,
            None,
        );
        let Answer::Refused(error) = error else { panic!("{error:?}") };
        assert_eq!(error.to_string(), "maximum messages exceeded (code 503, error code 10077)");
        for nonsense in ["", "+OK", "{}", r#"{"stream":"","seq":1}"#, r#"{"stream":"S"}"#, "[1]", "\u{0}"] {
            assert!(matches!(answer(nonsense, None), Answer::Nonsense(_)), "{nonsense:?}");
        }
    }

    #[test]
    fn numbers_are_written_in_full() {
        for number in [0, 9, 10, 511, 1024, usize::MAX] {
            assert_eq!(itoa(number, &mut [0; 20]), number.to_string().as_bytes());
        }
    }
}
