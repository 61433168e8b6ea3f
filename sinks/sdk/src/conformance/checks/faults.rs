//! What faults of the link and of the receiver must not take.

use std::{sync::Arc, time::Duration};

use super::super::{
    harness::Able,
    kit::{Kit, is_acknowledged, may_pass},
    verdict::Fault,
};
use crate::{Delivery, DynSink, Outcome, SinkErrorKind};

pub(super) fn no_acknowledgement_of_ones_own(kit: &mut Kit<'_>) -> Result<(), Fault> {
    let sink = kit.open()?;
    // Connected, so that nothing but the answer is missing.
    let first = kit.each("sure", 1);
    kit.settle_all(&sink, first)?;
    kit.harness.freeze()?;
    let deliveries = kit.each("held", 20);
    let outcomes = kit.attempt(&sink, &deliveries)?;
    let count = Kit::acknowledged(&deliveries, &outcomes).len();
    if count > 0 {
        return Err(format!("{count} of 20 events were acknowledged while no answer could arrive").into());
    }
    outcomes.iter().try_for_each(may_pass)?;
    kit.harness.heal();
    kit.settle_all(&sink, deliveries.clone())?;
    kit.arrived(&deliveries.iter().collect::<Vec<_>>())?;
    kit.close(&sink)
}

pub(super) fn silence_ends(kit: &mut Kit<'_>) -> Result<(), Fault> {
    // From the first byte on: not even a connection is answered.
    kit.harness.freeze()?;
    let sink = kit.open()?;
    let deliveries = kit.each("silent", 1);
    let outcomes = kit.attempt(&sink, &deliveries)?;
    if outcomes.iter().any(is_acknowledged) {
        return Err("an event was acknowledged while nothing could pass".to_owned().into());
    }
    outcomes.iter().try_for_each(may_pass)?;
    kit.harness.heal();
    kit.settle_all(&sink, deliveries)?;
    kit.close(&sink)
}

pub(super) fn outcomes_are_true(kit: &mut Kit<'_>) -> Result<(), Fault> {
    let sink = kit.open()?;
    for round in 0..8_u64 {
        let deliveries = kit.each("torn", 100);
        let flight = kit.start(&sink, &deliveries);
        std::thread::sleep(Duration::from_micros(round * round * 150));
        kit.harness.cut()?;
        let outcomes = kit.finish(flight)?;
        outcomes.iter().try_for_each(may_pass)?;
        kit.arrived(&Kit::acknowledged(&deliveries, &outcomes))?;
        kit.settle_all(&sink, deliveries.clone())?;
        kit.arrived(&deliveries.iter().collect::<Vec<_>>())?;
    }
    kit.close(&sink)
}

/// What is broken while events of many keys follow each other.
type Break = fn(&mut Kit<'_>) -> Able;

const BREAKS: &[Break] = &[
    |kit| kit.harness.cut(),
    |kit| {
        kit.harness.lose_answers()?;
        std::thread::sleep(kit.limits.attempt / 2);
        kit.harness.cut()?;
        kit.harness.heal();
        Ok(())
    },
    |kit| {
        kit.harness.freeze()?;
        std::thread::sleep(kit.limits.attempt * 3 / 2);
        kit.harness.heal();
        Ok(())
    },
    |kit| {
        kit.harness.stop()?;
        kit.harness.start();
        Ok(())
    },
];

pub(super) fn order_of_keys(kit: &mut Kit<'_>) -> Result<(), Fault> {
    const KEYS: usize = 12;
    let sink = kit.open()?;
    let mut waiting: Vec<Option<Delivery>> = vec![None; KEYS];
    let mut all = Vec::new();
    let mut broken = 0;
    for turn in 0..40_usize {
        // As walgate does it: the next event of a key once its predecessor is acknowledged, and until then that one.
        for (key, place) in waiting.iter_mut().enumerate() {
            if place.is_none() {
                *place = Some(kit.next(&format!("ordered-{key}")));
            }
        }
        let deliveries: Vec<Delivery> = waiting.iter().flatten().cloned().collect();
        let flight = kit.start(&sink, &deliveries);
        if turn % 4 == 3 {
            std::thread::sleep(Duration::from_micros(300 * (turn as u64 % 7)));
            if let Some(fault) = BREAKS.get(turn / 4 % BREAKS.len()) {
                broken += usize::from(fault(kit).is_ok());
            }
        }
        let outcomes = kit.finish(flight)?;
        outcomes.iter().try_for_each(may_pass)?;
        for (place, outcome) in waiting.iter_mut().zip(&outcomes) {
            if is_acknowledged(outcome) {
                all.extend(place.take());
            } else if let Some(delivery) = place {
                delivery.attempt += 1;
            }
        }
    }
    if broken == 0 {
        return Err(Fault::Skipped("the harness can break nothing"));
    }
    let rest: Vec<Delivery> = waiting.into_iter().flatten().collect();
    kit.settle_all(&sink, rest.clone())?;
    all.extend(rest);
    let received = kit.arrived(&all.iter().collect::<Vec<_>>())?;
    kit.in_order(&received)?;
    kit.close(&sink)
}

pub(super) fn lost_answer(kit: &mut Kit<'_>) -> Result<(), Fault> {
    let sink = kit.open()?;
    let first = kit.each("heard", 1);
    kit.settle_all(&sink, first)?;
    kit.harness.lose_answers()?;
    let deliveries = kit.each("unheard", 5);
    let outcomes = kit.attempt(&sink, &deliveries)?;
    if outcomes.iter().any(is_acknowledged) {
        return Err("an event was acknowledged though its answer was lost".to_owned().into());
    }
    outcomes.iter().try_for_each(may_pass)?;
    kit.harness.heal();
    kit.settle_all(&sink, deliveries.clone())?;
    // Under other ids the copies would be no repeats: the ids that the kit has sent are compared with their payloads.
    let received = kit.arrived(&deliveries.iter().collect::<Vec<_>>())?;
    kit.in_order(&received)?;
    kit.close(&sink)
}

pub(super) fn recovery(kit: &mut Kit<'_>) -> Result<(), Fault> {
    let sink = kit.open()?;
    let first = kit.each("before", 1);
    kit.settle_all(&sink, first)?;
    kit.harness.stop()?;
    let deliveries = kit.each("during", 3);
    // Long enough for a client's own pauses to grow.
    for _ in 0..8 {
        let outcomes = kit.attempt(&sink, &deliveries)?;
        if outcomes.iter().any(is_acknowledged) {
            return Err("an event was acknowledged while the receiver was down".to_owned().into());
        }
        outcomes.iter().try_for_each(may_pass)?;
        std::thread::sleep(Duration::from_millis(150));
    }
    check_fails(kit, &sink, SinkErrorKind::Retryable, "while the receiver is down")?;
    kit.harness.start();
    let within = kit.limits.recovery;
    kit.settle(&sink, deliveries.clone(), within)?;
    kit.arrived(&deliveries.iter().collect::<Vec<_>>())?;
    kit.close(&sink)
}

/// `check` must fail so; its text.
pub(super) fn check_fails(
    kit: &mut Kit<'_>,
    sink: &Arc<dyn DynSink>,
    kind: SinkErrorKind,
    when: &str,
) -> Result<String, Fault> {
    let limit = kit.limits.attempt * 3;
    let checked = kit.runtime.block_on(async { tokio::time::timeout(limit, sink.check()).await });
    match checked {
        Err(_) => Err(format!("`check` did not return within {limit:?} {when}").into()),
        Ok(Ok(())) => Err(format!("`check` passed {when}").into()),
        Ok(Err(error)) => {
            kit.texts.push(error.message.clone());
            if error.kind == kind {
                Ok(error.message)
            } else {
                Err(format!("`check` was {:?} {when}: {error}", error.kind).into())
            }
        }
    }
}

pub(super) fn dropped_future(kit: &mut Kit<'_>) -> Result<(), Fault> {
    let sink = kit.open()?;
    for round in 0..6_u64 {
        let deliveries = kit.each("dropped", 30);
        let flight = kit.start(&sink, &deliveries);
        std::thread::sleep(Duration::from_micros(round * round * 200));
        let outcomes = kit.drop_flight(flight);
        if let Some(outcome) = outcomes.iter().find(|outcome| matches!(outcome, Outcome::Rejected(_))) {
            return Err(format!("a dropped delivery was reported as {outcome:?}").into());
        }
        kit.arrived(&Kit::acknowledged(&deliveries, &outcomes))?;
        // No answer to what was dropped may be taken for an answer to these.
        let others = kit.each("next", 30);
        kit.settle_all(&sink, others.clone())?;
        kit.arrived(&others.iter().collect::<Vec<_>>())?;
        kit.settle_all(&sink, deliveries)?;
    }
    kit.close(&sink)
}
