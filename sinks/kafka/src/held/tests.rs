use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

fn identity(number: u8) -> Identity {
    Identity { position: (u64::from(number), 0), dedup_id: ByteString::from(format!("e{number}")) }
}

fn waiter(attempt: u64) -> Waiter {
    Waiter { attempt, index: 0 }
}

#[test]
fn a_delivery_that_comes_again_waits_for_the_same_record() {
    let mut held = Held::default();
    assert_eq!(held.take(identity(1), waiter(1)), Taken::Queue(0));
    held.leave(1);
    assert_eq!(held.take(identity(1), waiter(2)), Taken::Held);
    assert_eq!(held.settle(0, true), Some(waiter(2)));
    assert_eq!(held.len(), 0);
    assert_eq!(held.take(identity(1), waiter(3)), Taken::Queue(1), "a replay is a new record");
}

#[test]
fn an_acknowledgement_without_an_asker_is_kept_for_the_next_attempt_once() {
    let mut held = Held::default();
    held.take(identity(1), waiter(1));
    held.leave(1);
    assert_eq!(held.settle(0, true), None);
    assert_eq!(held.take(identity(1), waiter(2)), Taken::Acknowledged);
    assert_eq!(held.take(identity(1), waiter(2)), Taken::Queue(1));
}

#[test]
fn a_failure_without_an_asker_is_forgotten() {
    let mut held = Held::default();
    held.take(identity(1), waiter(1));
    held.leave(1);
    assert_eq!(held.settle(0, false), None);
    assert_eq!(held.take(identity(1), waiter(2)), Taken::Queue(1));
}

#[test]
fn g6_a_report_on_an_unknown_record_changes_nothing() {
    let mut held = Held::default();
    held.take(identity(1), waiter(1));
    assert_eq!(held.settle(77, true), None);
    assert_eq!(held.settle(0, true), Some(waiter(1)));
    assert_eq!(held.settle(0, true), None, "nor does a second one");
    assert_eq!(held.take(identity(1), waiter(2)), Taken::Queue(1));
}

#[test]
fn what_is_kept_is_bounded() {
    let mut held = Held::default();
    for number in 0..MAX_KEPT as u64 + 10 {
        let identity = Identity { position: (number, 0), dedup_id: "e".into() };
        held.take(identity, waiter(number));
        held.leave(number);
        held.settle(number, true);
    }
    assert_eq!((held.kept.len(), held.order.len()), (MAX_KEPT, MAX_KEPT));
    let first = Identity { position: (0, 0), dedup_id: "e".into() };
    assert!(matches!(held.take(first, waiter(0)), Taken::Queue(_)), "the oldest was forgotten");
}

#[derive(Clone, Debug)]
enum Step {
    Take(u8),
    Leave,
    Settle(u8, bool),
    Drain,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6_u8).prop_map(Step::Take),
        1 => Just(Step::Leave),
        3 => (0..6_u8, any::<bool>()).prop_map(|(number, acknowledged)| Step::Settle(number, acknowledged)),
        1 => Just(Step::Drain),
    ]
}

proptest! {
    /// Whatever happens, no record is queued while librdkafka holds one for the same delivery, and an acknowledgement is
    /// told exactly once.
    #[test]
    fn nothing_is_queued_twice(steps in prop::collection::vec(step(), 1..200)) {
        let mut held = Held::default();
        let mut attempt = 0;
        // By delivery: the sequence number under which librdkafka holds it, and whether somebody waits.
        let mut flying: HashMap<u8, (u64, bool)> = HashMap::new();
        let mut kept: HashSet<u8> = HashSet::new();
        for step in steps {
            match step {
                Step::Take(number) => match held.take(identity(number), Waiter { attempt, index: usize::from(number) }) {
                    Taken::Queue(sequence) => {
                        prop_assert!(!flying.contains_key(&number) && !kept.contains(&number));
                        flying.insert(number, (sequence, true));
                    }
                    Taken::Held => flying.get_mut(&number).expect("held").1 = true,
                    Taken::Acknowledged => prop_assert!(kept.remove(&number)),
                },
                Step::Leave => {
                    held.leave(attempt);
                    attempt += 1;
                    flying.values_mut().for_each(|(_, waited)| *waited = false);
                }
                Step::Settle(number, acknowledged) => {
                    let Some((sequence, waited)) = flying.remove(&number) else { continue };
                    let told = held.settle(sequence, acknowledged);
                    prop_assert_eq!(told.map(|waiter| waiter.index), waited.then_some(usize::from(number)));
                    if acknowledged && !waited {
                        kept.insert(number);
                    }
                }
                Step::Drain => {
                    let told: HashSet<usize> = held.drain().into_iter().map(|waiter| waiter.index).collect();
                    let waited = flying.drain().filter(|(_, (_, waited))| *waited).map(|(number, _)| usize::from(number));
                    prop_assert_eq!(told, waited.collect::<HashSet<_>>());
                }
            }
            prop_assert_eq!(held.len(), flying.len());
        }
    }
}
