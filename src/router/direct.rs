//! A target without a route: where in a sink an event goes that another sink made a dead letter of.

use walgate_sink::Event;

use super::{Address, Field, Mapping, RuleTarget, SinkTarget, compile::Compiler, template::Values};

/// The target that a sink's own configuration gives, whatever the routes say. It is rendered from the event alone: what
/// columns of the outbox held beside it is not known any more.
#[derive(Debug)]
pub struct Direct {
    place: String,
    target: RuleTarget,
}

impl Direct {
    /// Compiles the target of the sink with this name.
    ///
    /// # Errors
    /// Why it cannot be had from that configuration. None: templates in it are faulty, which [`Router::compile`] says.
    ///
    /// [`Router::compile`]: super::Router::compile
    pub fn compile(sinks: &[SinkTarget], name: &str, known: &Mapping) -> Result<Direct, Option<String>> {
        let Some((index, sink)) = sinks.iter().enumerate().find(|(_, sink)| sink.name == name) else {
            return Err(None);
        };
        let given = |place: usize| sink.defaults.get(place).is_some_and(Option::is_some);
        let missing = sink.fields.iter().enumerate().find(|(place, field)| field.required && !given(*place));
        if let Some((_, field)) = missing {
            let field = field.name;
            return Err(Some(format!(
                "sink `{name}` does not say where in it dead letters go: they have no route, so `{field}` must stand under \
                 the sink itself, as the default of its routes"
            )));
        }
        let target = Compiler::new(sinks, known).own_target(index, name).ok_or(None)?;
        for (field, template) in target.fields.iter().zip(&target.templates) {
            let column = template.iter().flat_map(|template| template.fields()).find_map(|(named, _)| match named {
                Field::Column { name, .. } => Some(name),
                _ => None,
            });
            if let Some(column) = column {
                return Err(Some(format!(
                    "`{}` of sink `{name}` reads `{{column.{column}}}`, and a dead letter has its event only: give the column \
                     a header under `outbox.header_columns`, or name another sink",
                    field.name
                )));
            }
        }
        Ok(Direct { place: format!("sink `{name}`, where dead letters go"), target })
    }

    /// Where this event goes.
    #[must_use]
    pub fn address(&self, event: &Event) -> Address {
        let values = Values { event_type: &event.event_type, event: Some(event), columns: &[] };
        self.target.address(values, || self.place.clone())
    }
}

#[cfg(test)]
mod tests {
    use walgate_sink::{Escape, TargetField};

    use super::*;

    const fn field(name: &'static str, required: bool, ordering_key: bool) -> TargetField {
        TargetField { name, required, ordering_key, escape: Escape::None }
    }
    const FIELDS: &[TargetField] = &[field("topic", true, false), field("key", false, true)];

    fn compile(defaults: [Option<&str>; 2]) -> Result<Direct, Option<String>> {
        let sinks = ["first", "bin"].map(|name| SinkTarget {
            name: name.to_owned(),
            fields: FIELDS,
            defaults: defaults.map(|text| text.map(str::to_owned)).into(),
            check: |_, _| Ok(()),
        });
        let known = Mapping { key: true, headers: true, header_names: Vec::new(), columns: None };
        Direct::compile(&sinks, "bin", &known)
    }

    #[test]
    fn it_is_rendered_from_the_event_and_one_without_a_value_is_rejected_by_that_sink() {
        let direct = compile([Some("dead.{event_type[0]}"), Some("{header.tenant}")]).unwrap();
        let mut event = Event::new("1", "order.created");
        let address = direct.address(&event);
        assert_eq!(address.target.get("topic").map(|topic| &**topic), Some("dead.order"));
        let message = address.invalid.unwrap().message;
        assert!(message.contains("field `key` (sink `bin`, where dead letters go)"), "{message}");
        event.headers = [("tenant".into(), "acme".into())].into_iter().collect();
        let address = direct.address(&event);
        assert!(address.invalid.is_none());
        assert_eq!(address.ordering_key.as_deref(), Some("acme"));
    }

    #[test]
    fn what_only_a_route_can_give_is_told() {
        let why = |defaults| compile(defaults).unwrap_err();
        assert!(why([None, None]).unwrap().contains("`topic` must stand under the sink itself"));
        let column = why([Some("a"), Some("{column.tenant}")]).unwrap();
        assert!(column.contains("`key` of sink `bin` reads `{column.tenant}`"), "{column}");
        assert_eq!(why([Some("{nothing}"), None]), None, "the router says what is wrong with a template");
    }
}
