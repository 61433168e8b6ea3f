//! walgate sink: stdout
