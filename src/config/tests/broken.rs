//! FAULTS C1 to C4: what a broken configuration says. Each text is a snapshot.

use proptest::prelude::*;

use super::support::*;

fn told(text: &str) -> String {
    told_with(text, &[], &[])
}

fn told_with(text: &str, env: &[(&str, &str)], flags: &[(&str, &str, &str)]) -> String {
    match load_with(text, env, flags) {
        Ok(loaded) => panic!("it loads: {loaded:?}"),
        Err(errors) => errors.to_string(),
    }
}

macro_rules! broken {
    ($($name:ident: $text:expr $(, env $env:expr)? $(, flags $flags:expr)?;)*) => {
        $(
            #[test]
            fn $name() {
                #[allow(unused_mut, unused_assignments)]
                let mut env: &[(&str, &str)] = &[];
                #[allow(unused_mut, unused_assignments)]
                let mut flags: &[(&str, &str, &str)] = &[];
                $(env = $env;)?
                $(flags = $flags;)?
                insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true, description => $text }, {
                    insta::assert_snapshot!(stringify!($name), told_with($text, env, flags));
                });
            }
        )*
    };
}

broken! {
    c1_tab: "source:\n\tslot: a\nsinks: { out: { stdout: {} } }\n";
    c1_bad_indentation: "source:\n    slot: a\n  publication: b\nsinks: { out: { stdout: {} } }\n";
    c1_unclosed_quote: "source:\n  slot: \"a\nsinks: { out: { stdout: {} } }\n";
    c1_unclosed_bracket: "sinks: { out: { stdout: {} }\nroutes: []\n";
    c1_two_colons: "source:\n  url: host: localhost\nsinks: { out: { stdout: {} } }\n";
    c1_duplicate_key: "source: { slot: a }\nsinks:\n  out: { stdout: {} }\n  out: { stdout: {} }\nsource: { slot: b }\n";
    c1_unknown_keys: "souce: {}\nsource:\n  slott: a\nsinks:\n  bus:\n    kafka:\n      brokers: [a:9092]\n      topicc: orders\n";
    c1_wrong_types: concat!(
        "source: { slot: 5, nap: 1 }\n",
        "outbox: public.outbox\n",
        "limits:\n  inflight: 8388608\n  event: 16 megs\n",
        "shutdown_timeout: soon\n",
        "sinks:\n  hook:\n    webhook: { url: 'http://x', compress: yes, mode: bach, max_body: true }\n",
        "    delivery: { concurrency: -1, timeout: 15, on_reject: dead_letters, retry: 3 }\n",
    );
    c1_several_at_once: concat!(
        "source:\n  slot: Wal-Gate\n  publication: ''\n",
        "unrouted: explode\n",
        "routes:\n",
        "  - event_type: 'a.*'\n",
        "    to: [out, { topic: x }, { sink: out, topic: 5 }]\n",
        "  - event_typ: b\n    to: out\n",
        "  - just a text\n",
        "  - event_type: []\n    to: out\n",
        "admin: { listen: 9432 }\n",
        "sinks: { out: { stdout: { pretty: true } } }\n",
    );
    c1_lists_for_mappings: "source: [postgres://h/d, x]\nroutes: [[a, out]]\nlimits: []\nsinks: { out: { stdout: [] } }\n";
    c1_not_a_mapping: "- source\n- sinks\n";
    c1_empty_file: "";
    c1_second_document: "sinks: { out: { stdout: {} } }\n---\nsinks: {}\n";
    c1_no_value: "source:\n  slot:\n  publication: p\noutbox:\nsinks: { out: { stdout: } }\n";
    c1_bounds: concat!(
        "source: { nap: 2s, wal_sender_timeout: 500ms }\n",
        "outbox: { table: '', columns: { id: '' }, header_columns: { 'a b': c } }\n",
        "limits: { inflight: 1KiB, event: 2GiB, run_ahead: 0B }\n",
        "admin: { listen: ':9432', stuck_after: 0s }\n",
        "shutdown_timeout: 2h\n",
        "sinks: { out: { stdout: {}, delivery: { concurrency: 0, batch: 0, timeout: 0s, linger: 2m, retry: { initial: 2m } } } }\n",
    );
    c1_wal_budget: concat!(
        "wal_budget:\n  bytes: 1KiB\n  warn: 80%\n  act: 75%\n  last: 75%\n  at_last: sacrifice\n",
        "sinks: { out: { stdout: {} } }\n",
    );
    c1_wal_budget_sacrifice: concat!(
        "wal_budget: { last: 70%, sacrifice: [audit, partnr, audit, \"x\\e[31m\"] }\n",
        "sinks: { audit: { stdout: {} }, partner: { stdout: {} } }\n",
    );
    c1_wal_budget_types: concat!(
        "wal_budget: { byte: 1GiB, bytes: 5, warn: 50, act: 0%, last: 7.5%, at_last: sacrifise, sacrifice: audit }\n",
        "sinks: { audit: { stdout: {} } }\n",
    );
    c1_dead_letters: concat!(
        "dead_letters: { retain: 10ms, payload: omit }\n",
        "sinks: { out: { stdout: {} } }\n",
    );
    c1_dead_letters_types: concat!(
        "dead_letters: { retain: 30, payload: none, keep: 1d }\n",
        "sinks: { out: { stdout: {} } }\n",
    );
    c1_cleanup: concat!(
        "cleanup:\n  mode: delete\n  retain: 4000w\n  batch: 0\n  pause: 2h\n  age: ''\n  detach: true\n",
        "sinks: { out: { stdout: {} } }\n",
    );
    c1_cleanup_mark: concat!(
        "outbox: { columns: { headers: published } }\n",
        "cleanup: { mode: mark, retain: 4000w, batch: 0, pause: 2h, age: '', detach: true, url: 'postgres://c:x@h/d', url_file: /no/such/file }\n",
        "sinks: { out: { stdout: {} } }\n",
    );
    c1_cleanup_types: concat!(
        "cleanup: { mode: drop, retain: 7, batch: many, detach: yes, colum: created_at, url_file: /no/such/file }\n",
        "sinks: { out: { stdout: {} } }\n",
    );
    c1_dead_letter_to: concat!(
        "sinks:\n",
        "  own: { stdout: {}, delivery: { dead_letter_to: own } }\n",
        "  near: { stdout: {}, delivery: { dead_letter_to: audt } }\n",
        "  chain: { stdout: {}, delivery: { dead_letter_to: near } }\n",
        "  never: { stdout: {}, delivery: { dead_letter_to: audit, on_reject: skip } }\n",
        "  good: { stdout: {}, delivery: { dead_letter_to: audit, on_reject: halt, retry: { max_attempts: 3 } } }\n",
        "  audit: { stdout: {} }\n",
    );
    c1_sinks_missing: "source: { slot: a }\n";
    c1_sinks_empty: "source: { slot: a }\nsinks: {}\n";
    c1_sinks_a_list: "sinks:\n  - stdout\n";
    c1_sink_names: "sinks:\n  Out: { stdout: {} }\n  'a b': { stdout: {} }\n";
    c1_sink_kinds: concat!(
        "sinks:\n",
        "  none: {}\n",
        "  text: stdout\n",
        "  two: { stdout: {}, webhook: { url: 'http://x' } }\n",
        "  near: { webhok: { url: 'http://x' } }\n",
        "  far: { pigeon: { colour: grey } }\n",
        "  absent: { nats: { servers: [a] } }\n",
        "  stray: { stdout: {}, timeout: 5s }\n",
        "  deep: { webhook: { url: 'http://x', concurrency: 5, timout: 3s } }\n",
    );
    c1_missing_keys: "sinks:\n  hook: { webhook: { basic_auth: { user: u } } }\n  bus:\n    kafka:\n";
    c1_what_a_factory_says: "sinks:\n  hook:\n    webhook:\n      url: ftp://x # not this\n      secret: abc\n";
    c1_number_and_key_forms: "1: x\n'a b': y\nsinks: { out: { stdout: {} } }\n";
    c1_long_line: &format!("sinks: {{ {}, x: {{ stdout: {{ no: 1 }} }} }}\n", (0..30).map(|n| format!("s{n}: {{ stdout: {{}} }}")).collect::<Vec<_>>().join(", "));
    c1_control_characters: "sinks: { out: { stdout: {} } }\nadmin: { listen: \"\\e[31m\u{202e}evil\" }\n";
    c1_from_environment: "source: { slot: a }\nsinks: { out: { stdout: {} } }\n",
        env &[
            ("WALGATE_LIMITS__INFLIGHT", "8"),
            ("WALGATE_SOURC__SLOT", "x"),
            ("WALGATE_SOURCE__SLOT", "A-B"),
            ("WALGATE_SINKS__OUT__DELIVERY__CONCURRENCY", "many"),
            ("WALGATE_ADMIN", "[1]"),
            ("WALGATE_ADMIN__LISTEN", "off"),
            ("WALGATE_SINKS__", "off"),
        ];
    c1_from_flags: "sinks: { out: { stdout: {} } }\n",
        flags &[("--slot", "source.slot", "A-B"), ("--listen", "admin.listen", "nowhere"), ("--set", "routes[0].to", "x")];
    c1_conditions: concat!(
        "sinks: { out: { stdout: {} } }\nroutes:\n",
        "  - { event_type: a, when: , to: out }\n",
        "  - { event_type: a, when: {}, to: out }\n",
        "  - { event_type: a, when: tenant, to: out }\n",
        "  - event_type: a\n    when: { header.tenant: 7, column.active: true, key: [] }\n    to: out\n",
        "  - { event_type: a, wen: { key: a }, to: out }\n",
    );
    c1_key_in_payload: "outbox: { columns: { key: 'payload:order_id' } }\nsinks: { out: { stdout: {} } }\n";
    c1_key_in_column: "outbox: { columns: { key: 'data:/order_id' } }\nsinks: { out: { stdout: {} } }\n";
    c1_key_escape: "outbox: { columns: { key: 'payload:/a~2' } }\nsinks: { out: { stdout: {} } }\n";
    c1_key_empty_pointer: "outbox: { columns: { key: 'payload:' } }\nsinks: { out: { stdout: {} } }\n";
    c2_alias_bomb: concat!(
        "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n",
        "c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c]\n",
        "e: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d]\nf: &f [*e, *e, *e, *e, *e, *e, *e, *e, *e]\n",
        "g: &g [*f, *f, *f, *f, *f, *f, *f, *f, *f]\n",
    );
    c2_alias_of_itself: "sinks: &a { out: *a }\n";
    c2_unknown_alias: "sinks: *nowhere\n";
    c2_deep_nesting: &format!("sinks: {}\n", "[".repeat(5000));
    c2_deep_blocks: &(0..200).map(|n| format!("{}a:\n", " ".repeat(n))).collect::<String>();
    c3_missing_variables: concat!(
        "source:\n  url: postgres://${PGUSER_X:-walgate}:${DB_PASSWORD}@localhost/shop\n",
        "sinks: { hook: { webhook: { url: ${HOOK_URL}, secret: ${HOOK_SECRET} } } }\n",
        "limits: { inflight: ${MEMORY} }\n",
        "admin: { listen: \"${\" }\n",
        "routes:\n  - { event_type: a, to: { sink: hook, path: '/${key}' } }\n",
    );
    c3_values_of_variables_are_not_shown: concat!(
        "source:\n  slot: ${SLOT}\n",
        "limits: { inflight: ${MEMORY} }\n",
        "sinks:\n  hook: { webhook: { url: ${URL}, mode: ${MODE}, max_body: ${MEMORY} }, delivery: { concurrency: ${MODE} } }\n",
    ), env &[("SLOT", "canary slot"), ("MEMORY", "canary"), ("URL", "canary://canary"), ("MODE", "canary")];
}

#[test]
fn c1_two_hundred_errors_are_too_many() {
    let keys: String = (0..200).map(|n| format!("key{n}: 1\n")).collect();
    let told = told(&format!("{keys}sinks: {{ out: {{ stdout: {{}} }} }}\n"));
    assert!(told.lines().count() < 250, "{told}");
    assert!(told.starts_with("error: walgate.yaml:1:1: key0: unknown key `key0`"), "{told}");
}

#[test]
fn c2_huge_files_are_refused() {
    let text = format!("# {}\nsinks: {{ out: {{ stdout: {{}} }} }}\n", "x".repeat(1 << 20));
    assert_eq!(told(&text), "error: walgate.yaml: larger than 1MiB: a configuration file is not that long\n\n1 error");
    let wide = format!("sinks: [{}]\n", "1,".repeat(100_000));
    assert!(told(&wide).contains("more than 50000 values"), "{}", told(&wide));
}

#[test]
fn errors_are_json_too() {
    let errors = load_with("source: { slot: A }\n", &[("WALGATE_SOURCE__NAP", "2s")], &[]).unwrap_err();
    let json = errors.to_json();
    let list = json["errors"].as_array().unwrap();
    assert_eq!(list.len(), 3, "{json}");
    assert_eq!(list[1]["file"], "walgate.yaml");
    assert_eq!((list[1]["line"].as_u64(), list[1]["column"].as_u64()), (Some(1), Some(17)));
    assert_eq!(list[1]["path"], "source.slot");
    assert_eq!(list[2]["variable"], "WALGATE_SOURCE__NAP");
}

#[test]
fn colours_are_optional() {
    let errors = load_text("source: { slot: A }\n").unwrap_err();
    assert!(!errors.to_string().contains('\u{1b}'));
    assert!(errors.styled().to_string().contains("\u{1b}["));
}

#[test]
fn errors_of_others_get_their_place() {
    let text = "sinks: { out: { stdout: {} } }\nroutes:\n  - event_type: a\n    to: nowhere\n  - event_type: b\n    to:\n      - out\n      - { sink: out, topic: '{x' }\n";
    let loaded = load_text(text).unwrap();
    let mut errors = loaded.errors();
    errors.push_at("routes[0].to[0].sink", "no sink is called `nowhere`");
    errors.push_at("routes[1].to[1].topic", "a brace is not closed");
    errors.push_at("routes[1].to[0].topic", "no topic");
    errors.push_at("source.url", "not a connection string");
    assert_eq!(errors.len(), 4);
    assert_eq!(loaded.locate("routes[1].to[1].topic"), "walgate.yaml:8:29");
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("c4_errors_of_others", errors);
    });
}

/// Words of a configuration, so that arbitrary texts come near to real ones.
fn fragment() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "source:",
            "sinks:",
            "routes:",
            "  ",
            "\n",
            "\t",
            ": ",
            "- ",
            "{",
            "}",
            "[",
            "]",
            ",",
            "\"",
            "'",
            "|\n",
            ">-\n",
            "&a ",
            "*a",
            "<<: *a",
            "!!int ",
            "${A}",
            "${",
            "$${",
            "webhook:",
            "stdout: {}",
            "delivery:",
            "timeout: 5s",
            "url: ",
            "secret: ",
            "password: ",
            "password_file: ",
            "limits:",
            "inflight: 8MiB",
            "#",
            "? ",
            "---\n",
            "event_type: ",
            "to: ",
            "out: ",
            "5",
            "yes",
            "null",
            "\r\n",
            "\u{85}",
        ])
        .prop_map(str::to_owned),
        "\\PC{0,6}",
        any::<char>().prop_map(String::from),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_it_panic(parts in prop::collection::vec(fragment(), 0..40), value in "\\PC*") {
        let text = parts.concat();
        let env = [("A", value.as_str()), ("WALGATE_SINKS__OUT__STDOUT", text.as_str()), ("WALGATE_SOURCE__URL", value.as_str())];
        for env in [&env[..1], &env[..]] {
            match load_with(&text, env, &[("--x", text.get(..8).unwrap_or("a.b"), &value)]) {
                Ok(loaded) => drop(format!("{loaded:?}")),
                Err(errors) => prop_assert!(!errors.to_string().is_empty() && !errors.to_json().is_null()),
            }
        }
    }

    #[test]
    fn no_change_of_a_good_file_makes_it_panic(at in 0usize..2000, length in 0usize..30, with in "\\PC{0,8}") {
        let text = include_str!("../../../config/walgate.reference.yaml");
        let start = (at..).find(|at| text.is_char_boundary((*at).min(text.len()))).unwrap_or(0).min(text.len());
        let end = (start + length..).find(|at| text.is_char_boundary((*at).min(text.len()))).unwrap_or(start).min(text.len());
        let changed = format!("{}{with}{}", &text[..start], &text[end..]);
        if let Err(errors) = load_text(&changed) {
            prop_assert!(!errors.to_string().is_empty());
        }
    }
}
