//! A token of a file, for OAUTHBEARER. Whoever issues tokens writes it anew before it expires.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rdkafka::client::OAuthToken;
use serde::Deserialize;

/// Bytes of a file at the most: no token is longer than what a header takes.
const MAX_BYTES: u64 = 64 << 10;
/// How long a token counts that does not say when it expires.
const UNSTATED: Duration = Duration::from_secs(300);

#[derive(Clone, Debug)]
pub(crate) struct TokenFile(PathBuf);

/// What is looked at in a JSON Web Token (RFC 7519, section 4.1). Its signature is for the broker to check.
#[derive(Deserialize)]
struct Claims {
    exp: Option<f64>,
    sub: Option<String>,
}

impl TokenFile {
    pub(crate) fn new(path: &Path) -> Self {
        TokenFile(path.to_owned())
    }

    /// The token that the file holds now. Errors name the file, and nothing that it holds.
    pub(crate) fn read(&self) -> Result<OAuthToken, String> {
        let path = self.0.display();
        let unusable = |why: &str| format!("the token file {path} cannot be used: {why}");
        let size = std::fs::metadata(&self.0).map_err(|error| unusable(&error.to_string()))?.len();
        if size > MAX_BYTES {
            return Err(unusable("it has more than 64 KiB"));
        }
        let text = std::fs::read_to_string(&self.0).map_err(|error| unusable(&error.to_string()))?;
        let token = text.trim();
        if token.is_empty() {
            return Err(unusable("it is empty"));
        }
        // The grammar of bearer tokens (RFC 6750, section 2.1).
        if !token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte)) {
            return Err(unusable("it holds characters that no token has"));
        }
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let claims = claims(token);
        let expires = claims.as_ref().and_then(|claims| claims.exp).filter(|seconds| (0.0..1e12).contains(seconds));
        let expires = expires.map_or(now + UNSTATED, Duration::from_secs_f64);
        if expires <= now {
            return Err(unusable("its token has expired: whoever issues tokens has to write a new one"));
        }
        Ok(OAuthToken {
            token: token.to_owned(),
            principal_name: claims.and_then(|claims| claims.sub).unwrap_or_default().replace('\0', ""),
            lifetime_ms: i64::try_from(expires.as_millis()).unwrap_or(i64::MAX),
        })
    }
}

/// `None`: it is no JSON Web Token, but some other text.
fn claims(token: &str) -> Option<Claims> {
    let body = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    serde_json::from_slice(&body).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(content: &str) -> Result<OAuthToken, String> {
        let path = std::env::temp_dir().join(format!("walgate-token-{}-{:p}", std::process::id(), content));
        std::fs::write(&path, content).unwrap();
        let token = TokenFile::new(&path).read();
        std::fs::remove_file(&path).unwrap();
        token
    }

    fn jwt(claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.", part(&json!({ "alg": "none" })), part(claims))
    }

    #[test]
    fn a_token_says_who_and_how_long() {
        let token = read(&format!("{}\n", jwt(&json!({ "sub": "walgate", "exp": 9_999_999_999_u64 })))).unwrap();
        assert_eq!((token.principal_name.as_str(), token.lifetime_ms), ("walgate", 9_999_999_999_000));
        assert!(!token.token.contains('\n'));
        let opaque = read("abc.def").unwrap();
        assert_eq!(opaque.principal_name, "");
        assert!(opaque.lifetime_ms > 0);
    }

    #[test]
    fn what_is_no_token_is_told_without_being_shown() {
        for (content, why) in [
            ("", "it is empty"),
            (" \n", "it is empty"),
            ("canary\r\nauth=Bearer x", "characters that no token has"),
            (&*jwt(&json!({ "exp": 5 })), "has expired"),
            (&*"a".repeat(65 << 10), "more than 64 KiB"),
        ] {
            let error = read(content).err().unwrap();
            assert!(error.contains(why) && !error.contains("canary"), "{error}");
        }
        let error = TokenFile::new(Path::new("/no/such/token")).read().err().unwrap();
        assert!(error.contains("/no/such/token"), "{error}");
    }
}
