use walgate_sink::Escape;

use super::*;

const fn field(name: &'static str) -> TargetField {
    TargetField { name, required: false, ordering_key: false, escape: Escape::None }
}

const KAFKA: &[TargetField] =
    &[TargetField { required: true, ..field("topic") }, TargetField { ordering_key: true, ..field("key") }];
const WEBHOOK: &[TargetField] = &[TargetField { escape: Escape::UrlPath, ..field("path") }];

fn sinks() -> Vec<SinkTarget> {
    let sink = |name: &str, fields, defaults: &[Option<&str>]| SinkTarget {
        name: name.to_owned(),
        fields,
        defaults: defaults.iter().map(|text| text.map(str::to_owned)).collect(),
        check: |field, value| match field == "topic" && value.contains(' ') {
            true => Err("it has a space".to_owned()),
            false => Ok(()),
        },
    };
    vec![
        sink("bus", KAFKA, &[Some("orders.{event_type}"), None]),
        sink("partner", WEBHOOK, &[None]),
        sink("bare", KAFKA, &[None, None]),
        sink("stdout", &[], &[]),
    ]
}

fn all() -> Mapping {
    Mapping { key: true, headers: true, header_names: Vec::new(), columns: None }
}

fn routes(json: serde_json::Value) -> Vec<config::Route> {
    serde_json::from_value(json).unwrap()
}

fn compile(json: serde_json::Value) -> Router {
    Router::compile(&routes(json), &sinks(), &all()).unwrap()
}

fn errors(json: serde_json::Value, known: &Mapping) -> String {
    let errors = Router::compile(&routes(json), &sinks(), known).unwrap_err();
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn event(event_type: &str, key: Option<&str>) -> Event {
    let mut event = Event::new("e1", event_type);
    event.key = key.map(Into::into);
    event
}

/// The deliveries of an event: sink, route, target, ordering key, dedup id, and whether it is invalid.
fn route(router: &mut Router, event: &Event) -> Vec<String> {
    let mut out = Vec::new();
    router.route(event, &[], &mut out);
    let text = |routed: &Routed| {
        let delivery = &routed.delivery;
        let key = delivery.ordering_key.as_deref().unwrap_or("-");
        let invalid = if routed.invalid.is_some() { " INVALID" } else { "" };
        let sink = &router.sinks[routed.sink];
        format!("{sink} r{} [{}] {key} {}{invalid}", routed.route, delivery.target, delivery.dedup_id)
    };
    out.iter().map(text).collect()
}

#[test]
fn the_sample_of_the_conventions() {
    let mut router = compile(serde_json::json!([
        { "event_type": "order.*", "to": ["bus", { "sink": "partner", "path": "/orders/{key}" }] },
        { "event_type": ["user.created", "user.deleted"], "to": { "sink": "bus", "topic": "users" } },
    ]));
    assert_eq!(
        route(&mut router, &event("order.created", Some("7"))),
        ["bus r0 [topic=orders.order.created] 7 e1", "partner r0 [path=/orders/7] 7 e1"]
    );
    assert_eq!(route(&mut router, &event("user.deleted", None)), ["bus r1 [topic=users] - e1"]);
    assert!(route(&mut router, &event("user.changed", None)).is_empty());
    assert!(router.warnings().iter().all(|warning| warning.route.is_none()));
}

#[test]
fn a_known_type_is_routed_as_an_unknown_one() {
    let mut router = compile(serde_json::json!([
        { "event_type": "**", "to": ["bus", { "sink": "bus", "topic": "all", "key": "{id}" }] },
        { "event_type": "a*", "to": { "sink": "bus", "topic": "{key}" } },
    ]));
    let long = "a".repeat(CACHED_LENGTH + 1);
    for event_type in ["a", "b", "", &long] {
        let event = event(event_type, Some("k"));
        let first = route(&mut router, &event);
        for _ in 0..3 {
            assert_eq!(route(&mut router, &event), first);
        }
    }
    assert_eq!(router.cache.len(), 3);
    for number in 0..=CACHED_TYPES {
        route(&mut router, &event(&number.to_string(), None));
        assert!(router.cache.len() <= CACHED_TYPES);
    }
}

#[test]
fn the_cache_keeps_no_memory_of_the_stream() {
    let mut router =
        compile(serde_json::json!([{ "event_type": "**", "to": { "sink": "bus", "topic": "{event_type}" } }]));
    let chunk = bytes::Bytes::from(vec![b'x'; 64]);
    let mut out = Vec::new();
    {
        let event_type = ByteString::try_from(chunk.slice(..8)).unwrap();
        router.route(&Event::new("1", event_type), &[], &mut out);
        out.clear();
    }
    assert!(chunk.is_unique());
}

#[test]
fn the_ordering_key_is_the_rendered_one_or_the_events() {
    let mut router = compile(serde_json::json!([
        { "event_type": "own", "to": { "sink": "bus", "key": "{id}" } },
        { "event_type": "events", "to": "bus" },
        { "event_type": "literal", "to": { "sink": "bus", "key": "all" } },
        { "event_type": "none", "to": { "sink": "bus", "key": "" } },
    ]));
    for (event_type, key, ordered) in [
        ("own", Some("k"), "e1"),
        ("events", Some("k"), "k"),
        ("events", None, "-"),
        ("literal", None, "all"),
        ("none", Some("k"), "k"),
    ] {
        let routed = route(&mut router, &event(event_type, key));
        assert_eq!(routed[0].split_whitespace().rev().nth(1), Some(ordered), "{event_type}");
    }
}

#[test]
fn one_event_to_several_targets_of_a_sink_has_distinct_dedup_ids() {
    let mut router = compile(serde_json::json!([
        { "event_type": "**", "to": [{ "sink": "bus", "topic": "all" }, "stdout"] },
        { "event_type": "a", "to": { "sink": "bus", "topic": "{event_type}" } },
        { "event_type": "a", "to": { "sink": "bus", "topic": "all", "key": "{key}" } },
    ]));
    insta::assert_snapshot!(route(&mut router, &event("a", Some("k"))).join("\n"), @"bus r0 [topic=all] k e1-6068e619ac35db35
stdout r0 [] k e1
bus r1 [topic=a] k e1-c8542b967b8c0217
bus r2 [topic=all key=k] k e1-abd6b42a7ed1986d");
    // Alone at its sink, it has the event's id.
    assert_eq!(route(&mut router, &event("b", Some("k"))), ["bus r0 [topic=all] k e1", "stdout r0 [] k e1"]);
}

#[test]
fn the_same_target_by_two_routes_is_one_delivery() {
    let mut router = compile(serde_json::json!([
        { "event_type": "a", "to": { "sink": "bus", "topic": "t.{key}" } },
        { "event_type": "*", "to": [{ "sink": "bus", "topic": "t.{key}" }, { "sink": "bus", "topic": "t.{id}" }] },
    ]));
    assert_eq!(route(&mut router, &event("a", Some("e1"))), ["bus r0 [topic=t.e1] e1 e1"]);
    assert_eq!(route(&mut router, &event("a", Some("k"))).len(), 2);
    // One rule twice is one rejection too.
    assert_eq!(
        route(&mut router, &event("a", None)),
        ["bus r0 [] - e1-e3b0c44298fc1c14 INVALID", "bus r1 [topic=t.e1] - e1-0442ca82d562a977"]
    );
}

#[test]
fn what_an_event_gives_nothing_for_is_rejected_and_not_dropped() {
    let mut router = compile(serde_json::json!([
        { "event_type": "topic", "to": { "sink": "bus", "topic": "{key}" } },
        { "event_type": "key", "to": { "sink": "bus", "key": "{header.tenant}" } },
        { "event_type": "path", "to": { "sink": "partner", "path": "/orders/{key}" } },
        { "event_type": "column", "to": { "sink": "partner", "path": "/{column.region}" } },
    ]));
    let mut reject = |event: &Event| {
        let mut out = Vec::new();
        router.route(event, &[], &mut out);
        let rejection = out.remove(0).invalid.unwrap();
        assert_eq!(rejection.reason, RejectReason::InvalidTarget);
        rejection.message
    };
    insta::assert_snapshot!(reject(&event("topic", None)), @"template `{key}` of field `topic` (sink `bus`, routes[0]) is empty for this event: its key is NULL; fill it when the row is written, or route such events to a target that does not need it");
    insta::assert_snapshot!(reject(&event("topic", Some(""))), @"template `{key}` of field `topic` (sink `bus`, routes[0]) is empty for this event: its key is empty; fill it when the row is written, or route such events to a target that does not need it");
    insta::assert_snapshot!(reject(&event("topic", Some(&"x".repeat(10_000)))), @"template `{key}` of field `topic` (sink `bus`, routes[0]) gives more than 8192 bytes for this event, and no name is that long");
    insta::assert_snapshot!(reject(&event("key", None)), @"template `{header.tenant}` of field `key` (sink `bus`, routes[1]) is empty for this event: its header `tenant` is not there; leave `key` out of the target, and such events go without it");
    insta::assert_snapshot!(reject(&event("path", Some(".."))), @"template `/orders/{key}` of field `path` (sink `partner`, routes[2]) gives a path with a segment `.` or `..` for this event, which would lead to another path");
    insta::assert_snapshot!(reject(&event("column", None)), @"template `/{column.region}` of field `path` (sink `partner`, routes[3]) is empty for this event: its column `region` is NULL; fill it when the row is written, or route such events to a target that does not need it");
}

#[test]
fn columns_are_registered_once_and_read_by_their_place() {
    let mut router = compile(serde_json::json!([
        { "event_type": "**", "to": { "sink": "partner", "path": "/{column.b}/{column.a}/{column.b}" } },
        { "event_type": "x", "to": { "sink": "bus", "topic": "{column.a}" } },
    ]));
    assert_eq!(router.columns(), ["b", "a"]);
    let mut out = Vec::new();
    router.route(&event("x", None), &[Some("1".into()), Some("2".into())], &mut out);
    let targets: Vec<_> = out.iter().map(|routed| routed.delivery.target.to_string()).collect();
    assert_eq!(targets, ["path=/1/2/1", "topic=2"]);
}

#[test]
fn hostile_types_and_keys_are_routed_without_harm() {
    let mut router = compile(serde_json::json!([
        { "event_type": "**", "to": ["bus", { "sink": "partner", "path": "/{event_type}/{key}" }] },
    ]));
    for hostile in ["..", "*", ">", "\u{1}\r\n", "\u{202e}x", "\u{1F600}", "", " ", "{key}", &"x".repeat(1 << 20)] {
        let mut out = Vec::new();
        router.route(&event(hostile, Some(hostile)), &[], &mut out);
        assert_eq!(out.len(), 2, "{hostile:?}");
        match (&out[1].invalid, out[1].delivery.target.get("path")) {
            (Some(_), None) => {}
            (None, Some(path)) => assert!(path.bytes().all(|byte| byte.is_ascii_graphic()), "{path}"),
            both => panic!("{both:?}"),
        }
    }
}

#[test]
fn every_fault_is_found_with_its_place() {
    insta::assert_snapshot!(errors(serde_json::json!([
        { "event_type": "order.*", "to": ["buss", { "sink": "bus", "topc": "x" }] },
        { "event_type": ["a..b", "ok", "***"], "to": "bare" },
        { "event_type": "x", "to": [{ "sink": "stdout", "topic": "x" }, { "sink": "bus", "topic": "" }] },
        { "event_type": [], "to": [] },
        { "event_type": "x", "to": { "sink": "bare", "topic": "a", "topic": "{kye}" } },
        { "event_type": "x", "to": { "sink": "partner", "path": "/a/../b" } },
        { "event_type": "x", "to": "zzz" },
    ]), &all()), @"routes[0].to[0]: unknown sink `buss` (did you mean `bus`?): the sinks are bus, partner, bare, stdout
routes[0].to[1].topc: sink `bus` has no target key `topc` (did you mean `topic`?): its target keys are topic, key
routes[1].event_type[0]: `a..b` is not a pattern of event types: segment 2 is empty; segments have one dot between them, and `*` matches an empty one too
routes[1].event_type[2]: `***` is not a pattern of event types: `**` must stand alone between dots; within a segment write `*`
routes[1].to[0].topic: sink `bare` needs `topic`, and neither this route nor the sink's own configuration gives it: write `to: { sink: bare, topic: ... }` here, or `topic` under the sink as the default of its routes
routes[2].to[0].topic: sink `stdout` has no target key `topic`: its target keys are none
routes[2].to[1].topic: it is empty, and the sink needs it
routes[3]: the list of event types is empty: name at least one, or `**` for every event type
routes[3]: the list of targets is empty: name a sink, or remove the route (what no route matches is left to `unrouted`)
routes[4].to[0].topic: unknown field `{kye}` at column 1 (did you mean `{key}`?): the fields are {event_type}, {event_type[0]}, {key}, {id}, {header.<name>} and {column.<name>}
routes[5].to[0].path: a path cannot have a segment `.` or `..`
routes[6].to[0]: unknown sink `zzz`: the sinks are bus, partner, bare, stdout");
}

#[test]
fn fields_that_the_outbox_does_not_give_are_explained() {
    let templates = serde_json::json!([
        { "event_type": "x", "to": { "sink": "bus", "topic": "t.{key}" } },
        { "event_type": "x", "to": { "sink": "bus", "topic": "t.{header.tenant}" } },
        { "event_type": "x", "to": { "sink": "bus", "topic": "t.{column.region}" } },
    ]);
    insta::assert_snapshot!(errors(templates.clone(), &Mapping::default()), @"routes[0].to[0].topic: `{key}` needs the column of the key: name it as `outbox.columns.key` (column 3)
routes[1].to[0].topic: `{header.tenant}` needs headers: name a jsonb column as `outbox.columns.headers`, or give the header a column of its own as `outbox.header_columns.tenant` (column 3)");
    let some = Mapping {
        key: true,
        headers: false,
        header_names: vec!["tennant".into()],
        columns: Some(vec!["id".into(), "regio".into()]),
    };
    insta::assert_snapshot!(errors(templates, &some), @"routes[1].to[0].topic: unknown header `tenant` (did you mean `tennant`?): the headers of `outbox.header_columns` are tennant (column 3)
routes[2].to[0].topic: unknown column `region` (did you mean `regio`?): the columns of the outbox are id, regio (column 3)");
}

#[test]
fn a_fault_in_a_sinks_own_default_is_reported_once_and_names_the_sink() {
    let mut sinks = sinks();
    sinks[0].defaults = vec![Some("{evnt_type}".to_owned())];
    let routes = routes(serde_json::json!([
        { "event_type": "a", "to": "stdout" },
        { "event_type": "b", "to": "bus" },
        { "event_type": "c", "to": "bus" },
    ]));
    let errors = Router::compile(&routes, &sinks, &all()).unwrap_err();
    assert_eq!(errors.len(), 1);
    assert_eq!((errors[0].route, errors[0].sink, errors[0].field.as_deref()), (1, Some(0), Some("topic")));
    insta::assert_snapshot!(errors[0], @"`topic` of sink `bus`: unknown field `{evnt_type}` at column 1 (did you mean `{event_type}`?): the fields are {event_type}, {event_type[0]}, {key}, {id}, {header.<name>} and {column.<name>}");
}

#[test]
fn the_mapping_comes_from_the_configuration() {
    let mut outbox = config::Outbox::default();
    assert_eq!(Mapping::of(&outbox), Mapping::default());
    outbox.columns.key = config::KeySource::parse("aggregate_id").ok();
    outbox.header_columns.insert("tenant".into(), "tenant_id".into());
    let known = Mapping { key: true, headers: false, header_names: vec!["tenant".into()], columns: None };
    assert_eq!(Mapping::of(&outbox), known);
}

#[test]
fn rules_without_effect_and_unused_sinks_are_warned_of() {
    let router = compile(serde_json::json!([
        { "event_type": ["order.*", "order.created"], "to": "bus" },
        { "event_type": "order.created", "to": { "sink": "bus", "topic": "orders.{event_type}" } },
        { "event_type": "**", "to": "bus" },
        { "event_type": "order.created", "to": { "sink": "bus", "topic": "elsewhere" } },
        { "event_type": "user.*", "to": ["partner", "stdout"] },
    ]));
    let warnings: Vec<_> = router.warnings().iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(warnings.join("\n"), @"routes[0]: `order.created` to `bus` has no effect: `order.*` of routes[0] sends these events to the same target already, and one target gets an event once; remove it, or give it another target
routes[1]: `order.created` to `bus` has no effect: `order.*` of routes[0] sends these events to the same target already, and one target gets an event once; remove it, or give it another target
no route uses sink `bare`: nothing is delivered to it; add a route, or remove it");
}

#[test]
fn the_table_shows_each_pattern_with_each_target() {
    let router = compile(serde_json::json!([
        { "event_type": ["order.*", "user.**"], "to": ["bus", { "sink": "bare", "topic": "t", "key": "{key}" }] },
        { "event_type": "x", "to": "stdout" },
    ]));
    let row = |row: &RouteRow| format!("{} {} {} [{}]", row.route, row.pattern, row.sink, row.target);
    insta::assert_snapshot!(router.table().iter().map(row).collect::<Vec<_>>().join("\n"), @"0 order.* bus [topic=orders.{event_type}]
0 order.* bare [topic=t key={key}]
0 user.** bus [topic=orders.{event_type}]
0 user.** bare [topic=t key={key}]
1 x stdout []");
}

#[test]
fn every_condition_must_hold_and_any_text_of_a_list_does() {
    let mut router = compile(serde_json::json!([
        { "event_type": "order.*", "when": { "header.tenant": "acme", "column.region": ["eu", "us"] }, "to": "bus" },
        { "event_type": "**", "when": { "key": ["", "7"] }, "to": "stdout" },
        { "event_type": "order.*", "to": "partner" },
    ]));
    assert_eq!(router.columns(), ["region"]);
    let mut sinks = |key: Option<&str>, tenant: Option<&str>, region: Option<&str>| {
        let mut event = event("order.created", key);
        event.headers = tenant.map(|tenant| ("tenant".into(), tenant.into())).into_iter().collect();
        let mut out = Vec::new();
        router.route(&event, &[region.map(Into::into)], &mut out);
        out.iter().map(|routed| router.sinks[routed.sink].clone()).collect::<Vec<_>>()
    };
    assert_eq!(sinks(None, Some("acme"), Some("eu")), ["bus", "partner"]);
    assert_eq!(sinks(Some("7"), Some("acme"), Some("us")), ["bus", "stdout", "partner"]);
    assert_eq!(sinks(Some(""), Some("acme"), Some("US")), ["stdout", "partner"]);
    for (tenant, region) in [(None, Some("eu")), (Some("acme"), None), (Some("Acme"), Some("eu")), (Some(""), Some(""))]
    {
        assert_eq!(sinks(Some("8"), tenant, region), ["partner"], "{tenant:?} {region:?}");
    }
}

#[test]
fn one_target_of_several_conditional_routes_gets_an_event_once() {
    let mut router = compile(serde_json::json!([
        { "event_type": "**", "when": { "key": "a" }, "to": { "sink": "bus", "topic": "t" } },
        { "event_type": "**", "when": { "header.h": "1" }, "to": { "sink": "bus", "topic": "t" } },
        { "event_type": "**", "when": { "header.h": "2" }, "to": { "sink": "bus", "topic": "{header.none}" } },
        { "event_type": "**", "when": { "key": "b" }, "to": { "sink": "bus", "topic": "{header.none}" } },
        { "event_type": "x", "to": { "sink": "bus", "topic": "{header.none}" } },
        { "event_type": "x", "when": { "key": "b" }, "to": { "sink": "bus", "topic": "{header.none}" } },
    ]));
    let mut routes = |event_type: &str, key: &str, header: &str| {
        let mut event = event(event_type, Some(key));
        event.headers = [("h".into(), header.into())].into_iter().collect();
        let mut out = Vec::new();
        router.route(&event, &[], &mut out);
        out.iter().map(|routed| (routed.route, routed.delivery.dedup_id.to_string())).collect::<Vec<_>>()
    };
    let e1 = || "e1".to_owned();
    assert_eq!(routes("y", "a", "1"), [(0, e1())]);
    assert_eq!(routes("y", "c", "1"), [(1, e1())]);
    // What has no legal target is one rejection, whoever asks for it.
    assert_eq!(routes("y", "b", "2"), [(2, e1())]);
    assert_eq!(routes("y", "b", "1").iter().map(|(route, _)| *route).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(routes("x", "b", "2"), [(2, e1())]);
    assert_eq!(routes("x", "c", "-"), [(4, e1())]);
    assert_eq!(routes("y", "c", "-"), []);
}

#[test]
fn faults_of_conditions_are_explained() {
    let conditions = serde_json::json!([
        { "event_type": "a", "when": { "headers.tenant": "x", "event_type": "a", "column.": "x", "kye": "x" }, "to": "bus" },
        { "event_type": "a", "when": { "header.tenant": [], "id": "x", "key": "a".repeat(MAX_RENDERED + 1) }, "to": "bus" },
    ]);
    insta::assert_snapshot!(errors(conditions, &all()), @r#"routes[0].when."headers.tenant": unknown condition `headers.tenant` (did you mean `header.tenant`?): a condition is on `key`, `header.<name>` or `column.<name>`
routes[0].when."event_type": the event type is the route's own `event_type`, a pattern; a condition is on `key`, `header.<name>` or `column.<name>`
routes[0].when."column.": unknown condition `column.` (did you mean `column.<name>`?): a condition is on `key`, `header.<name>` or `column.<name>`
routes[0].when."kye": unknown condition `kye` (did you mean `key`?): a condition is on `key`, `header.<name>` or `column.<name>`
routes[1].when."header.tenant": the list is empty, so it never holds: name at least one text
routes[1].when."id": unknown condition `id`: a condition is on `key`, `header.<name>` or `column.<name>`
routes[1].when."key"[0]: it has 8193 bytes, and 8192 are possible"#);
    let known = serde_json::json!([
        { "event_type": "a", "when": { "key": "a", "header.tenant": "x", "column.regoin": "eu" }, "to": "bus" },
    ]);
    insta::assert_snapshot!(errors(known.clone(), &Mapping::default()), @r#"routes[0].when."key": `key` needs the column of the key: name it as `outbox.columns.key`
routes[0].when."header.tenant": `header.tenant` needs headers: name a jsonb column as `outbox.columns.headers`, or give the header a column of its own as `outbox.header_columns.tenant`"#);
    let some = Mapping {
        key: true,
        headers: false,
        header_names: vec!["tennant".into()],
        columns: Some(vec!["id".into(), "region".into()]),
    };
    insta::assert_snapshot!(errors(known, &some), @r#"routes[0].when."header.tenant": unknown header `tenant` (did you mean `tennant`?): the headers of `outbox.header_columns` are tennant
routes[0].when."column.regoin": unknown column `regoin` (did you mean `region`?): the columns of the outbox are id, region"#);
}

#[test]
fn warnings_look_at_conditions() {
    let to = serde_json::json!({ "sink": "bus", "topic": "t" });
    let router = compile(serde_json::json!([
        { "event_type": "**", "when": { "header.tenant": ["a", "b"] }, "to": to },
        { "event_type": "order.*", "to": to },
        { "event_type": "order.*", "when": { "header.tenant": "b", "key": "1" }, "to": to },
        { "event_type": "user.*", "when": { "header.tenant": "a", "key": "1" }, "to": to },
        { "event_type": "user.*", "when": { "header.tenant": ["a", "c"] }, "to": to },
    ]));
    let warnings: Vec<_> = router.warnings().iter().filter(|w| w.route.is_some()).map(ToString::to_string).collect();
    insta::assert_snapshot!(warnings.join("\n"), @"routes[2]: `order.*` to `bus` has no effect: `**` of routes[0] sends these events to the same target already, and one target gets an event once; remove it, or give it another target
routes[3]: `user.*` to `bus` has no effect: `**` of routes[0] sends these events to the same target already, and one target gets an event once; remove it, or give it another target");
}

#[test]
fn segments_of_the_event_type_are_rendered_once_for_each_type() {
    let mut router = compile(serde_json::json!([
        { "event_type": "**", "to": { "sink": "bus", "topic": "{event_type[0]}.{event_type[-1]}.{event_type[1..]}" } },
    ]));
    assert!(router.rules[0].targets[0].by_type);
    assert_eq!(route(&mut router, &event("a.b.c", None)), ["bus r0 [topic=a.c.b.c] - e1"]);
    let mut out = Vec::new();
    for (event_type, how) in
        [("a", "segment `[1..]` is not there"), (".b", "segment `[0]` is empty"), ("", "`[0]` is empty")]
    {
        router.route(&event(event_type, None), &[], &mut out);
        let rejection = out[0].invalid.as_ref().unwrap();
        assert_eq!(rejection.reason, RejectReason::InvalidTarget);
        assert!(rejection.message.contains(how), "{rejection}");
    }
}

#[test]
fn a_segment_that_can_never_be_there_is_refused() {
    let mut sinks = sinks();
    sinks[0].defaults = vec![Some("{event_type[2]}".to_owned())];
    let routes = routes(serde_json::json!([
        { "event_type": ["order.**", "order.*"], "to": { "sink": "bus", "topic": "t.{event_type[3]}" } },
        { "event_type": "order", "to": [{ "sink": "bus", "topic": "{event_type[1..]}" }, { "sink": "bus", "topic": "{event_type[-2]}" }] },
        { "event_type": "a.b.c", "to": "bus" },
        { "event_type": "a.b", "to": "bus" },
        { "event_type": "**", "to": { "sink": "bus", "topic": "{event_type[9]}" } },
        { "event_type": "**", "to": { "sink": "bus", "topic": "{event_type[1..2]}" } },
    ]));
    let errors = Router::compile(&routes, &sinks, &all()).unwrap_err();
    let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(errors.join("\n"), @"routes[0].to[0].topic: `{event_type[3]}` is never there: event types that `order.*` matches have 2 segments (column 3)
routes[1].to[0].topic: `{event_type[1..]}` is never there: event types that `order` matches have 1 segment (column 1)
routes[1].to[1].topic: `{event_type[-2]}` is never there: event types that `order` matches have 1 segment (column 1)
routes[3].to[0]: `topic` of sink `bus`: `{event_type[2]}` is never there: event types that `a.b` matches have 2 segments (column 1)
routes[5].to[0].topic: unknown field `{event_type[1..2]}` at column 1: the segments of an event type are `{event_type[0]}` and on, `{event_type[-1]}` and back from the last, and `{event_type[1..]}` for all from one on");
}

#[test]
fn what_a_sink_never_takes_is_refused_when_it_is_compiled() {
    let mut sinks = sinks();
    sinks[0].defaults = vec![Some("o rders.{key}".to_owned())];
    let routes = routes(serde_json::json!([
        { "event_type": "a", "to": ["bus", { "sink": "bare", "topic": "a b" }] },
        { "event_type": "a", "to": { "sink": "bare", "topic": "a {key}", "key": "a b" } },
        { "event_type": "a", "to": { "sink": "partner", "path": "/{key}/../x" } },
    ]));
    let errors = Router::compile(&routes, &sinks, &all()).unwrap_err();
    let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(errors.join("\n"), @"`topic` of sink `bus`: not a topic that sink `bus` takes: it has a space (with `x` for each field it is `o rders.x`)
routes[0].to[1].topic: not a topic that sink `bare` takes: it has a space
routes[1].to[0].topic: not a topic that sink `bare` takes: it has a space (with `x` for each field it is `a x`)
routes[2].to[0].path: a path cannot have a segment `.` or `..`");
}

#[test]
fn verdicts_say_why_a_route_does_not_apply() {
    let mut router = compile(serde_json::json!([
        { "event_type": ["a.*", "**"], "to": ["bus", "bus", "stdout"] },
        { "event_type": "b", "when": { "key": "k" }, "to": "bus" },
        { "event_type": "a.*", "when": { "key": "k", "header.tenant": ["x", "y"] }, "to": "bus" },
        { "event_type": "a.*", "when": { "column.region": "eu" }, "to": "bus" },
    ]));
    let event = event("a.b", Some("k"));
    let columns = [Some("us".into())];
    let verdicts: Vec<_> = router.explain(&event, &columns).iter().map(|v| serde_json::to_string(v).unwrap()).collect();
    insta::assert_snapshot!(verdicts.join("\n"), @r#"{"route":0,"patterns":["a.*","**"],"sinks":["bus","stdout"],"verdict":"matched","pattern":"a.*"}
{"route":1,"patterns":["b"],"sinks":["bus"],"verdict":"other_type"}
{"route":2,"patterns":["a.*"],"sinks":["bus"],"verdict":"condition_failed","pattern":"a.*","key":"header.tenant","wanted":["x","y"],"found":null}
{"route":3,"patterns":["a.*"],"sinks":["bus"],"verdict":"condition_failed","pattern":"a.*","key":"column.region","wanted":["eu"],"found":"us"}"#);
    let mut out = Vec::new();
    router.route(&event, &columns, &mut out);
    assert_eq!(out.len(), 2);
}

mod properties {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn texts() -> impl Strategy<Value = Vec<String>> {
        vec("[ab]{0,2}", 1..3)
    }

    fn conditions() -> impl Strategy<Value = Vec<(String, Vec<String>)>> {
        let field = prop_oneof![Just("key"), Just("header.h"), Just("header.i"), Just("column.c")];
        vec((field.prop_map(str::to_owned), texts()), 0..3)
    }

    proptest! {
        /// Routing is what it says: a route applies where a pattern matches and every condition holds, and `explain`
        /// says the same.
        #[test]
        fn conditions_are_a_conjunction_of_alternatives(
            rules in vec(("\\*\\*|a|b", conditions(), 0_usize..2), 1..6),
            event_type in "[ab]",
            key in proptest::option::of("[ab]{0,2}"),
            headers in vec(("[hi]", "[ab]{0,2}"), 0..3),
            column in proptest::option::of("[ab]{0,2}"),
        ) {
            let json: Vec<_> = rules.iter().map(|(pattern, when, topic)| {
                let mut route = serde_json::json!({ "event_type": pattern, "to": { "sink": "bus" } });
                route["to"]["topic"] = ["x", "{id}"][*topic].into();
                if !when.is_empty() {
                    route["when"] = when.iter().cloned().map(|(key, texts)| (key, texts.into())).collect::<serde_json::Map<_, _>>().into();
                }
                route
            }).collect();
            let mut router = compile(json.clone().into());
            let mut event = event(&event_type, key.as_deref());
            event.headers = headers.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect();
            let columns: Vec<_> = router.columns().iter().map(|_| column.as_deref().map(ByteString::from)).collect();
            let mut out = Vec::new();
            router.route(&event, &columns, &mut out);

            let applies = |route: &serde_json::Value| {
                let matches = route["event_type"] == "**" || route["event_type"] == event_type.as_str();
                matches && route.get("when").and_then(serde_json::Value::as_object).into_iter().flatten().all(|(field, texts)| {
                    let found = match field.as_str() {
                        "key" => key.clone(),
                        "column.c" => column.clone(),
                        header => headers.iter().find(|(name, _)| header.ends_with(name)).map(|(_, value)| value.clone()),
                    };
                    found.is_some_and(|found| texts.as_array().unwrap().iter().any(|text| *text == found.as_str()))
                })
            };
            let mut expected: Vec<String> = Vec::new();
            for route in json.iter().filter(|route| applies(route)) {
                let topic = route["to"]["topic"].as_str().unwrap().replace("{id}", "e1");
                if !expected.contains(&topic) {
                    expected.push(topic);
                }
            }
            let got: Vec<String> = out.iter().map(|routed| routed.delivery.target.get("topic").unwrap().to_string()).collect();
            prop_assert_eq!(got, expected);
            for (verdict, route) in router.explain(&event, &columns).iter().zip(&json) {
                prop_assert_eq!(matches!(verdict.verdict, Verdict::Matched { .. }), applies(route));
            }
        }
    }
}
