//! Numbers of routes that stay the same while the configuration changes.

use std::sync::{Arc, PoisonError, RwLock};

/// The number of what no route has asked for: it has no metrics by route.
pub const NO_ROUTE: u16 = u16::MAX;

/// Routes by their labels. A label keeps its number for as long as the process lives, so that what was routed before a
/// reload is counted where it belongs. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Routes(Arc<RwLock<Vec<Arc<str>>>>);

impl Routes {
    /// The number of this label: the one that it has, or a new one.
    #[must_use]
    pub fn number(&self, label: &str) -> u16 {
        if let Some(number) = self.find(label) {
            return number;
        }
        let mut labels = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let number = u16::try_from(labels.len()).unwrap_or(u16::MAX);
        // Beyond that, routes are not told apart in metrics.
        if number < u16::MAX {
            labels.push(label.into());
        }
        number
    }

    /// The number of this label, if it has one.
    #[must_use]
    pub fn find(&self, label: &str) -> Option<u16> {
        let labels = self.0.read().unwrap_or_else(PoisonError::into_inner);
        labels.iter().position(|known| **known == *label).and_then(|number| u16::try_from(number).ok())
    }

    /// The label of this number.
    #[must_use]
    pub fn label(&self, number: u16) -> Option<Arc<str>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(usize::from(number)).cloned()
    }

    /// All labels, by their numbers.
    #[must_use]
    pub fn labels(&self) -> Vec<Arc<str>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
