//! What arrives over a sound link.

use std::time::Instant;

use super::super::{
    kit::{Kit, is_acknowledged, may_pass},
    verdict::Fault,
};
use crate::{Bytes, Delivery, Outcome, PayloadFormat, RejectReason};

pub(super) fn id_key_and_headers(kit: &mut Kit<'_>) -> Result<(), Fault> {
    let sink = kit.open()?;
    let mut delivery = kit.event(Some("key 1/ä%"), Some(Bytes::from_static(b"{}")), PayloadFormat::Json);
    let headers = [("tenant", "a b"), ("note", "50% ä \"x\"")];
    if kit.harness.carries().headers {
        delivery.event.headers = headers.map(|(name, value)| (name.into(), value.into())).into_iter().collect();
    }
    kit.settle_all(&sink, vec![delivery.clone()])?;
    let received = kit.arrived(&[&delivery])?;
    if kit.harness.carries().headers {
        let message = received.iter().find(|message| message.id == *delivery.event.id);
        for (name, value) in headers {
            let found = message.and_then(|message| {
                message.headers.iter().find(|(header, _)| header == name).map(|(_, found)| found.as_str())
            });
            if found != Some(value) {
                return Err(format!("the header `{name}` was sent as {value:?}, and arrived as {found:?}").into());
            }
        }
    }
    kit.close(&sink)
}

pub(super) fn payloads(kit: &mut Kit<'_>) -> Result<(), Fault> {
    let sink = kit.open()?;
    let carries = kit.harness.carries();
    let all: Bytes = (0..=255_u8).collect::<Vec<_>>().into();
    let cases = [
        ("JSON in UTF-8", true, Some(Bytes::from("{\"name\":\"größe 😀\",\"n\":1.0}")), PayloadFormat::Json),
        ("text", true, Some(Bytes::from("größe, \"quoted\" \\ and 😀")), PayloadFormat::Text),
        ("empty text", true, Some(Bytes::new()), PayloadFormat::Text),
        ("the largest", true, Some(of_size(carries.largest)), PayloadFormat::Json),
        ("every byte", carries.binary, Some(all), PayloadFormat::Binary),
        ("no bytes", carries.binary, Some(Bytes::new()), PayloadFormat::Binary),
    ];
    let mut arriving: Vec<Delivery> = Vec::new();
    for (name, carried, payload, format) in cases {
        let delivery = kit.event(Some("payload"), payload, format);
        if carried {
            let sent = kit.settle_all(&sink, vec![delivery.clone()]);
            sent.map_err(|fault| in_case(name, fault))?;
            arriving.push(delivery);
        } else {
            let outcomes = kit.attempt(&sink, &[delivery])?;
            if !matches!(&outcomes[..], [Outcome::Rejected(why)] if why.reason == RejectReason::InvalidEvent) {
                return Err(
                    format!("{name}: the sink cannot carry it and must say `invalid_event`: {outcomes:?}").into()
                );
            }
        }
    }
    kit.arrived(&arriving.iter().collect::<Vec<_>>())?;
    kit.close(&sink)
}

/// A JSON object of so many bytes. No string: sinks that write documents have text as strings, too.
fn of_size(bytes: usize) -> Bytes {
    format!("{{\"x\":\"{}\"}}", "x".repeat(bytes.saturating_sub("{\"x\":\"\"}".len()))).into()
}

fn in_case(name: &str, fault: Fault) -> Fault {
    match fault {
        Fault::Failed(what) => Fault::Failed(format!("{name}: {what}")),
        skipped => skipped,
    }
}

pub(super) fn too_large(kit: &mut Kit<'_>) -> Result<(), Fault> {
    let Some(size) = kit.harness.carries().too_large else {
        return Err(Fault::Skipped("the harness names no size that is too large"));
    };
    let sink = kit.open_warm()?;
    let large = kit.event(Some("large"), Some(of_size(size)), PayloadFormat::Json);
    let beside = kit.next("beside");
    // Beside another, which it does not condemn. Finding the culprit may take more than one attempt.
    let begin = Instant::now();
    loop {
        let outcomes = kit.attempt(&sink, &[beside.clone(), large.clone()])?;
        let [first, second] = &outcomes[..] else {
            return Err("not two outcomes for two deliveries".to_owned().into());
        };
        if matches!(first, Outcome::Rejected(_)) {
            return Err(format!("the event beside the one that is too large was reported as {first:?}").into());
        }
        if matches!(second, Outcome::Rejected(why) if why.reason == RejectReason::TooLarge) {
            break;
        }
        if may_pass(second).is_err() || is_acknowledged(second) || begin.elapsed() > kit.limits.settle {
            return Err(format!("{size} bytes are too large, and the outcome is {second:?}").into());
        }
    }
    kit.settle_all(&sink, vec![beside.clone()])?;
    if kit.arrived(&[&beside])?.iter().any(|message| message.id == *large.event.id) {
        return Err("what was rejected as too large has arrived".to_owned().into());
    }
    kit.close(&sink)
}

pub(super) fn order_in_batch(kit: &mut Kit<'_>) -> Result<(), Fault> {
    let sink = kit.open()?;
    if sink.capabilities().max_batch < 2 {
        return Err(Fault::Skipped("the sink takes one delivery at a time"));
    }
    if !kit.harness.carries().batch_order {
        return Err(Fault::Skipped("the receiver keeps an order within a key only"));
    }
    let first = kit.each("first", 1);
    kit.settle_all(&sink, first)?;
    let deliveries = kit.each("batched", sink.capabilities().max_batch.min(100));
    let outcomes = kit.attempt(&sink, &deliveries)?;
    if let Some(outcome) = outcomes.iter().find(|outcome| !is_acknowledged(outcome)) {
        return Err(format!("a batch over a sound link had the outcome {outcome:?}").into());
    }
    let received = kit.arrived(&deliveries.iter().collect::<Vec<_>>())?;
    let mut wanted = deliveries.iter().map(|delivery| &*delivery.event.id).peekable();
    for message in &received {
        wanted.next_if(|id| *id == message.id);
    }
    match wanted.next() {
        None => kit.close(&sink),
        Some(id) => Err(format!("event {id} did not arrive behind its predecessor in the batch").into()),
    }
}

pub(super) fn acknowledged_is_readable(kit: &mut Kit<'_>) -> Result<(), Fault> {
    let sink = kit.open_warm()?;
    for _ in 0..3 {
        let deliveries = kit.each("readable", 40);
        let outcomes = kit.attempt(&sink, &deliveries)?;
        let acknowledged = Kit::acknowledged(&deliveries, &outcomes);
        if acknowledged.is_empty() {
            return Err(format!("nothing of a batch over a sound link was acknowledged: {:?}", outcomes.first()).into());
        }
        kit.arrived(&acknowledged)?;
    }
    kit.close(&sink)
}

pub(super) fn acknowledged_is_durable(kit: &mut Kit<'_>) -> Result<(), Fault> {
    let sink = kit.open_warm()?;
    let deliveries = kit.each("durable", 40);
    let outcomes = kit.attempt(&sink, &deliveries)?;
    kit.harness.stop()?;
    kit.harness.start();
    kit.arrived(&Kit::acknowledged(&deliveries, &outcomes))?;
    kit.close(&sink)
}
