//! K1, K4: brokers and links that break under load, and a broker that has forgotten what it took.

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::{
    assert_flushes, assert_passed_are_stored, assert_stored, count, insert, kept, strict, to_topic, wait_sent,
};
use crate::rig::Rig;
use crate::support::kafka::Kafka;
use crate::support::processes;
use crate::support::wait::watch_for;
use crate::support::walgate::Walgate;

#[test]
fn k1_a_broker_that_is_killed_stopped_or_frozen_loses_nothing_and_no_key_skips_forward() {
    let (rig, kafka) = (Rig::new(), Kafka::start());
    let topic = kafka.topic(3);
    let mut walgate = Walgate::run(&to_topic(&rig, kafka.port(), &topic, ""));
    for round in 0..3 {
        insert(&rig, round * 2000, (round + 1) * 2000, 40);
        // Only looked at while it is there: a frozen broker does not answer the test either.
        let mut wire = kafka.wire();
        walgate.eventually("some of it is stored", || count(&mut wire, &topic) >= round * 2001 + 200);
        match round {
            0 => kafka.kill9(),
            1 => kafka.stop(),
            _ => kafka.freeze(),
        }
        let waits = rig.insert("k0");
        wait_sent(&rig, &mut walgate, &waits);
        // Longer than an attempt.
        watch_for(Duration::from_millis(2500));
        rig.assert_not_passed(&waits);
        let flush = rig.witness.flush();
        if round < 2 {
            kafka.start_again();
        } else {
            kafka.thaw();
        }
        assert_passed_are_stored(&rig, flush, &kafka.wire().read_all(&topic));
    }
    let last = rig.insert("k0");
    rig.wait_confirmed(&mut walgate, &last);
    let repeats = assert_stored(&rig.committed(), &kafka.wire().read_all(&topic));
    eprintln!("{repeats} repeats");
    assert_flushes(&rig);
}

#[test]
fn k1_links_that_break_and_answers_that_never_come_let_no_key_skip_forward() {
    let (rig, kafka) = (Rig::new(), strict());
    let (topic, proxy) = (kafka.topic(3), kafka.proxy());
    let mut wire = kafka.wire();
    let mut walgate = Walgate::run(&to_topic(&rig, proxy.port(), &topic, ""));
    for round in 0..10 {
        insert(&rig, round * 300, (round + 1) * 300, 15);
        let before = count(&mut wire, &topic);
        match round % 5 {
            // Written, and nobody hears of it.
            0 => {
                proxy.drop_replies(true);
                let waits = rig.insert("k0");
                wait_sent(&rig, &mut walgate, &waits);
                walgate.eventually("the proxy has thrown something away", || proxy.dropped_bytes() > 0);
                watch_for(Duration::from_millis(2500));
                rig.assert_not_passed(&waits);
                proxy.drop_replies(false);
            }
            1 => proxy.cut(),
            // What was sent is held up, and comes out when the black hole ends: after the next connection's, perhaps.
            2 => {
                proxy.black_hole(true);
                let waits = rig.insert("k0");
                wait_sent(&rig, &mut walgate, &waits);
                watch_for(Duration::from_millis(2500));
                rig.assert_not_passed(&waits);
                proxy.black_hole(false);
            }
            3 => proxy.reset(),
            _ => {
                proxy.refuse();
                proxy.cut();
                watch_for(Duration::from_millis(300));
                proxy.accept();
            }
        }
        let wanted = (before + 20).min((round + 1) * 300);
        walgate.eventually("it goes on", || count(&mut wire, &topic) >= wanted);
        let flush = rig.witness.flush();
        assert_passed_are_stored(&rig, flush, &wire.read_all(&topic));
    }
    let last = rig.insert("k0");
    rig.wait_confirmed(&mut walgate, &last);
    let repeats = assert_stored(&rig.committed(), &wire.read_all(&topic));
    eprintln!("{repeats} repeats");
    assert_flushes(&rig);
    walgate.wait_log(&["did not acknowledge a record within 2s"]);
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status().expect("cp");
    assert!(status.success(), "cp {from:?} {to:?}");
}

/// The numbers of an idempotent producer no longer fit what the broker has: the one fatal error that a real broker can be
/// brought to. The mock cluster in `sinks/kafka` plays the others.
#[test]
fn k4_a_broker_whose_disk_was_set_back_takes_what_follows_from_a_new_producer() {
    let (rig, kafka) = (Rig::new(), Kafka::start());
    let topic = kafka.topic(1);
    let mut walgate = Walgate::run(&to_topic(&rig, kafka.port(), &topic, ""));
    let mut deliver = |rig: &Rig| {
        insert(rig, 0, 300, 10);
        let last = rig.insert("k0");
        rig.wait_confirmed(&mut walgate, &last);
        count(&mut kafka.wire(), &topic)
    };
    assert_eq!(deliver(&rig), 301);
    let (partition, saved) = (kafka.partition(&topic, 0), processes::folder("saved").join("partition"));
    kafka.stop();
    copy(&partition, &saved);
    kafka.start_again();
    assert_eq!(deliver(&rig), 602);
    let lost: HashSet<String> =
        kafka.wire().read_all(&topic).split_off(301).iter().map(|record| record.id().to_owned()).collect();
    kafka.stop();
    std::fs::remove_dir_all(&partition).expect("the partition's folder");
    copy(&saved, &partition);
    kafka.start_again();
    deliver(&rig);
    let stored = kafka.wire().read_all(&topic);
    let producers: HashSet<Option<(i64, i16)>> = stored.iter().map(|record| record.producer).collect();
    assert_eq!(producers.len(), 2, "{producers:?}");
    let repeats = assert_stored(&kept(rig.committed(), |event| !lost.contains(&event.id)), &stored);
    eprintln!("{repeats} repeats");
    walgate.wait_log(&[&format!("topic `{topic}`"), "OutOfOrderSequenceNumber", "it is sent again"]);
}
