//! What the commands print, and how their arguments are read.

use clap::{CommandFactory as _, Parser as _};
use serde_json::json;

use super::{
    list::{Found, json as as_json, render},
    show::{self, Payload, Shown},
    *,
};
use crate::{
    cli::{Cli, Command as Top},
    config::{FileSource, Loaded, Sources, load},
    control::{
        dead_letters::{Group, Line, Shelf, Whole},
        parking::Filter,
    },
};

const HOSTILE: &str = "a\u{1b}[31m\r\n\u{9b}2J\u{202e}b";

fn line(id: i64, sink: &str, key: Option<&str>, reason: Option<&str>) -> Line {
    Line {
        id,
        sink: sink.into(),
        stored_at: format!("2026-03-01T12:00:{id:02}.123456Z"),
        event_type: "order.created".into(),
        event_id: format!("7f9c24e8-3b12-4fef-9a63-31d2f0a1c{id:03}"),
        event_key: key.map(str::to_owned),
        reason: reason.map(str::to_owned),
        hold_key: key.map(|key| format!("key:{key}")),
        attempts: id,
        without_payload: false,
    }
}

fn group(sink: &str, reason: Option<&str>, rows: u64) -> Group {
    Group {
        sink: sink.into(),
        reason: reason.map(str::to_owned),
        rows,
        bytes: rows * 1500,
        without_payload: 0,
        oldest: "2026-02-28T23:59:59.000000Z".into(),
        newest: "2026-03-01T12:00:14.123456Z".into(),
    }
}

fn plain(text: &str) -> String {
    let plain = anstream::adapter::strip_str(text).to_string();
    assert!(!plain.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}'), "{plain:?}");
    plain
}

fn dead() -> Found {
    let hostile =
        Line { event_type: HOSTILE.into(), event_id: "é".repeat(500), ..line(3, "bus", Some(HOSTILE), None) };
    Found {
        slot: "walgate".into(),
        table: Shelf::DeadLetters,
        rows: 15,
        groups: vec![group("partner", Some("refused"), 12), group("bus", None, 2), group("", Some("unrouted"), 1)],
        list: vec![line(14, "partner", Some("o-42"), Some("refused")), hostile, line(2, "", None, Some("unrouted"))],
    }
}

#[test]
fn a_list_counts_first_and_stays_on_its_lines() {
    let parked = Found {
        table: Shelf::Parked,
        rows: 2,
        groups: vec![group("partner", None, 2)],
        list: vec![line(7, "partner", Some("o-42"), None), line(8, "partner", None, None)],
        ..dead()
    };
    let one = Found { rows: 1, groups: vec![group("bus", None, 1)], list: vec![line(1, "bus", None, None)], ..dead() };
    let omitted = Found {
        rows: 2,
        groups: vec![Group { without_payload: 1, ..group("partner", Some("refused"), 2) }],
        list: vec![
            Line { without_payload: true, ..line(9, "partner", Some("o-42"), Some("refused")) },
            line(8, "partner", None, Some("refused")),
        ],
        ..dead()
    };
    let none = Found { rows: 0, groups: Vec::new(), list: Vec::new(), ..dead() };
    let shown = [dead(), parked, one, omitted, none].map(|found| plain(&render(&found))).join("---\n");
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("dlq_list", shown);
    });
}

#[test]
fn json_says_everything_and_a_terminal_can_show_it() {
    let text = as_json(&dead());
    assert_eq!(plain(&text), text);
    let read: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&read["rows"], &read["table"]), (&json!(15), &json!("dead_letters")));
    assert_eq!(
        read["groups"][2],
        json!({ "sink": "", "reason": "unrouted", "rows": 1, "bytes": 1500, "without_payload": 0,
        "oldest": "2026-02-28T23:59:59.000000Z", "newest": "2026-03-01T12:00:14.123456Z" })
    );
    assert_eq!(read["list"][1]["event_type"], HOSTILE);
    assert_eq!(read["list"][1]["event_id"].as_str().map(|id| id.chars().count()), Some(500));
}

fn whole() -> Whole {
    Whole {
        line: line(14, "partner", Some("o-42"), Some("refused")),
        message: Some(format!("422 Unprocessable Content: {HOSTILE}")),
        commit_lsn: "0/16B3748".into(),
        ordinal: 3,
        committed_at: "2026-03-01T11:59:58.000001Z".into(),
        route: "order.*".into(),
        target: json!({ "path": "/orders/o-42", "x": HOSTILE }),
        ordering_key: Some("o-42".into()),
        dedup_id: "7f9c24e8:5d41402a".into(),
        headers: Some(json!([["traceparent", "00-0af7"], ["a", HOSTILE], ["a", "second"]])),
        errors: Some(json!([
            { "at": "2026-03-01T12:00:00.000000Z", "error": "503 Service Unavailable" },
            { "at": "2026-03-01T12:00:05.000000Z", "error": HOSTILE },
            "what nobody of ours has written",
        ])),
        payload_format: "json".into(),
        payload_bytes: Some(2048),
    }
}

#[test]
fn one_row_whole() {
    let shown = |table, row: Whole, payload| plain(&show::render(&Shown { table, row, payload }));
    let bare = Whole {
        line: Line { hold_key: None, ..line(2, "", None, None) },
        message: None,
        ordering_key: None,
        target: json!({}),
        headers: None,
        errors: None,
        payload_bytes: None,
        ..whole()
    };
    let omitted = Whole {
        line: Line { without_payload: true, ..line(14, "partner", Some("o-42"), Some("refused")) },
        message: None,
        headers: None,
        errors: Some(json!([{ "at": "2026-03-01T12:00:00.000000Z", "kind": "refused" }])),
        payload_format: "omitted".into(),
        payload_bytes: None,
        ..whole()
    };
    let text = Payload::of(format!("{{\"a\":\n{HOSTILE}}}").into_bytes());
    let rows = [
        shown(Shelf::DeadLetters, whole(), None),
        shown(Shelf::DeadLetters, bare.clone(), None),
        shown(Shelf::Parked, bare, None),
        shown(Shelf::Parked, whole(), Some(text)),
        shown(Shelf::DeadLetters, whole(), Some(Payload::of(vec![0, 255, 27]))),
        shown(Shelf::DeadLetters, omitted, None),
    ];
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("dlq_show", rows.join("---\n"));
    });
    let json = as_json(&Shown { table: Shelf::Parked, row: whole(), payload: Some(Payload::of(vec![255])) });
    let read: serde_json::Value = serde_json::from_str(&plain(&json)).unwrap();
    assert_eq!((&read["id"], &read["payload_base64"]), (&json!(14), &json!("/w==")));
    assert_eq!(read["headers"][2], json!(["a", "second"]));
    let json = as_json(&Shown { table: Shelf::Parked, row: whole(), payload: None });
    assert!(!json.contains("\"payload\"") && !json.contains("payload_base64"), "only where it is asked for");
}

#[test]
fn the_help() {
    let mut command = Cli::command().mut_args(|arg| arg.hide_env(true));
    command.build();
    let help = |path: &[&str]| {
        let start = &mut command;
        let found = path.iter().fold(start, |command, name| command.find_subcommand_mut(name).unwrap());
        found.render_help().to_string()
    };
    let paths: [&[&str]; 8] = [
        &["dlq"],
        &["dlq", "list"],
        &["dlq", "show"],
        &["dlq", "retry"],
        &["dlq", "drop"],
        &["pause"],
        &["resume"],
        &["skip"],
    ];
    let text = paths.map(help).join("---\n");
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("dlq_help", text);
    });
}

fn filter(arguments: &[&str]) -> Result<filter::FilterArgs, String> {
    let words = ["walgate", "dlq", "list"].iter().chain(arguments);
    match Cli::try_parse_from(words).map(|cli| cli.command) {
        Ok(Top::Dlq(DlqArgs { command: Command::List(args) })) => Ok(args.filter().clone()),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

fn loaded() -> Loaded {
    let text = "sinks: { audit: { stdout: {} }, partner: { discard: {} } }\n";
    let file = FileSource::Text("walgate.yaml".into(), text.into());
    load(Sources { file, ..Sources::default() }, &Registry::built_in()).unwrap()
}

#[test]
fn conditions_become_a_selection() {
    let args = filter(&[
        "--sink",
        "partner",
        "--type",
        "order.created",
        "--reason",
        "refused",
        "--key",
        "k",
        "--event-id",
        "e",
        "--id",
        "3",
        "--id",
        "14",
        "--older-than",
        "1h",
        "--newer-than",
        "1500ms",
    ]);
    let selection = args.unwrap().selection(&loaded()).unwrap();
    assert_eq!((selection.slot.as_str(), selection.sink.as_deref()), ("walgate", Some("partner")));
    let expected = Filter {
        ids: vec![3, 14],
        event_id: Some("e".into()),
        event_type: Some("order.created".into()),
        reason: Some("refused".into()),
        key: Some("k".into()),
        older_than_seconds: Some(3600),
        newer_than_seconds: Some(2),
    };
    assert_eq!(selection.filter, expected);
    assert_eq!(filter(&["--unrouted"]).unwrap().selection(&loaded()).unwrap().sink.as_deref(), Some(""));
    let all = filter(&[]).unwrap();
    assert!(all.is_empty() && all.selection(&loaded()).unwrap().sink.is_none());
    for one in [["--sink", "x"], ["--type", "x"], ["--id", "1"], ["--older-than", "1s"]] {
        assert!(!filter(&one).unwrap().is_empty(), "{one:?}");
    }
    assert!(!filter(&["--unrouted"]).unwrap().is_empty());
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let selection = |sink: &str| filter(&["--sink", sink]).unwrap().selection(&loaded()).unwrap_err();
    assert_eq!(selection("partnr"), "there is no sink `partnr`: did you mean `partner`? sinks: audit, partner");
    for none in ["", "-"] {
        assert_eq!(selection(none), "events without a route have no sink: write --unrouted");
    }
    assert!(filter(&["--sink", "partner", "--unrouted"]).unwrap_err().contains("cannot be used with"));
    assert!(filter(&["--older-than", "15"]).unwrap_err().contains("500ms, 15s or 2m"));
    assert!(filter(&["--newer-than", "2000years"]).unwrap_err().contains("a thousand years"));
    assert!(filter(&["--id", "seven"]).is_err());
}
