//! What the sink can be told.

use serde::Deserialize;

/// What stands under `stdout:`: nothing.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StdoutConfig {}
