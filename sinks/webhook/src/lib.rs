//! walgate sink: webhook
