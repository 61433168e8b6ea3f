//! example: orders
