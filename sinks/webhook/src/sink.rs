//! The sink itself.

use std::{
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use reqwest::{
    Client, Request, Response,
    header::{LOCATION, RETRY_AFTER},
};
use rustls::ClientConfig;
use tokio::time::{Instant, timeout_at};
use walgate_sink::{
    Batch, Capabilities, ConfigIssue, Delivery, DeliveryReport, Escape, Failure, FailureKind, Outcome, Secret, Sink,
    SinkContext, SinkError, SinkFactory, TargetField, text,
    tls::{self, Spoken, Terms},
};

use crate::{
    Mode, WebhookConfig,
    batch::{self, Group, MAX_BATCH, Parts},
    classify::{self, Answer},
    client,
    guard::{self, Guard, Guarded, System},
    request::{self, Endpoint, Requests},
};

/// Bytes of an answer that are read at the most; then the connection is dropped.
const MAX_ANSWER: usize = 64 << 10;
/// Requests that one batch has under way at once, where its events go to several URLs.
const GROUPS_AT_ONCE: usize = 8;
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
    const FILES: &'static [&'static str] = &["ca_file", "cert_file", "key_file"];

    type Config = WebhookConfig;
    type Sink = WebhookSink;

    fn validate(config: &WebhookConfig) -> Vec<ConfigIssue> {
        config.settings().err().unwrap_or_default()
    }

    fn check_target(_: &str, path: &str) -> Result<(), String> {
        request::check_path(path).map_err(|why| format!("it {why}"))
    }

    async fn connect(config: &WebhookConfig, context: SinkContext) -> Result<WebhookSink, SinkError> {
        WebhookSink::new(config, &context)
    }
}

/// Delivers events as signed HTTP requests, each in its own or several in one.
pub struct WebhookSink {
    /// `None` once the sink is closed. Its connections close with it.
    clients: RwLock<Option<Clients>>,
    tls: Arc<ClientConfig>,
    /// `None`: the URL's own text leads inside, and is meant.
    guard: Option<Guard>,
    used: Used,
    requests: Requests,
    mode: Mode,
    secrets: Vec<Secret>,
    timeout: Duration,
}

/// Two, since connections are kept: one that was made without the guard must not serve a request that needs it.
#[derive(Clone)]
struct Clients {
    /// For URLs that are the same for every event: they may lead wherever the configuration says.
    open: Client,
    /// For paths that come from routes and events.
    guarded: Client,
}

impl Clients {
    fn of(&self, endpoint: &Endpoint) -> &Client {
        if endpoint.fixed { &self.open } else { &self.guarded }
    }
}

/// What kinds of URL the deliveries had so far: a probe takes the way that they take.
struct Used {
    /// The same for every event.
    fixed: AtomicBool,
    /// With a path from routes or events.
    own: AtomicBool,
}

impl Used {
    fn note(&self, endpoint: &Endpoint) {
        if endpoint.fixed { &self.fixed } else { &self.own }.store(true, Ordering::Relaxed);
    }

    fn is_guarded(&self) -> bool {
        self.own.load(Ordering::Relaxed) && !self.fixed.load(Ordering::Relaxed)
    }
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
        let spoken = if settings.url.scheme() == "https" { Spoken::Always } else { Spoken::Never };
        let mut tls = tls::client_config(&config.tls_settings(), spoken, Terms::ENDPOINT)?;
        let protocols: &[&[u8]] = if config.http2 { &[b"h2", b"http/1.1"] } else { &[b"http/1.1"] };
        tls.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let client = |guard: Option<Guarded<System>>| client::client(tls.clone(), config.http2, context.timeout, guard);
        let open = client(None)?;
        let guard = (!guard::is_literally_internal(&settings.url)).then(|| settings.guard.clone());
        let guarded = match guard.clone() {
            None => open.clone(),
            Some(guard) => client(Some(Guarded { guard, lookup: System }))?,
        };
        let secrets = settings.secrets.clone();
        let requests = Requests::new(settings, config.path.as_deref(), config.max_body.map(|size| size.0));
        // A path of the configuration that events fill in is known before the first of them.
        let own = AtomicBool::new(config.path.as_deref().is_some_and(request::is_template));
        Ok(WebhookSink {
            clients: RwLock::new(Some(Clients { open, guarded })),
            tls: Arc::new(tls),
            guard,
            used: Used { fixed: AtomicBool::new(false), own },
            requests,
            mode: config.mode,
            secrets,
            timeout: context.timeout,
        })
    }

    fn clients(&self) -> Option<Clients> {
        self.clients.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One event in one request.
    async fn single(&self, clients: &Clients, delivery: &Delivery, index: usize, report: &DeliveryReport) {
        let deadline = Instant::now() + self.timeout;
        let (request, endpoint) = match self.requests.build(delivery, seconds()) {
            Ok(built) => built,
            Err(rejection) => return report.rejected(index, rejection),
        };
        let (outcome, rest) = self.exchange(clients, request, &endpoint, deadline).await;
        report.mark(index, outcome);
        read_rest(rest).await;
    }

    /// Several events for one URL.
    async fn group(&self, clients: &Clients, batch: &Batch, group: Group, report: &DeliveryReport) {
        let Group { endpoint, indexes } = group;
        let mut parts = Parts::new(indexes, self.requests.max_part(), self.requests.envelope());
        // A request has the time of an attempt, and so has the search for a culprit as a whole.
        let mut search_until = None;
        while let Some(part) = parts.next(batch) {
            let size = if part.indexes.len() == 1 { self.requests.check_size("event", part.len()) } else { Ok(()) };
            let request = size.and_then(|()| self.requests.of_part(batch, &endpoint, &part, seconds()));
            let request = match request {
                Ok(request) => request,
                Err(rejection) => {
                    mark_all(report, &part.indexes, &Outcome::Rejected(rejection));
                    continue;
                }
            };
            let deadline = Instant::now() + self.timeout;
            let (outcome, rest) = self.exchange(clients, request, &endpoint, deadline).await;
            if let Outcome::Rejected(rejection) = &outcome
                && batch::is_about_content(rejection.reason)
                && parts.halve(&part)
            {
                let until = *search_until.get_or_insert(deadline);
                if Instant::now() >= until {
                    let failure =
                        Failure::new(FailureKind::Unavailable, format!("one of several: {}", rejection.message));
                    return mark_all(report, &parts.rest().collect::<Vec<_>>(), &Outcome::Failed(failure));
                }
                read_rest(rest).await;
                continue;
            }
            mark_all(report, &part.indexes, &outcome);
            if matches!(outcome, Outcome::Failed(_)) {
                // What ails the endpoint ails it for the rest as well.
                return mark_all(report, &parts.rest().collect::<Vec<_>>(), &outcome);
            }
            read_rest(rest).await;
        }
    }

    /// Sends a request, and says what its answer means. With a success comes what is left of the answer.
    async fn exchange(
        &self,
        clients: &Clients,
        request: Request,
        endpoint: &Endpoint,
        deadline: Instant,
    ) -> (Outcome, Option<Response>) {
        self.used.note(endpoint);
        let mut response = match timeout_at(deadline, clients.of(endpoint).execute(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return (classify::broken(&error, &endpoint.shown, &self.secrets), None),
            Err(_) => return (classify::timed_out(&endpoint.shown, self.timeout), None),
        };
        if response.status().is_success() {
            // The status line is the receiver's word.
            return (Outcome::Acknowledged { duplicate: false }, Some(response));
        }
        // Only a refusal's text is shown: that of a server in trouble says nothing of the event.
        let keep = if response.status().is_client_error() { MAX_ANSWER } else { 0 };
        let body = read_answer(&mut response, deadline.min(Instant::now() + ANSWER_TIME), keep).await;
        let said = text::excerpt(&body, &self.secrets);
        (self.refusal(&response, endpoint, &said), None)
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

/// Reads what follows a success, for nothing but to keep the connection.
async fn read_rest(rest: Option<Response>) {
    if let Some(mut response) = rest {
        read_answer(&mut response, Instant::now() + ANSWER_TIME, 0).await;
    }
}

fn mark_all(report: &DeliveryReport, indexes: &[usize], outcome: &Outcome) {
    for index in indexes {
        report.mark(*index, outcome.clone());
    }
}

/// Since 1970. A clock before that gives a timestamp that receivers refuse: loud enough.
fn seconds() -> u64 {
    UNIX_EPOCH.elapsed().unwrap_or_default().as_secs()
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
        let Some(clients) = self.clients() else {
            report.fail_rest(&Failure::new(FailureKind::Connection, "the sink is closed"));
            return;
        };
        if self.mode == Mode::Single {
            for (index, delivery) in batch.iter().enumerate() {
                self.single(&clients, delivery, index, report).await;
            }
            return;
        }
        let mut groups = self.requests.groups(batch, |index, rejection| report.rejected(index, rejection)).into_iter();
        let mut under_way = FuturesUnordered::new();
        loop {
            while under_way.len() < GROUPS_AT_ONCE
                && let Some(group) = groups.next()
            {
                under_way.push(self.group(&clients, batch, group, report));
            }
            if under_way.next().await.is_none() {
                return;
            }
        }
    }

    async fn check(&self) -> Result<(), SinkError> {
        if self.clients().is_none() {
            return Err(SinkError::fatal("the sink is closed"));
        }
        let guard = self.guard.as_ref().filter(|_| self.used.is_guarded());
        client::probe(self.requests.base(), Arc::clone(&self.tls), self.timeout, guard).await
    }

    async fn close(&self) {
        self.clients.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn capabilities(&self) -> Capabilities {
        match self.mode {
            Mode::Single => Capabilities::default().with_max_batch(1).with_concurrency(16),
            Mode::Batch => Capabilities::default()
                .with_max_batch(MAX_BATCH)
                .with_max_batch_bytes(self.requests.max_part())
                .with_concurrency(4),
        }
    }
}

#[cfg(test)]
mod tests;
