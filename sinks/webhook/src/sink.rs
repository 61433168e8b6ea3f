//! The sink itself.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use reqwest::{
    Client, Response,
    header::{LOCATION, RETRY_AFTER},
};
use rustls::ClientConfig;
use tokio::time::{Instant, timeout_at};
use walgate_sink::{
    Batch, Capabilities, ConfigIssue, Delivery, DeliveryReport, Escape, Failure, FailureKind, Outcome, Secret, Sink,
    SinkContext, SinkError, SinkFactory, TargetField,
};

use crate::{
    WebhookConfig,
    classify::{self, Answer},
    client,
    request::{Endpoint, Requests},
    text, tls,
};

/// Bytes of an answer that are read at the most; then the connection is dropped.
const MAX_ANSWER: usize = 64 << 10;
/// How long the rest of an answer is waited for once its status is known.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// Makes [`WebhookSink`]s.
#[derive(Debug)]
pub struct WebhookFactory;

impl SinkFactory for WebhookFactory {
    const KIND: &'static str = "webhook";
    const TARGET: &'static [TargetField] =
        &[TargetField { name: "path", required: false, ordering_key: false, escape: Escape::UrlPath }];
    const SECRETS: &'static [&'static str] = &["secret", "bearer_token", "basic_auth.password"];

    type Config = WebhookConfig;
    type Sink = WebhookSink;

    fn validate(config: &WebhookConfig) -> Vec<ConfigIssue> {
        config.settings().err().unwrap_or_default()
    }

    async fn connect(config: &WebhookConfig, context: SinkContext) -> Result<WebhookSink, SinkError> {
        WebhookSink::new(config, &context)
    }
}

/// Delivers each event as one signed HTTP request.
pub struct WebhookSink {
    /// `None` once the sink is closed. Its connections close with it.
    client: RwLock<Option<Client>>,
    tls: Arc<ClientConfig>,
    requests: Requests,
    secrets: Vec<Secret>,
    timeout: Duration,
}

impl fmt::Debug for WebhookSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookSink").field("requests", &self.requests).finish_non_exhaustive()
    }
}

impl WebhookSink {
    fn new(config: &WebhookConfig, context: &SinkContext) -> Result<Self, SinkError> {
        let settings = config.settings().map_err(|issues| {
            let issues: Vec<String> = issues.iter().map(ToString::to_string).collect();
            SinkError::fatal(format!("the configuration of sink {} is wrong: {}", context.name, issues.join("; ")))
        })?;
        if config.insecure_skip_verify {
            tracing::warn!(sink = %context.name, "insecure_skip_verify is set: the endpoint's certificate is not checked");
        }
        if config.unsigned {
            tracing::warn!(sink = %context.name, "requests are not signed: their receiver cannot tell them from forged ones");
        }
        let tls = tls::client_config(config, settings.url.scheme() == "https")?;
        let client = client::client(tls.clone(), config.http2, context.timeout)?;
        let secrets = settings.secrets.clone();
        let requests = Requests::new(settings, config.path.as_deref(), config.max_body.map(|size| size.0));
        let client = RwLock::new(Some(client));
        Ok(WebhookSink { client, tls: Arc::new(tls), requests, secrets, timeout: context.timeout })
    }

    fn client(&self) -> Option<Client> {
        self.client.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn attempt(&self, client: &Client, delivery: &Delivery, index: usize, report: &DeliveryReport) {
        let deadline = Instant::now() + self.timeout;
        // A clock before 1970 gives a timestamp that receivers refuse: loud enough.
        let now = UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        let (request, endpoint) = match self.requests.build(delivery, now) {
            Ok(built) => built,
            Err(rejection) => return report.rejected(index, rejection),
        };
        let mut response = match timeout_at(deadline, client.execute(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return report.mark(index, classify::broken(&error, &endpoint.shown, &self.secrets)),
            Err(_) => return report.mark(index, classify::timed_out(&endpoint.shown, self.timeout)),
        };
        let deadline = deadline.min(Instant::now() + ANSWER_TIME);
        if response.status().is_success() {
            // The status line is the receiver's word. What follows is read only to keep the connection.
            report.acknowledged(index);
            read_answer(&mut response, deadline, 0).await;
            return;
        }
        // Only a refusal's text is shown: that of a server in trouble says nothing of the event.
        let keep = if response.status().is_client_error() { MAX_ANSWER } else { 0 };
        let body = read_answer(&mut response, deadline, keep).await;
        let said = text::excerpt(&body, &self.secrets);
        report.mark(index, self.refusal(&response, &endpoint, &said));
    }

    fn refusal(&self, response: &Response, endpoint: &Endpoint, said: &str) -> Outcome {
        let headers = response.headers();
        let retry_after = headers.get(RETRY_AFTER).and_then(|value| classify::retry_after(value, SystemTime::now()));
        let location = headers.get(LOCATION).and_then(|value| classify::location(value, &endpoint.url, &self.secrets));
        let status = response.status();
        let answer = Answer { shown: &endpoint.shown, fixed: endpoint.fixed, status, retry_after, location };
        classify::refusal(&answer, said)
    }
}

/// Reads the body up to its end, [`MAX_ANSWER`] bytes or the deadline, and gives the first `keep` bytes of it.
async fn read_answer(response: &mut Response, deadline: Instant, keep: usize) -> Vec<u8> {
    let (mut kept, mut seen) = (Vec::new(), 0);
    while let Ok(Ok(Some(chunk))) = timeout_at(deadline, response.chunk()).await {
        let room = keep.saturating_sub(kept.len()).min(chunk.len());
        kept.extend_from_slice(chunk.get(..room).unwrap_or_default());
        seen += chunk.len();
        if seen > MAX_ANSWER {
            break;
        }
    }
    kept
}

impl Sink for WebhookSink {
    async fn deliver(&self, batch: &Batch, report: &DeliveryReport) {
        let Some(client) = self.client() else {
            report.fail_rest(&Failure::new(FailureKind::Connection, "the sink is closed"));
            return;
        };
        for (index, delivery) in batch.iter().enumerate() {
            self.attempt(&client, delivery, index, report).await;
        }
    }

    async fn check(&self) -> Result<(), SinkError> {
        if self.client().is_none() {
            return Err(SinkError::fatal("the sink is closed"));
        }
        client::probe(self.requests.base(), Arc::clone(&self.tls), self.timeout).await
    }

    async fn close(&self) {
        self.client.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default().with_max_batch(1).with_concurrency(16)
    }
}

#[cfg(test)]
mod tests;
