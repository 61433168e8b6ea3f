//! The walgate binary.

fn main() {}
