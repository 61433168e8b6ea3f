//! C rows, through the command line: what is wrong is said with file and line, before anything is touched.

use crate::rig::Rig;
use crate::support::wait::DEADLINE;
use crate::support::walgate::{Ended, Setup, Walgate};

const SOUND: &str = "\
source:
  url: postgres://walgate@127.0.0.1:1/shop
sinks:
  out:
    stdout: {}
routes:
  - event_type: \"**\"
    to: out
";

fn check(text: &str) -> Ended {
    Walgate::command(&Setup::literal(text), &["check", "--config", "{config}"])
}

/// The sound file with one piece of it replaced.
fn with(piece: &str, by: &str) -> String {
    assert!(SOUND.contains(piece));
    SOUND.replace(piece, by)
}

#[test]
fn a_sound_file_passes_and_shows_its_routes() {
    let ended = check(SOUND);
    ended.expect(0, &["**", "out"]);
}

#[test]
fn c1_errors_of_form_are_refused_with_file_and_line() {
    let cases: [(&str, String, &[&str]); 6] = [
        ("a syntax error", with("    stdout: {}", "    stdout: {"), &["walgate.yaml:"]),
        ("a tab", with("    stdout: {}", "\tstdout: {}"), &["walgate.yaml:5"]),
        (
            "a duplicate key",
            with("  out:\n    stdout: {}\n", "  out:\n    stdout: {}\n  out:\n    stdout: {}\n"),
            &["walgate.yaml:6", "out"],
        ),
        ("an unknown key", with("source:\n", "source:\n  slott: walgate\n"), &["walgate.yaml:2", "slott", "`slot`"]),
        ("a wrong type", format!("{SOUND}limits:\n  inflight: [1]\n"), &["walgate.yaml:10", "inflight"]),
        ("an unknown kind", with("stdout: {}", "stdoutt: {}"), &["walgate.yaml:5", "stdoutt", "stdout"]),
    ];
    for (what, text, expected) in cases {
        let ended = check(&text);
        assert_eq!(ended.code, Some(2), "{what}: {}", ended.output());
        for part in expected {
            assert!(ended.output().contains(part), "{what}: {part:?} is not in:\n{}", ended.output());
        }
        // `run` says the same, and does not get as far as PostgreSQL.
        let ended = Walgate::run(&Setup::literal(text)).wait_for_end(DEADLINE);
        assert_eq!(ended.code, Some(2), "{what}: {}", ended.output());
    }
}

#[test]
fn c1_all_errors_are_told_at_once() {
    let text = with("source:\n", "source:\n  slott: walgate\n").replace("to: out", "to: nowhere");
    check(&format!("{text}limits:\n  inflight: many\n")).expect(2, &["slott", "inflight"]);
}

#[test]
fn c1_a_missing_file_is_named() {
    let ended = Walgate::command(&Setup::literal(SOUND), &["check", "--config", "/nowhere/walgate.yaml"]);
    ended.expect(2, &["/nowhere/walgate.yaml"]);
}

#[test]
fn c3_a_missing_variable_or_file_is_named_and_no_value_is_printed() {
    let text = with("walgate@127.0.0.1:1/shop", "walgate:${MISSING_PASSWORD}@127.0.0.1:1/shop");
    check(&text).expect(2, &["MISSING_PASSWORD", "walgate.yaml:2"]);
    let setup = Setup::literal(text).env("MISSING_PASSWORD", "canary-c3-value");
    let ended = Walgate::command(&setup, &["check", "--config", "{config}"]);
    ended.expect(0, &[]);
    assert!(!ended.output().contains("canary-c3-value"), "{}", ended.output());

    let text = with("source:\n", "source:\n  password_file: /nowhere/password\n");
    check(&text).expect(2, &["/nowhere/password"]);
}

#[test]
fn c4_a_route_to_nowhere_is_refused_and_useless_things_are_warned_of() {
    check(&with("to: out", "to: outt")).expect(2, &["walgate.yaml:8", "outt", "out"]);
    check(&with("  out:\n", "  idle:\n    discard: {}\n  out:\n")).expect(0, &["idle"]);
}

#[test]
fn c5_an_event_without_a_route_is_counted_and_logged_once_for_each_type() {
    let rig = Rig::new();
    let mut walgate = Walgate::run(&rig.source().webhook("hook", &rig.receiver).route("order.*", "hook"));
    for _ in 0..3 {
        rig.database.insert("stock.moved", "k", "{}");
    }
    let last = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &last);
    assert_eq!(rig.receiver.ids(), [last]);
    let lines = walgate.stderr().lines().filter(|line| line.contains("stock.moved")).count();
    assert_eq!(lines, 1, "{}", walgate.stderr());
    assert_eq!(walgate.metric("walgate_discarded_events_total", &[]), Some(3.0));
}

#[test]
fn c5_an_event_without_a_route_halts_where_the_configuration_says_so() {
    let rig = Rig::new();
    let setup = rig.source().webhook("hook", &rig.receiver).route("order.*", "hook").more("unrouted: halt");
    let mut walgate = Walgate::run(&setup);
    let first = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &first);
    let halted = rig.database.insert("stock.moved", "k", "{}");
    walgate.wait_log(&["stock.moved"]);
    let behind = rig.insert("k");
    crate::support::wait::watch_for(std::time::Duration::from_millis(1500));
    rig.assert_not_passed(&halted);

    // A route for it lets everything go on.
    rig.kill(&mut walgate);
    let mut walgate = rig.run();
    rig.wait_confirmed(&mut walgate, &behind);
    rig.assert_all();
}

/// The blocks of YAML in a document that are whole configurations.
fn configurations(document: &str) -> Vec<String> {
    let blocks = document.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let whole = |block: &&str| ["\nsinks:", "\nroutes:"].iter().all(|key| format!("\n{block}").contains(key));
    blocks.filter(whole).map(str::to_owned).collect()
}

#[cfg(all(feature = "kafka", feature = "nats", feature = "rabbitmq", feature = "sqs", feature = "webhook"))]
#[test]
fn the_configurations_in_the_documents_load() {
    let password = crate::support::processes::folder("password").join("secret");
    std::fs::write(&password, "hunter2-hunter2").expect("a password file");
    std::fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("its mode");
    let documents = [
        ("README.md", include_str!("../../README.md")),
        ("sinks/kafka", include_str!("../../sinks/kafka/README.md")),
        ("sinks/nats", include_str!("../../sinks/nats/README.md")),
        ("sinks/rabbitmq", include_str!("../../sinks/rabbitmq/README.md")),
        ("sinks/sqs", include_str!("../../sinks/sqs/README.md")),
        ("sinks/webhook", include_str!("../../sinks/webhook/README.md")),
        ("sinks/stdout", include_str!("../../sinks/stdout/README.md")),
        ("sinks/discard", include_str!("../../sinks/discard/README.md")),
    ];
    let mut checked = 0;
    for (name, document) in documents {
        for block in configurations(document) {
            let secret = password.to_str().expect("a plain path");
            let text =
                block.replace("creds_file: /run/secrets/walgate.creds", "token: x").replace("walgate.password", secret);
            let setup = Setup::literal(text).env("PARTNER_SECRET", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD");
            let ended = Walgate::command(&setup, &["check", "--config", "{config}"]);
            assert_eq!(ended.code, Some(0), "{name}:\n{block}\n{}", ended.output());
            checked += 1;
        }
    }
    assert!(checked >= 6, "{checked} configurations");
}
