//! Topics that are known to be there.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use walgate_sink::ByteString;

/// Topics that are remembered: names come from events too.
const MAX_KNOWN: usize = 1024;

/// What is known of a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Bytes of a record batch at the most (`max.message.bytes`); `None`: the brokers did not say.
    pub(crate) max_batch: Option<usize>,
    /// What is a risk in its settings, one sentence each.
    pub(crate) warnings: Vec<String>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Topics(Mutex<HashMap<ByteString, Arc<Facts>>>);

impl Topics {
    pub(crate) fn get(&self, topic: &str) -> Option<Arc<Facts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(topic).cloned()
    }

    pub(crate) fn learn(&self, topic: ByteString, facts: Facts) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(topic, Arc::new(facts));
    }

    pub(crate) fn forget(&self, topic: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(topic);
    }
}
