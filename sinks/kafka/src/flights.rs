//! Attempts that are under way, and the reports on the records that they wait for.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rdkafka::error::RDKafkaErrorCode;
use tokio::sync::Notify;
use walgate_sink::DeliveryReport;

use crate::held::{Held, Identity, Taken, Waiter};

/// Every attempt of a sink, and what librdkafka holds.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: Held,
    next: u64,
    open: HashMap<u64, Open>,
}

#[derive(Debug)]
struct Open {
    report: DeliveryReport,
    waiting: usize,
    acknowledged: usize,
    faults: Vec<(usize, RDKafkaErrorCode)>,
    changed: Arc<Notify>,
}

/// One attempt. When it is dropped, nobody waits any more for what it waited for; librdkafka holds it all the same.
#[derive(Debug)]
pub(crate) struct Flight {
    flights: Arc<Flights>,
    number: u64,
    changed: Arc<Notify>,
}

impl Flights {
    /// Begins an attempt. Acknowledgements are marked in `report`, from whatever thread they come.
    pub(crate) fn open(self: &Arc<Self>, report: &DeliveryReport) -> Flight {
        let changed = Arc::new(Notify::new());
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        let open = Open {
            report: report.clone(),
            waiting: 0,
            acknowledged: 0,
            faults: Vec::new(),
            changed: Arc::clone(&changed),
        };
        state.open.insert(number, open);
        Flight { flights: Arc::clone(self), number, changed }
    }

    /// The report on a record: acknowledged, or why not.
    pub(crate) fn reported(&self, sequence: u64, outcome: Result<(), RDKafkaErrorCode>) {
        let mut state = self.lock();
        if let Some(waiter) = state.held.settle(sequence, outcome.is_ok()) {
            state.tell(waiter, outcome);
        }
    }

    /// The client has gone, with all that it held.
    pub(crate) fn lost(&self) {
        let mut state = self.lock();
        for waiter in state.held.drain() {
            state.tell(waiter, Err(RDKafkaErrorCode::PurgeInflight));
        }
    }

    /// Records that librdkafka holds.
    pub(crate) fn held(&self) -> usize {
        self.lock().held.len()
    }

    // Whoever panicked with the lock left a state that is whole: each change is one step.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tell(&mut self, waiter: Waiter, outcome: Result<(), RDKafkaErrorCode>) {
        let Some(open) = self.open.get_mut(&waiter.attempt) else { return };
        open.waiting = open.waiting.saturating_sub(1);
        let is_fault = outcome.is_err();
        match outcome {
            Ok(()) => {
                open.acknowledged += 1;
                open.report.acknowledged(waiter.index);
            }
            Err(code) => open.faults.push((waiter.index, code)),
        }
        if open.waiting == 0 || is_fault {
            open.changed.notify_one();
        }
    }
}

impl Flight {
    /// Asks what is to be done about the delivery at this place of the batch; `Some`: it is to be queued under this
    /// sequence number, and counts as waited for.
    pub(crate) fn take(&self, identity: Identity, index: usize) -> Option<u64> {
        let mut state = self.flights.lock();
        let taken = state.held.take(identity, Waiter { attempt: self.number, index });
        let open = state.open.get_mut(&self.number)?;
        match taken {
            Taken::Queue(sequence) => {
                open.waiting += 1;
                Some(sequence)
            }
            Taken::Held => {
                open.waiting += 1;
                None
            }
            Taken::Acknowledged => {
                open.acknowledged += 1;
                open.report.acknowledged(index);
                None
            }
        }
    }

    /// The record was not queued after all.
    pub(crate) fn unqueued(&self, sequence: u64) {
        let mut state = self.flights.lock();
        state.held.unqueued(sequence);
        if let Some(open) = state.open.get_mut(&self.number) {
            open.waiting = open.waiting.saturating_sub(1);
        }
    }

    /// Records that are waited for.
    pub(crate) fn waiting(&self) -> usize {
        self.flights.lock().open.get(&self.number).map_or(0, |open| open.waiting)
    }

    /// Records that were acknowledged so far.
    pub(crate) fn acknowledged(&self) -> usize {
        self.flights.lock().open.get(&self.number).map_or(0, |open| open.acknowledged)
    }

    /// Takes the records that were not accepted, and why.
    pub(crate) fn faults(&self) -> Vec<(usize, RDKafkaErrorCode)> {
        let mut state = self.flights.lock();
        state.open.get_mut(&self.number).map(|open| std::mem::take(&mut open.faults)).unwrap_or_default()
    }

    /// Waits until everything is known, or a record was not accepted. Cancel safe.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut state = self.flights.lock();
        if state.open.remove(&self.number).is_some_and(|open| open.waiting > 0) {
            state.held.leave(self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use walgate_sink::{Delivery, Event, Lsn, Outcome, Position, Target};

    use super::*;

    fn identity(number: u64) -> Identity {
        let mut event = Event::new(format!("e{number}"), "a");
        event.position = Position { commit_lsn: Lsn(number), ordinal: 0 };
        Identity::of(&Delivery {
            dedup_id: event.id.clone(),
            event,
            target: Target::new(&[], []),
            ordering_key: None,
            attempt: 1,
        })
    }

    #[test]
    fn g7_reports_in_any_order_and_in_bulk_count_for_their_own_delivery() {
        let (flights, report) = (Arc::new(Flights::default()), DeliveryReport::new(6));
        let flight = flights.open(&report);
        let sequences: Vec<u64> = (0..6).map(|index| flight.take(identity(index as u64), index).unwrap()).collect();
        let known = |report: &DeliveryReport| -> Vec<usize> {
            let outcomes = report.outcomes().into_iter().enumerate();
            outcomes.filter(|(_, outcome)| *outcome != Outcome::Unknown).map(|(index, _)| index).collect()
        };
        flights.reported(sequences[4], Ok(()));
        assert_eq!((known(&report), flight.waiting()), (vec![4], 5));
        // The same again, and one that nobody has sent, count for nothing.
        flights.reported(sequences[4], Ok(()));
        flights.reported(77, Ok(()));
        assert_eq!((known(&report), flight.waiting()), (vec![4], 5));
        flights.reported(sequences[1], Err(RDKafkaErrorCode::MessageSizeTooLarge));
        for sequence in [5, 3, 2, 0] {
            flights.reported(sequences[sequence], Ok(()));
        }
        assert_eq!((known(&report), flight.waiting()), (vec![0, 2, 3, 4, 5], 0));
        assert_eq!(flight.faults(), [(1, RDKafkaErrorCode::MessageSizeTooLarge)]);
        assert_eq!(flight.acknowledged(), 5);
    }

    #[test]
    fn what_comes_when_an_attempt_is_over_is_kept_for_the_next() {
        let (flights, first, second) = (Arc::new(Flights::default()), DeliveryReport::new(1), DeliveryReport::new(1));
        let flight = flights.open(&first);
        let sequence = flight.take(identity(1), 0).unwrap();
        drop(flight);
        flights.reported(sequence, Ok(()));
        assert_eq!(first.outcomes(), [Outcome::Unknown], "its attempt was over");
        let flight = flights.open(&second);
        assert_eq!(flight.take(identity(1), 0), None);
        assert_eq!(second.outcomes(), [Outcome::Acknowledged { duplicate: false }]);
        assert_eq!((flight.waiting(), flights.held()), (0, 0));
    }
}
