//! `walgate test`: given these events, expect those deliveries.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::PathBuf,
};

use anstyle::{AnsiColor, Style};
use bytes::Bytes;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    ConfigArgs, setup,
    simulate::{DeliveryView, Given, Outcome, Simulator},
};
use crate::{
    config::{self, ConfigErrors, Document, FileSource, KeyPath, OneOrMany, RouteTarget, printable},
    error::ExitStatus,
    registry::Registry,
    router::Verdict,
};

/// Arguments of `walgate test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Files with tests, such as routes.test.yaml.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// A file of tests.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Suite {
    tests: Vec<Case>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    event: CaseEvent,
    /// `unrouted`, or deliveries: a sink's name, or a mapping of `sink` and what else is to be looked at.
    expect: OneOrMany<RouteTarget>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseEvent {
    event_type: String,
    id: Option<String>,
    key: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    columns: BTreeMap<String, Option<String>>,
    /// A text as it is; anything else as JSON.
    payload: Option<Value>,
}

/// What a test that expects no delivery expects.
const UNROUTED: &str = "unrouted";
/// What can be expected of a delivery beside its target's fields.
const OTHERS: [&str; 2] = ["ordering_key", "rejected"];

/// How one test went.
#[derive(Debug, Serialize)]
struct Verdicts {
    file: String,
    name: String,
    place: String,
    passed: bool,
    /// Expected, and not there.
    missing: Vec<String>,
    /// There, and not expected.
    unexpected: Vec<String>,
    /// Routes that might have been meant, and why they do not apply; rejections.
    why: Vec<String>,
}

/// Exit status 0: all passed; 1: some failed; 2: the configuration or a file of tests is wrong.
pub fn run(args: &TestArgs, registry: &Registry) -> ExitStatus {
    let loaded = match setup::load(&args.config, registry) {
        Ok(loaded) => loaded,
        Err(status) => return status,
    };
    let mut simulator = match Simulator::new(&loaded) {
        Ok(simulator) => simulator,
        Err(errors) => return setup::refuse(&errors),
    };
    let mut verdicts = Vec::new();
    let mut faulty = false;
    for file in &args.files {
        match run_file(&FileSource::Path(file.clone()), &mut simulator) {
            Ok(file) => verdicts.extend(file),
            Err(errors) => {
                faulty = true;
                setup::refuse(&errors);
            }
        }
    }
    if faulty {
        return ExitStatus::Configuration;
    }
    let mut out = anstream::stdout();
    let passed = verdicts.iter().filter(|verdict| verdict.passed).count();
    let failed = verdicts.len() - passed;
    let printed = if args.json {
        writeln!(out, "{:#}", json!({ "passed": passed, "failed": failed, "tests": verdicts }))
    } else {
        text(&verdicts, &mut out).and_then(|()| writeln!(out, "{passed} passed, {failed} failed"))
    };
    if printed.is_ok() && failed == 0 { ExitStatus::Ok } else { ExitStatus::Runtime }
}

fn run_file(file: &FileSource, simulator: &mut Simulator) -> Result<Vec<Verdicts>, ConfigErrors> {
    let document: Document<Suite> = config::read_document(file, "test")?;
    let mut errors = document.errors();
    if document.value.tests.is_empty() {
        errors.push_at("tests", "the list of tests is empty");
    }
    let mut verdicts = Vec::new();
    for (index, case) in document.value.tests.iter().enumerate() {
        let path = KeyPath::root().key("tests").index(index);
        let expected = match expected(case, &path, simulator, &mut errors) {
            Some(expected) => expected,
            None => continue,
        };
        match simulator.run(&given(&case.event)) {
            Ok(outcome) => {
                let file = match file {
                    FileSource::Path(path) => path.display().to_string(),
                    FileSource::Text(name, _) => name.clone(),
                    FileSource::None => String::new(),
                };
                verdicts.push(judge(file, case, document.locate(&path), expected, &outcome));
            }
            Err(error) => {
                let path = path.key("event").key(error.part);
                errors.push_at(error.name.map_or(path.clone(), |name| path.key(name)), error.message);
            }
        }
    }
    errors.or(verdicts)
}

fn given(event: &CaseEvent) -> Given {
    Given {
        event_type: event.event_type.clone(),
        id: event.id.clone(),
        key: event.key.clone(),
        headers: event.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        columns: event.columns.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        payload: event.payload.as_ref().map(|payload| match payload {
            Value::String(text) => Bytes::from(text.clone()),
            other => Bytes::from(other.to_string()),
        }),
    }
}

/// The deliveries that are expected; `None`: something is wrong with them, and was reported.
fn expected<'a>(
    case: &'a Case,
    path: &KeyPath,
    simulator: &Simulator,
    errors: &mut ConfigErrors,
) -> Option<&'a [RouteTarget]> {
    let path = path.key("expect");
    if let [only] = &case.expect.0[..]
        && only.sink == UNROUTED
        && only.fields.is_empty()
        && !simulator.sinks.iter().any(|sink| sink.name == UNROUTED)
    {
        return Some(&[]);
    }
    let before = errors.len();
    if case.expect.0.is_empty() {
        errors
            .push_at(path.clone(), format!("the list is empty: write `expect: {UNROUTED}` where nothing is delivered"));
    }
    for (index, target) in case.expect.0.iter().enumerate() {
        let path = path.index(index);
        let names: Vec<&str> = simulator.sinks.iter().map(|sink| &*sink.name).collect();
        let Some(sink) = simulator.sinks.iter().find(|sink| sink.name == target.sink) else {
            let shown = printable(&target.sink, 60);
            errors.push_at(path, format!("unknown sink `{shown}`: the sinks are {}", names.join(", ")));
            continue;
        };
        for (key, _) in &target.fields {
            if !OTHERS.contains(&key.as_str()) && !sink.fields.contains(&key.as_str()) {
                let known: Vec<&str> = sink.fields.iter().copied().chain(OTHERS).collect();
                let shown = printable(key, 60);
                let message = format!(
                    "nothing of a delivery to sink `{}` is called `{shown}`: there are {}",
                    sink.name,
                    known.join(", ")
                );
                errors.push_at(path.key(key), message);
            }
        }
    }
    (errors.len() == before).then_some(&case.expect.0)
}

fn judge(file: String, case: &Case, place: String, expected: &[RouteTarget], outcome: &Outcome) -> Verdicts {
    let paired = pair(expected, &outcome.deliveries);
    let missing: Vec<&RouteTarget> = expected
        .iter()
        .enumerate()
        .filter(|(index, _)| !paired.contains(&Some(*index)))
        .map(|(_, target)| target)
        .collect();
    let unexpected: Vec<&DeliveryView> = outcome
        .deliveries
        .iter()
        .zip(&paired)
        .filter(|(_, pair)| pair.is_none())
        .map(|(delivery, _)| delivery)
        .collect();
    let passed = missing.is_empty() && unexpected.is_empty();
    let mut why = Vec::new();
    if !passed {
        why.extend(outcome.unusable.iter().map(|reason| format!("the row is no event: {reason}")));
        for answer in &outcome.routes {
            let near = match answer.verdict.verdict {
                Verdict::Matched { .. } => unexpected.iter().any(|delivery| delivery.route == answer.verdict.route),
                Verdict::ConditionFailed { .. } => true,
                Verdict::OtherType => missing.iter().any(|target| answer.verdict.sinks.contains(&target.sink)),
            };
            if near {
                why.push(format!("routes[{}] ({}): {}", answer.verdict.route, answer.place, answer.reason()));
            }
        }
        let rejected = unexpected.iter().filter_map(|delivery| delivery.rejected.as_ref());
        why.extend(rejected.map(|rejected| printable(&rejected.message, 300)));
    }
    Verdicts {
        file,
        name: case.name.clone(),
        place,
        passed,
        missing: missing.into_iter().map(line).collect(),
        unexpected: unexpected.into_iter().map(DeliveryView::line).collect(),
        why,
    }
}

/// For each delivery the expectation that it fulfils, so that as many as possible have one: a bipartite matching by
/// augmenting paths, since an expectation may fit several deliveries.
fn pair(expected: &[RouteTarget], deliveries: &[DeliveryView]) -> Vec<Option<usize>> {
    fn augment(
        wanted: usize,
        fits: &dyn Fn(usize, usize) -> bool,
        seen: &mut [bool],
        paired: &mut [Option<usize>],
    ) -> bool {
        for delivery in 0..paired.len() {
            if !fits(wanted, delivery) || seen.get(delivery).copied().unwrap_or(true) {
                continue;
            }
            if let Some(seen) = seen.get_mut(delivery) {
                *seen = true;
            }
            let other = paired.get(delivery).copied().flatten();
            if other.is_none_or(|other| augment(other, fits, seen, paired)) {
                if let Some(pair) = paired.get_mut(delivery) {
                    *pair = Some(wanted);
                }
                return true;
            }
        }
        false
    }
    let fits = |wanted: usize, delivery: usize| {
        expected.get(wanted).zip(deliveries.get(delivery)).is_some_and(|(wanted, delivery)| is(wanted, delivery))
    };
    let mut paired = vec![None; deliveries.len()];
    for wanted in 0..expected.len() {
        let mut seen = vec![false; deliveries.len()];
        augment(wanted, &fits, &mut seen, &mut paired);
    }
    paired
}

/// Whether a delivery is as it is expected: what is not named is not looked at, but for a rejection.
fn is(wanted: &RouteTarget, delivery: &DeliveryView) -> bool {
    let rejected = delivery.rejected.as_ref().map(|rejected| &*rejected.reason);
    let wants_rejected = wanted.fields.iter().find(|(key, _)| key == "rejected").map(|(_, reason)| &**reason);
    wanted.sink == delivery.sink
        && rejected == wants_rejected
        && wanted.fields.iter().all(|(key, value)| match key.as_str() {
            "rejected" => true,
            "ordering_key" => delivery.ordering_key.as_deref() == Some(value),
            key => delivery.target.get(key).and_then(Value::as_str) == Some(value),
        })
}

fn line(target: &RouteTarget) -> String {
    let fields = target.fields.iter().map(|(key, value)| format!(" {key}={}", printable(value, 200)));
    format!("{}{}", target.sink, fields.collect::<String>())
}

fn text(verdicts: &[Verdicts], out: &mut dyn Write) -> io::Result<()> {
    let (green, red): (Style, Style) = (AnsiColor::Green.on_default(), AnsiColor::Red.on_default());
    for verdict in verdicts {
        let name = printable(&verdict.name, 120);
        if verdict.passed {
            writeln!(out, "{green}ok{green:#}    {name}")?;
            continue;
        }
        writeln!(out, "{red}FAIL{red:#}  {name} ({})", verdict.place)?;
        for missing in &verdict.missing {
            writeln!(out, "        {red}- {missing}{red:#}")?;
        }
        for unexpected in &verdict.unexpected {
            writeln!(out, "        {green}+ {unexpected}{green:#}")?;
        }
        for why in &verdict.why {
            writeln!(out, "        {why}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load_with_routes};

    const CONFIG: &str = "
outbox: { columns: { key: aggregate_id }, header_columns: { tenant: tenant } }
sinks:
  out: { stdout: {} }
  idle: { discard: {} }
routes:
  - { event_type: 'order.*', when: { header.tenant: [acme, evil] }, to: out }
  - { event_type: 'order.*', when: { key: '7' }, to: [out, idle] }
";

    fn simulator() -> Simulator {
        let file = FileSource::Text("walgate.yaml".into(), CONFIG.into());
        let sources = Sources { file, ..Sources::default() };
        let loaded = load_with_routes(sources, &Registry::built_in(), &setup::route_faults).unwrap();
        Simulator::new(&loaded).unwrap()
    }

    fn told(tests: &str) -> String {
        let file = FileSource::Text("routes.test.yaml".into(), tests.into());
        match run_file(&file, &mut simulator()) {
            Err(errors) => errors.to_string(),
            Ok(verdicts) => {
                let mut out = Vec::new();
                text(&verdicts, &mut out).unwrap();
                anstream::adapter::strip_str(&String::from_utf8(out).unwrap()).to_string()
            }
        }
    }

    #[test]
    fn failures_show_what_is_missing_what_came_and_why() {
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!("test_failures", told("
tests:
  - { name: passes, event: { event_type: order.created, key: '7' }, expect: [idle, { sink: out, ordering_key: '7' }] }
  - { name: by condition, event: { event_type: order.created, headers: { tenant: other } }, expect: out }
  - { name: by type, event: { event_type: user.created }, expect: [idle] }
  - { name: too much, event: { event_type: order.created, key: '7' }, expect: unrouted }
  - { name: another key, event: { event_type: order.created, columns: { aggregate_id: '7' } }, expect: [{ sink: out, ordering_key: '8' }, idle] }
  - { name: no event, event: { event_type: order.created, columns: { id: null } }, expect: out }
"));
        });
    }

    #[test]
    fn faults_of_a_file_have_their_place() {
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!("test_faults", [
                "tests: []\n",
                "",
                "tests:\n  - { name: a, evnt: {}, expect: [] }\n",
                "tests:\n  - { name: a, event: { event_type: x, headers: { tennant: a } }, expect: [outt, { sink: out, subject: x }] }\n",
                "tests:\n  - { name: a, event: { event_type: x, headers: { tennant: a } }, expect: out }\n",
                "tests:\n  - { name: a, event: { event_type: x, key: a, columns: { aggregate_id: b } }, expect: out }\n",
                "tests:\n  - name: a\n    name: b\n    event: { event_type: 1 }\n    expect: unroutd\n",
            ].map(told).join("\n---\n"));
        });
    }

    #[test]
    fn an_expectation_takes_the_delivery_that_no_other_can_have() {
        let delivery = |a: &str, b: &str| DeliveryView {
            sink: "s".into(),
            kind: "k".into(),
            route: 0,
            target: [("a", a), ("b", b)]
                .map(|(name, value)| (name.to_owned(), Value::String(value.to_owned())))
                .into_iter()
                .collect(),
            ordering_key: None,
            dedup_id: String::new(),
            rejected: None,
        };
        let wanted =
            |key: &str, value: &str| RouteTarget { sink: "s".into(), fields: vec![(key.into(), value.into())] };
        let deliveries = [delivery("1", "2"), delivery("1", "3")];
        assert_eq!(pair(&[wanted("a", "1"), wanted("b", "2")], &deliveries), [Some(1), Some(0)]);
        assert_eq!(pair(&[wanted("b", "3"), wanted("a", "1")], &deliveries), [Some(1), Some(0)]);
        assert_eq!(pair(&[wanted("b", "4")], &deliveries), [None, None]);
    }
}
