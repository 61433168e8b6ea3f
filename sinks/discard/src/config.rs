//! What the sink can be told.

use serde::Deserialize;

/// What stands under `discard:`: nothing.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiscardConfig {}
