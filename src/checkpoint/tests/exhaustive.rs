//! Every small case: four events on two sinks, every split into transactions, every subset of routes that matters, and
//! every order in which their deliveries settle between the messages of the stream.
//!
//! The ring knows neither sinks nor keys, only how many deliveries an event has; all orders of settling therefore
//! contain those that lanes with two keys (or one, or four) can produce. States that two orders reach alike are
//! explored once.

use std::collections::HashSet;

use walgate_sink::Lsn;

use super::super::{Ring, Settled, Ticket};
use super::model::{EventNumber, Model};
use super::{deliveries, lsn};

const EVENTS: usize = 4;

#[derive(Clone, Copy, Debug)]
enum Step {
    Begin(Lsn),
    /// A row with so many deliveries; none if no rule routes it.
    Row(u32),
    Commit(Lsn),
    Abandon,
}

#[derive(Clone)]
struct State {
    done: usize,
    ring: Ring,
    model: Model,
    events: Vec<(Ticket, EventNumber, u32)>,
    keepalives: u32,
}

/// The same to all that comes after.
type Likeness = (usize, Vec<u32>, u32, Lsn, Vec<(Lsn, u64, Option<Lsn>)>);

impl State {
    fn likeness(&self) -> Likeness {
        let remaining = self.events.iter().map(|event| event.2).collect();
        (self.done, remaining, self.keepalives, self.ring.flush_lsn(), self.ring.shape())
    }

    fn step(&mut self, step: Step) {
        self.done += 1;
        match step {
            Step::Begin(commit_lsn) => {
                self.ring.begin(commit_lsn);
                self.model.begin(commit_lsn);
            }
            Step::Row(0) => {}
            Step::Row(count) => {
                let ticket = self.ring.track(deliveries(count), 1);
                self.events.push((ticket, self.model.track(deliveries(count), 1), count));
            }
            Step::Commit(end) => {
                self.ring.commit(end);
                self.model.commit(end);
            }
            Step::Abandon => {
                self.ring.abandon();
                self.model.abandon();
            }
        }
    }

    fn settle(&mut self, index: usize) -> Settled {
        let (ticket, number, remaining) = &mut self.events[index];
        *remaining = remaining.saturating_sub(1);
        let settled = self.ring.settle(*ticket);
        assert_eq!(settled, self.model.settle(*number));
        settled
    }

    /// Between transactions the server's WAL end is at most where the next commit record starts; where the ring must
    /// not believe it, it may be anything.
    fn keepalive(&mut self, program: &[Step]) {
        self.keepalives += 1;
        let wal_end = match program.get(self.done) {
            Some(Step::Begin(commit_lsn)) if self.model.is_idle() => *commit_lsn,
            None => lsn(10_000),
            Some(_) => lsn(20_000),
        };
        self.ring.keepalive(wal_end);
        self.model.keepalive(wal_end);
    }
}

/// Visits every state that the program can reach, and returns how many there are.
fn explore(program: &[Step]) -> usize {
    let start =
        State { done: 0, ring: Ring::new(lsn(10)), model: Model::new(lsn(10)), events: Vec::new(), keepalives: 0 };
    let mut seen = HashSet::from([start.likeness()]);
    let mut open = vec![start];
    while let Some(state) = open.pop() {
        state.model.compare(&state.ring);
        let mut successors = Vec::new();
        if let Some(step) = program.get(state.done) {
            let mut next = state.clone();
            next.step(*step);
            successors.push(next);
        }
        for index in 0..state.events.len() {
            let mut next = state.clone();
            if next.settle(index) == Settled::Stale {
                assert_eq!(next.likeness(), state.likeness(), "a stale ticket changes nothing");
            } else {
                successors.push(next);
            }
        }
        if state.keepalives == 0 {
            let mut next = state.clone();
            next.keepalive(program);
            successors.push(next);
        }
        let finished = state.done == program.len() && state.events.iter().all(|event| event.2 == 0);
        if let (true, Some(Step::Commit(end))) = (finished, program.last()) {
            assert!(state.ring.is_idle());
            assert!(state.ring.flush_lsn() >= *end, "all is settled, and {end} is not confirmed");
        }
        for next in successors {
            assert!(next.ring.flush_lsn() >= state.ring.flush_lsn(), "the flush LSN fell");
            if seen.insert(next.likeness()) {
                open.push(next);
            }
        }
    }
    seen.len()
}

/// The lengths of the transactions, for every way to cut four events into transactions.
fn splits() -> Vec<Vec<usize>> {
    (0..1u32 << (EVENTS - 1))
        .map(|cuts| {
            let mut lengths = vec![1];
            for event in 1..EVENTS {
                match lengths.last_mut() {
                    Some(last) if cuts & (1 << (event - 1)) == 0 => *last += 1,
                    _ => lengths.push(1),
                }
            }
            lengths
        })
        .collect()
}

/// The stream of one split. With `abandoned`, that transaction is given up after so many rows, and then sent again.
fn program(split: &[usize], routes: [u32; EVENTS], abandoned: Option<(usize, usize)>) -> Vec<Step> {
    let mut rows = routes.as_slice();
    let mut steps = Vec::new();
    for (number, length) in split.iter().enumerate() {
        let (own, rest) = rows.split_at(*length);
        rows = rest;
        let commit_lsn = lsn(100 * (number as u64 + 1));
        // Every other commit record ends exactly where the next one starts.
        let end = lsn(commit_lsn.0 + if number % 2 == 0 { 100 } else { 50 });
        if let Some((_, taken)) = abandoned.filter(|(which, _)| *which == number) {
            steps.push(Step::Begin(commit_lsn));
            steps.extend(own[..taken].iter().map(|count| Step::Row(*count)));
            steps.push(Step::Abandon);
        }
        steps.push(Step::Begin(commit_lsn));
        steps.extend(own.iter().map(|count| Step::Row(*count)));
        steps.push(Step::Commit(end));
    }
    steps
}

#[test]
fn every_order_of_settling_four_events_on_two_sinks() {
    let mut states = 0;
    for split in splits() {
        for pattern in 0..3u32.pow(EVENTS as u32) {
            let routes = std::array::from_fn(|event| pattern / 3u32.pow(event as u32) % 3);
            states += explore(&program(&split, routes, None));
        }
    }
    assert!(states > 50_000, "only {states} states were reached");
}

#[test]
fn every_order_of_settling_with_one_transaction_taken_twice() {
    let mut states = 0;
    for split in splits() {
        for (which, length) in split.iter().enumerate() {
            for taken in 0..=*length {
                for routes in [[1, 1, 1, 1], [2, 1, 0, 2]] {
                    states += explore(&program(&split, routes, Some((which, taken))));
                }
            }
        }
    }
    assert!(states > 10_000, "only {states} states were reached");
}
