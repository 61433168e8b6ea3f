//! What an answer, or the lack of one, means for the delivery.

use std::{error::Error, time::Duration};

use async_nats::{
    ConnectError, ConnectErrorKind, ServerError,
    client::{PublishError, PublishErrorKind},
};
use walgate_sink::{
    Failure, FailureKind, Outcome, RejectReason, Rejection, Secret, SinkError, SinkErrorKind, text, tls,
};

use crate::{NoStream, replies::ApiError, streams};

/// Error codes of JetStream (`server/errors.json` of nats-server) that decide.
mod code {
    pub(super) const MESSAGE_EXCEEDS_MAXIMUM: u64 = 10054;
    pub(super) const HEADER_EXCEEDS_MAXIMUM: u64 = 10097;
    pub(super) const NOT_ENABLED: u64 = 10076;
    pub(super) const NOT_ENABLED_FOR_ACCOUNT: u64 = 10039;
    pub(super) const SEALED: u64 = 10109;
    /// A full stream with `discard: new`, among others.
    pub(super) const STORE_FAILED: u64 = 10077;
}

/// What a publish was about, for the texts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Published<'a> {
    pub(crate) subject: &'a str,
    /// Whether the subject is the same for every event.
    pub(crate) fixed: bool,
    pub(crate) server: &'a str,
    pub(crate) no_stream: NoStream,
    pub(crate) timeout: Duration,
    pub(crate) secrets: &'a [Secret],
}

fn failed(kind: FailureKind, message: String) -> Outcome {
    Outcome::Failed(Failure::new(kind, message))
}

impl Published<'_> {
    fn subject(&self) -> String {
        text::excerpt(self.subject.as_bytes(), &[])
    }

    /// A publish that the client did not take.
    pub(crate) fn unsent(&self, error: &PublishError) -> Outcome {
        match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => {
                let message = format!("{} does not take a message of that size: {error}", self.server);
                Outcome::Rejected(Rejection::new(RejectReason::TooLarge, message))
            }
            _ => self.broken(&text::cause(error, self.secrets)),
        }
    }

    /// An answer that is none of JetStream's.
    pub(crate) fn nonsense(&self, answer: &[u8]) -> Outcome {
        let answer = text::excerpt(answer, self.secrets);
        self.broken(&format!("an answer came that is no acknowledgement: `{answer}`"))
    }

    /// 503: no stream listens to the subject, so nobody has the event.
    pub(crate) fn unheard(&self) -> Outcome {
        let message = format!(
            "no stream on {} takes messages for subject `{}`: {}",
            self.server,
            self.subject(),
            streams::advice(self.subject, self.fixed)
        );
        match self.no_stream {
            NoStream::Reject => Outcome::Rejected(Rejection::new(RejectReason::UnknownTarget, message)),
            // Where every event goes there, the sink as a whole is not ready, and is asked again within a second.
            NoStream::Wait if self.fixed => failed(FailureKind::Connection, message),
            NoStream::Wait => failed(FailureKind::Unavailable, message),
        }
    }

    /// No acknowledgement in time.
    pub(crate) fn silent(&self) -> Outcome {
        let message = format!(
            "{} did not acknowledge a message for subject `{}` within {:?}: it may be stored, and is sent again",
            self.server,
            self.subject(),
            self.timeout
        );
        failed(FailureKind::Timeout, message)
    }

    /// The connection has gone.
    pub(crate) fn broken(&self, why: &str) -> Outcome {
        failed(FailureKind::Connection, lost(self.server, why))
    }

    /// The server has refused the publish for want of a right.
    pub(crate) fn denied(&self) -> Outcome {
        let message = format!(
            "{} does not let the user publish to `{}`: grant it that subject, or change the sink's",
            self.server,
            self.subject()
        );
        if self.fixed {
            failed(FailureKind::Fatal, message)
        } else {
            Outcome::Rejected(Rejection::new(RejectReason::UnknownTarget, message))
        }
    }

    /// An error that JetStream has answered.
    pub(crate) fn refused(&self, error: &ApiError) -> Outcome {
        let said = text::excerpt(error.to_string().as_bytes(), self.secrets);
        let message = format!("JetStream on {} refuses a message for `{}`: {said}", self.server, self.subject());
        match error.err_code {
            code::MESSAGE_EXCEEDS_MAXIMUM | code::HEADER_EXCEEDS_MAXIMUM => {
                Outcome::Rejected(Rejection::new(RejectReason::TooLarge, message))
            }
            code::NOT_ENABLED | code::NOT_ENABLED_FOR_ACCOUNT => {
                failed(FailureKind::Fatal, format!("{message}: switch JetStream on for this account"))
            }
            code::SEALED if self.fixed => failed(FailureKind::Fatal, message),
            code::SEALED => Outcome::Rejected(Rejection::new(RejectReason::Refused, message)),
            code::STORE_FAILED => {
                failed(FailureKind::Unavailable, format!("{message}: is the stream full? it is tried again"))
            }
            // What is at fault with the message itself has a 4xx; the rest is the server's.
            _ if (400..500).contains(&error.code) => Outcome::Rejected(Rejection::new(RejectReason::Refused, message)),
            _ => failed(FailureKind::Unavailable, message),
        }
    }
}

/// A connection that broke with acknowledgements missing.
pub(crate) fn lost(server: &str, why: &str) -> String {
    format!("no acknowledgement from {server}: {why}; what may be stored already is sent again")
}

/// A sink's fault as that of its deliveries.
pub(crate) fn failure_of(error: &SinkError) -> Failure {
    let kind = match error.kind {
        SinkErrorKind::Fatal => FailureKind::Fatal,
        _ => FailureKind::Connection,
    };
    Failure::new(kind, error.message.clone())
}

/// Why there is no connection to a server.
pub(crate) fn unconnected(error: &ConnectError, server: &str, secrets: &[Secret]) -> SinkError {
    if let Some(fault) = tls::certificate_fault(error, tls::Terms::SERVERS) {
        return SinkError::fatal(format!("{server} is not trusted, or does not trust: {fault}"));
    }
    let said = match server_error(error) {
        Some(said) => said.to_string().trim_start_matches("nats: ").to_owned(),
        None => String::new(),
    };
    let said = text::excerpt(said.as_bytes(), secrets);
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation => SinkError::fatal(format!(
            "{server} does not accept the credentials (authorization violation): check `user` and `password`, `token`, \
             `nkey` or `creds`"
        )),
        ConnectErrorKind::Authentication => {
            SinkError::fatal(format!("the nonce of {server} cannot be signed: check the seed in `nkey` or `creds`"))
        }
        ConnectErrorKind::Dns => {
            SinkError::retryable(format!("the host of {server} cannot be resolved: {}", text::cause(error, secrets)))
        }
        ConnectErrorKind::TimedOut => SinkError::retryable(format!("{server} does not answer")),
        _ if said.to_ascii_lowercase().contains("auth") => {
            SinkError::fatal(format!("{server} does not accept the credentials: it says `{said}`"))
        }
        _ if !said.is_empty() => SinkError::retryable(format!("{server} refuses the connection: it says `{said}`")),
        _ => SinkError::retryable(format!("no connection to {server}: {}", text::cause(error, secrets))),
    }
}

fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

fn server_error(error: &ConnectError) -> Option<&ServerError> {
    find(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Published<'static> = Published {
        subject: "orders.created",
        fixed: true,
        server: "127.0.0.1:4222",
        no_stream: NoStream::Wait,
        timeout: Duration::from_secs(5),
        secrets: &[],
    };

    fn api(code: u32, err_code: u64, description: &str) -> ApiError {
        ApiError { code, err_code, description: description.to_owned() }
    }

    fn kind(outcome: &Outcome) -> Option<FailureKind> {
        if let Outcome::Failed(failure) = outcome { Some(failure.kind) } else { None }
    }

    fn reason(outcome: &Outcome) -> Option<RejectReason> {
        if let Outcome::Rejected(rejection) = outcome { Some(rejection.reason) } else { None }
    }

    #[test]
    fn every_answer_has_its_class() {
        let there = Published { fixed: false, ..HERE };
        for (error, expected) in [
            (api(503, 10077, "maximum messages exceeded"), FailureKind::Unavailable),
            (api(503, 10077, "maximum bytes exceeded"), FailureKind::Unavailable),
            (api(503, 10023, "insufficient resources"), FailureKind::Unavailable),
            (api(500, 10047, "insufficient storage resources available"), FailureKind::Unavailable),
            (api(503, 10008, "jetstream system temporarily unavailable"), FailureKind::Unavailable),
            (api(503, 10076, "jetstream not enabled"), FailureKind::Fatal),
            (api(503, 10039, "jetstream not enabled for account"), FailureKind::Fatal),
        ] {
            assert_eq!(kind(&HERE.refused(&error)), Some(expected), "{error}");
        }
        for (error, expected) in [
            (api(400, 10054, "message size exceeds maximum allowed"), RejectReason::TooLarge),
            (api(400, 10097, "header size exceeds maximum allowed of 64k"), RejectReason::TooLarge),
            (api(400, 10109, "invalid operation on sealed stream"), RejectReason::Refused),
            (api(400, 10164, "wrong last sequence"), RejectReason::Refused),
        ] {
            assert_eq!(reason(&there.refused(&error)), Some(expected), "{error}");
        }
        assert_eq!(kind(&HERE.refused(&api(400, 10109, "sealed"))), Some(FailureKind::Fatal));
        let large = PublishError::new(PublishErrorKind::MaxPayloadExceeded);
        assert_eq!(reason(&there.unsent(&large)), Some(RejectReason::TooLarge));
        assert_eq!(kind(&there.unsent(&PublishError::new(PublishErrorKind::Send))), Some(FailureKind::Connection));
        assert_eq!(kind(&there.nonsense(b"+OK")), Some(FailureKind::Connection));
        assert_eq!(kind(&there.silent()), Some(FailureKind::Timeout));
    }

    #[test]
    fn no_responders_are_no_success() {
        let outcome = HERE.unheard();
        assert_eq!(kind(&outcome), Some(FailureKind::Connection));
        let Outcome::Failed(failure) = outcome else { panic!("not failed") };
        assert!(failure.message.contains("nats stream add ORDERS --subjects 'orders.created'"), "{failure}");
        let there = Published { fixed: false, ..HERE };
        assert_eq!(kind(&there.unheard()), Some(FailureKind::Unavailable));
        let rejecting = Published { no_stream: NoStream::Reject, ..HERE };
        assert_eq!(reason(&rejecting.unheard()), Some(RejectReason::UnknownTarget));
    }

    #[test]
    fn rights_are_the_sinks_or_the_events() {
        assert_eq!(kind(&HERE.denied()), Some(FailureKind::Fatal));
        assert_eq!(reason(&Published { fixed: false, ..HERE }.denied()), Some(RejectReason::UnknownTarget));
    }

    #[test]
    fn faults_of_connecting_name_the_server() {
        let class = |kind, source: Option<ServerError>| {
            let error = match source {
                Some(source) => ConnectError::with_source(kind, source),
                None => ConnectError::new(kind),
            };
            unconnected(&error, "a:4222", &[])
        };
        let fatal = class(ConnectErrorKind::AuthorizationViolation, Some(ServerError::AuthorizationViolation));
        assert_eq!(fatal.kind, SinkErrorKind::Fatal);
        assert!(fatal.message.starts_with("a:4222 does not accept the credentials"), "{fatal}");
        let expired = class(ConnectErrorKind::Io, Some(ServerError::Other("User Authentication Expired".into())));
        assert_eq!(expired.kind, SinkErrorKind::Fatal);
        assert!(expired.message.contains("`User Authentication Expired`"), "{expired}");
        let full = class(ConnectErrorKind::Io, Some(ServerError::Other("maximum connections exceeded".into())));
        assert_eq!(full.kind, SinkErrorKind::Retryable);
        assert_eq!(class(ConnectErrorKind::TimedOut, None).kind, SinkErrorKind::Retryable);
    }
}
