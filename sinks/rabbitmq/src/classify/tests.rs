use super::*;

fn place() -> Place {
    Place { server: "a:5672".to_owned(), vhost: "shop".to_owned(), secrets: vec![Secret::new("hunter2-hunter2")] }
}

fn published(place: &Place) -> Published<'_> {
    Published {
        exchange: "orders",
        routing_key: "order.created",
        fixed_exchange: false,
        fixed: false,
        unroutable: Unroutable::Reject,
        timeout: Duration::from_secs(5),
        place,
    }
}

fn amqp(id: u16, text: &str) -> AMQPError {
    AMQPError::from_id(id, text.into()).unwrap()
}

fn class(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Rejected(rejection) => rejection.reason.to_string(),
        Outcome::Failed(failure) => failure.kind.as_str().to_owned(),
        other => panic!("{other:?}"),
    }
}

fn message(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Rejected(rejection) => &rejection.message,
        Outcome::Failed(failure) => &failure.message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_reply_about_a_message_has_its_class() {
    let place = place();
    let free = published(&place);
    let fixed = Published { fixed: true, fixed_exchange: true, ..free };
    for (reply, expected_free, expected_fixed) in [
        (amqp(404, "NOT_FOUND - no exchange 'orders' in vhost 'shop'"), "unknown_target", "fatal"),
        (amqp(403, "ACCESS_REFUSED - access to exchange 'orders' refused"), "unknown_target", "fatal"),
        (
            amqp(406, "PRECONDITION_FAILED - message size 2 is larger than configured max size 1"),
            "too_large",
            "too_large",
        ),
        (amqp(311, "CONTENT_TOO_LARGE"), "too_large", "too_large"),
        (amqp(406, "PRECONDITION_FAILED - invalid expiration"), "refused", "refused"),
        (amqp(405, "RESOURCE_LOCKED"), "refused", "refused"),
    ] {
        for (published, expected) in [(free, expected_free), (fixed, expected_fixed)] {
            let outcome = published.condemned(&reply);
            assert_eq!(class(&outcome), expected, "{reply}");
            for part in ["a:5672", "`shop`", "`orders`", "`order.created`", &reply.get_id().to_string()] {
                assert!(message(&outcome).contains(part), "{part}: {}", message(&outcome));
            }
        }
    }
    assert!(is_about_exchange(&amqp(404, "x")) && !is_about_exchange(&amqp(403, "x")));
}

#[test]
fn what_comes_back_was_not_stored() {
    let place = place();
    let free = published(&place);
    assert_eq!(class(&free.returned()), "unknown_target");
    let waiting = Published { unroutable: Unroutable::Wait, ..free };
    assert_eq!(class(&waiting.returned()), "unavailable");
    assert_eq!(class(&Published { fixed: true, ..waiting }.returned()), "connection");
    let queue = Published { exchange: "", ..free }.returned();
    assert!(message(&queue).contains("queue `order.created` (over the default exchange)"), "{}", message(&queue));
}

#[test]
fn nacks_and_silence_are_tried_again() {
    let place = place();
    assert_eq!(class(&published(&place).nacked()), "unavailable");
    assert_eq!(class(&published(&place).silent()), "timeout");
    assert_eq!(lost(&place, "x").kind, FailureKind::Connection);
    assert!(blocked(&place, "low on memory", true).message.contains("`low on memory`"));
}

#[test]
fn faults_of_connecting_name_the_server_and_no_secret() {
    let place = place();
    let error = |id, text: &str| Error::from(ErrorKind::ProtocolError(amqp(id, text)));
    let fault = unopened(&error(403, "ACCESS_REFUSED - Login was refused for hunter2-hunter2"), &place);
    assert_eq!(fault.kind, SinkErrorKind::Fatal);
    assert!(fault.message.contains("does not accept the credentials") && fault.message.contains("a:5672"), "{fault}");
    assert!(!fault.message.contains("hunter2"), "{fault}");
    assert_eq!(unopened(&error(530, "NOT_ALLOWED - vhost shop not found"), &place).kind, SinkErrorKind::Fatal);
    assert_eq!(unopened(&error(320, "CONNECTION_FORCED"), &place).kind, SinkErrorKind::Retryable);
    let refused = Error::from(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
    assert_eq!(unopened(&refused, &place).kind, SinkErrorKind::Retryable);
    assert_eq!(undeclared("queue `q`", &error(406, "inequivalent arg"), &place).kind, SinkErrorKind::Fatal);
    assert_eq!(undeclared("queue `q`", &error(403, "refused"), &place).kind, SinkErrorKind::Fatal);
    assert_eq!(undeclared("queue `q`", &refused, &place).kind, SinkErrorKind::Retryable);
    let missing = unseen("queue `q`", &error(404, "no queue"), &place);
    assert!(
        missing.kind == SinkErrorKind::Fatal && missing.message.starts_with("queue `q` is not on a:5672"),
        "{missing}"
    );
    assert_eq!(unseen("queue `q`", &refused, &place).kind, SinkErrorKind::Retryable);
}
