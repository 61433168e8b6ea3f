//! X1: what is secret appears nowhere: not in logs, errors, metrics, status, nor on the command line.

use std::time::Duration;

use crate::rig::Rig;
use crate::support::postgres::PASSWORD;
use crate::support::processes;
use crate::support::receiver::{SECRET, reply};
use crate::support::wait::{self, watch_for};
use crate::support::walgate::{Setup, Walgate};

const BEARER: &str = "canary-bearer-0c52d1";
const HEADER: &str = "canary-header-77b0e4";
const QUERY: &str = "canary-query-5d1f93";
const PAYLOAD: &str = "canary-payload-e1ab66";

#[track_caller]
fn assert_silent(what: &str, text: &str) {
    // The secret's own bytes too, and what base64 makes of them.
    let key = SECRET.trim_start_matches("whsec_");
    for canary in [PASSWORD, SECRET, key, "canary-webhook-secret", BEARER, HEADER, QUERY, PAYLOAD] {
        if let Some(at) = text.find(canary) {
            let line = text[..at].lines().count();
            panic!(
                "{canary:?} is in {what}, line {line}:\n{}",
                text.lines().nth(line.saturating_sub(1)).unwrap_or_default()
            );
        }
    }
}

#[test]
fn x1_secrets_appear_nowhere() {
    let rig = Rig::new();
    let url = format!("{}?token={QUERY}", rig.receiver.url());
    let sink = format!(
        "hook: {{ webhook: {{ url: {url:?}, secret: \"${{HOOK_SECRET}}\", bearer_token: {BEARER:?}, \
         headers: {{ x-api-key: {HEADER:?} }} }}, delivery: {{ timeout: 1s, retry: {{ initial: 20ms, max: 200ms }} }} }}"
    );
    let setup = rig.source().sink(&sink).route("**", "hook").env("HOOK_SECRET", SECRET).env("WALGATE_LOG", "trace");
    let mut walgate = Walgate::run(&setup);
    let command_line = processes::command_line(walgate.pid());
    let payload = format!(r#"{{"iban": "{PAYLOAD}"}}"#);
    let id = rig.database.insert("order.created", "k", &payload);
    rig.wait_confirmed(&mut walgate, &id);
    let receipt = &rig.receiver.receipts()[0];
    assert_eq!(receipt.header("authorization"), Some(&*format!("Bearer {BEARER}")), "the premise: it is used");
    assert_eq!(receipt.header("x-api-key"), Some(HEADER));
    assert!(receipt.path.contains(QUERY));
    assert_eq!(rig.receiver.bad_signatures(), Vec::<String>::new());

    // Every kind of failure.
    let mut last = String::new();
    for round in 0..5 {
        let before = rig.receiver.requests();
        match round {
            // A refusal that repeats the secrets of its request, at its beginning: only that of a 4xx is ever shown.
            0 => rig.receiver.script(|request| {
                let value = |name| request.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
                reply(429).body(format!("{} {} {}", value("x-api-key"), value("authorization"), request.path)).into()
            }),
            1 => rig.receiver.script(|request| reply(302).header("Location", request.path).into()),
            2 => rig.receiver.script(|_| crate::support::receiver::Answer::Reset),
            3 => rig.receiver.go_down(),
            _ => rig.witness.cut(),
        }
        last = rig.database.insert("order.created", &format!("k{round}"), &payload);
        if round < 3 {
            walgate.eventually("it fails", || rig.receiver.requests() > before);
        } else {
            watch_for(Duration::from_millis(700));
        }
        for page in ["/status", "/metrics", "/readyz", "/livez", "/"] {
            assert_silent(page, &walgate.page(page).map(|(_, body)| body).unwrap_or_default());
        }
        rig.receiver.come_back();
        if round != 1 {
            rig.receiver.accept_all();
        }
    }
    let status = Walgate::command(&setup, &["status", "--config", "{config}"]);
    assert_silent("status", &status.output());
    let status = Walgate::command(&setup, &["status", "--json", "--config", "{config}"]);
    assert_silent("status --json", &status.output());
    walgate.terminate();
    drop(last);
    let ended = walgate.wait_for_end(wait::DEADLINE);
    assert_silent("the logs", &ended.output());
    assert_silent("the command line", &command_line);
}

#[test]
fn x1_errors_of_configuration_do_not_print_secrets() {
    // The wrong key stands in the line of the secrets, which is shown with the error.
    let text = |extra: &str| {
        format!(
            "source: {{ url: \"postgres://walgate:{PASSWORD}@127.0.0.1:1/shop\"{extra} }}\n\
             sinks:\n  hook: {{ webhook: {{ url: \"https://example.com/?t={QUERY}\", secret: \"{SECRET}\", \
             bearer_token: {BEARER}{extra}, headers: {{ x-api-key: {HEADER} }} }} }}\n\
             routes:\n  - {{ event_type: \"**\", to: hook }}\n"
        )
    };
    let sound = Walgate::command(&Setup::literal(text("")), &["check", "--config", "{config}"]);
    sound.expect(0, &["hook"]);
    assert_silent("check", &sound.output());
    for extra in [", slott: 1", ", secrett: 1", ", : [", ", password: [1]", ", headers: 7", ", url: 9"] {
        let ended = Walgate::command(&Setup::literal(text(extra)), &["check", "--config", "{config}"]);
        assert_eq!(ended.code, Some(2), "{extra}: {}", ended.output());
        assert_silent(&format!("the errors of {extra:?}"), &ended.output());
    }
    // A secret of the wrong form.
    let wrong = text("").replace(SECRET, "whsec_canary-webhook-secret");
    let ended = Walgate::command(&Setup::literal(wrong), &["check", "--config", "{config}"]);
    assert_eq!(ended.code, Some(2), "{}", ended.output());
    assert_silent("the error of a secret", &ended.output());
}

#[test]
fn x1_errors_of_connecting_do_not_print_secrets() {
    let rig = Rig::new();
    let port = wait::free_port();
    let setups = [
        rig.setup().source(rig.database.source(port)),
        rig.setup().source(rig.database.source(rig.database.server.port()).replace("shop_", "canary_shop_")),
        rig.setup()
            .source(rig.database.source(rig.database.server.port()).replace("sslmode=disable", "sslmode=require")),
        rig.setup().source(rig.database.source(rig.database.server.port()).replace("sslmode=disable", "nonsense=1")),
        rig.setup().source(rig.database.source(rig.database.server.port()).replace("@127", ":x@127")),
    ];
    for setup in setups {
        let ended = Walgate::command(&setup, &["check", "--connect", "--config", "{config}"]);
        assert!(matches!(ended.code, Some(2 | 3)), "{}", ended.output());
        assert_silent("an error of connecting", &ended.output());
    }
}
