use proptest::prelude::*;

use super::*;

fn event() -> Event {
    let mut event = Event::new("e-1", "order.created");
    event.key = Some("k/1 ä".into());
    event.headers = [("tenant".into(), "t1".into()), ("empty".into(), "".into())].into_iter().collect();
    event
}

fn render(template: &str, escape: Escape) -> Result<String, RenderError> {
    let event = event();
    let mut template = Template::parse(template).unwrap();
    template.bind(|name| if name == "region" { 0 } else { 1 });
    let columns = [Some("eu".into()), None];
    let values = Values { event_type: &event.event_type, event: Some(&event), columns: &columns };
    template.render(values, escape).map(|text| text.to_string())
}

#[test]
fn fields_are_replaced_and_braces_doubled() {
    for (template, rendered) in [
        ("orders", "orders"),
        ("", ""),
        ("{event_type}", "order.created"),
        ("orders.{event_type}.{id}", "orders.order.created.e-1"),
        ("{key}-{header.tenant}-{column.region}", "k/1 ä-t1-eu"),
        ("{{{id}}}", "{e-1}"),
        ("{{key}}", "{key}"),
        ("a}}b{{c", "a}b{c"),
        ("é{id}é", "ée-1é"),
    ] {
        assert_eq!(render(template, Escape::None).as_deref(), Ok(rendered), "{template}");
    }
}

#[test]
fn values_are_escaped_in_paths_and_literals_are_not() {
    for (template, rendered) in [
        ("/orders/{key}", "/orders/k%2F1%20%C3%A4"),
        ("{key}", "k%2F1%20%C3%A4"),
        ("/a b/{event_type}?x={id}", "/a b/order.created?x=e-1"),
    ] {
        assert_eq!(render(template, Escape::UrlPath).as_deref(), Ok(rendered), "{template}");
    }
}

/// A template with one key in it, as a path.
fn path(template: &str, key: &str) -> Result<String, RenderError> {
    let mut event = event();
    event.key = Some(key.into());
    let values = Values { event_type: &event.event_type, event: Some(&event), columns: &[] };
    Template::parse(template).unwrap().render(values, Escape::UrlPath).map(|path| path.to_string())
}

#[test]
fn no_value_leads_out_of_its_segment() {
    // URL parsers resolve dots, percent-encoded or not: there is no way to write such a segment.
    for (template, key) in [
        ("/a/{key}", "."),
        ("/a/{key}", ".."),
        ("/a/{key}/b", ".."),
        ("/a/.{key}", "."),
        ("/a/{key}{key}", "."),
        ("/a/{key}?q=1", ".."),
        ("/a/%2E{key}", "."),
    ] {
        assert_eq!(path(template, key), Err(RenderError::DotSegment), "{template} {key}");
    }
    assert_eq!(path("/a/v{key}", ".").as_deref(), Ok("/a/v%2E"));
    assert_eq!(path("/a/{key}", "...").as_deref(), Ok("/a/..."));
    assert_eq!(path("/a/{key}", "../b").as_deref(), Ok("/a/..%2Fb"));
    assert_eq!(path("/a/{key}", "..\\b").as_deref(), Ok("/a/..%5Cb"));
    assert_eq!(path("/a?b={key}", "..").as_deref(), Ok("/a?b=%2E%2E"));
    assert_eq!(path("/{key}", "a\r\nb\0?#").as_deref(), Ok("/a%0D%0Ab%00%3F%23"));
}

#[test]
fn what_is_null_absent_or_empty_gives_no_value() {
    let column = Field::Column { name: "other".into(), index: 1 };
    assert_eq!(render("a{column.other}", Escape::None), Err(RenderError::Missing(column)));
    assert_eq!(render("{header.x}", Escape::None), Err(RenderError::Missing(Field::Header("x".into()))));
    assert_eq!(render("a{header.empty}", Escape::None), Err(RenderError::Empty(Field::Header("empty".into()))));
    let event = Event::new("", "x");
    let values = Values { event_type: &event.event_type, event: Some(&event), columns: &[] };
    let render = |text: &str| Template::parse(text).unwrap().render(values, Escape::None);
    assert_eq!(render("{key}"), Err(RenderError::Missing(Field::Key)));
    assert_eq!(render("{id}"), Err(RenderError::Empty(Field::Id)));
}

#[test]
fn what_is_rendered_is_bounded() {
    let mut event = event();
    for (length, escape, fits) in [
        (MAX_RENDERED, Escape::None, true),
        (MAX_RENDERED + 1, Escape::None, false),
        (MAX_RENDERED / 3, Escape::UrlPath, true),
        (MAX_RENDERED / 3 + 1, Escape::UrlPath, false),
        (64 << 20, Escape::UrlPath, false),
    ] {
        event.key = Some("/".repeat(length).into());
        let values = Values { event_type: &event.event_type, event: Some(&event), columns: &[] };
        let rendered = Template::parse("{key}").unwrap().render(values, escape);
        assert_eq!(rendered.is_ok(), fits, "{length} {escape:?}");
        assert!(fits || rendered == Err(RenderError::TooLong));
        let twice = Template::parse("{key}{key}").unwrap().render(values, escape);
        assert_eq!(twice, Err(RenderError::TooLong));
    }
    assert!(Template::parse(&"a".repeat(MAX_RENDERED)).is_ok());
    assert!(Template::parse(&"a".repeat(MAX_RENDERED + 1)).is_err());
}

#[test]
fn errors_name_the_column_and_what_is_allowed() {
    let error = |text: &str| Template::parse(text).unwrap_err();
    insta::assert_snapshot!(error("orders.{evnt_type}"), @"unknown field `{evnt_type}` at column 8 (did you mean `{event_type}`?): the fields are {event_type}, {event_type[0]}, {key}, {id}, {header.<name>} and {column.<name>}");
    insta::assert_snapshot!(error("é{ key }"), @"unknown field `{ key }` at column 2 (did you mean `{key}`?): the fields are {event_type}, {event_type[0]}, {key}, {id}, {header.<name>} and {column.<name>}");
    insta::assert_snapshot!(error("{headers.tenant}"), @"unknown field `{headers.tenant}` at column 1 (did you mean `{header.tenant}`?): the fields are {event_type}, {event_type[0]}, {key}, {id}, {header.<name>} and {column.<name>}");
    insta::assert_snapshot!(error("{payload.id}"), @"unknown field `{payload.id}` at column 1: the fields are {event_type}, {event_type[0]}, {key}, {id}, {header.<name>} and {column.<name>}");
    insta::assert_snapshot!(error("{header.}"), @"unknown field `{header.}` at column 1 (did you mean `{header.<name>}`?): the fields are {event_type}, {event_type[0]}, {key}, {id}, {header.<name>} and {column.<name>}");
    insta::assert_snapshot!(error("{}"), @"unknown field `{}` at column 1: the fields are {event_type}, {event_type[0]}, {key}, {id}, {header.<name>} and {column.<name>}");
    insta::assert_snapshot!(error("a{key"), @"a `{` that is not closed at column 2: write `{{` for the brace itself");
    insta::assert_snapshot!(error("a{key{id}"), @"a `{` that is not closed at column 2: write `{{` for the brace itself");
    insta::assert_snapshot!(error("a}b"), @"a `}` that closes nothing at column 2: write `}}` for the brace itself");
    assert_eq!(error("éé{x}").column, 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn no_text_panics(text in "\\PC*|[{}a-z._é]*|(\\{(key|id|event_type|event_type\\[-?[0-9](\\.\\.)?\\]|header\\.x|column\\.y)\\}|[{}a])*") {
        if let Ok(template) = Template::parse(&text) {
            prop_assert_eq!(template.text(), &text);
            let event = event();
            let values = Values { event_type: &event.event_type, event: Some(&event), columns: &[] };
            for escape in [Escape::None, Escape::UrlPath] {
                if let Ok(rendered) = template.render(values, escape) {
                    prop_assert!(rendered.len() <= MAX_RENDERED);
                    prop_assert_eq!(template.rendered_length(values, escape), Ok(rendered.len()));
                }
            }
        }
    }

    /// X8: a template is filled in once, left to right: what a value says is never read as a template, the literal text
    /// is all there, and the length is bounded.
    #[test]
    fn x8_values_are_filled_in_once_and_the_output_is_bounded(
        parts in proptest::collection::vec(("[^{}]{0,8}", 0_usize..6), 0..6),
        values in proptest::array::uniform5("\\PC{0,12}|\\{(key|id|event_type)\\}|[.\r\n\u{0}\u{202e}*>/]{0,4}"),
        repeat in 1_usize..3000,
    ) {
        let names = ["{event_type}", "{key}", "{id}", "{header.h}", "{column.c}", ""];
        let mut event = Event::new(values[2].as_str(), values[0].as_str());
        event.key = Some(values[1].repeat(repeat).into());
        event.headers = [("h".into(), values[3].as_str().into())].into_iter().collect();
        let columns = [Some(ByteString::from(values[4].as_str()))];
        let given = Values { event_type: &event.event_type, event: Some(&event), columns: &columns };
        let text: String = parts.iter().map(|(literal, name)| format!("{literal}{}", names[*name])).collect();
        let template = Template::parse(&text).unwrap();
        let filled = |value: &dyn Fn(usize) -> String| -> String {
            parts.iter().map(|(literal, name)| format!("{literal}{}", value(*name))).collect()
        };
        let whole = filled(&|name| match name {
            1 => values[1].repeat(repeat),
            5 => String::new(),
            name => values[name].clone(),
        });
        match template.render(given, Escape::None) {
            Ok(rendered) => {
                prop_assert!(rendered.len() <= MAX_RENDERED);
                prop_assert_eq!(&*rendered, &whole);
            }
            Err(RenderError::TooLong) => prop_assert!(whole.len() > MAX_RENDERED),
            Err(RenderError::Empty(_)) => prop_assert!(values.iter().any(String::is_empty)),
            Err(other) => prop_assert!(false, "{other:?}"),
        }
        prop_assert_eq!(template.sample(), filled(&|name| if name == 5 { String::new() } else { "x".to_owned() }));
        if let Ok(path) = template.render(given, Escape::UrlPath) {
            prop_assert!(path.len() <= MAX_RENDERED);
            let mut rest = &*path;
            for (literal, _) in &parts {
                let at = rest.find(literal.as_str());
                prop_assert!(at.is_some(), "{literal:?} is not in {path:?}");
                rest = &rest[at.unwrap() + literal.len()..];
            }
        }
    }

    #[test]
    fn any_text_can_be_written_as_a_literal(text in "\\PC*") {
        let template = Template::parse(&text.replace('{', "{{").replace('}', "}}")).unwrap();
        let values = Values { event_type: &ByteString::new(), event: None, columns: &[] };
        prop_assert_eq!(&*template.render(values, Escape::None).unwrap(), &*text);
    }

    #[test]
    fn a_value_stays_within_its_segment(key in "\\PC+|[./%\\\\?#\\r\\n2eE]+") {
        if let Ok(path) = path("/a/{key}/b", &key) {
            let inner = path.strip_prefix("/a/").and_then(|rest| rest.strip_suffix("/b")).unwrap();
            prop_assert!(inner.bytes().all(|c| c.is_ascii_alphanumeric() || b"-._~%".contains(&c)));
            prop_assert!(!has_dot_segment(&path));
        } else {
            prop_assert!(key == "." || key == ".." || key.len() > MAX_RENDERED / 3);
        }
    }
}

/// What templates are put together from by [`x8_random_templates_end_and_stay_small`].
const PIECES: [&str; 28] = [
    "{",
    "}",
    "{{",
    "}}",
    "{event_type}",
    "{event_type[0]}",
    "{event_type[99999999999999999999]}",
    "{event_type[-1]}",
    "{key}",
    "{id}",
    "{header.h}",
    "{header.}",
    "{column.c}",
    "{payload}",
    "{{key}}",
    "[",
    "]",
    ".",
    "..",
    "/",
    "%",
    "%2e",
    "\0",
    "\r\n",
    "\u{202e}",
    "${HOME}",
    "{% include x %}",
    "a",
];

/// Random templates, random values: an end, a bound, no panic. `make fuzz` runs it 100,000,000 times.
#[test]
fn x8_random_templates_end_and_stay_small() {
    let runs: u64 = std::env::var("FUZZ_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(20_000);
    let mut state = std::env::var("FUZZ_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1_u64).max(1);
    // xorshift64*: fast, and the same everywhere.
    let mut next = move |below: usize| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        usize::try_from(state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % below
    };
    let (mut text, mut value, mut rendered) = (String::new(), String::new(), 0_u64);
    for _ in 0..runs {
        text.clear();
        value.clear();
        (0..next(7)).for_each(|_| text.push_str(PIECES[next(PIECES.len())]));
        (0..next(5)).for_each(|_| value.push_str(PIECES[next(PIECES.len())]));
        let Ok(mut template) = Template::parse(&text) else { continue };
        template.bind(|_| 0);
        let mut event = Event::new(value.as_str(), value.as_str());
        event.key = (next(4) > 0).then(|| value.as_str().into());
        event.headers = [("h".into(), value.as_str().into())].into_iter().collect();
        let columns = [Some(ByteString::from(value.as_str()))];
        let values = Values { event_type: &event.event_type, event: Some(&event), columns: &columns };
        let escape = if next(2) == 0 { Escape::None } else { Escape::UrlPath };
        if let Ok(result) = template.render(values, escape) {
            // Each place is filled once, with the value as it is or three times as long.
            assert!(result.len() <= text.len() + 7 * 3 * value.len(), "{text:?} with {value:?} gave {result:?}");
            assert!(result.len() <= MAX_RENDERED);
            assert!(escape != Escape::UrlPath || text.contains('.') || text.contains('%') || !has_dot_segment(&result));
            rendered += 1;
        }
    }
    assert!(rendered > runs / 20, "{rendered} of {runs} were rendered: the pieces are badly chosen");
}
