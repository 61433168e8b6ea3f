//! Flags over environment over file over defaults.

use std::time::Duration;

use walgate_sink::ByteSize;

use super::{super::*, support::*};

const FILE: &str = "
source: { slot: from_file, publication: from_file, nap: 2ms }
sinks:
  zebra: { stdout: {} }
  my-hook:
    webhook: { url: 'http://file', path: '/{event_type}' }
    delivery: { timeout: 5s, concurrency: 3 }
  bus: { kafka: { brokers: [file:9092], topic: 'orders.{event_type}' } }
routes:
  - { event_type: 'a.*', to: [zebra, { sink: bus, topic: other, key: '{key}' }] }
  - { event_type: [b, c], to: my-hook }
";

#[test]
fn the_file_goes_over_the_defaults() {
    let loaded = load_text(FILE).unwrap();
    let config = &loaded.config;
    assert_eq!(config.source.slot, "from_file");
    assert_eq!(config.source.nap.0, Duration::from_millis(2));
    assert_eq!(config.limits.inflight, ByteSize(8 << 20), "a default");
    assert!(config.source.password.is_none());
    let names: Vec<_> = loaded.sinks.iter().map(|sink| (sink.name.as_str(), sink.kind.as_str())).collect();
    assert_eq!(names, [("zebra", "stdout"), ("my-hook", "webhook"), ("bus", "kafka")], "the order of the file");
    assert_eq!(loaded.sinks[1].targets, [Some("/{event_type}".to_owned())]);
    assert_eq!(loaded.sinks[2].targets, [Some("orders.{event_type}".to_owned()), None]);
    assert_eq!(loaded.sinks[1].delivery.concurrency, Some(3));
    assert_eq!(loaded.sinks[1].delivery.timeout.0, Duration::from_secs(5));
    assert_eq!(loaded.sinks[0].delivery.timeout.0, Duration::from_secs(15));
    assert_eq!(config.routes[0].to.0[1].fields, [("topic".into(), "other".into()), ("key".into(), "{key}".into())]);
    assert_eq!(config.routes[1].event_type.0, ["b", "c"]);
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}

#[test]
fn the_environment_goes_over_the_file_and_flags_over_both() {
    let env = [
        ("WALGATE_SOURCE__SLOT", "from_env"),
        ("WALGATE_SOURCE__PUBLICATION", "from_env"),
        ("WALGATE_SOURCE__PASSWORD", "0123"),
        ("WALGATE_SINKS__MY_HOOK__WEBHOOK__URL", "http://env"),
        ("WALGATE_SINKS__MY_HOOK__WEBHOOK__COMPRESS", "true"),
        ("WALGATE_SINKS__MY_HOOK__DELIVERY__CONCURRENCY", "9"),
        ("WALGATE_SINKS__BUS__KAFKA__BROKERS", "[env:1, 'env:2']"),
        ("WALGATE_SINKS__EXTRA__STDOUT", "{}"),
        ("WALGATE_LIMITS", "{inflight: 1MiB}"),
        ("WALGATE_UNROUTED", "halt"),
        ("WALGATE_ROUTES", "[{ event_type: x, to: [zebra] }]"),
        ("WALGATE_OUTBOX__TABLE", ""),
    ];
    let loaded = load_with(FILE, &env, &[("--slot", "source.slot", "from_flag")]).unwrap();
    let config = &loaded.config;
    assert_eq!(config.source.slot, "from_flag");
    assert_eq!(config.source.publication, "from_env");
    assert_eq!(config.source.password.as_ref().unwrap().expose(), "0123", "a text stays a text");
    assert_eq!(config.limits.inflight, ByteSize(1 << 20));
    assert_eq!(config.unrouted, Unrouted::Halt);
    assert_eq!(config.routes.len(), 1, "lists are replaced as a whole");
    assert_eq!(config.outbox.table, "public.outbox_events", "an empty variable sets nothing");
    assert_eq!(loaded.sinks.len(), 4);
    assert_eq!(loaded.sinks[1].delivery.concurrency, Some(9));
    assert_eq!(loaded.sinks[1].delivery.timeout.0, Duration::from_secs(5), "the file's, beside the environment's");
    assert_eq!(loaded.sinks[3].name, "extra");
    assert_eq!(loaded.locate("source.slot"), "flag --slot");
    assert_eq!(loaded.locate("source.publication"), "environment variable WALGATE_SOURCE__PUBLICATION");
    assert_eq!(loaded.locate("source.nap"), "walgate.yaml:2:57");
}

#[test]
fn a_file_is_not_needed() {
    let sources = Sources { file: FileSource::None, env: env(&[("WALGATE_SINKS__OUT__STDOUT", "{}")]), flags: vec![] };
    assert_eq!(load(sources, &Catalog::new()).unwrap().sinks[0].name, "out");
    let errors = load(Sources::default(), &Catalog::new()).unwrap_err();
    assert!(errors.to_string().contains("WALGATE_CONFIG"), "{errors}");
}

#[test]
fn references_are_expanded_and_take_the_type_that_is_wanted() {
    let text = "
source: { slot: 'w_${N}', url: \"postgres://${USER:-walgate}@h/${DB:-shop}\" }
limits: { inflight: ${N}MiB }
sinks:
  a: { webhook: { url: 'http://x', compress: ${YES}, secret: ${SECRET}, path: '$${x}/{event_type}' }, delivery: { concurrency: ${N} } }
";
    let env = [("N", "3"), ("YES", "true"), ("SECRET", "12: 34 # \"x\""), ("DB", "")];
    let loaded = load_with(text, &env, &[]).unwrap();
    assert_eq!(loaded.config.source.slot, "w_3");
    assert_eq!(loaded.config.source.url.as_ref().unwrap().expose(), "postgres://walgate@h/shop");
    assert_eq!(loaded.config.limits.inflight, ByteSize(3 << 20));
    assert_eq!(loaded.sinks[0].delivery.concurrency, Some(3));
    assert_eq!(loaded.sinks[0].targets, [Some("${x}/{event_type}".to_owned())]);
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}

#[test]
fn a_variable_cannot_inject_yaml() {
    let text = "source: { slot: ${X} }\nsinks: { out: { stdout: {} } }\n";
    for value in ["a }\nadmin: { listen: 'off'", "{a: b}", "[a]", "*x", "&x y"] {
        let errors = load_with(text, &[("X", value)], &[]).unwrap_err();
        assert_eq!(errors.len(), 1, "{value}: {errors}");
        assert!(errors.to_string().contains("a slot's name"), "{errors}");
    }
}

#[test]
fn variables_that_set_nothing_are_warned_of() {
    let env =
        [("WALGATE_UNROUTD", "halt"), ("WALGATE_SERVICE_HOST", "x"), ("WALGATE_LOG", "x"), ("WALGATE_CONFIG", "x")];
    let loaded = load_with(FILE, &env, &[]).unwrap();
    let warnings: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        ["environment variable WALGATE_UNROUTD: sets no key of the configuration: did you mean WALGATE_UNROUTED?"]
    );
}

#[test]
fn empty_sections_are_sections_of_defaults() {
    let text = "source:\noutbox:\n  columns:\nlimits:\nroutes:\nadmin:\nsinks:\n  out:\n    stdout:\n    delivery:\n";
    let loaded = load_text(text).unwrap();
    assert_eq!(format!("{:?}", loaded.config), format!("{:?}", Config::default()));
}

#[test]
fn aliases_and_merges_are_read() {
    let text = "x-none: &none 1\nsinks: { out: { stdout: {} } }\n";
    assert!(load_text(text).unwrap_err().to_string().contains("unknown key `x-none`"));
    let text = "
sinks:
  a: { stdout: {}, delivery: &slow { timeout: 30s, concurrency: 2 } }
  b: { stdout: {}, delivery: { <<: *slow, concurrency: 5 } }
  c: { stdout: {}, delivery: *slow }
";
    let loaded = load_text(text).unwrap();
    let read: Vec<_> = loaded.sinks.iter().map(|s| (s.delivery.timeout.0.as_secs(), s.delivery.concurrency)).collect();
    assert_eq!(read, [(30, Some(2)), (30, Some(5)), (30, Some(2))]);
}
