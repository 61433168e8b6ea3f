//! Exchanges, queues and bindings: what is declared because the configuration says so, and the look at what is there.

use std::collections::BTreeMap;

use lapin::{
    ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, LongString, ShortString},
};
use serde::Deserialize;
use serde_json::Value;
use walgate_sink::{ConfigIssue, PathSegment, SinkError};

use crate::{classify, generation::Generation, names};

/// `declare:`, in this order.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Exchanges.
    #[serde(default)]
    pub exchanges: Vec<Exchange>,
    /// Queues.
    #[serde(default)]
    pub queues: Vec<Queue>,
    /// Bindings from exchanges to queues.
    #[serde(default)]
    pub bindings: Vec<Binding>,
}

/// An exchange. It is durable.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exchange {
    /// Its name.
    pub name: String,
    /// `direct`, `topic`, `fanout`, `headers`, or a type that a plugin brings.
    #[serde(rename = "type", default = "topic")]
    pub kind: String,
    /// Arguments: texts, whole numbers and booleans.
    #[serde(default)]
    pub arguments: BTreeMap<String, Value>,
}

/// A queue. It is durable.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type", default)]
    pub kind: QueueKind,
    /// Arguments: texts, whole numbers and booleans.
    #[serde(default)]
    pub arguments: BTreeMap<String, Value>,
}

/// `type:` of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueKind {
    /// Replicated: acknowledged by most of its members.
    #[default]
    Quorum,
    /// On one node.
    Classic,
}

/// A binding.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// The queue that messages go to.
    pub queue: String,
    /// The exchange that they come from.
    pub exchange: String,
    /// The binding key; empty where the exchange does not look at it.
    #[serde(default)]
    pub routing_key: String,
    /// Arguments, for `headers` exchanges.
    #[serde(default)]
    pub arguments: BTreeMap<String, Value>,
}

fn topic() -> String {
    "topic".to_owned()
}

impl Topology {
    pub(crate) fn check(&self, issues: &mut Vec<ConfigIssue>) {
        let mut issue = |list: &str, index: usize, keys: &[&str], message: String| {
            let mut path = vec![key("declare"), key(list), PathSegment::Index(index)];
            path.extend(keys.iter().map(|name| key(name)));
            issues.push(ConfigIssue { path, message });
        };
        for (index, exchange) in self.exchanges.iter().enumerate() {
            if let Err(why) = check_declared(&exchange.name) {
                issue("exchanges", index, &["name"], why);
            }
            if let Err(why) = names::check_short(&exchange.kind) {
                issue("exchanges", index, &["type"], why);
            }
            if let Err((name, why)) = table(&exchange.arguments) {
                issue("exchanges", index, &["arguments", name], why.to_owned());
            }
        }
        for (index, queue) in self.queues.iter().enumerate() {
            if let Err(why) = check_declared(&queue.name) {
                issue("queues", index, &["name"], why);
            }
            if queue.arguments.contains_key("x-queue-type") {
                issue("queues", index, &["arguments", "x-queue-type"], "its `type` says that: remove it".to_owned());
            } else if let Err((name, why)) = table(&queue.arguments) {
                issue("queues", index, &["arguments", name], why.to_owned());
            }
        }
        for (index, binding) in self.bindings.iter().enumerate() {
            for (name, value) in [("queue", &binding.queue), ("exchange", &binding.exchange)] {
                if let Err(why) = names::check_short(value) {
                    issue("bindings", index, &[name], why);
                }
            }
            if !binding.routing_key.is_empty()
                && let Err(why) = names::check_short(&binding.routing_key)
            {
                issue("bindings", index, &["routing_key"], why);
            }
            if let Err((name, why)) = table(&binding.arguments) {
                issue("bindings", index, &["arguments", name], why.to_owned());
            }
        }
    }

    /// What is a risk in it, one sentence each.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for Queue { name, kind, arguments } in &self.queues {
            let limited = arguments.contains_key("x-max-length") || arguments.contains_key("x-max-length-bytes");
            let overflow = arguments.get("x-overflow").and_then(Value::as_str).unwrap_or("drop-head");
            if limited && overflow == "drop-head" {
                warnings.push(format!(
                    "queue `{name}` has a length limit and the overflow behaviour drop-head: once it is full, each new \
                     message removes the oldest, which was acknowledged: set `x-overflow: reject-publish`"
                ));
            }
            if arguments.contains_key("x-message-ttl") || arguments.contains_key("x-expires") {
                warnings.push(format!(
                    "queue `{name}` expires (`x-message-ttl` or `x-expires`): what no consumer has taken by then is \
                     removed, though it was acknowledged"
                ));
            }
            if *kind == QueueKind::Classic {
                warnings.push(format!(
                    "queue `{name}` is classic, on one node: what it has acknowledged is lost with that node's disk; \
                     `type: quorum` replicates it"
                ));
            }
        }
        warnings
    }

    fn has_exchange(&self, name: &str) -> bool {
        self.exchanges.iter().any(|exchange| exchange.name == name)
    }

    fn has_queue(&self, name: &str) -> bool {
        self.queues.iter().any(|queue| queue.name == name)
    }

    /// Declares everything. What is there already, with the same settings, stays as it is.
    pub(crate) async fn declare(&self, generation: &Generation) -> Result<(), SinkError> {
        let channel = generation.plain_channel().await?;
        let fault = |what: String, error: &lapin::Error| classify::undeclared(&what, error, &generation.place);
        for Exchange { name, kind, arguments } in &self.exchanges {
            let kind = match kind.as_str() {
                "direct" => ExchangeKind::Direct,
                "fanout" => ExchangeKind::Fanout,
                "headers" => ExchangeKind::Headers,
                "topic" => ExchangeKind::Topic,
                custom => ExchangeKind::Custom(custom.to_owned()),
            };
            let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
            channel
                .exchange_declare(name.as_str().into(), kind, options, settled(arguments))
                .await
                .map_err(|error| fault(format!("exchange `{name}`"), &error))?;
        }
        for Queue { name, kind, arguments } in &self.queues {
            let mut arguments = settled(arguments);
            let kind = match kind {
                QueueKind::Quorum => "quorum",
                QueueKind::Classic => "classic",
            };
            arguments.insert("x-queue-type".into(), AMQPValue::LongString(LongString::from(kind)));
            let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
            channel
                .queue_declare(name.as_str().into(), options, arguments)
                .await
                .map_err(|error| fault(format!("queue `{name}`"), &error))?;
        }
        for Binding { queue, exchange, routing_key, arguments } in &self.bindings {
            let (to, from) = (ShortString::from(queue.as_str()), ShortString::from(exchange.as_str()));
            channel
                .queue_bind(to, from, routing_key.as_str().into(), QueueBindOptions::default(), settled(arguments))
                .await
                .map_err(|error| fault(format!("the binding of queue `{queue}` to exchange `{exchange}`"), &error))?;
        }
        let _ = channel.close(200, "OK".into()).await;
        Ok(())
    }
}

/// Asks the server whether the sink's own exchange, or its queue, is there. `exchange` and `routing_key` are the
/// configured templates; what is declared over each connection need not be there yet.
pub(crate) async fn look(
    generation: &Generation,
    exchange: Option<&str>,
    routing_key: Option<&str>,
    declared: Option<&Topology>,
) -> Result<(), SinkError> {
    let fixed = |template: &&str| !names::is_template(template);
    match (exchange, routing_key) {
        (Some(exchange), _) => {
            let Some(name) = Some(exchange).filter(fixed) else { return Ok(()) };
            if declared.is_some_and(|topology| topology.has_exchange(name)) {
                return Ok(());
            }
            let channel = generation.plain_channel().await?;
            let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
            channel
                .exchange_declare(name.into(), ExchangeKind::Direct, options, FieldTable::default())
                .await
                .map_err(|error| classify::unseen(&format!("exchange `{name}`"), &error, &generation.place))?;
            let _ = channel.close(200, "OK".into()).await;
        }
        (None, Some(routing_key)) => {
            let Some(name) = Some(routing_key).filter(fixed) else { return Ok(()) };
            if declared.is_some_and(|topology| topology.has_queue(name)) {
                return Ok(());
            }
            let channel = generation.plain_channel().await?;
            let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            channel
                .queue_declare(name.into(), options, FieldTable::default())
                .await
                .map_err(|error| classify::unseen(&format!("queue `{name}`"), &error, &generation.place))?;
            let _ = channel.close(200, "OK".into()).await;
        }
        (None, None) => {}
    }
    Ok(())
}

fn check_declared(name: &str) -> Result<(), String> {
    names::check_short(name)?;
    if name.starts_with("amq.") {
        return Err(
            "names that begin with `amq.` belong to the server: what is there can be used undeclared".to_owned()
        );
    }
    Ok(())
}

fn key(name: &str) -> PathSegment {
    PathSegment::Key(name.to_owned())
}

/// Arguments as AMQP has them; the name of one that cannot be, and why.
fn table(arguments: &BTreeMap<String, Value>) -> Result<FieldTable, (&str, &'static str)> {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        if names::check_short(name).is_err() {
            return Err((name, "its name must have 1 to 255 bytes, without control characters"));
        }
        let value = match value {
            Value::Bool(value) => AMQPValue::Boolean(*value),
            Value::String(text) => AMQPValue::LongString(LongString::from(text.as_str())),
            Value::Number(number) => match number.as_i64() {
                Some(number) => AMQPValue::LongLongInt(number),
                None => return Err((name, "it must be a text, a whole number or a boolean")),
            },
            _ => return Err((name, "it must be a text, a whole number or a boolean")),
        };
        table.insert(name.as_str().into(), value);
    }
    Ok(table)
}

/// Arguments that were checked.
fn settled(arguments: &BTreeMap<String, Value>) -> FieldTable {
    table(arguments).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn topology(value: Value) -> Topology {
        walgate_sink::read_config(&value).unwrap()
    }

    #[test]
    fn queues_that_lose_what_they_acknowledged_are_warned_of() {
        let found = topology(json!({ "queues": [
            { "name": "a" },
            { "name": "b", "arguments": { "x-max-length": 10 } },
            { "name": "c", "arguments": { "x-max-length-bytes": 10, "x-overflow": "drop-head" } },
            { "name": "d", "arguments": { "x-max-length": 10, "x-overflow": "reject-publish" } },
            { "name": "e", "type": "classic" },
            { "name": "f", "arguments": { "x-message-ttl": 1000 } },
        ]}))
        .warnings();
        let about: Vec<_> = found.iter().map(|text| text.split('`').nth(1).unwrap()).collect();
        assert_eq!(about, ["b", "c", "e", "f"], "{found:#?}");
        assert!(found[0].contains("reject-publish"));
    }

    #[test]
    fn arguments_are_scalars() {
        let arguments = BTreeMap::from([
            ("x-max-length".to_owned(), json!(5)),
            ("x-overflow".to_owned(), json!("reject-publish")),
            ("x-single-active-consumer".to_owned(), json!(true)),
        ]);
        let table = table(&arguments).unwrap();
        assert_eq!(table.inner().get("x-max-length"), Some(&AMQPValue::LongLongInt(5)));
        assert_eq!(table.inner().get("x-single-active-consumer"), Some(&AMQPValue::Boolean(true)));
        for bad in [json!(1.5), json!([1]), json!({}), json!(null), json!(u64::MAX)] {
            let arguments = BTreeMap::from([("x".to_owned(), bad)]);
            assert_eq!(super::table(&arguments).unwrap_err().0, "x");
        }
    }
}
