//! Topics that were looked for.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::error::RDKafkaErrorCode;
use walgate_sink::ByteString;

/// Topics that are remembered: names come from events too.
const MAX_KNOWN: usize = 1024;
/// How long a topic that is not there is not looked for again: many events for it would have the others wait.
const ABSENT: Duration = Duration::from_secs(5);

/// What is known of a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Bytes of a record batch at the most (`max.message.bytes`); `None`: the brokers did not say.
    pub(crate) max_batch: Option<usize>,
    /// What is a risk in its settings, one sentence each.
    pub(crate) warnings: Vec<String>,
}

/// What came of looking for a topic the last time.
#[derive(Clone, Debug)]
pub(crate) enum Known {
    There(Arc<Facts>),
    /// Why not.
    Absent(RDKafkaErrorCode),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Topics(Mutex<HashMap<ByteString, (Known, Instant)>>);

impl Topics {
    /// What is known; `None`: it is to be looked for.
    pub(crate) fn get(&self, topic: &str, now: Instant) -> Option<Known> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, since) = known.get(topic)?;
        let stale = matches!(known, Known::Absent(_)) && now.saturating_duration_since(*since) >= ABSENT;
        (!stale).then(|| known.clone())
    }

    pub(crate) fn learn(&self, topic: ByteString, what: Known, now: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KNOWN && !known.contains_key(&topic) {
            known.clear();
        }
        known.insert(topic, (what, now));
    }

    pub(crate) fn forget(&self, topic: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(topic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_is_looked_for_again_after_a_while_and_what_is_there_is_not() {
        let (topics, start) = (Topics::default(), Instant::now());
        let there = Known::There(Arc::new(Facts::default()));
        topics.learn("a".into(), there.clone(), start);
        topics.learn("b".into(), Known::Absent(RDKafkaErrorCode::UnknownTopic), start);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(matches!(topics.get("b", at(4)), Some(Known::Absent(_))));
        assert!(topics.get("b", at(5)).is_none());
        assert!(matches!(topics.get("a", at(100_000)), Some(Known::There(_))));
        topics.forget("a");
        assert!(topics.get("a", at(0)).is_none());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (topics, now) = (Topics::default(), Instant::now());
        for number in 0..3 * MAX_KNOWN {
            topics.learn(format!("t{number}").into(), Known::Absent(RDKafkaErrorCode::UnknownTopic), now);
        }
        assert!(topics.0.lock().unwrap().len() <= MAX_KNOWN);
    }
}
