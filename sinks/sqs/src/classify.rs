//! What an answer, or the lack of one, means for the delivery.

use std::time::Duration;

use walgate_sink::{Failure, FailureKind, Outcome, RejectReason, Rejection, Secret, SinkError, text};

/// The class of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// It may pass.
    Failed(FailureKind),
    /// The credentials, their rights or the key of the queue: somebody has to mend it.
    Denied,
    /// This machine's clock is too far from the server's.
    Skewed,
    /// There is no such queue.
    NoQueue,
    /// The request's content: one of its messages, or all of them together.
    Content(RejectReason),
}

/// Where a request went, for the texts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    /// The endpoint, or the region.
    pub(crate) place: &'a str,
    pub(crate) queue: &'a str,
    /// Whether the queue is the same for every event.
    pub(crate) fixed: bool,
    pub(crate) timeout: Duration,
    pub(crate) secrets: &'a [Secret],
}

/// An error that the server has answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
    /// The server's `date` header.
    pub(crate) date: Option<String>,
    pub(crate) retry_after: Option<Duration>,
}

/// A request without a success.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    Answered(Answer),
    /// The time of the attempt is over.
    Silent,
    /// No connection, or one that broke.
    Broken(String),
    /// A certificate that is not trusted.
    Untrusted(String),
    /// There are no credentials to sign with.
    NoCredentials(String),
    /// The client cannot make the request: a region that is missing, and the like.
    Unusable(String),
}

/// The code without what two generations of the protocol put before it.
fn bare(code: &str) -> &str {
    let code = code.rsplit('#').next().unwrap_or(code);
    code.strip_prefix("AWS.SimpleQueueService.").unwrap_or(code)
}

/// What a code says by itself; `None`: nothing that is known.
fn class_of_code(code: &str, message: &str) -> Option<Class> {
    Some(match bare(code) {
        "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "RequestLimitExceeded"
        | "TooManyRequestsException"
        | "BandwidthLimitExceeded"
        | "SlowDown"
        | "OverLimit"
        | "KmsThrottled"
        | "KMS.ThrottlingException" => Class::Failed(FailureKind::Throttled),
        "InternalError"
        | "InternalFailure"
        | "InternalServerError"
        | "ServiceUnavailable"
        | "ServiceUnavailableException"
        | "QueueDeletedRecently" => Class::Failed(FailureKind::Unavailable),
        "RequestTimeout" | "RequestTimeoutException" => Class::Failed(FailureKind::Timeout),
        "RequestTimeTooSkewed" | "RequestInTheFuture" | "RequestExpired" => Class::Skewed,
        "SignatureDoesNotMatch" | "InvalidSignatureException" | "AccessDenied" | "AccessDeniedException"
            if is_about_time(message) =>
        {
            Class::Skewed
        }
        "AccessDenied"
        | "AccessDeniedException"
        | "AuthorizationError"
        | "UnauthorizedOperation"
        | "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "UnrecognizedClient"
        | "InvalidAccessKeyId"
        | "InvalidSecurity"
        | "AuthFailure"
        | "SignatureDoesNotMatch"
        | "InvalidSignatureException"
        | "IncompleteSignature"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "OptInRequired"
        | "NotAuthorized"
        | "KmsAccessDenied"
        | "KmsDisabled"
        | "KmsInvalidKeyUsage"
        | "KmsInvalidState"
        | "KmsNotFound"
        | "KmsOptInRequired" => Class::Denied,
        "NonExistentQueue" | "QueueDoesNotExist" | "InvalidAddress" => Class::NoQueue,
        "BatchRequestTooLong" | "MessageTooLong" | "RequestEntityTooLarge" => Class::Content(RejectReason::TooLarge),
        "InvalidMessageContents" | "InvalidAttributeName" | "InvalidAttributeValue" => {
            Class::Content(RejectReason::InvalidEvent)
        }
        "InvalidParameterValue" | "MissingParameter" | "InvalidParameterCombination" if is_about_size(message) => {
            Class::Content(RejectReason::TooLarge)
        }
        "InvalidParameterValue"
        | "InvalidParameterCombination"
        | "MissingParameter"
        | "ValidationException"
        | "ValidationError"
        | "UnsupportedOperation"
        | "InvalidBatchEntryId"
        | "BatchEntryIdsNotDistinct"
        | "TooManyEntriesInBatchRequest"
        | "EmptyBatchRequest" => Class::Content(RejectReason::Refused),
        _ => return None,
    })
}

/// The service says no more than this with the code of any bad signature.
fn is_about_time(message: &str) -> bool {
    let lower = message.to_ascii_lowercase();
    lower.contains("signature expired") || lower.contains("not yet current") || lower.contains("request has expired")
}

fn is_about_size(message: &str) -> bool {
    let lower = message.to_ascii_lowercase();
    lower.contains("must be shorter than") || lower.contains("too long") || lower.contains("message size")
}

/// The class of a whole answer.
pub(crate) fn class_of(status: u16, code: &str, message: &str) -> Class {
    // A code that blames the content does not come with the status of a server in trouble.
    let known = class_of_code(code, message).filter(|class| status < 500 || !matches!(class, Class::Content(_)));
    known.unwrap_or(match status {
        429 => Class::Failed(FailureKind::Throttled),
        408 => Class::Failed(FailureKind::Timeout),
        401 | 403 => Class::Denied,
        404 => Class::NoQueue,
        413 => Class::Content(RejectReason::TooLarge),
        400..=499 => Class::Content(RejectReason::Refused),
        // 5xx, and what no standard knows: an odd answer must not condemn an event.
        _ => Class::Failed(FailureKind::Unavailable),
    })
}

/// The class of one entry under `Failed`.
pub(crate) fn class_of_entry(code: &str, message: &str, sender_fault: bool) -> Class {
    class_of_code(code, message).unwrap_or(match sender_fault {
        true => Class::Content(RejectReason::Refused),
        false => Class::Failed(FailureKind::Unavailable),
    })
}

impl Asked<'_> {
    fn queue(&self) -> String {
        text::excerpt(self.queue.as_bytes(), &[])
    }

    fn failed(kind: FailureKind, message: String) -> Outcome {
        Outcome::Failed(Failure::new(kind, message))
    }

    /// What the trouble of a request means for each of its deliveries.
    pub(crate) fn outcome(&self, trouble: &Trouble) -> Outcome {
        let (place, queue) = (self.place, self.queue());
        match trouble {
            Trouble::Answered(answer) => self.answered(answer),
            Trouble::Silent => {
                let message = format!(
                    "{place} did not answer within {:?} for queue `{queue}`: the messages may be there, and are sent again",
                    self.timeout
                );
                Self::failed(FailureKind::Timeout, message)
            }
            Trouble::Broken(why) => {
                let message =
                    format!("no answer from {place} for queue `{queue}`, and the messages are sent again: {why}");
                Self::failed(FailureKind::Connection, message)
            }
            Trouble::Untrusted(why) => Self::failed(FailureKind::Fatal, format!("{place} is not trusted: {why}")),
            Trouble::NoCredentials(why) => {
                let message = format!(
                    "there are no credentials for {place}: {why}; give `access_key_id` and `secret_access_key`, a \
                     `profile`, or what the AWS SDK finds by itself (environment, role of the machine)"
                );
                Self::failed(FailureKind::Fatal, message)
            }
            Trouble::Unusable(why) => Self::failed(FailureKind::Fatal, format!("{place} cannot be asked: {why}")),
        }
    }

    /// An error that was answered for a whole request.
    pub(crate) fn answered(&self, answer: &Answer) -> Outcome {
        let class = class_of(answer.status, &answer.code, &answer.message);
        let outcome = self.of_class(class, answer);
        match outcome {
            Outcome::Failed(failure) if failure.kind != FailureKind::Fatal => {
                Outcome::Failed(failure.with_retry_after(answer.retry_after))
            }
            other => other,
        }
    }

    /// One entry under `Failed`.
    pub(crate) fn entry(&self, code: &str, message: &str, sender_fault: bool) -> Outcome {
        let class = class_of_entry(code, message, sender_fault);
        let answer = Answer { status: 200, code: code.to_owned(), message: message.to_owned(), ..Answer::default() };
        self.of_class(class, &answer)
    }

    /// An entry that a success names neither as taken nor as refused.
    pub(crate) fn unnamed(&self) -> Outcome {
        let message =
            format!("the answer of {} for queue `{}` leaves a message out: it is sent again", self.place, self.queue());
        Self::failed(FailureKind::Unavailable, message)
    }

    fn of_class(&self, class: Class, answer: &Answer) -> Outcome {
        let (place, queue) = (self.place, self.queue());
        let mut said = text::excerpt(bare(&answer.code).as_bytes(), self.secrets);
        let detail = text::excerpt(answer.message.as_bytes(), self.secrets);
        if said.is_empty() {
            said = format!("status {}", answer.status);
        }
        if !detail.is_empty() {
            said = format!("{said}: {detail}");
        }
        match class {
            Class::Failed(FailureKind::Throttled) => {
                let message = format!("{place} asks for less on queue `{queue}` ({said})");
                Self::failed(FailureKind::Throttled, message)
            }
            Class::Failed(kind) => {
                Self::failed(kind, format!("{place} cannot take messages for queue `{queue}` at present ({said})"))
            }
            Class::Denied => {
                let message = format!(
                    "{place} does not let these credentials send to queue `{queue}` ({said}): check the credentials, and \
                     allow sqs:SendMessage, sqs:GetQueueUrl and sqs:GetQueueAttributes (and kms:GenerateDataKey where \
                     the queue has a key of its own)"
                );
                Self::failed(FailureKind::Fatal, message)
            }
            Class::Skewed => {
                let theirs = match &answer.date {
                    Some(date) => format!("its clock says {}", text::excerpt(date.as_bytes(), &[])),
                    None => "its own clock says something else".to_owned(),
                };
                let message = format!(
                    "{place} refuses the signature for the time in it ({said}): this machine's clock is off ({theirs}); \
                     set it, by NTP for example"
                );
                Self::failed(FailureKind::Fatal, message)
            }
            Class::NoQueue => {
                let message = format!(
                    "there is no queue `{queue}` at {place} ({said}): create it, or mend the name, the region or the account"
                );
                if self.fixed {
                    Self::failed(FailureKind::Fatal, message)
                } else {
                    Outcome::Rejected(Rejection::new(RejectReason::UnknownTarget, message))
                }
            }
            Class::Content(reason) => Outcome::Rejected(Rejection::new(
                reason,
                format!("queue `{queue}` at {place} refuses the message ({said})"),
            )),
        }
    }

    /// The same for a request that carries no event.
    pub(crate) fn error(&self, trouble: &Trouble) -> SinkError {
        match self.outcome(trouble) {
            Outcome::Failed(failure) if failure.kind == FailureKind::Fatal => SinkError::fatal(failure.message),
            Outcome::Failed(failure) => SinkError::retryable(failure.message),
            Outcome::Rejected(rejection) => SinkError::fatal(rejection.message),
            _ => SinkError::retryable(format!("{} gave no answer that can be used", self.place)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(fixed: bool, secrets: &[Secret]) -> Asked<'_> {
        Asked { place: "sqs in eu-central-1", queue: "orders", fixed, timeout: Duration::from_secs(5), secrets }
    }

    #[test]
    fn every_answer_has_its_class() {
        use {FailureKind::*, RejectReason::*};
        let none = "";
        for (status, code, message, class) in [
            (400, "ThrottlingException", none, Class::Failed(Throttled)),
            (403, "AWS.SimpleQueueService.OverLimit", none, Class::Failed(Throttled)),
            (400, "com.amazonaws.sqs#RequestThrottled", none, Class::Failed(Throttled)),
            (400, "KmsThrottled", none, Class::Failed(Throttled)),
            (429, none, none, Class::Failed(Throttled)),
            (503, "SlowDown", none, Class::Failed(Throttled)),
            (500, "InternalError", none, Class::Failed(Unavailable)),
            (500, none, none, Class::Failed(Unavailable)),
            (500, "InvalidMessageContents", none, Class::Failed(Unavailable)),
            (502, "Whatever", none, Class::Failed(Unavailable)),
            (200, none, none, Class::Failed(Unavailable)),
            (302, none, none, Class::Failed(Unavailable)),
            (408, none, none, Class::Failed(Timeout)),
            (400, "AWS.SimpleQueueService.NonExistentQueue", none, Class::NoQueue),
            (400, "QueueDoesNotExist", none, Class::NoQueue),
            (404, none, none, Class::NoQueue),
            (403, "InvalidClientTokenId", none, Class::Denied),
            (400, "AccessDeniedException", none, Class::Denied),
            (400, "KmsDisabled", none, Class::Denied),
            (403, "SignatureDoesNotMatch", "The request signature we calculated does not match", Class::Denied),
            (403, "SignatureDoesNotMatch", "Signature expired: 20261124T is now earlier than", Class::Skewed),
            (400, "InvalidSignatureException", "Signature not yet current: 2026", Class::Skewed),
            (403, "RequestTimeTooSkewed", none, Class::Skewed),
            (401, none, none, Class::Denied),
            (400, "AWS.SimpleQueueService.BatchRequestTooLong", none, Class::Content(TooLarge)),
            (
                400,
                "InvalidParameterValue",
                "One or more parameters are invalid. Message must be shorter than 1024 bytes",
                Class::Content(TooLarge),
            ),
            (400, "InvalidParameterValue", "MessageGroupId is odd", Class::Content(Refused)),
            (400, "InvalidMessageContents", none, Class::Content(InvalidEvent)),
            (413, none, none, Class::Content(TooLarge)),
            (418, "Teapot", none, Class::Content(Refused)),
        ] {
            assert_eq!(class_of(status, code, message), class, "{status} {code} {message}");
        }
    }

    #[test]
    fn entries_are_blamed_only_where_the_answer_blames_them() {
        use {FailureKind::*, RejectReason::*};
        for (code, sender, class) in [
            ("InvalidMessageContents", true, Class::Content(InvalidEvent)),
            ("Anything", true, Class::Content(Refused)),
            ("Anything", false, Class::Failed(Unavailable)),
            ("InternalError", true, Class::Failed(Unavailable)),
            ("RequestThrottled", true, Class::Failed(Throttled)),
            ("AccessDenied", true, Class::Denied),
        ] {
            assert_eq!(class_of_entry(code, "", sender), class, "{code} {sender}");
        }
    }

    #[test]
    fn texts_say_what_to_do_and_no_secret() {
        let secrets = [Secret::new("canary-secret")];
        let text = |fixed, status, code: &str, message: &str| {
            let answer = Answer {
                status,
                code: code.into(),
                message: message.into(),
                date: Some("Tue, 24 Nov 2026 11:00:00 GMT".into()),
                retry_after: Some(Duration::from_secs(3)),
            };
            asked(fixed, &secrets).answered(&answer)
        };
        let Outcome::Failed(skewed) = text(true, 403, "SignatureDoesNotMatch", "Signature expired: canary-secret\n")
        else {
            panic!("not failed")
        };
        assert_eq!(skewed.kind, FailureKind::Fatal);
        assert!(skewed.message.contains("clock is off (its clock says Tue, 24 Nov 2026 11:00:00 GMT)"), "{skewed}");
        assert!(skewed.message.contains("[secret]") && !skewed.message.contains('\n'), "{skewed}");
        assert_eq!(skewed.retry_after, None);
        let Outcome::Failed(throttled) = text(true, 400, "RequestThrottled", "") else { panic!("not failed") };
        assert_eq!(throttled.retry_after, Some(Duration::from_secs(3)));
        assert!(
            matches!(text(true, 400, "QueueDoesNotExist", ""), Outcome::Failed(failure) if failure.kind == FailureKind::Fatal)
        );
        assert!(
            matches!(text(false, 400, "QueueDoesNotExist", ""), Outcome::Rejected(rejection) if rejection.reason == RejectReason::UnknownTarget)
        );
        assert!(
            matches!(asked(true, &[]).unnamed(), Outcome::Failed(failure) if failure.kind == FailureKind::Unavailable)
        );
        assert!(
            matches!(asked(true, &[]).outcome(&Trouble::Silent), Outcome::Failed(failure) if failure.kind == FailureKind::Timeout)
        );
    }
}
