//! What an error code means for the delivery.

use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode as Code;
use walgate_sink::{Failure, FailureKind, Outcome, RejectReason, Rejection, SinkError, SinkErrorKind, text};

use crate::notices::Notices;

/// The class of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// One of the records in its set can never be accepted; which one, is not said.
    Content(RejectReason),
    /// There is no such topic.
    NoTopic,
    /// The user may not write to the topic.
    Denied,
    /// The record was given up with others, for a reason that is not its own: nothing is known of it.
    Lost,
    /// It may pass.
    Passing,
}

pub(crate) fn class_of(code: Code) -> Class {
    match code {
        Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::MessageBatchTooLarge => {
            Class::Content(RejectReason::TooLarge)
        }
        Code::InvalidRecord | Code::InvalidTimestamp | Code::PolicyViolation | Code::UnsupportedForMessageFormat => {
            Class::Content(RejectReason::Refused)
        }
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition | Code::InvalidTopic => {
            Class::NoTopic
        }
        Code::TopicAuthorizationFailed => Class::Denied,
        Code::PurgeQueue
        | Code::PurgeInflight
        | Code::Fatal
        | Code::GaplessGuarantee
        | Code::InvalidDifferentRecord
        | Code::BrokerDestroy => Class::Lost,
        _ => Class::Passing,
    }
}

/// What a record was about, for the texts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent<'a> {
    /// The brokers.
    pub(crate) place: &'a str,
    pub(crate) topic: &'a str,
    /// Whether every event goes to this topic.
    pub(crate) fixed: bool,
    pub(crate) timeout: Duration,
}

fn failed(kind: FailureKind, message: String) -> Outcome {
    Outcome::Failed(Failure::new(kind, message))
}

fn rejected(reason: RejectReason, message: String) -> Outcome {
    Outcome::Rejected(Rejection::new(reason, message))
}

impl Sent<'_> {
    fn target(&self) -> String {
        format!("topic `{}` on {}", text::excerpt(self.topic.as_bytes(), &[]), self.place)
    }

    /// A code that is about this record alone.
    pub(crate) fn refused(&self, code: Code) -> Outcome {
        let target = self.target();
        match class_of(code) {
            Class::Content(RejectReason::TooLarge) => rejected(
                RejectReason::TooLarge,
                format!("{target} does not take a record of this size ({code}): raise its `max.message.bytes`"),
            ),
            Class::Content(reason) => rejected(reason, format!("{target} refuses the record: {}", advice(code))),
            Class::NoTopic if self.fixed => failed(FailureKind::Fatal, self.missing()),
            Class::NoTopic => rejected(RejectReason::UnknownTarget, self.missing()),
            Class::Denied => {
                let message = format!("{target} is denied to the user: grant it the operation Write");
                if self.fixed { failed(FailureKind::Fatal, message) } else { rejected(RejectReason::Refused, message) }
            }
            Class::Lost => {
                failed(FailureKind::Connection, format!("a record for {target} was given up, and is sent again"))
            }
            Class::Passing if code == Code::MessageTimedOut => {
                failed(FailureKind::Timeout, format!("a record for {target} expired in the client, and is sent again"))
            }
            Class::Passing => {
                failed(FailureKind::Unavailable, format!("{target} did not take the record: {code}; it is sent again"))
            }
        }
    }

    fn missing(&self) -> String {
        format!("there is no {}: make it, or let walgate make it with `create_topics: {{}}`", self.target())
    }

    /// No acknowledgement in time.
    pub(crate) fn silent(&self, notices: &Notices) -> Failure {
        let cause =
            notices.complaint().map(|said| format!(" (the client's last complaint: {said})")).unwrap_or_default();
        let message = format!(
            "{} did not acknowledge a record within {:?}{cause}; the client still holds it and goes on, and it is not \
             queued twice",
            self.target(),
            self.timeout
        );
        Failure::new(FailureKind::Timeout, message)
    }
}

fn advice(code: Code) -> String {
    match code {
        Code::InvalidTimestamp => {
            format!(
                "{code}: the time of the commit is too far from the broker's clock, see `message.timestamp.after.max.ms`"
            )
        }
        Code::InvalidRecord => format!("{code}: a compacted topic takes no record without a key"),
        _ => code.to_string(),
    }
}

/// The brokers do not let the client in, or are not who they should be.
pub(crate) fn unwelcome(place: &str, notices: &Notices) -> SinkError {
    let said = notices.refusal();
    let what = if said.contains("certificate") || said.contains("SSL") {
        "is not trusted, or does not trust: check `tls`"
    } else {
        "does not accept the credentials: check `sasl`"
    };
    SinkError::fatal(format!("{place} {what}; the client says `{said}`"))
}

/// No broker can be reached.
pub(crate) fn unreachable(place: &str, notices: &Notices) -> SinkError {
    let why = notices.complaint().unwrap_or("no broker answers");
    SinkError::retryable(format!("no connection to {place}: {why}"))
}

/// The producer has met a fatal error.
pub(crate) fn broken(place: &str, fatal: Option<&(Code, String)>, notices: &Notices) -> Failure {
    let said = notices.broken.as_deref().unwrap_or("it was given up");
    let (kind, advice) = match fatal {
        Some((Code::ClusterAuthorizationFailed, _)) => {
            (FailureKind::Fatal, ": grant the user the operation IdempotentWrite on the cluster")
        }
        Some((Code::UnsupportedFeature, _)) => (FailureKind::Fatal, ": idempotent producers need Kafka 0.11 or later"),
        _ => (FailureKind::Connection, "; a new one is made, and what was not acknowledged is sent again"),
    };
    Failure::new(kind, format!("the producer for {place} has ended: `{said}`{advice}"))
}

/// A sink's fault as that of its deliveries.
pub(crate) fn failure_of(error: &SinkError) -> Failure {
    let kind = match error.kind {
        SinkErrorKind::Fatal => FailureKind::Fatal,
        _ => FailureKind::Connection,
    };
    Failure::new(kind, error.message.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(fixed: bool) -> Sent<'static> {
        Sent { place: "kafka:9092", topic: "orders", fixed, timeout: Duration::from_secs(15) }
    }

    #[test]
    fn k3_a_missing_topic_condemns_the_event_only_where_the_event_names_it() {
        let Outcome::Failed(failure) = sent(true).refused(Code::UnknownTopicOrPartition) else { panic!() };
        assert_eq!(failure.kind, FailureKind::Fatal);
        assert!(failure.message.contains("topic `orders` on kafka:9092"), "{failure}");
        let Outcome::Rejected(rejection) = sent(false).refused(Code::UnknownTopic) else { panic!() };
        assert_eq!(rejection.reason, RejectReason::UnknownTarget);
        let Outcome::Failed(denied) = sent(true).refused(Code::TopicAuthorizationFailed) else { panic!() };
        assert_eq!(denied.kind, FailureKind::Fatal);
        assert!(matches!(sent(false).refused(Code::TopicAuthorizationFailed), Outcome::Rejected(_)));
    }

    #[test]
    fn what_was_given_up_with_others_is_sent_again() {
        for code in [Code::PurgeQueue, Code::PurgeInflight, Code::Fatal, Code::InvalidDifferentRecord] {
            let Outcome::Failed(failure) = sent(false).refused(code) else { panic!("{code}") };
            assert_eq!(failure.kind, FailureKind::Connection);
        }
        for code in [Code::NotEnoughReplicas, Code::KafkaStorageError, Code::Unknown] {
            let Outcome::Failed(failure) = sent(false).refused(code) else { panic!("{code}") };
            assert_eq!(failure.kind, FailureKind::Unavailable);
        }
    }

    #[test]
    fn k4_a_fatal_error_is_mended_by_a_new_producer_unless_somebody_must_grant_a_right() {
        let mut notices = Notices::default();
        notices.broken = Some("out of order".to_owned());
        let kind = |code| broken("kafka:9092", Some(&(code, String::new())), &notices).kind;
        assert_eq!(kind(Code::OutOfOrderSequenceNumber), FailureKind::Connection);
        assert_eq!(kind(Code::GaplessGuarantee), FailureKind::Connection);
        assert_eq!(kind(Code::ClusterAuthorizationFailed), FailureKind::Fatal);
    }
}
