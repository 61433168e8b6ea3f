//! FAULTS X1, X2: no secret in any error, warning or debug output, whatever is wrong around it.

use proptest::prelude::*;

use super::support::*;

/// Wherever a secret can stand, and whatever may be wrong with it or beside it.
const BROKEN: &[&str] = &[
    // Wrong types and neighbours.
    "source: { password: CANARY, slot: A }",
    "source: { passwrod: CANARY }",
    "source: { pass: CANARY }",
    "source: { password: { x: CANARY } }",
    "source: { password: [CANARY, CANARY] }",
    "source: { url: [CANARY] }",
    "source: CANARY",
    "source: { password: CANARY, password: CANARY }",
    "source: { password: CANARY, password_file: /nowhere }",
    "CANARY",
    "[CANARY]",
    "sinks: CANARY",
    "sinks: { a: CANARY }",
    "sinks: [CANARY]",
    "sinks: { a: { webhook: CANARY } }",
    "sinks: { a: { pigeon: { pin: CANARY } } }",
    "sinks: { a: { nats: { creds: CANARY, servers: [CANARY] } } }",
    "sinks: { a: { stdout: {}, pin: CANARY } }",
    "sinks: { a: { webhook: { url: 'http://x', secret: CANARY, max_body: 5 } } }",
    "sinks: { a: { webhook: { url: 'http://x', secrt: CANARY } } }",
    "sinks: { a: { webhook: { url: 'http://x', pin: CANARY } } }",
    "sinks: { a: { webhook: { url: 'http://x', secret: { a: CANARY } } } }",
    "sinks: { a: { webhook: { url: 'http://x', mode: bach, headers: { X-Pin: CANARY, Y: 5 } } } }",
    "sinks: { a: { webhook: { url: 'http://x', basic_auth: { user: 5, password: CANARY } } } }",
    "sinks: { a: { webhook: { url: 'http://x', basic_auth: CANARY } } }",
    "sinks: { a: { webhook: { url: 'http://u:CANARY@x', mode: x } } }",
    "sinks: { a: { webhook: { url: 'ftp://u:CANARY@x' } } }",
    "sinks: { a: { webhook: { url: 'ftp://CANARY@x' } } }",
    "sinks: { a: { webhook: { url: 'ftp://x?token=CANARY&x=y' } } }",
    "source: { url: 'postgres://w:CANARY@h/d', slot: A }",
    "source: { url: 'host=h password=CANARY', slot: A }",
    "source: { url: \"host=h password='CANARY x'\", slot: A }",
    "source: { url: 'postgres://h/d?password=CANARY', slot: A }",
    "source: { slot: 'postgres://w:CANARY@h/d' }",
    "limits: { inflight: 'postgres://w:CANARY@h/d' }",
    "admin: { listen: 'http://w:CANARY@h/d' }",
    "unrouted: 'http://w:CANARY@h/d'",
    // Aliases and comments.
    "x: &x CANARY\nsource: { password: *x, slot: A }",
    "source:\n  password: &x CANARY\n  slot: *x\n",
    "source: # CANARY\n  slot: A # CANARY\n",
    "source:\n  <<: { password: CANARY }\n  slot: A\n",
    // Texts that do not parse.
    "source:\n  password: CANARY: x\n",
    "source:\n  password: \"CANARY\n  slot: a\n",
    "source: { password: CANARY, [ }\n",
    "source:\n  password: CANARY\n\tslot: x\n",
    "source:\n  password: |\n    CANARY\n   CANARY\n",
    "source:\n  password: |\n    x\n\tCANARY\n",
    "source:\n  secret:\n    x: CANARY: y\n",
    "source:\n  url: postgres://w:CANARY@h: x\n",
    "source:\n  password: !!int CANARY\n",
    "source:\n  password: !!binary CANARY!\n",
    "source:\n  \"password\": 'CANARY' x\n",
    "source: { url: x, password: CANARY } }\n",
    // References.
    "source: { password: '${CANARY_VALUE', slot: A }",
    "source: { slot: '${V} ${NONE}' }",
    "source: { slot: '${V}' }",
    "source: { nap: '${V}' }",
    "limits: { inflight: '${V}', event: '${V} MiB' }",
    "unrouted: '${V}'",
    "admin: { listen: '${V}:x', stuck_after: '${V}' }",
    "outbox: '${V}'",
    "sinks: { a: { webhook: { url: '${V}', mode: '${V}', max_body: '${V}' } } }",
    "sinks: { a: { webhook: { url: 'http://x', secret: '${S}' } } }",
    "sinks: { a: '${V}' }",
    "routes: '${V}'",
];

fn assert_silent(text: &str, canary: &str, shown: &str) {
    assert!(!shown.contains(canary), "{canary} shows:\n{shown}\n--- of\n{text}");
}

#[test]
fn x1_no_secret_is_printed() {
    for template in BROKEN {
        for (canary, value) in [("hunter2hunter2", "hunter2hunter2"), ("90817263", "90817263"), ("q7z", "q7z")] {
            let text = template.replace("CANARY_VALUE", "NAME").replace("CANARY", value);
            let env = [("V", value), ("S", &value[..3])];
            let shown = match load_with(&text, &env, &[]) {
                Ok(loaded) => panic!("it loads: {text}: {loaded:?}"),
                Err(errors) => format!("{errors}\n{errors:?}\n{}\n{}", errors.to_json(), errors.styled()),
            };
            assert_silent(&text, canary, &shown);
        }
    }
}

#[test]
fn x1_no_variable_that_sets_a_key_is_printed() {
    let text = "sinks: { a: { webhook: { url: 'http://x' } } }\n";
    for variable in [
        "WALGATE_SOURCE",
        "WALGATE_SOURCE__SLOT",
        "WALGATE_SOURCE__NAP",
        "WALGATE_SOURCE__PASWORD",
        "WALGATE_SOURCE__PASSWORD__X",
        "WALGATE_LIMITS__EVENT",
        "WALGATE_UNROUTED",
        "WALGATE_SINKS",
        "WALGATE_SINKS__A",
        "WALGATE_SINKS__A__WEBHOOK",
        "WALGATE_SINKS__A__WEBHOOK__MODE",
        "WALGATE_SINKS__A__WEBHOOK__HEADERS",
        "WALGATE_SINKS__A__DELIVERY",
        "WALGATE_SINKS__A__DELIVERY__TIMEOUT",
        "WALGATE_ROUTES",
    ] {
        for value in ["Hunter2 hunter2", "{x: hunter2}", "[hunter2]", "9081726354", "{a: {b: hunter2}}"] {
            let shown = match load_with(text, &[(variable, value)], &[]) {
                // A number is a slot's name as well, and headers may have any name.
                Ok(_) if ["WALGATE_SOURCE__SLOT", "WALGATE_SINKS__A__WEBHOOK__HEADERS"].contains(&variable) => continue,
                Ok(loaded) => panic!("{variable}={value} loads: {loaded:?}"),
                Err(errors) => errors.to_string(),
            };
            assert!(shown.contains(variable), "{variable}={value}\n{shown}");
            for part in ["unter2", "90817263"] {
                assert_silent(value, part, &shown);
            }
        }
    }
}

#[test]
fn x1_nothing_loaded_prints_its_secrets() {
    let text = "
source: { url: 'postgres://w:hunter2@h/d', password: hunter2 }
sinks:
  a: { webhook: { url: 'http://x', secret: hunter2, headers: { Pin: hunter2 }, basic_auth: { user: u, password: hunter2 } } }
";
    let loaded = load_text(text).unwrap();
    let warnings: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_silent(text, "hunter2", &format!("{loaded:?} {warnings:?}"));
    assert_silent(text, "hunter2", &serde_json::to_string(&loaded.config).unwrap());
    assert_eq!(
        warnings,
        [
            "walgate.yaml:2:16: source.url: literal password in the configuration file: use ${VARIABLE} in its place",
            "walgate.yaml:2:54: source.password: literal secret in the configuration file: use ${VARIABLE} or `password_file: /path/to/it`",
            "walgate.yaml:4:44: sinks.a.webhook.secret: literal secret in the configuration file: use ${VARIABLE} or `secret_file: /path/to/it`",
            "walgate.yaml:4:69: sinks.a.webhook.headers.Pin: literal secret in the configuration file: use ${VARIABLE} or `Pin_file: /path/to/it`",
            "walgate.yaml:4:113: sinks.a.webhook.basic_auth.password: literal secret in the configuration file: use ${VARIABLE} or `password_file: /path/to/it`",
        ]
    );
    let mut errors = loaded.errors();
    errors.push_at("source.url", "cannot read `postgres://w:hunter2@h/d`: hunter2 is odd");
    errors.push_at("sinks.a.webhook.secret", "`hunter2` is no secret");
    assert_silent(text, "hunter2", &errors.to_string());
}

const LINES: &[&str] = &[
    "source:",
    "  slot: walgate",
    "  password: hunter2hunter2",
    "  nap: 1ms",
    "  url: postgres://w:hunter2hunter2@h/d",
    "limits:",
    "  inflight: 8MiB",
    "sinks:",
    "  hook:",
    "    webhook:",
    "      url: 'https://u:hunter2hunter2@h/x?token=hunter2hunter2'",
    "      secret: hunter2hunter2",
    "      mode: batch",
    "      headers: { X-Pin: hunter2hunter2, Y: z }",
    "      basic_auth:",
    "        user: u",
    "        password: |",
    "          hunter2hunter2",
    "      max_body: 1MiB",
    "    delivery: { timeout: 5s }",
    "unrouted: drop",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens to the other lines, those with secrets do not show them.
    #[test]
    fn x1_changes_around_secrets_do_not_show_them(
        changes in prop::collection::vec((0..LINES.len(), 0usize..40, prop::sample::select(vec![
            "\"", "'", "{", "}", "[", "]", ",", ": ", " ", "  ", "\t", "x", "- ", "|\n", "#", "&a ", "*a", "${", "${V}", "\n", "!", "%", "@", "?",
            ": 5", "\u{1b}", "🦀", "---\n", ">",
        ])), 1..4),
        removed in prop::option::of(0..LINES.len()),
    ) {
        let mut lines: Vec<String> = LINES.iter().map(|line| (*line).to_owned()).collect();
        for (line, at, what) in changes {
            if !lines[line].contains("hunter2") {
                let at = at.min(lines[line].len());
                if lines[line].is_char_boundary(at) {
                    lines[line].insert_str(at, what);
                }
            }
        }
        if let Some(removed) = removed && !lines[removed].contains("hunter2") {
            lines.remove(removed);
        }
        let text = lines.join("\n");
        match load_with(&text, &[("V", "hunter2hunter2")], &[]) {
            Ok(loaded) => {
                let shown: String = loaded.warnings.iter().map(ToString::to_string).collect();
                prop_assert!(!shown.contains("hunter2"), "{text}\n---\n{shown}");
            }
            Err(errors) => {
                let shown = format!("{errors}\n{}", errors.to_json());
                prop_assert!(!shown.contains("hunter2"), "{text}\n---\n{shown}");
            }
        }
    }
}
