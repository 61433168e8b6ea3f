//! What an answer, or the lack of one, means for the delivery.

use std::time::{Duration, SystemTime};

use reqwest::{StatusCode, header::HeaderValue};
use walgate_sink::{Failure, FailureKind, Outcome, RejectReason, Rejection, Secret, text, tls};

use crate::guard;

/// The longest wait that is taken from a `Retry-After`; the lane bounds it further.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The class of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Success,
    Rejected(RejectReason),
    Failed(FailureKind),
}

/// `fixed`: the URL is the same for every event, so a 404 speaks of the endpoint and not of one event's path.
pub(crate) fn class_of(status: StatusCode, fixed: bool, retry_after: bool) -> Class {
    match status.as_u16() {
        200..=299 => Class::Success,
        300..=399 | 401 | 403 | 407 | 410 => Class::Failed(FailureKind::Fatal),
        404 if fixed => Class::Failed(FailureKind::Fatal),
        404 => Class::Rejected(RejectReason::UnknownTarget),
        408 => Class::Failed(FailureKind::Timeout),
        429 => Class::Failed(FailureKind::Throttled),
        503 if retry_after => Class::Failed(FailureKind::Throttled),
        413 | 431 => Class::Rejected(RejectReason::TooLarge),
        414 => Class::Rejected(RejectReason::InvalidTarget),
        425 => Class::Failed(FailureKind::Unavailable),
        400..=499 => Class::Rejected(RejectReason::Refused),
        // 5xx, and what no standard knows: an odd answer must not condemn an event.
        _ => Class::Failed(FailureKind::Unavailable),
    }
}

/// An answer other than success, as an outcome. `said` is a piece of its body.
pub(crate) fn refusal(answer: &Answer<'_>, said: &str) -> Outcome {
    let Answer { shown, status, .. } = answer;
    let mut message = format!("{shown} answered {}", status.as_u16());
    if let Some(reason) = status.canonical_reason() {
        message.push(' ');
        message.push_str(reason);
    }
    if let Some(advice) = advice(answer) {
        message.push_str(": ");
        message.push_str(&advice);
    }
    if !said.is_empty() {
        message.push_str(&format!(" (it says: {said})"));
    }
    match class_of(*status, answer.fixed, answer.retry_after.is_some()) {
        Class::Success => Outcome::Acknowledged { duplicate: false },
        Class::Rejected(reason) => Outcome::Rejected(Rejection::new(reason, message)),
        Class::Failed(FailureKind::Fatal) => Outcome::Failed(Failure::new(FailureKind::Fatal, message)),
        Class::Failed(kind) => Outcome::Failed(Failure::new(kind, message).with_retry_after(answer.retry_after)),
    }
}

/// What of an answer decides.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    pub(crate) shown: &'a str,
    pub(crate) fixed: bool,
    pub(crate) status: StatusCode,
    pub(crate) retry_after: Option<Duration>,
    /// Where a redirect points, fit to be shown.
    pub(crate) location: Option<String>,
}

fn advice(answer: &Answer<'_>) -> Option<String> {
    let advice = match answer.status.as_u16() {
        300..=399 => {
            let to = answer.location.as_ref().map(|location| format!(" (it points to {location})")).unwrap_or_default();
            return Some(format!("redirects are never followed{to}: put the final address into `url`"));
        }
        401 | 403 => "it does not accept the credentials or the signature: check `secret` and the authorization",
        404 if answer.fixed => "nothing is there: check `url` and `path`",
        407 => "a proxy stands before it: walgate uses none",
        410 => "the endpoint is gone for good: give the new `url`, or remove the sink and its routes",
        _ => return None,
    };
    Some(advice.to_owned())
}

/// The wait that a `Retry-After` asks for, as seconds or as an HTTP date.
pub(crate) fn retry_after(value: &HeaderValue, now: SystemTime) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs)
    } else {
        httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// A redirect's address for an error text: without user name and query, which may hold tokens.
pub(crate) fn location(value: &HeaderValue, base: &reqwest::Url, secrets: &[Secret]) -> Option<String> {
    let mut url = base.join(value.to_str().ok()?).ok()?;
    url.set_query(None);
    url.set_fragment(None);
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    Some(text::excerpt(url.as_str().as_bytes(), secrets))
}

/// No answer within the time of an attempt.
pub(crate) fn timed_out(shown: &str, timeout: Duration) -> Outcome {
    let message = format!("{shown} did not answer within {timeout:?}: the event may have arrived, and is sent again");
    Outcome::Failed(Failure::new(FailureKind::Timeout, message))
}

/// A request that brought no answer.
pub(crate) fn broken(error: &reqwest::Error, shown: &str, secrets: &[Secret]) -> Outcome {
    if error.is_builder() {
        let message = format!("{shown} cannot be asked for: {}", text::cause(error, secrets));
        return Outcome::Rejected(Rejection::new(RejectReason::InvalidTarget, message));
    }
    if let Some(fault) = tls::certificate_fault(error, tls::Terms::ENDPOINT) {
        return Outcome::Failed(Failure::new(FailureKind::Fatal, format!("{shown} is not trusted: {fault}")));
    }
    if let Some(refused) = guard::refused(error) {
        return Outcome::Failed(Failure::new(FailureKind::Fatal, format!("no connection to {shown}: {refused}")));
    }
    let cause = if error.is_timeout() { "it took too long".to_owned() } else { text::cause(error, secrets) };
    let message = if error.is_connect() {
        format!("no connection to {shown}: {cause}")
    } else {
        format!("the connection to {shown} broke before its answer was there, and the event is sent again: {cause}")
    };
    Outcome::Failed(Failure::new(FailureKind::Connection, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(status: u16, fixed: bool) -> Class {
        class_of(StatusCode::from_u16(status).unwrap(), fixed, false)
    }

    #[test]
    fn every_status_has_its_class() {
        use {FailureKind::*, RejectReason::*};
        let table: &[(Class, &[u16])] = &[
            (Class::Success, &[200, 201, 202, 204, 206, 226, 299]),
            (Class::Failed(Fatal), &[300, 301, 302, 303, 304, 307, 308, 399, 401, 403, 404, 407, 410]),
            (Class::Failed(Timeout), &[408]),
            (Class::Failed(Throttled), &[429]),
            (Class::Rejected(TooLarge), &[413, 431]),
            (Class::Rejected(InvalidTarget), &[414]),
            (
                Class::Rejected(Refused),
                &[400, 402, 405, 406, 409, 411, 412, 415, 416, 417, 418, 421, 422, 423, 424, 426],
            ),
            (Class::Rejected(Refused), &[428, 444, 451, 499]),
            (
                Class::Failed(Unavailable),
                &[100, 101, 199, 425, 500, 501, 502, 503, 504, 505, 507, 511, 520, 599, 600, 999],
            ),
        ];
        for (expected, statuses) in table {
            for status in *statuses {
                assert_eq!(class(*status, true), *expected, "{status}");
                if *status != 404 {
                    assert_eq!(class(*status, false), *expected, "{status} with a path of its own");
                }
            }
        }
        assert_eq!(class(404, false), Class::Rejected(UnknownTarget));
        assert_eq!(class_of(StatusCode::SERVICE_UNAVAILABLE, true, true), Class::Failed(Throttled));
        for status in 100..=999 {
            let success = class(status, true) == Class::Success;
            assert_eq!(success, (200..300).contains(&status), "only 2xx is success: {status}");
        }
    }

    #[test]
    fn retry_after_in_both_forms_and_within_bounds() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (text, wait) in [
            ("0", Some(0)),
            ("120", Some(120)),
            (" 7 ", Some(7)),
            ("99999999999999999999999999", Some(86_400)),
            ("90000", Some(86_400)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
            ("Sunday, 06-Nov-94 08:50:07 GMT", Some(30)),
            ("Sun, 06 Nov 1994 08:49:07 GMT", Some(0)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(86_400)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ] {
            let value = HeaderValue::from_str(text).unwrap();
            assert_eq!(retry_after(&value, now), wait.map(Duration::from_secs), "{text}");
        }
        assert_eq!(retry_after(&HeaderValue::from_bytes(&[0xff]).unwrap(), now), None);
    }

    #[test]
    fn texts_say_what_to_do() {
        let answer = |status, fixed| Answer {
            shown: "https://a.example/hooks",
            fixed,
            status: StatusCode::from_u16(status).unwrap(),
            retry_after: Some(Duration::from_secs(5)),
            location: Some("https://b.example/".into()),
        };
        let failure = |status| match refusal(&answer(status, true), "") {
            Outcome::Failed(failure) => failure,
            other => panic!("{other:?}"),
        };
        assert!(
            failure(302).message.contains("never followed (it points to https://b.example/): put"),
            "{}",
            failure(302)
        );
        assert_eq!(failure(302).retry_after, None);
        assert_eq!(failure(500).message, "https://a.example/hooks answered 500 Internal Server Error");
        assert_eq!(failure(500).retry_after, Some(Duration::from_secs(5)));
        assert_eq!(failure(599).message, "https://a.example/hooks answered 599");
        let Outcome::Rejected(rejection) = refusal(&answer(422, true), "no such order") else { panic!("not rejected") };
        let expected = "https://a.example/hooks answered 422 Unprocessable Entity (it says: no such order)";
        assert_eq!(rejection.message, expected);
    }

    #[test]
    fn a_redirects_address_is_shown_without_tokens() {
        let base = reqwest::Url::parse("https://a.example/hooks?t=1").unwrap();
        let shown = |text| location(&HeaderValue::from_static(text), &base, &[]);
        assert_eq!(shown("https://u:p@b.example/x?token=1#f").as_deref(), Some("https://b.example/x"));
        assert_eq!(shown("/login?next=1").as_deref(), Some("https://a.example/login"));
        assert_eq!(shown("http://[").as_deref(), None);
    }
}
