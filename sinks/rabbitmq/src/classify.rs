//! What an answer, or the lack of one, means for the delivery.

use std::{fmt, time::Duration};

use lapin::{Error, ErrorKind, protocol::AMQPError};
use walgate_sink::{
    Failure, FailureKind, Outcome, RejectReason, Rejection, Secret, SinkError, SinkErrorKind, text, tls,
};

use crate::Unroutable;

/// Reply codes of AMQP 0-9-1 (1.2, constants) that decide.
mod code {
    pub(super) const CONTENT_TOO_LARGE: u16 = 311;
    pub(super) const ACCESS_REFUSED: u16 = 403;
    pub(super) const NOT_FOUND: u16 = 404;
    pub(super) const RESOURCE_LOCKED: u16 = 405;
    pub(super) const PRECONDITION_FAILED: u16 = 406;
    pub(super) const NOT_ALLOWED: u16 = 530;
    pub(super) const NOT_IMPLEMENTED: u16 = 540;
}

/// Where a connection leads to, for the texts.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// `host:port`.
    pub(crate) server: String,
    pub(crate) vhost: String,
    pub(crate) secrets: Vec<Secret>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vhost = text::excerpt(self.vhost.as_bytes(), &[]);
        write!(f, "{} (virtual host `{vhost}`)", self.server)
    }
}

/// What a publish was about, for the texts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Published<'a> {
    /// Empty: the default exchange.
    pub(crate) exchange: &'a str,
    pub(crate) routing_key: &'a str,
    /// Whether every event goes to this exchange.
    pub(crate) fixed_exchange: bool,
    /// Whether every event goes there with this routing key.
    pub(crate) fixed: bool,
    pub(crate) unroutable: Unroutable,
    pub(crate) timeout: Duration,
    pub(crate) place: &'a Place,
}

fn failed(kind: FailureKind, message: String) -> Outcome {
    Outcome::Failed(Failure::new(kind, message))
}

fn rejected(reason: RejectReason, message: String) -> Outcome {
    Outcome::Rejected(Rejection::new(reason, message))
}

/// What the server has said, as a quotation.
pub(crate) fn said(error: &AMQPError, secrets: &[Secret]) -> String {
    format!("{} {}", error.get_id(), text::excerpt(error.get_message().as_str().as_bytes(), secrets))
}

/// The reply of a server that has closed a channel or a connection.
pub(crate) fn reply(error: &Error) -> Option<&AMQPError> {
    if let ErrorKind::ProtocolError(reply) = error.kind() { Some(reply) } else { None }
}

impl Published<'_> {
    fn target(&self) -> String {
        let routing_key = text::excerpt(self.routing_key.as_bytes(), &[]);
        if self.exchange.is_empty() {
            format!("queue `{routing_key}` (over the default exchange)")
        } else {
            format!("exchange `{}` with routing key `{routing_key}`", text::excerpt(self.exchange.as_bytes(), &[]))
        }
    }

    /// The message came back: it was not stored anywhere.
    pub(crate) fn returned(&self) -> Outcome {
        let advice =
            if self.exchange.is_empty() { "declare the queue" } else { "bind a queue to the exchange for that key" };
        let message = format!("no queue on {} takes what is sent to {}: {advice}", self.place, self.target());
        match self.unroutable {
            Unroutable::Reject => rejected(RejectReason::UnknownTarget, message),
            // Where every event goes there, the sink as a whole is not ready, and is asked again within a second.
            Unroutable::Wait if self.fixed => failed(FailureKind::Connection, message),
            Unroutable::Wait => failed(FailureKind::Unavailable, message),
        }
    }

    /// `basic.nack`: a queue did not take it.
    pub(crate) fn nacked(&self) -> Outcome {
        let message = format!(
            "a queue on {} did not take a message for {} (nack): is it full, with the overflow behaviour reject-publish? \
             it is tried again",
            self.place,
            self.target()
        );
        failed(FailureKind::Unavailable, message)
    }

    /// No confirm in time.
    pub(crate) fn silent(&self) -> Outcome {
        let message = format!(
            "{} did not confirm a message for {} within {:?}: it may be stored, and is sent again",
            self.place,
            self.target(),
            self.timeout
        );
        failed(FailureKind::Timeout, message)
    }

    /// The server has closed the channel over this message alone.
    pub(crate) fn condemned(&self, error: &AMQPError) -> Outcome {
        let said = said(error, &self.place.secrets);
        let message = format!("{} refuses a message for {}: it says `{said}`", self.place, self.target());
        match error.get_id() {
            code::NOT_FOUND if self.fixed_exchange => {
                failed(FailureKind::Fatal, format!("{message}: declare the exchange, or change `exchange`"))
            }
            code::NOT_FOUND => rejected(RejectReason::UnknownTarget, message),
            code::ACCESS_REFUSED if self.fixed => {
                failed(FailureKind::Fatal, format!("{message}: grant the user the right to write there"))
            }
            code::ACCESS_REFUSED => rejected(RejectReason::UnknownTarget, message),
            code::CONTENT_TOO_LARGE | code::PRECONDITION_FAILED if is_size(error) => {
                rejected(RejectReason::TooLarge, format!("{message}: raise its `max_message_size`, or publish less"))
            }
            _ => rejected(RejectReason::Refused, message),
        }
    }
}

/// Whether the reply is about the message's size.
fn is_size(error: &AMQPError) -> bool {
    error.get_id() == code::CONTENT_TOO_LARGE || error.get_message().as_str().contains("size")
}

/// Whether what the server has said of one message holds for every other to the same exchange.
pub(crate) fn is_about_exchange(error: &AMQPError) -> bool {
    error.get_id() == code::NOT_FOUND
}

/// A connection that broke with confirms missing.
pub(crate) fn lost(place: &Place, why: &str) -> Failure {
    let message = format!("no confirm from {place}: {why}; what may be stored already is sent again");
    Failure::new(FailureKind::Connection, message)
}

/// The server takes nothing for the time being.
pub(crate) fn blocked(place: &Place, reason: &str, sent: bool) -> Failure {
    let reason = text::excerpt(reason.as_bytes(), &place.secrets);
    let rest = if sent { "; what was sent may be stored, and is sent again then" } else { "" };
    // Asked again within a second of its end; for that, and since nothing can be delivered, it counts as no connection.
    Failure::new(
        FailureKind::Connection,
        format!("{place} blocks its publishers (it says `{reason}`): waiting until it has room again{rest}"),
    )
}

/// A sink's fault as that of its deliveries.
pub(crate) fn failure_of(error: &SinkError) -> Failure {
    let kind = match error.kind {
        SinkErrorKind::Fatal => FailureKind::Fatal,
        _ => FailureKind::Connection,
    };
    Failure::new(kind, error.message.clone())
}

/// Why the first words with a server came to nothing.
pub(crate) fn unopened(error: &Error, place: &Place) -> SinkError {
    if let Some(fault) = tls::certificate_fault(error, tls::Terms::SERVERS) {
        return SinkError::fatal(format!("{} is not trusted, or does not trust: {fault}", place.server));
    }
    let Some(reply) = reply(error) else {
        let why = text::cause(error, &place.secrets);
        return SinkError::retryable(format!("no connection to {place}: {why}"));
    };
    let said = said(reply, &place.secrets);
    match reply.get_id() {
        code::ACCESS_REFUSED => SinkError::fatal(format!(
            "{place} does not accept the credentials: it says `{said}`: check user and password, or the client's \
             certificate with `auth: external`"
        )),
        code::NOT_ALLOWED | code::NOT_FOUND => SinkError::fatal(format!(
            "{place} does not let the user in: it says `{said}`: check the virtual host, and the user's right to it"
        )),
        _ => SinkError::retryable(format!("{place} refuses the connection: it says `{said}`")),
    }
}

/// Why a declaration came to nothing.
pub(crate) fn undeclared(what: &str, error: &Error, place: &Place) -> SinkError {
    let Some(reply) = reply(error) else {
        let why = text::cause(error, &place.secrets);
        return SinkError::retryable(format!("{what} could not be declared on {place}: {why}"));
    };
    let message = format!("{what} cannot be declared on {place}: it says `{}`", said(reply, &place.secrets));
    match reply.get_id() {
        code::PRECONDITION_FAILED => SinkError::fatal(format!(
            "{message}: it is there with other settings: make `declare` equal to them, or leave it out"
        )),
        code::ACCESS_REFUSED => SinkError::fatal(format!(
            "{message}: grant the user the right to configure it, or leave it out of `declare`"
        )),
        code::NOT_FOUND | code::RESOURCE_LOCKED | code::NOT_ALLOWED | code::NOT_IMPLEMENTED | 501..=506 => {
            SinkError::fatal(message)
        }
        _ => SinkError::retryable(message),
    }
}

/// Why something that events go to could not be seen.
pub(crate) fn unseen(what: &str, error: &Error, place: &Place) -> SinkError {
    match reply(error) {
        Some(reply) if reply.get_id() == code::NOT_FOUND => {
            SinkError::fatal(format!("{what} is not on {place}: declare it, or let the sink do it with `declare`"))
        }
        Some(reply) => {
            SinkError::fatal(format!("{what} cannot be used on {place}: it says `{}`", said(reply, &place.secrets)))
        }
        None => {
            let why = text::cause(error, &place.secrets);
            SinkError::retryable(format!("{what} could not be looked for on {place}: {why}"))
        }
    }
}

#[cfg(test)]
mod tests;
