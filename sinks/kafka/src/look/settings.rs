//! A topic's settings, and what in them may cost events that were acknowledged.

use std::collections::HashMap;

use rdkafka::{
    ClientContext,
    admin::{AdminClient, AdminOptions, ConfigResource, OwnedResourceSpecifier, ResourceSpecifier},
};
use tokio::runtime::Handle;

use crate::topics::Facts;

/// What is looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    max_batch: Option<usize>,
    min_insync: Option<usize>,
    unclean_elections: bool,
    compacted: bool,
}

/// The settings of these topics, as far as the brokers tell them.
pub(super) fn read<C: ClientContext>(
    runtime: &Handle,
    admin: &AdminClient<C>,
    topics: &[&str],
    options: &AdminOptions,
) -> HashMap<String, Settings> {
    let asked: Vec<ResourceSpecifier<'_>> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
    let described = runtime.block_on(admin.describe_configs(&asked, options)).unwrap_or_default();
    let of_topic = |described: ConfigResource| match &described.specifier {
        OwnedResourceSpecifier::Topic(topic) => Some((topic.clone(), Settings::of(&described))),
        _ => None,
    };
    described.into_iter().flatten().filter_map(of_topic).collect()
}

impl Settings {
    fn of(described: &ConfigResource) -> Self {
        let value = |name: &str| described.get(name).and_then(|entry| entry.value.as_deref());
        Settings {
            max_batch: value("max.message.bytes").and_then(|text| text.parse().ok()),
            min_insync: value("min.insync.replicas").and_then(|text| text.parse().ok()),
            unclean_elections: value("unclean.leader.election.enable") == Some("true"),
            compacted: value("cleanup.policy").is_some_and(|policy| policy.contains("compact")),
        }
    }
}

/// What is known of a topic with so many replicas.
pub(super) fn facts(topic: &str, replicas: usize, settings: Option<&Settings>) -> Facts {
    let Some(settings) = settings else { return Facts::default() };
    let mut warnings = Vec::new();
    let mut warn = |text: String| warnings.push(text);
    match settings.min_insync {
        Some(least) if least > replicas => warn(format!(
            "topic `{topic}` asks for {least} in-sync replicas (`min.insync.replicas`) and has {replicas}: nothing that is \
             sent to it may be acknowledged"
        )),
        _ if replicas == 1 => warn(format!(
            "topic `{topic}` has one replica: what it has acknowledged is lost with that broker's disk; three replicas and \
             `min.insync.replicas=2` survive one"
        )),
        Some(1) => warn(format!(
            "topic `{topic}` has {replicas} replicas and `min.insync.replicas=1`: where the others lag, an acknowledgement \
             is that of one broker; set it to 2"
        )),
        _ => {}
    }
    if settings.unclean_elections {
        warn(format!(
            "topic `{topic}` allows unclean elections (`unclean.leader.election.enable`): a replica that lags may become \
             leader, and what it lacks is lost though it was acknowledged"
        ));
    }
    if settings.compacted {
        warn(format!(
            "topic `{topic}` is compacted: of a key only the newest record is sure to stay, and records without a key are \
             refused"
        ));
    }
    Facts { max_batch: settings.max_batch, warnings }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings(replicas: usize, settings: &Settings) -> Vec<String> {
        facts("orders", replicas, Some(settings)).warnings
    }

    #[test]
    fn what_may_lose_acknowledged_events_is_warned_of() {
        let safe = Settings { min_insync: Some(2), ..Settings::default() };
        assert_eq!(warnings(3, &safe), Vec::<String>::new());
        assert!(warnings(1, &Settings { min_insync: Some(1), ..safe.clone() })[0].contains("one replica"));
        assert!(warnings(3, &Settings { min_insync: Some(1), ..safe.clone() })[0].contains("set it to 2"));
        assert!(warnings(1, &safe)[0].contains("nothing that is sent to it may be acknowledged"));
        let risky = Settings { unclean_elections: true, compacted: true, ..safe };
        assert_eq!(warnings(3, &risky).len(), 2);
        assert_eq!(facts("orders", 1, None), Facts::default(), "nothing is known");
    }
}
