//! walgate sink: discard
