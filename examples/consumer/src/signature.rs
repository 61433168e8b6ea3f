//! Standard Webhooks 1.0: `webhook-signature` is `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Seconds by which a timestamp may differ from this machine's clock.
const TOLERANCE: u64 = 5 * 60;

/// A signing secret: the key behind `whsec_`.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

/// The text is not `whsec_` and base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretError;

impl std::fmt::Display for SecretError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a webhook secret is whsec_ followed by base64")
    }
}

impl std::error::Error for SecretError {}

impl std::str::FromStr for Secret {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        let key = text.strip_prefix("whsec_").ok_or(SecretError)?;
        BASE64.decode(key).map(Secret).map_err(|_| SecretError)
    }
}

impl Secret {
    /// Whether one of the signatures (several stand there while a secret is rotated) is ours, and the message fresh.
    #[must_use]
    pub fn verify(&self, id: &str, timestamp: &str, body: &[u8], signatures: &str) -> bool {
        let fresh = timestamp.parse::<u64>().is_ok_and(|at| at.abs_diff(now()) <= TOLERANCE);
        fresh
            && signatures.split(' ').filter_map(|signature| signature.strip_prefix("v1,")).any(|signature| {
                let Ok(signature) = BASE64.decode(signature) else { return false };
                let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else { return false };
                for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
                    mac.update(part);
                }
                mac.verify_slice(&signature).is_ok() // Takes the same time wherever the first difference is.
            })
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
