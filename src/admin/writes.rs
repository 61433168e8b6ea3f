//! What changes something: only for whoever knows the token.

use std::time::Duration;

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, header},
};
use sha2::{Digest, Sha256};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use walgate_sink::Secret;

/// Time that a reload may take before whoever asked for it is told to look at the log.
const PATIENCE: Duration = Duration::from_secs(45);

/// Somebody wants the configuration to be read again.
pub struct Wish {
    /// Told what came of it.
    pub answer: Option<oneshot::Sender<Result<String, String>>>,
}

/// Who may write, and where wishes go.
#[derive(Clone)]
pub struct Writes {
    token: Option<Secret>,
    wishes: mpsc::Sender<Wish>,
}

impl Writes {
    /// Without a token nobody may.
    #[must_use]
    pub fn new(token: Option<Secret>, wishes: mpsc::Sender<Wish>) -> Self {
        Writes { token, wishes }
    }

    /// Hashes are compared, so that the time it takes says nothing of the token.
    fn allows(&self, headers: &HeaderMap) -> Result<(), (StatusCode, String)> {
        let Some(token) = &self.token else {
            let text = "`admin.token` is not set: nothing can be changed over HTTP; SIGHUP reloads\n".to_owned();
            return Err((StatusCode::FORBIDDEN, text));
        };
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        if Sha256::digest(given) == Sha256::digest(token.expose()) {
            return Ok(());
        }
        Err((StatusCode::UNAUTHORIZED, "`Authorization: Bearer` and `admin.token` are wanted\n".to_owned()))
    }
}

/// `POST /reload`: 200 with what is in force, 422 with what is wrong; then nothing has changed.
pub async fn reload(State(writes): State<Writes>, headers: HeaderMap) -> (StatusCode, String) {
    if let Err(refused) = writes.allows(&headers) {
        return refused;
    }
    let (answer, answered) = oneshot::channel();
    let asked = async {
        writes.wishes.send(Wish { answer: Some(answer) }).await.ok()?;
        answered.await.ok()
    };
    match timeout(PATIENCE, asked).await {
        Ok(Some(Ok(said))) => (StatusCode::OK, format!("{said}\n")),
        Ok(Some(Err(why))) => (StatusCode::UNPROCESSABLE_ENTITY, format!("{why}\n")),
        Ok(None) => (StatusCode::SERVICE_UNAVAILABLE, "walgate is stopping\n".to_owned()),
        Err(_) => {
            let text = "the end of the present transaction is waited for: the log will say what came of it\n";
            (StatusCode::ACCEPTED, text.to_owned())
        }
    }
}
