//! A sound sink passes; each planted mistake is found, by the checks that are there for it.

use super::*;

mod world;

use world::{PlantedFactory, World};

fn limits() -> Limits {
    let millis = std::time::Duration::from_millis;
    Limits { attempt: millis(150), settle: millis(5000), readable: millis(500), ..Limits::default() }
}

#[track_caller]
fn assert_caught(plant: &str, by: &str) {
    let report = run_with::<PlantedFactory>(&mut World::new(plant), limits());
    assert!(report.failed().contains(&by), "{plant} is not caught by `{by}`:\n{report}");
}

#[test]
fn a_sound_sink_passes_every_check() {
    let report = run_with::<PlantedFactory>(&mut World::new("none"), limits());
    report.assert_passed();
    let passed = report.verdicts().iter().filter(|verdict| verdict.kind == VerdictKind::Passed).count();
    assert_eq!(passed, report.verdicts().len(), "nothing is skipped: {report}");
}

/// A sink with this mistake is caught by this check.
macro_rules! planted {
    ($($name:ident: $plant:literal, $by:literal;)*) => {
        $(#[test]
        fn $name() {
            assert_caught($plant, $by);
        })*
    };
}

planted! {
    acknowledges_on_send: "acknowledges on send", "nothing is acknowledged before the receiver has said so";
    loses_the_tail_of_a_batch: "loses the tail of a batch", "acknowledged means readable";
    reorders_a_key_after_a_reconnect: "reorders a key after a reconnect", "receipts of a key never skip forward, whatever breaks";
    reports_a_dead_connection_as_rejected: "reports a dead connection as rejected", "a broken link may pass, and is recovered from in time";
    leaks_its_password: "leaks its password", "no secret is in any text";
    changes_the_id_of_a_repeat: "changes the id of a repeat", "a lost answer is followed by a repeat with the same id";
    cuts_long_payloads: "cuts long payloads", "empty, odd and large payloads arrive whole";
    waits_for_ever: "waits for ever", "silence ends with the attempt's time";
    recovers_too_late: "recovers too late", "a broken link may pass, and is recovered from in time";
    works_after_close: "works after close", "close flushes, and may come twice";
    takes_any_key: "takes any key", "unknown configuration keys are refused";
    turns_batches_round: "turns batches round", "events of a batch arrive in its order";
    takes_an_answer_for_another: "takes an answer for another", "a dropped future leaves the sink usable";
    blames_nobody: "blames nobody", "bad credentials are fatal, and named";
}

#[test]
#[should_panic(expected = "fails")]
fn a_failed_check_fails_the_test() {
    run_with::<PlantedFactory>(&mut World::new("leaks its password"), limits()).assert_passed();
}

#[test]
fn what_the_harness_cannot_do_is_skipped_with_its_reason() {
    let mut world = World::new("none");
    world.rigid = true;
    let report = run_with::<PlantedFactory>(&mut world, limits());
    assert!(report.failed().is_empty(), "{report}");
    let skipped = VerdictKind::Skipped("nothing can be broken here".to_owned());
    assert!(report.verdicts().iter().any(|verdict| verdict.kind == skipped), "{report}");
    assert!(report.to_string().contains("skipped  silence ends"), "{report}");
}
