//! Signatures as Standard Webhooks 1.0 has them: `v1,` and HMAC-SHA256 over `id.timestamp.body`, in base64.
//!
//! <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>

use std::fmt::Write as _;

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

const PREFIX: &str = "whsec_";
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Keys that may sign at once: the new one and the old ones of a rotation.
const MAX_KEYS: usize = 4;
/// Takes keys with and without the trailing `=`.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Signs requests with one key, or with several while a secret is being replaced.
pub(crate) struct Signer {
    /// Each with its key already mixed in: a signature clones it.
    keys: Vec<Hmac<Sha256>>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({} keys)", self.keys.len())
    }
}

impl Signer {
    /// Reads one secret, or several with white space between them. The error never repeats the text.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let keys: Vec<_> = text.split_ascii_whitespace().map(key).collect::<Result<_, _>>()?;
        match keys.len() {
            0 => Err(format!("it is empty: give `{PREFIX}` and 24 to 64 bytes in base64")),
            1..=MAX_KEYS => Ok(Signer { keys }),
            many => Err(format!("{many} secrets are too many: at most {MAX_KEYS} sign at once")),
        }
    }

    /// The value of `webhook-signature`: one signature for each key, with spaces between them.
    pub(crate) fn sign(&self, id: &str, timestamp: &str, body: &[u8]) -> String {
        let mut signatures = String::with_capacity(self.keys.len() * 48);
        for key in &self.keys {
            let mut mac = key.clone();
            for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
                mac.update(part);
            }
            let separator = if signatures.is_empty() { "" } else { " " };
            let _ = write!(signatures, "{separator}v1,");
            STANDARD.encode_string(mac.finalize().into_bytes(), &mut signatures);
        }
        signatures
    }
}

fn key(text: &str) -> Result<Hmac<Sha256>, String> {
    let Some(encoded) = text.strip_prefix(PREFIX) else {
        let asymmetric = text.starts_with("whsk_") || text.starts_with("whpk_");
        let why = if asymmetric { ": ed25519 keys (`whsk_`, `whpk_`) are not supported" } else { "" };
        return Err(format!("a secret begins with `{PREFIX}`{why}"));
    };
    let key = LENIENT.decode(encoded).map_err(|_| format!("what follows `{PREFIX}` is not base64"))?;
    if !KEY_BYTES.contains(&key.len()) {
        return Err(format!("it holds {} bytes: a secret has 24 to 64, in base64", key.len()));
    }
    Hmac::new_from_slice(&key).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

    #[test]
    fn the_specifications_own_example() {
        let signer = Signer::parse(SECRET).unwrap();
        let body = br#"{"email":"test@example.com","username":"test_user"}"#;
        assert_eq!(
            signer.sign("msg_27UH4WbU6Z5A5EzD8u03UvzRbpk", "1649367553", body),
            "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw="
        );
    }

    #[test]
    fn an_independent_implementation_agrees() {
        for length in [24, 32, 33, 64] {
            let secret = format!("whsec_{}", STANDARD.encode(vec![length as u8; length]));
            let theirs = standardwebhooks::Webhook::new(&secret).unwrap();
            let ours = Signer::parse(&secret).unwrap();
            for body in ["", "{}", "é😀\n", &"x".repeat(100_000)] {
                let id = "7f9c24e5-2f1b-4b1e-9d5e-000000000001";
                assert_eq!(
                    ours.sign(id, "1700000000", body.as_bytes()),
                    theirs.sign(id, 1_700_000_000, body.as_bytes()).unwrap()
                );
            }
        }
    }

    #[test]
    fn every_secret_signs_while_one_is_replaced() {
        let old = format!("whsec_{}", STANDARD.encode([7; 24]));
        let both = Signer::parse(&format!("{SECRET}\n{old}\n")).unwrap();
        let expected = [SECRET, &old].map(|secret| Signer::parse(secret).unwrap().sign("a", "1", b"{}")).join(" ");
        assert_eq!(both.sign("a", "1", b"{}"), expected);
    }

    #[test]
    fn bad_secrets_are_explained_and_not_repeated() {
        let short = format!("whsec_{}", STANDARD.encode([7; 23]));
        let long = format!("whsec_{}", STANDARD.encode([7; 65]));
        for (secret, says) in [
            ("", "empty"),
            (" \n", "empty"),
            ("hunter2-hunter2", "begins with `whsec_`"),
            ("whsk_AAAA", "ed25519"),
            ("whsec_hunter2!", "not base64"),
            ("whsec_", "0 bytes"),
            (&short, "23 bytes"),
            (&long, "65 bytes"),
            (&[SECRET; 5].join(" "), "too many"),
        ] {
            let error = Signer::parse(secret).unwrap_err();
            assert!(error.contains(says), "{secret}: {error}");
            assert!(!error.contains("hunter2") && !error.contains("C2FVs"), "{error}");
        }
        assert!(Signer::parse(&format!("whsec_{}", STANDARD.encode([7; 25]).trim_end_matches('='))).is_ok());
        assert!(!format!("{:?}", Signer::parse(SECRET).unwrap()).contains("C2FVs"));
    }
}
