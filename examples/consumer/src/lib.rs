//! example: consumer
